//! Progress of long work on standard error: a bar that is redrawn on a terminal,
//! one line per [`LINE_INTERVAL`] elsewhere, nothing for work that is quick and
//! nothing under `--json`.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use super::human;

/// How often a line is printed where there is no terminal.
pub(crate) const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// How often the bar is redrawn.
const BAR_INTERVAL: Duration = Duration::from_millis(100);
/// Work shorter than this shows no bar.
const QUIET: Duration = Duration::from_millis(500);
const BAR_CELLS: u64 = 24;

/// Counts bytes (or other units) of one piece of work.
#[derive(Debug)]
pub(crate) struct Progress {
    title: String,
    total: u64,
    done: u64,
    started: Instant,
    drawn: Option<Instant>,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Bar,
    Lines,
    Nowhere,
}

impl Progress {
    pub(super) fn new(title: &str, total: u64, terminal: bool, json: bool) -> Self {
        let place = match (json, terminal) {
            (true, _) => Place::Nowhere,
            (false, true) => Place::Bar,
            (false, false) => Place::Lines,
        };
        Self {
            title: title.to_owned(),
            total,
            done: 0,
            started: Instant::now(),
            drawn: None,
            place,
        }
    }

    /// Adds to what is done and shows it when it is time.
    pub(crate) fn add(&mut self, count: u64) {
        self.done += count;
        let now = Instant::now();
        let due = match (self.place, self.drawn) {
            (Place::Nowhere, _) => false,
            (Place::Bar, None) => now - self.started >= QUIET,
            (Place::Bar, Some(drawn)) => now - drawn >= BAR_INTERVAL,
            (Place::Lines, drawn) => now - drawn.unwrap_or(self.started) >= LINE_INTERVAL,
        };
        if due {
            self.drawn = Some(now);
            let mut stderr = io::stderr().lock();
            drop(match self.place {
                Place::Bar => write!(stderr, "\r\u{1b}[K{}", self.bar()),
                _ => writeln!(stderr, "{}", self.text()),
            });
            drop(stderr.flush());
        }
    }

    fn bar(&self) -> String {
        let full = (self.done.min(self.total) * BAR_CELLS)
            .checked_div(self.total)
            .unwrap_or(BAR_CELLS);
        let cells: String = (0..BAR_CELLS)
            .map(|cell| if cell < full { '█' } else { '░' })
            .collect();
        format!("{cells} {}", self.text())
    }

    fn text(&self) -> String {
        format!(
            "{}: {} of {}",
            self.title,
            human::bytes(self.done),
            human::bytes(self.total)
        )
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.place == Place::Bar && self.drawn.is_some() {
            drop(write!(io::stderr().lock(), "\r\u{1b}[K"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_work_draws_nothing_and_the_bar_fills() {
        let mut progress = Progress::new("upload", 2048, true, false);
        progress.add(1024);
        assert!(progress.drawn.is_none());
        assert_eq!(progress.text(), "upload: 1.0 KiB of 2.0 KiB");
        assert_eq!(progress.bar().matches('█').count(), 12);
    }
}
