//! What is on disk of an attempt: its folder, its lock, and records that are
//! replaced whole.
//!
//! ```text
//!   data/experiments/<run>/attempt-<n>/     locked by the supervisor as long as it lives
//!     journal      what to run, without secrets; that it began, runs, is to end, ended
//!     log          written by the supervisor alone, made with the first output
//!     metrics.jsonl  points that the job posted
//!     tracking.jsonl, artifacts/  what its MLflow client has logged and uploaded
//!     work/ home/ tmp/ api/
//! ```
//!
//! A file is replaced by writing a new one beside it and renaming; what must
//! outlive a loss of power is synced before (file) and after (folder).

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use mlmesh_model::{
    AttemptNumber, AttemptRef, Cause, ExecError, LimitReport, ResolvedEnvironment, RunId,
};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::journal::Running;

/// Version of the files of an attempt. Another one is refused.
pub(crate) const SCHEMA: &str = "mlmesh.attempt/1";

/// Largest record that is read back.
const RECORD_BYTES_MAX: u64 = 16 << 20;

/// The folder of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AttemptDir(PathBuf);

impl AttemptDir {
    /// The attempt's place below the daemon's data directory.
    pub(crate) fn of(data_dir: &Path, attempt: AttemptRef) -> Self {
        let AttemptNumber(number) = attempt.number;
        Self(run_dir(data_dir, attempt.run).join(format!("attempt-{number}")))
    }

    pub(crate) fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.0.join("journal")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// What the job needs to call the daemon.
    pub(crate) fn api(&self) -> PathBuf {
        self.0.join("api")
    }

    /// The attempt's token, in [`Self::api`].
    pub(crate) fn token(&self) -> PathBuf {
        self.api().join("token")
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.0.join("work")
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.0.join("home")
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.0.join("tmp")
    }
}

/// The folder of a run.
pub(crate) fn run_dir(data_dir: &Path, run: RunId) -> PathBuf {
    data_dir.join("data/experiments").join(run.to_string())
}

/// Everything the supervisor needs, except values of secrets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spec {
    pub(crate) schema: String,
    pub(crate) run: RunId,
    pub(crate) number: AttemptNumber,
    pub(crate) argv: Vec<String>,
    /// Working directory as the job sees it.
    pub(crate) directory: PathBuf,
    /// The job's whole environment except secrets.
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) launch: Launch,
    pub(crate) limits: Vec<LimitSpec>,
    /// A limit that does not hold ends the attempt before it starts.
    pub(crate) limits_required: bool,
    /// Whether the supervisor answers the job's MLflow client.
    #[serde(default)]
    pub(crate) tracking: bool,
    /// Whether the launch enforces the plan's network policy.
    pub(crate) network_enforced: bool,
    pub(crate) log_bytes_max: u64,
    pub(crate) grace_ms: u64,
    /// The mode bits that files of the job do not get. Ours get fewer.
    pub(crate) umask: u32,
    /// Of a service: its ports by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) ports: BTreeMap<String, u16>,
    /// For the daemon that takes the attempt over.
    pub(crate) datasets_verified: Vec<String>,
    /// The same.
    pub(crate) environment: Option<ResolvedEnvironment>,
}

/// How the command is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Launch {
    /// As a plain child.
    Plain,
    /// As a plain child in an empty network namespace.
    NetworkNone,
    /// In the sandbox.
    Sandbox(Box<crate::sandbox::SandboxSpec>),
}

impl Launch {
    /// Whether the job's loopback is its own.
    pub(crate) fn has_own_network(&self) -> bool {
        match self {
            Self::Plain => false,
            Self::NetworkNone => true,
            Self::Sandbox(sandbox) => sandbox.network_none,
        }
    }
}

/// One limit and the means to enforce it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LimitSpec {
    /// `cpu`, `memory`, `pids` or `time`.
    pub(crate) name: String,
    /// In the unit of the plan.
    pub(crate) asked: u64,
    /// By what it is enforced.
    pub(crate) by: LimitMeans,
}

/// By what a limit is enforced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LimitMeans {
    /// A control group of version 1 or 2, made at this path for this attempt.
    Cgroup {
        /// 1 or 2.
        version: u8,
        /// Its folder.
        path: PathBuf,
        /// The supervisor's own group, to which it returns.
        home: PathBuf,
    },
    /// The supervisor.
    Supervisor,
    /// Nothing, for this reason.
    Nothing(String),
}

/// What the supervisor tells the daemon that started it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// The command was executed.
    Started(Running),
    /// It was not.
    Failed {
        /// Why.
        cause: Cause,
        /// For people.
        message: String,
    },
}

impl LimitSpec {
    /// The report of a limit that does not hold.
    pub(crate) fn not_held(&self, why: impl Into<String>) -> LimitReport {
        LimitReport {
            name: self.name.clone(),
            asked: self.asked,
            held: None,
            by: why.into(),
        }
    }
}

/// Adds what was being done to an I/O error.
pub(crate) trait Doing<T> {
    fn doing(self, action: &str, path: &Path) -> Result<T, ExecError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, action: &str, path: &Path) -> Result<T, ExecError> {
        self.map_err(|source| ExecError::Io {
            action: format!("{action} `{}`", path.display()),
            source: source.into(),
        })
    }
}

/// How much a replaced file must outlive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durable {
    /// A crash of any process.
    Process,
    /// A loss of power, too.
    Power,
}

/// Replaces a file by a record, whole or not at all.
pub(crate) fn write_record<T: Serialize>(
    path: &Path,
    record: &T,
    durable: Durable,
) -> Result<(), ExecError> {
    let bytes = serde_json::to_vec(record)
        .map_err(io::Error::other)
        .doing("write as JSON", path)?;
    write_atomic(path, &bytes, durable).doing("write", path)
}

pub(crate) fn write_atomic(path: &Path, bytes: &[u8], durable: Durable) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = path.with_file_name(name);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(bytes)?;
    if durable == Durable::Power {
        file.sync_all()?;
    }
    fs::rename(&beside, path)?;
    if durable == Durable::Power
        && let Some(folder) = path.parent()
    {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Reads a record; `None` when there is none.
pub(crate) fn read_record<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ExecError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).doing("open", path),
    };
    let length = file.metadata().map_or(0, |facts| facts.len());
    // One byte more, so that the end is seen without growing.
    let mut bytes = Vec::with_capacity(length.min(RECORD_BYTES_MAX) as usize + 1);
    file.take(RECORD_BYTES_MAX)
        .read_to_end(&mut bytes)
        .doing("read", path)?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(io::Error::other)
        .doing("understand", path)
}

/// The attempt's lock, held until dropped or until the process ends. It is taken
/// on the folder itself, which costs no file.
#[derive(Debug)]
pub(crate) struct AttemptLock {
    _folder: File,
}

impl AttemptLock {
    /// Takes the lock if nobody holds it.
    pub(crate) fn try_take(dir: &AttemptDir) -> Result<Option<Self>, ExecError> {
        match Self::lock(dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(lock) => Ok(Some(lock)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).doing("lock", dir.path()),
        }
    }

    /// Waits for the lock. Daemons hold it for moments only.
    pub(crate) fn take(dir: &AttemptDir) -> Result<Self, ExecError> {
        Self::lock(dir, FlockOperation::LockExclusive).doing("lock", dir.path())
    }

    fn lock(dir: &AttemptDir, operation: FlockOperation) -> io::Result<Self> {
        let folder = File::open(dir.path())?;
        flock(&folder, operation)?;
        Ok(Self { _folder: folder })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_once_and_freed_by_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let dir = AttemptDir::at(folder.path());
        let first = AttemptLock::take(&dir).unwrap();
        assert!(AttemptLock::try_take(&dir).unwrap().is_none());
        drop(first);
        assert!(AttemptLock::try_take(&dir).unwrap().is_some());
    }

    #[test]
    fn a_record_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record.json");
        assert_eq!(read_record::<Launch>(&path).unwrap(), None);
        write_record(&path, &Launch::Plain, Durable::Power).unwrap();
        assert_eq!(read_record(&path).unwrap(), Some(Launch::Plain));
        fs::write(&path, "{").unwrap();
        assert!(read_record::<Launch>(&path).is_err());
    }
}
