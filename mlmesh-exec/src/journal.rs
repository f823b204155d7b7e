//! The journal of an attempt: one file, to which a line is added whenever something
//! has happened, and what the lines add up to.
//!
//! ```text
//!   daemon ──► spec                       stop ◄── any daemon, at any time
//!   supervisor ──► begun ──► started ──► ended
//!   any daemon, under the attempt's lock ──► void, or ended for a vanished supervisor
//! ```
//!
//! One line is one write. It outlives every process, not a loss of power: after
//! another boot an attempt is over anyway, and the store says under which boot it
//! was claimed. A line that cannot be understood was torn by a full disk or by a
//! kill. Since it may have said that the command begins, it counts as that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use mlmesh_model::{Cause, Ended, ExecError, Isolation, Micros};
use serde::{Deserialize, Serialize};

use crate::process::ProcessIdentity;
use crate::record::{AttemptDir, Doing, Spec};

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Entry {
    /// What to run. The first line, unless somebody asked for the end before.
    Spec(Box<Spec>),
    /// Somebody asks for the end.
    Stop(StopRequest),
    /// This supervisor hands the command to the kernel next.
    Begun(ProcessIdentity),
    /// Nobody ever will.
    Void,
    /// The command runs.
    Started(Running),
    /// It ended.
    Ended(Ended),
}

/// A request to end an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StopRequest {
    pub(crate) cause: Cause,
    pub(crate) grace_ms: u64,
}

/// That the command runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) time: Micros,
    pub(crate) isolation: Isolation,
}

/// Whether the command was handed to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Marker {
    /// By this supervisor; by one that cannot be named when the line was torn.
    By(Option<ProcessIdentity>),
    /// It never was and never will be.
    Void,
}

/// What the lines add up to.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    pub(crate) spec: Option<Spec>,
    /// The newest request.
    pub(crate) stop: Option<StopRequest>,
    /// The first one counts.
    pub(crate) marker: Option<Marker>,
    pub(crate) running: Option<Running>,
    /// The first one counts.
    pub(crate) ended: Option<Ended>,
}

impl Journal {
    /// Empty when there is no journal yet.
    pub(crate) fn read(dir: &AttemptDir) -> Result<Self, ExecError> {
        match fs::read(dir.journal()) {
            Ok(bytes) => Ok(Self::of(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).doing("read", &dir.journal()),
        }
    }

    fn of(bytes: &[u8]) -> Self {
        let mut journal = Self::default();
        let mut torn = false;
        for line in bytes.split(|byte| *byte == b'\n') {
            if line.is_empty() {
                continue;
            }
            match serde_json::from_slice(line) {
                Ok(entry) => journal.add(entry),
                Err(_) => torn = true,
            }
        }
        if torn {
            journal.marker.get_or_insert(Marker::By(None));
        }
        journal
    }

    fn add(&mut self, entry: Entry) {
        match entry {
            Entry::Spec(spec) => self.spec = Some(*spec),
            Entry::Stop(request) => self.stop = Some(request),
            Entry::Begun(supervisor) => {
                self.marker.get_or_insert(Marker::By(Some(supervisor)));
            }
            Entry::Void => {
                self.marker.get_or_insert(Marker::Void);
            }
            Entry::Started(running) => self.running = Some(running),
            Entry::Ended(ended) => {
                self.ended.get_or_insert(ended);
            }
        }
    }

    /// Whether nothing will be added to what the job has said.
    pub(crate) fn is_over(&self) -> bool {
        self.ended.is_some() || self.marker == Some(Marker::Void)
    }
}

/// Adds lines.
#[derive(Debug)]
pub(crate) struct Appender {
    file: File,
    path: PathBuf,
    /// A part of a line is at the end of the file.
    torn: bool,
}

impl Appender {
    /// Makes the journal if there is none.
    pub(crate) fn open(dir: &AttemptDir) -> Result<Self, ExecError> {
        let path = dir.journal();
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .doing("open", &path)?;
        let torn = ends_torn(&file).doing("read", &path)?;
        Ok(Self { file, path, torn })
    }

    /// What all writers have added so far.
    pub(crate) fn read(&self) -> Result<Journal, ExecError> {
        read_whole(&self.file)
            .map(|bytes| Journal::of(&bytes))
            .doing("read", &self.path)
    }

    /// Adds one line in one write. After a refusal, such as that of a full disk, the
    /// same line may be tried again.
    pub(crate) fn add(&mut self, entry: &Entry) -> Result<(), ExecError> {
        let mut line = Vec::with_capacity(1024);
        if self.torn {
            line.push(b'\n');
        }
        serde_json::to_writer(&mut line, entry)
            .map_err(io::Error::from)
            .doing("write as JSON", &self.path)?;
        line.push(b'\n');
        self.write(&line).doing("write", &self.path)
    }

    fn write(&mut self, mut line: &[u8]) -> io::Result<()> {
        while !line.is_empty() {
            match self.file.write(line) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => {
                    line = &line[length..];
                    self.torn = !line.is_empty();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn read_whole(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn ends_torn(file: &File) -> io::Result<bool> {
    let length = file.metadata()?.len();
    let mut last = [b'\n'];
    if length > 0 {
        file.read_exact_at(&mut last, length - 1)?;
    }
    Ok(last != [b'\n'])
}

/// Adds one line to the journal of an attempt.
pub(crate) fn append(dir: &AttemptDir, entry: &Entry) -> Result<(), ExecError> {
    Appender::open(dir)?.add(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(pid: i32) -> ProcessIdentity {
        ProcessIdentity {
            pid,
            start_time: 8,
            boot_id: "b".into(),
        }
    }

    fn stop(grace_ms: u64) -> Entry {
        Entry::Stop(StopRequest {
            cause: Cause::Cancelled,
            grace_ms,
        })
    }

    #[test]
    fn lines_of_several_writers_add_up() {
        let folder = tempfile::tempdir().unwrap();
        let dir = AttemptDir::at(folder.path());
        assert!(Journal::read(&dir).unwrap().marker.is_none());
        let mut supervisor = Appender::open(&dir).unwrap();
        append(&dir, &stop(5)).unwrap();
        supervisor.add(&Entry::Begun(identity(7))).unwrap();
        append(&dir, &stop(3)).unwrap();
        let seen = supervisor.read().unwrap();
        assert_eq!(seen.stop.map(|stop| stop.grace_ms), Some(3));
        let journal = Journal::read(&dir).unwrap();
        assert_eq!(journal.stop.map(|stop| stop.grace_ms), Some(3));
        assert_eq!(journal.marker, Some(Marker::By(Some(identity(7)))));
        assert!(!journal.is_over());
    }

    #[test]
    fn the_first_marker_wins() {
        let folder = tempfile::tempdir().unwrap();
        let dir = AttemptDir::at(folder.path());
        append(&dir, &Entry::Void).unwrap();
        append(&dir, &Entry::Begun(identity(7))).unwrap();
        let journal = Journal::read(&dir).unwrap();
        assert_eq!(journal.marker, Some(Marker::Void));
        assert!(journal.is_over());
    }

    /// A part of a line must neither hide the lines after it nor let the command
    /// be executed a second time.
    #[test]
    fn a_torn_line_may_have_been_the_marker() {
        let folder = tempfile::tempdir().unwrap();
        let dir = AttemptDir::at(folder.path());
        fs::write(dir.journal(), "{\"begun\":{\"pid\":1").unwrap();
        let journal = Journal::read(&dir).unwrap();
        assert_eq!(journal.marker, Some(Marker::By(None)));
        append(&dir, &stop(9)).unwrap();
        let journal = Journal::read(&dir).unwrap();
        assert_eq!(journal.stop.map(|stop| stop.grace_ms), Some(9));
        assert_eq!(journal.marker, Some(Marker::By(None)));
    }
}
