//! The only place of `ml` that prints.
//!
//! Data go to standard output, talk goes to standard error: progress, hints and
//! errors never stand between the lines that a script reads. Colour appears only
//! on a terminal, and not with `NO_COLOR` or `TERM=dumb`.

mod human;
mod progress;
mod table;

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::error::{Failure, Outcome};

pub(crate) use human::{bytes, counted, date_time, duration_us, parse_age_us};
pub(crate) use progress::{Progress, Ticker, bar};
pub(crate) use table::{Table, printable};

/// Where and how this process prints.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// `--json`: data are JSON, one value a line; errors too.
    pub(crate) json: bool,
    /// Standard output is a terminal.
    pub(crate) stdout_terminal: bool,
    /// Standard error is a terminal.
    pub(crate) stderr_terminal: bool,
    color: bool,
}

/// How a piece of text stands out on a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As it is.
    Plain,
    /// A heading.
    Bold,
    /// Of less weight.
    Dim,
    /// Done.
    Good,
    /// Going on.
    Busy,
    /// Look here.
    Warn,
    /// Failed.
    Bad,
}

impl Output {
    /// Looks at the terminal and the environment.
    pub(crate) fn new(json: bool) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            json,
            stdout_terminal: io::stdout().is_terminal(),
            stderr_terminal: io::stderr().is_terminal(),
            color: !set("NO_COLOR") && !dumb,
        }
    }

    /// Prints a line of data.
    pub(crate) fn line(&self, text: impl Display) -> Outcome {
        written(writeln!(io::stdout().lock(), "{text}"))
    }

    /// Prints data as they are.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Outcome {
        let mut stdout = io::stdout().lock();
        written(stdout.write_all(bytes).and_then(|()| stdout.flush()))
    }

    /// Prints a job's standard error as it is.
    pub(crate) fn raw_error(&self, bytes: &[u8]) -> Outcome {
        written(io::stderr().lock().write_all(bytes))
    }

    /// Prints one JSON value in one line and flushes it.
    pub(crate) fn json(&self, value: &impl Serialize) -> Outcome {
        let mut line = serde_json::to_vec(value).map_err(|error| {
            Failure::failed("internal", format!("write the result as JSON: {error}"), "")
        })?;
        line.push(b'\n');
        self.raw(&line)
    }

    /// Prints an aligned table.
    pub(crate) fn table(&self, table: &Table) -> Outcome {
        let width = self.stdout_terminal.then(terminal_columns).flatten();
        let text = table.render(width, |text, tone| self.paint(text, tone));
        written(io::stdout().lock().write_all(text.as_bytes()))
    }

    /// Says something to the person. Not data; programs are told nothing.
    pub(crate) fn say(&self, text: impl Display) {
        if self.json {
            return;
        }
        drop(writeln!(io::stderr().lock(), "{text}"));
    }

    /// Asks a person at a terminal; the answer goes on in the same line.
    pub(crate) fn ask(&self, text: impl Display) {
        let mut stderr = io::stderr().lock();
        drop(write!(stderr, "{text}").and_then(|()| stderr.flush()));
    }

    /// Says what could be typed next; only to a person at a terminal.
    pub(crate) fn hint(&self, text: impl Display) {
        if self.stderr_terminal && !self.json {
            let text = self.paint_error(&format!("hint: {text}"), Tone::Dim);
            drop(writeln!(io::stderr().lock(), "{text}"));
        }
    }

    /// Warns a person. Programs get an error or none.
    pub(crate) fn warn(&self, text: impl Display) {
        if self.json {
            return;
        }
        let word = self.paint_error("warning:", Tone::Warn);
        drop(writeln!(io::stderr().lock(), "{word} {text}"));
    }

    /// Prints an error: one line of JSON, or the text and its hint. Where a job's
    /// exit code was asked for, programs get the JSON line in any case.
    pub(crate) fn error(&self, failure: &Failure) {
        let mut stderr = io::stderr().lock();
        if !self.json {
            let word = self.paint_error("error:", Tone::Bad);
            drop(writeln!(stderr, "{word} {}", failure.message));
            // Of several reasons each stands with its own hint already.
            if !failure.hint.is_empty() && !failure.message.contains(&failure.hint) {
                drop(writeln!(stderr, "  hint: {}", failure.hint));
            }
        }
        let for_programs = failure.exit == crate::error::Exit::Ours && !self.stderr_terminal;
        if self.json || for_programs {
            drop(writeln!(stderr, "{}", failure.to_json()));
        }
    }

    /// Text for standard output in a tone.
    pub(crate) fn paint(&self, text: &str, tone: Tone) -> String {
        painted(text, tone, self.color && self.stdout_terminal)
    }

    /// Text for standard error in a tone.
    pub(crate) fn paint_error(&self, text: &str, tone: Tone) -> String {
        painted(text, tone, self.color && self.stderr_terminal)
    }

    /// Progress of long work on standard error.
    pub(crate) fn progress(&self, title: &str, total: u64) -> Progress {
        Progress::new(title, total, self.ticker())
    }

    /// Says on standard error how things stand, from time to time.
    pub(crate) fn ticker(&self) -> Ticker {
        Ticker::new(self.stderr_terminal, self.json)
    }

    /// The same output without talk, as under `--json`.
    pub(crate) fn silent(&self) -> Self {
        Self {
            json: true,
            ..*self
        }
    }
}

/// Columns of the terminal on standard output, if there is one.
pub(crate) fn terminal_columns() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// Rows of the terminal on standard output, if there is one.
pub(crate) fn terminal_rows() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_row > 0).then_some(usize::from(size.ws_row))
}

fn painted(text: &str, tone: Tone, color: bool) -> String {
    let code = match tone {
        Tone::Plain => return text.to_owned(),
        Tone::Bold => "1",
        Tone::Dim => "2",
        Tone::Good => "32",
        Tone::Busy => "36",
        Tone::Warn => "33",
        Tone::Bad => "31",
    };
    if color {
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    } else {
        text.to_owned()
    }
}

fn written(result: io::Result<()>) -> Outcome {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::output_closed(),
        _ => Failure::failed(
            "output",
            format!("write to standard output: {}", crate::error::plain(&error)),
            "",
        ),
    })
}
