//! Progress of long work on standard error: a line that is redrawn on a terminal,
//! one line per [`LINE_INTERVAL`] elsewhere, nothing for work that is quick and
//! nothing under `--json`.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use super::human;

/// How often a line is printed where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// How often the line of a terminal is redrawn.
const REDRAW_INTERVAL: Duration = Duration::from_millis(100);
/// Work shorter than this shows nothing on a terminal.
const QUIET: Duration = Duration::from_millis(500);
const BAR_CELLS: u64 = 24;
const CLEAR_LINE: &str = "\r\u{1b}[K";

/// Says from time to time how things stand.
#[derive(Debug)]
pub(crate) struct Ticker {
    place: Place,
    started: Instant,
    shown: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Terminal,
    Lines,
    Nowhere,
}

impl Ticker {
    pub(super) fn new(terminal: bool, silent: bool) -> Self {
        let place = match (silent, terminal) {
            (true, _) => Place::Nowhere,
            (false, true) => Place::Terminal,
            (false, false) => Place::Lines,
        };
        Self {
            place,
            started: Instant::now(),
            shown: None,
        }
    }

    /// Shows the text when it is time.
    pub(crate) fn tick(&mut self, text: impl FnOnce(&Self) -> String) {
        if !self.is_due(Instant::now()) {
            return;
        }
        self.shown = Some(Instant::now());
        let text = text(self);
        let mut stderr = io::stderr().lock();
        drop(match self.place {
            Place::Terminal => write!(stderr, "{CLEAR_LINE}{text}"),
            Place::Lines | Place::Nowhere => writeln!(stderr, "{text}"),
        });
        drop(stderr.flush());
    }

    fn is_due(&self, now: Instant) -> bool {
        match (self.place, self.shown) {
            (Place::Nowhere, _) => false,
            (Place::Terminal, None) => now - self.started >= QUIET,
            (Place::Terminal, Some(shown)) => now - shown >= REDRAW_INTERVAL,
            (Place::Lines, shown) => now - shown.unwrap_or(self.started) >= LINE_INTERVAL,
        }
    }

    /// Time since the work began, for people.
    pub(crate) fn elapsed(&self) -> String {
        let us = self.started.elapsed().as_micros();
        human::duration_us(i64::try_from(us).unwrap_or(i64::MAX))
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        if self.place == Place::Terminal && self.shown.is_some() {
            drop(write!(io::stderr().lock(), "{CLEAR_LINE}"));
        }
    }
}

/// Counts the bytes of one piece of work.
#[derive(Debug)]
pub(crate) struct Progress {
    title: String,
    total: u64,
    done: u64,
    ticker: Ticker,
}

impl Progress {
    pub(super) fn new(title: &str, total: u64, ticker: Ticker) -> Self {
        Self {
            title: title.to_owned(),
            total,
            done: 0,
            ticker,
        }
    }

    /// Adds to what is done and shows it when it is time.
    pub(crate) fn add(&mut self, count: u64) {
        self.done += count;
        let (title, done, total) = (&self.title, self.done, self.total);
        self.ticker.tick(|ticker| {
            let bar = match ticker.place {
                Place::Terminal => bar(done, total) + " ",
                Place::Lines | Place::Nowhere => String::new(),
            };
            let (done, total) = (human::bytes(done), human::bytes(total));
            format!("{bar}{title}: {done} of {total}, {}", ticker.elapsed())
        });
    }
}

/// A bar of [`BAR_CELLS`] cells.
pub(crate) fn bar(done: u64, total: u64) -> String {
    let full = (u128::from(done.min(total)) * u128::from(BAR_CELLS))
        .checked_div(u128::from(total))
        .unwrap_or(u128::from(BAR_CELLS));
    let cells = 0..u128::from(BAR_CELLS);
    cells
        .map(|cell| if cell < full { '█' } else { '░' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_work_shows_nothing_and_long_work_not_too_often() {
        let ticker = Ticker::new(true, false);
        assert!(!ticker.is_due(ticker.started));
        assert!(ticker.is_due(ticker.started + QUIET));
        let mut lines = Ticker::new(false, false);
        assert!(!lines.is_due(lines.started + LINE_INTERVAL - Duration::from_millis(1)));
        assert!(lines.is_due(lines.started + LINE_INTERVAL));
        lines.shown = Some(lines.started + LINE_INTERVAL);
        assert!(!lines.is_due(lines.started + LINE_INTERVAL * 3 / 2));
        assert!(lines.is_due(lines.started + LINE_INTERVAL * 2));
        let silent = Ticker::new(true, true);
        assert!(!silent.is_due(silent.started + LINE_INTERVAL));
    }

    #[test]
    fn the_bar_fills() {
        for (done, total, full) in [
            (0, 10, 0),
            (5, 10, 12),
            (10, 10, 24),
            (11, 10, 24),
            (0, 0, 24),
        ] {
            assert_eq!(
                bar(done, total).matches('█').count(),
                full,
                "{done} of {total}"
            );
            assert_eq!(bar(done, total).chars().count(), 24);
        }
        assert_eq!(bar(u64::MAX, u64::MAX).matches('█').count(), 24);
    }
}
