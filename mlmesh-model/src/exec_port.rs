//! The port to executors: where attempts run.
//!
//! An attempt belongs to its supervisor, not to the daemon. Hence every method
//! can be called again after the daemon was killed: `reattach` tells what became
//! of an attempt, `wait` waits for one that some earlier daemon started.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    AttemptRef, BoxFuture, Cause, CommitId, Dataset, Exit, Isolation, Logged, Micros, ObjectId,
    Placement, Plan, SecretText, Tenant,
};

/// Runs attempts. Conformance suite: `mlmesh-exec/tests/it/conformance.rs`.
pub trait Executor: Send + Sync {
    /// What this host can enforce. Cheap: probed once.
    fn abilities(&self) -> Abilities;

    /// Checks out, builds or finds the environment, verifies the datasets, and
    /// starts the command under a supervisor. Returns when the command has been
    /// executed (or could not be). Called at most once per attempt number.
    fn start(&self, spec: StartSpec) -> BoxFuture<'_, Result<Started, StartError>>;

    /// Resolves when the attempt has ended, also one that an earlier daemon started.
    fn wait(&self, attempt: AttemptRef) -> BoxFuture<'_, Result<Ended, ExecError>>;

    /// What became of an attempt that some daemon leased. When the command was
    /// never executed, this also makes sure that it never will be under this
    /// attempt number.
    fn reattach(&self, attempt: AttemptRef) -> BoxFuture<'_, Result<Reattached, ExecError>>;

    /// Asks the attempt to end: SIGTERM to its whole process tree, SIGKILL after
    /// `grace_ms`. Returns at once; `wait` tells the end.
    fn stop(
        &self,
        attempt: AttemptRef,
        cause: Cause,
        grace_ms: u64,
    ) -> BoxFuture<'_, Result<(), ExecError>>;

    /// Collects outputs and metrics of an ended attempt. May be called again.
    fn collect(
        &self,
        attempt: AttemptRef,
        plan: Arc<Plan>,
    ) -> BoxFuture<'_, Result<Collected, ExecError>>;

    /// Removes the working directory of an attempt whose end is recorded. The
    /// log and the supervisor's record stay.
    fn discard(&self, attempt: AttemptRef) -> BoxFuture<'_, Result<(), ExecError>>;

    /// Reads the attempt's log from a byte offset of the log file on.
    fn read_log(
        &self,
        attempt: AttemptRef,
        from: u64,
        bytes_max: u64,
    ) -> BoxFuture<'_, Result<LogPage, ExecError>>;

    /// Adds lines of metric points, each whole, to those of a live attempt, as if the
    /// job had written them itself. At most `bytes_max` bytes come this way. The same
    /// lines under the same `key` are added once.
    fn post_metrics(
        &self,
        attempt: AttemptRef,
        key: Option<String>,
        lines: Vec<u8>,
        bytes_max: u64,
    ) -> BoxFuture<'_, Result<Posted, ExecError>>;

    /// Current metric points of an attempt, live or ended.
    fn metrics(
        &self,
        attempt: AttemptRef,
    ) -> BoxFuture<'_, Result<BTreeMap<String, crate::MetricSummary>, ExecError>>;

    /// The points of an attempt, live or ended, thinned; none where there are none, and
    /// none of an earlier attempt.
    fn points(
        &self,
        attempt: AttemptRef,
        ask: crate::PointsAsk,
    ) -> BoxFuture<'_, Result<Vec<crate::Series>, ExecError>>;
}

/// What a host can enforce.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Abilities {
    /// User, mount, pid and network namespaces work: the sandbox is possible.
    pub sandbox: bool,
    /// Why not, when not.
    pub sandbox_missing: Option<String>,
    /// An empty network namespace works.
    pub network_none: bool,
    /// Declared hosts can be enforced.
    pub network_hosts: bool,
    /// Names of limits that hold here: `cpu`, `memory`, `pids`, `time`.
    pub limits: Vec<String>,
    /// Whether attempts of one user cannot read the daemon's files. False means
    /// that only the owner may queue.
    pub separates_users: bool,
}

/// Everything an attempt needs. Built by control from the run's record.
#[derive(Debug, Clone)]
pub struct StartSpec {
    /// The lease.
    pub attempt: AttemptRef,
    /// Whose run.
    pub tenant: Tenant,
    /// Id of the sweep, for a point of one.
    pub sweep: Option<crate::RunId>,
    /// The plan.
    pub plan: Arc<Plan>,
    /// Beside the plan.
    pub placement: Placement,
    /// The plan's datasets as registered, in the plan's order.
    pub datasets: Vec<Dataset>,
    /// Values of the plan's secrets.
    pub secrets: BTreeMap<String, SecretText>,
    /// How the job reaches the daemon, where it asks for that.
    pub api: Option<ApiAccess>,
    /// UUIDs of the GPUs granted.
    pub gpus: Vec<String>,
    /// Grace between SIGTERM and SIGKILL when time is up.
    pub grace_ms: u64,
}

/// What a job needs to call the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiAccess {
    /// Where the daemon answers.
    pub url: String,
    /// The certificate of its authority, on this machine.
    pub ca: PathBuf,
    /// The attempt's token.
    pub token: SecretText,
}

/// The command runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// When.
    pub time: Micros,
    /// Isolation and limits that hold.
    pub isolation: Isolation,
    /// Names of datasets whose digest was verified now.
    pub datasets_verified: Vec<String>,
    /// The environment as it was found, recorded beside the plan.
    pub environment: Option<ResolvedEnvironment>,
    /// Of a service: its ports by name, as they are.
    pub ports: BTreeMap<String, u16>,
}

/// What an environment turned out to be on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedEnvironment {
    /// Its interpreter.
    pub interpreter: Interpreter,
    /// Its packages as `name==version`, sorted.
    pub packages: Vec<String>,
}

impl ResolvedEnvironment {
    /// Digest of the packages, each with an end of line.
    pub fn packages_digest(packages: &[String]) -> crate::Digest {
        let lines: String = packages.iter().map(|line| format!("{line}\n")).collect();
        crate::Digest::of(lines.as_bytes())
    }
}

/// An interpreter found on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interpreter {
    /// Version asked for, such as `3.11`.
    pub version: String,
    /// Exact version, such as `3.11.7`.
    pub exact: String,
    /// Path on the machine.
    pub path: PathBuf,
    /// Digest of the executable.
    pub sha256: crate::Digest,
}

/// The command was not started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StartError {
    /// Why.
    pub cause: Cause,
    /// For people; names the path or package concerned.
    pub message: String,
}

impl StartError {
    /// What `source` stopped: by [`Cause::NodeFault`] when it is one, else by `cause`.
    pub fn of(cause: Cause, message: String, source: Option<&std::io::Error>) -> Self {
        let cause = match source {
            Some(source) if is_node_fault(source) => Cause::NodeFault,
            Some(_) | None => cause,
        };
        Self { cause, message }
    }
}

/// Whether the error is the node's and may pass: a disk without space or quota, one
/// that became read-only, a table of open files that is full.
pub fn is_node_fault(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    // Linux: ENFILE and EMFILE, which have no kind of their own.
    const FILES_FULL: [i32; 2] = [23, 24];
    matches!(
        error.kind(),
        StorageFull | QuotaExceeded | ReadOnlyFilesystem
    ) || error
        .raw_os_error()
        .is_some_and(|number| FILES_FULL.contains(&number))
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// When the command started, if it did.
    pub started_at: Option<Micros>,
    /// When it ended.
    pub ended_at: Micros,
    /// How the command ended; null when that is not known (`lost`, `reboot`).
    pub exit: Option<Exit>,
    /// Why, when not by exit code 0.
    pub cause: Option<Cause>,
    /// For people.
    pub message: String,
    /// Isolation and limits that held.
    pub isolation: Isolation,
    /// Log bytes that did not fit the named limit.
    pub log_bytes_dropped: u64,
    /// Parameters and tags that it has logged, without values of secrets; null also
    /// where nobody who knows those was left to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logged: Option<Logged>,
}

/// What became of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reattached {
    /// Its supervisor lives; `wait` for it.
    Running(Started),
    /// It ended while nobody looked; the environment that it had.
    Ended(Ended, Option<ResolvedEnvironment>),
    /// The command was never executed, and never will be under this number.
    NeverStarted,
}

/// What an ended attempt left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collected {
    /// Listing of the outputs in the content store; null when there are none.
    pub outputs: Option<ObjectId>,
    /// The files, as the listing has them.
    pub files: Vec<ListedFile>,
    /// Declared globs that matched nothing.
    pub missing: Vec<String>,
    /// Metric summaries.
    pub metrics: BTreeMap<String, crate::MetricSummary>,
}

/// A file of a tree or of outputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedFile {
    /// Relative, with `/`.
    pub path: String,
    /// `644`, `755`, or `link` for a symbolic link.
    pub mode: String,
    /// Bytes.
    pub size: u64,
    /// Digest of the bytes: the object's id.
    pub sha256: crate::Digest,
}

/// What became of posted points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posted {
    /// They count.
    Kept,
    /// They would exceed the budget, of which so much is used; none was taken.
    OverBudget {
        /// Bytes of earlier ones.
        used: u64,
    },
    /// Other points came under the same key before; none was taken.
    OtherUnderKey,
    /// The attempt does not live any more; none was taken.
    Ended,
}

/// A part of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPage {
    /// Lines in order.
    pub lines: Vec<LogLine>,
    /// Where to go on.
    pub next: u64,
    /// Whether the attempt has ended and everything was read.
    pub complete: bool,
}

/// A piece of output: a line, or what was written without an end of line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When it was read from the job.
    pub time: Micros,
    /// Which stream.
    pub stream: LogStream,
    /// The bytes, secrets redacted, with the end of line if there was one.
    pub bytes: Vec<u8>,
}

/// One of a job's two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What an executor fails at.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// No such attempt on this executor.
    #[error("no attempt {0:?} here")]
    NoAttempt(AttemptRef),
    /// The disk, a process table, a cgroup.
    #[error("{action}: {source}")]
    Io {
        /// What was being done, with its path.
        action: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The content store refused.
    #[error("content store: {0}")]
    Objects(String),
}

impl ExecError {
    /// What the system said, where it said something.
    pub fn io(&self) -> Option<&std::io::Error> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::NoAttempt(_) | Self::Objects(_) => None,
        }
    }

    /// Whether it comes from a disk without space, which may pass.
    pub fn is_disk_full(&self) -> bool {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }
}

/// The port from executors to the content store. Blocking.
pub trait Snapshots: Send + Sync {
    /// Whether the commit's listing and every object in it are there.
    fn has_commit(&self, commit: CommitId) -> Result<bool, SnapshotsError>;

    /// Writes the commit's tree below `destination`, which is new or empty.
    fn checkout(&self, commit: CommitId, destination: &Path) -> Result<(), SnapshotsError>;

    /// Reads one file of a commit, for a lock file.
    fn read_file(
        &self,
        commit: CommitId,
        path: &str,
        bytes_max: u64,
    ) -> Result<Vec<u8>, SnapshotsError>;

    /// Stores the regular files `files` (relative to `root`, sorted) and their
    /// listing; returns the listing's object.
    fn store_outputs(&self, root: &Path, files: &[String]) -> Result<ObjectId, SnapshotsError>;

    /// The files that a listing names, of a commit or of outputs. The listing is read
    /// and checked: [`SnapshotsError::Changed`] when it is not what its digest says, and
    /// [`SnapshotsError::Refused`] when it holds what no listing may.
    fn listing(&self, listing: ObjectId) -> Result<Vec<ListedFile>, SnapshotsError>;

    /// Reads an object to its end, checked by its digest; returns its bytes.
    fn check_object(&self, object: ObjectId) -> Result<u64, SnapshotsError>;

    /// The first byte, from 0, in which two objects differ; `None` when they do not.
    fn first_difference(
        &self,
        one: ObjectId,
        other: ObjectId,
    ) -> Result<Option<u64>, SnapshotsError>;

    /// Digest of a dataset as it is now: of the file, or of the directory's
    /// listing. Uses the stat cache; `full` reads every byte again. On a
    /// difference to `expected` names a path that changed.
    fn verify_dataset(&self, dataset: &Dataset, full: bool) -> Result<(), SnapshotsError>;

    /// Verifies a dataset as [`Snapshots::verify_dataset`] does and says where a job
    /// finds it. One that was copied in is laid out of the content store when it is
    /// not there, or is not what it was.
    fn place_dataset(&self, dataset: &Dataset) -> Result<PathBuf, SnapshotsError>;
}

/// What the content store fails at.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotsError {
    /// It is not there.
    #[error("`{0}` is not in the content store")]
    Missing(String),
    /// It is not what its digest says.
    #[error("`{path}` changed: {detail}")]
    Changed {
        /// The path that changed.
        path: String,
        /// What was expected and seen.
        detail: String,
    },
    /// A listing that holds what none may: a path that leaves the tree, two of a name.
    #[error("the listing breaks a rule: {0}")]
    Refused(String),
    /// The file system refused.
    #[error("{action}: {source}")]
    Io {
        /// What was being done, with its path.
        action: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl SnapshotsError {
    /// What the system said, where it said something.
    pub fn io(&self) -> Option<&std::io::Error> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Missing(_) | Self::Changed { .. } | Self::Refused(_) => None,
        }
    }
}

/// The port to accelerators of a node.
pub trait Accelerators: Send + Sync {
    /// GPUs that are there now, or why that cannot be known.
    fn gpus(&self) -> Result<Vec<Gpu>, String>;

    /// Version of their driver, or why there is none.
    fn driver(&self) -> Result<String, String>;
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// `GPU-…`, as CUDA_VISIBLE_DEVICES takes it.
    pub uuid: String,
    /// Product name.
    pub name: String,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

/// The port to time. Leases and durations use the monotonic clock, records the
/// calendar clock; tests give their own.
pub trait Clock: Send + Sync {
    /// Now, by the calendar clock.
    fn now(&self) -> Micros;

    /// Microseconds since some fixed point of this boot; never goes back.
    fn monotonic_us(&self) -> u64;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Error;

    #[test]
    fn faults_of_the_node_are_told_from_those_of_the_run() {
        let cause =
            |error: Error| StartError::of(Cause::PrepareFailed, String::new(), Some(&error));
        // EMFILE, ENFILE, ENOSPC, EROFS, EDQUOT.
        for number in [24, 23, 28, 30, 122] {
            let error = Error::from_raw_os_error(number);
            assert_eq!(cause(error).cause, Cause::NodeFault, "{number}");
        }
        // ENOENT, EACCES, EIO, ENAMETOOLONG.
        for number in [2, 13, 5, 36] {
            let error = Error::from_raw_os_error(number);
            assert_eq!(cause(error).cause, Cause::PrepareFailed, "{number}");
        }
    }
}
