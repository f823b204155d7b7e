//! The daemon's own log files: JSON lines, rotated by size, written by one thread.
//!
//! ```text
//!   tracing ──► app.log          requests ──► access.log        audit rows ──► audit.log
//!        └──────────────┬────────────┘                                  │
//!             bounded channel ──► one thread ◄──────────────────────────┘
//! ```
//!
//! Nobody waits for the disk: when the channel is full a line is dropped and counted.
//! `audit.log` is derived from the store's rows and takes up where it ended, so that a
//! dropped line is only late.

mod audit;
mod rotating;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

pub(crate) use audit::{follow_audit, last_row, logged_rows};
pub(crate) use rotating::RotatingFile;

use crate::limits::LOG_LINES_WAITING_MAX;

/// Which file a line goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFile {
    App,
    Access,
    Audit,
}

/// Where the files lie, how large they grow, how many are kept.
#[derive(Debug, Clone)]
pub(crate) struct LogConfig {
    pub(crate) directory: PathBuf,
    pub(crate) bytes_max: u64,
    pub(crate) files_max: u32,
}

/// Hands lines to the writing thread.
#[derive(Debug, Clone)]
pub(crate) struct LogSender {
    lines: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

/// How long lines of requests and audit rows gather before they are written together.
/// What the daemon says of itself is written at once.
const GATHER_TIME: Duration = Duration::from_millis(10);
/// Lines that are written together at most.
const GATHERED_MAX: usize = 1024;

enum Message {
    Line(LogFile, Vec<u8>),
    Flush(SyncSender<()>),
}

/// Starts the writing thread. It ends when the last sender is gone.
pub(crate) fn start(config: LogConfig) -> std::io::Result<LogSender> {
    let (sender, receiver) = sync_channel(LOG_LINES_WAITING_MAX);
    let open = |name: &str| {
        RotatingFile::open(
            config.directory.join(name),
            config.bytes_max,
            config.files_max,
        )
    };
    let files = [open("app.log")?, open("access.log")?, open("audit.log")?];
    std::thread::Builder::new()
        .name("logs".to_owned())
        .stack_size(128 * 1024)
        .spawn(move || write_lines(&receiver, files))?;
    Ok(LogSender {
        lines: sender,
        dropped: Arc::default(),
    })
}

fn write_lines(receiver: &Receiver<Message>, mut files: [RotatingFile; 3]) {
    while let Ok(first) = receiver.recv() {
        let mut asked = Vec::new();
        let mut is_urgent = false;
        for message in std::iter::once(first).chain(receiver.try_iter().take(GATHERED_MAX)) {
            match message {
                Message::Line(file, line) => {
                    is_urgent |= file == LogFile::App;
                    files[file as usize].append(&line);
                }
                Message::Flush(done) => asked.push(done),
            }
        }
        for file in &mut files {
            file.flush();
        }
        is_urgent |= !asked.is_empty();
        for done in asked {
            // The one who asked may have gone; then nobody has to be told.
            let _ = done.send(());
        }
        // A thread that sleeps need not be woken for each request.
        if !is_urgent {
            std::thread::sleep(GATHER_TIME);
        }
    }
}

impl LogSender {
    /// Appends a line (its end of line included) to a file, soon.
    pub(crate) fn line(&self, file: LogFile, line: Vec<u8>) {
        if self.lines.try_send(Message::Line(file, line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines that found the channel full.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Returns when everything that was sent before lies in its file.
    pub(crate) fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.lines.send(Message::Flush(done)).is_ok() {
            // An error means that the thread is gone: nothing is left to wait for.
            let _ = wait.recv();
        }
    }
}

/// One log record under construction: what `tracing` writes between two calls.
pub(crate) struct AppLine {
    sender: LogSender,
    bytes: Vec<u8>,
}

impl Write for AppLine {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for AppLine {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.sender
                .line(LogFile::App, std::mem::take(&mut self.bytes));
        }
    }
}

/// Sends everything that is traced in this process to `app.log`.
pub(crate) fn trace_to(sender: &LogSender, level: &str) {
    let sender = sender.clone();
    let level = level.parse().unwrap_or(tracing::Level::INFO);
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_max_level(level)
        .with_writer(move || AppLine {
            sender: sender.clone(),
            bytes: Vec::with_capacity(256),
        })
        .finish();
    // A second daemon in one process (a test) keeps the first one's log.
    let _ = tracing::subscriber::set_global_default(subscriber);
}
