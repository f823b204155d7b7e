//! The file in the attempt's folder in which every acknowledged change stands, one
//! JSON object a line, in order.
//!
//! A change is written by one call, under the lock of the world, and flushed to the
//! disk before it is acknowledged. Calls that come together share a flush: whoever
//! finds none under way does it for all that is written by then.
//!
//! ```text
//!   call ─ write ─┐                       ┌─ answer
//!   call ─ write ─┼─► one fdatasync of ───┼─ answer
//!   call ─ write ─┘    all that is there  └─ answer
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};

use super::record::{Entry, Point, metric_prefix};

/// Its name in the attempt's folder.
pub(crate) const SPOOL_FILE: &str = "tracking.jsonl";
/// Most bytes of one attempt's spool, which is what is read of it for metrics.
pub(crate) const SPOOL_BYTES_MAX: u64 = 1 << 30;
/// Longest line: a request's body and what surrounds its parts.
pub(crate) const LINE_BYTES_MAX: u64 = 16 << 20;

/// What is read at once.
const READ_BYTES: usize = 64 << 10;

/// Writes entries; one owner.
pub(crate) struct Spool {
    file: File,
    length: u64,
}

/// Why an entry is not kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpoolError {
    #[error(
        "what this run has logged takes {0} bytes, at most {SPOOL_BYTES_MAX} are kept\n\
         hint: log fewer points, or write them to files of the output directory"
    )]
    Full(u64),
    #[error("write what was logged: {0}")]
    Io(#[from] io::Error),
}

impl Spool {
    /// Opens the file, hands what it holds to `each`, and cuts off what a torn write
    /// has left at its end.
    pub(crate) fn open(path: &Path, mut each: impl FnMut(Entry)) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)?;
        file.seek(SeekFrom::Start(0))?;
        let read = read_lines(&file, |line| {
            // A line of another version or a damaged one: the rest still counts.
            if let Ok(entry) = serde_json::from_slice(line) {
                each(entry);
            }
            ControlFlow::Continue(())
        })?;
        let (Lines::Ended(length) | Lines::Broken(length)) = read;
        file.set_len(length)?;
        Ok(Self { file, length })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Another handle, for those who flush.
    pub(crate) fn flusher(&self) -> io::Result<Flusher> {
        Ok(Flusher {
            file: self.file.try_clone()?,
            progress: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Writes entries, all or none; returns the length up to which must be flushed.
    pub(crate) fn append(&mut self, entries: &[Entry]) -> Result<u64, SpoolError> {
        if entries.is_empty() {
            return Ok(self.length);
        }
        let mut lines = Vec::with_capacity(entries.len() * 128);
        for entry in entries {
            serde_json::to_writer(&mut lines, entry).map_err(io::Error::from)?;
            lines.push(b'\n');
        }
        let length = self.length + lines.len() as u64;
        if length > SPOOL_BYTES_MAX {
            return Err(SpoolError::Full(self.length));
        }
        if let Err(error) = self.file.write_all(&lines) {
            // A part would be a torn line to those that follow.
            self.file.set_len(self.length)?;
            return Err(error.into());
        }
        self.length = length;
        Ok(length)
    }
}

/// Flushes for all that wait.
pub(crate) struct Flusher {
    file: File,
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Default)]
struct Progress {
    /// Up to here everything is on the disk.
    flushed: u64,
    /// The longest that anybody asks for.
    asked: u64,
    under_way: bool,
    /// A flush has failed. The kernel may have dropped what it could not write, so
    /// that a later one that succeeds would say nothing.
    failed: bool,
}

impl Flusher {
    /// Returns when everything up to `length` is on the disk.
    pub(crate) fn flush(&self, length: u64) -> io::Result<()> {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.asked = progress.asked.max(length);
        while progress.flushed < length {
            if progress.failed {
                return Err(io::Error::other(
                    "an earlier flush of what was logged failed",
                ));
            }
            if progress.under_way {
                let waited = self.changed.wait(progress);
                progress = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            progress.under_way = true;
            // Whoever asked has written before.
            let target = progress.asked;
            drop(progress);
            let flushed = self.file.sync_data();
            progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
            progress.under_way = false;
            progress.failed |= flushed.is_err();
            self.changed.notify_all();
            flushed?;
            progress.flushed = progress.flushed.max(target);
        }
        Ok(())
    }
}

/// A page of one metric's points.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) points: Vec<Point>,
    /// Where the next page begins; `None` at the end.
    pub(crate) next: Option<u64>,
}

/// Reads points of a metric from `from`, a place that an earlier page gave, or zero.
pub(crate) fn history(
    path: &Path,
    run: &str,
    key: &str,
    from: u64,
    max: usize,
) -> io::Result<Page> {
    let prefix = metric_prefix(run, Some(key)).into_bytes();
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut page = Page::default();
    let ended = read_lines(file, |line| {
        if line.starts_with(&prefix)
            && let Ok(Entry::Metric(point)) = serde_json::from_slice(line)
        {
            if page.points.len() == max {
                return ControlFlow::Break(());
            }
            page.points.push(point);
        }
        ControlFlow::Continue(())
    })?;
    if let Lines::Broken(at) = ended {
        page.next = Some(from + at);
    }
    Ok(page)
}

/// How far lines were read, in bytes from where the file stood.
enum Lines {
    /// To the end of the last whole line.
    Ended(u64),
    /// To the beginning of the line at which it was enough.
    Broken(u64),
}

/// Hands each whole line to `each` until that has enough.
fn read_lines(
    file: impl Read,
    mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> io::Result<Lines> {
    let mut lines = BufReader::with_capacity(READ_BYTES, file);
    let mut line = Vec::new();
    let mut at = 0;
    loop {
        line.clear();
        let length = lines
            .by_ref()
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)?;
        if length == 0 || !line.ends_with(b"\n") {
            return Ok(Lines::Ended(at));
        }
        if each(&line).is_break() {
            return Ok(Lines::Broken(at));
        }
        at += length as u64;
    }
}

/// The spool of an attempt's folder.
pub(crate) fn spool_path(attempt: &Path) -> PathBuf {
    attempt.join(SPOOL_FILE)
}
