//! The `Executor` port for processes of this machine.
//!
//! Everything that touches disk or starts processes runs on the runtime's threads
//! for blocking work; waiting for an end is a file descriptor of the supervisor.

use std::collections::{BTreeMap, HashMap, hash_map};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mlmesh_model::{
    Abilities, AttemptNumber, AttemptRef, BoxFuture, Cause, Clock, Collected, Ended, ExecError,
    Executor, LogPage, MetricSummary, Plan, PointsAsk, Posted, Reattached, ResolvedEnvironment,
    RunId, Series, Snapshots, SnapshotsError, StartError, StartSpec, Started,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::cgroup::{self, Base};
use crate::journal::{Entry, Journal, Marker, Running, StopRequest, append};
use crate::look::{Look, give_up, look};
use crate::metrics::Metrics;
use crate::outputs::{self, OUTPUT_DIR};
use crate::posted::Keys;
use crate::prepare::{claim, exec_failed, prepare, prepare_failed};
use crate::process::ProcessIdentity;
use crate::record::{AttemptDir, Doing, Report, Spec};
use crate::starter::Starter;
use crate::{log, mlflow, points, probe};

/// Log bytes of one attempt, unless the configuration says otherwise.
pub const LOG_BYTES_MAX_DEFAULT: u64 = 256 << 20;
/// Processes and threads of one attempt, unless the configuration says otherwise.
pub const PIDS_MAX_DEFAULT: u64 = 4096;
/// How often an attempt is looked at whose supervisor is just beginning.
const BEGIN_POLL: Duration = Duration::from_millis(3);

/// What the executor needs.
pub struct ProcessConfig {
    /// The daemon's data directory, `DIR`.
    pub data_dir: PathBuf,
    /// The program whose `main` calls [`crate::supervise_main`].
    pub program: PathBuf,
    /// The content store.
    pub snapshots: Arc<dyn Snapshots>,
    /// The time that records carry.
    pub clock: Arc<dyn Clock>,
    /// Log bytes of one attempt.
    pub log_bytes_max: u64,
    /// Processes and threads of one attempt.
    pub pids_max: u64,
    /// The file mode creation mask of jobs: what the daemon was started with, before
    /// it took a stricter one for its own files.
    pub job_umask: u32,
}

/// Runs attempts as processes.
pub struct ProcessExecutor {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: ProcessConfig,
    pub(crate) bases: Vec<(&'static str, Result<Base, String>)>,
    pub(crate) abilities: Abilities,
    starter: Starter,
    /// Tell when a supervisor has exited that this process has started.
    watches: Mutex<HashMap<Key, OwnedFd>>,
    /// Held while points are added to an attempt that lives.
    posting: Mutex<HashMap<Key, Keys>>,
    /// How far metrics were read.
    metrics: Mutex<HashMap<Key, Metrics>>,
}

type Key = (RunId, AttemptNumber);

fn key(attempt: AttemptRef) -> Key {
    (attempt.run, attempt.number)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The maps stay whole whatever a panicking thread was doing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ProcessExecutor {
    /// Probes the host, which runs one trivial command in the sandbox.
    pub fn new(config: ProcessConfig) -> Arc<Self> {
        let bases = cgroup::bases();
        let abilities = probe::abilities(&config.program, &config.data_dir, &bases);
        let starter = Starter::new(config.program.clone());
        Arc::new(Self {
            inner: Arc::new(Inner {
                config,
                bases,
                abilities,
                starter,
                watches: Mutex::default(),
                posting: Mutex::default(),
                metrics: Mutex::default(),
            }),
        })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, ExecError> + Send + 'static,
    ) -> Result<T, ExecError> {
        let inner = Arc::clone(&self.inner);
        let joined = tokio::task::spawn_blocking(move || work(&inner)).await;
        joined.unwrap_or_else(|error| {
            Err(ExecError::Io {
                action: "finish blocking work".to_owned(),
                source: io::Error::other(error),
            })
        })
    }

    async fn wait_for_end(&self, attempt: AttemptRef) -> Result<Ended, ExecError> {
        let watch_given = locked(&self.inner.watches).remove(&key(attempt));
        if watch_given.is_some() {
            wait_for_exit(watch_given).await?;
        }
        loop {
            match self.blocking(move |inner| inner.look(attempt)).await? {
                Look::Ended(ended) => return Ok(ended),
                Look::Alive { supervisor, .. } => {
                    let supervisor = supervisor.as_ref();
                    let watched = supervisor.and_then(|supervisor| watch(supervisor.pid));
                    // Looked at after the descriptor was opened, so that it is of this
                    // process.
                    let lives = supervisor.is_some_and(ProcessIdentity::lives);
                    wait_for_exit(watched.filter(|_| lives)).await?;
                }
                Look::Absent | Look::NotStarted(_) | Look::Void => {
                    return Err(ExecError::NoAttempt(attempt));
                }
            }
        }
    }

    async fn take_over(&self, attempt: AttemptRef) -> Result<Reattached, ExecError> {
        loop {
            match self.blocking(move |inner| inner.take_over(attempt)).await? {
                Some(reattached) => return Ok(reattached),
                None => tokio::time::sleep(BEGIN_POLL).await,
            }
        }
    }
}

fn watch(supervisor: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(supervisor)?, PidfdFlags::NONBLOCK).ok()
}

/// Returns when the supervisor has exited, or soon when there is none to watch.
async fn wait_for_exit(watch: Option<OwnedFd>) -> Result<(), ExecError> {
    let Some(watch) = watch else {
        tokio::time::sleep(BEGIN_POLL).await;
        return Ok(());
    };
    let watched = match watch_readable(watch) {
        Ok(watch) => watch.readable().await.map(|_| ()),
        Err(error) => Err(error),
    };
    watched.doing("watch a supervisor in", Path::new("/proc"))
}

#[expect(
    deprecated,
    reason = "its successor is unsafe for types that change their descriptor; an OwnedFd keeps it"
)]
fn watch_readable(watch: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(watch, Interest::READABLE)
}

impl Inner {
    fn dir(&self, attempt: AttemptRef) -> AttemptDir {
        AttemptDir::of(&self.config.data_dir, attempt)
    }

    fn look(&self, attempt: AttemptRef) -> Result<Look, ExecError> {
        look(&self.dir(attempt), self.config.clock.now())
    }

    fn start(&self, start: &StartSpec) -> Result<Started, StartError> {
        let dir = self.dir(start.attempt);
        let checkpoints = claim(self, start, &dir)?;
        let begun = self.begin(start, &dir, &checkpoints);
        if begun.is_err() {
            // Nothing ran in it. The log and the records stay.
            drop(remove_work(&dir));
        }
        begun
    }

    fn begin(
        &self,
        start: &StartSpec,
        dir: &AttemptDir,
        checkpoints: &Path,
    ) -> Result<Started, StartError> {
        let spec = prepare(self, start, dir, checkpoints)?;
        let facts = Facts::of(&spec);
        let written = append(dir, &Entry::Spec(Box::new(spec)));
        written.map_err(|error| exec_failed(&error))?;
        let (watch, said) = self.start_supervisor(start, dir)?;
        match serde_json::from_str(&said).ok() {
            Some(Report::Started(running)) => {
                let attempt = key(start.attempt);
                locked(&self.watches).extend(watch.map(|watch| (attempt, watch)));
                Ok(started(running, facts))
            }
            Some(Report::Failed { cause, message }) => Err(StartError { cause, message }),
            None => Err(prepare_failed(format!(
                "the supervisor ended before it started the command: {}",
                said.trim()
            ))),
        }
    }

    /// Starts the supervisor and waits for its report, a line; what it complains of
    /// instead comes the same way.
    fn start_supervisor(
        &self,
        start: &StartSpec,
        dir: &AttemptDir,
    ) -> Result<(Option<OwnedFd>, String), StartError> {
        let system = |what: &str, error: io::Error| {
            let message = format!("{what} the attempt's supervisor: {error}");
            StartError::of(Cause::PrepareFailed, message, Some(&error))
        };
        let (heard, said) = io::pipe().map_err(|error| system("listen to", error))?;
        let (read, mut written) = io::pipe().map_err(|error| system("write to", error))?;
        let (read, said) = (OwnedFd::from(read), OwnedFd::from(said));
        let watch = self
            .starter
            .start(dir.path(), &read, &said)
            .map_err(|error| system("start", error))?;
        // Its own ends are the only ones, so that what it leaves when it dies is seen.
        drop((read, said));
        let mut secrets = serde_json::to_vec(&start.secrets)
            .map_err(|error| system("write secrets for", error.into()))?;
        secrets.push(b'\n');
        // A supervisor that ended early says why in its report.
        drop(written.write_all(&secrets));
        drop(written);
        let mut line = String::new();
        BufReader::new(heard)
            .read_line(&mut line)
            .map_err(|error| system("hear from", error))?;
        Ok((watch, line))
    }

    /// `None` while the supervisor is just beginning.
    fn take_over(&self, attempt: AttemptRef) -> Result<Option<Reattached>, ExecError> {
        let dir = self.dir(attempt);
        if !dir.path().is_dir() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir.path())
                .doing("create", dir.path())?;
        }
        match self.look(attempt)? {
            Look::Absent => Ok(None),
            // While it has no such line the supervisor is just beginning.
            Look::Alive { journal, .. } => {
                let Journal { spec, running, .. } = *journal;
                let facts = spec.map(|spec| Facts::of(&spec));
                Ok(running.map(|running| {
                    Reattached::Running(started(running, facts.unwrap_or_default()))
                }))
            }
            Look::NotStarted(lock) => {
                give_up(&dir, &lock)?;
                Ok(Some(Reattached::NeverStarted))
            }
            Look::Void => Ok(Some(Reattached::NeverStarted)),
            Look::Ended(ended) => {
                let spec = Journal::read(&dir)?.spec;
                let environment = spec.and_then(|spec| spec.environment);
                Ok(Some(Reattached::Ended(ended, environment)))
            }
        }
    }

    fn stop(&self, attempt: AttemptRef, cause: Cause, grace_ms: u64) -> Result<(), ExecError> {
        let dir = self.dir(attempt);
        // Also before anything is prepared: whoever starts it finds the request.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir.path())
            .doing("create", dir.path())?;
        append(&dir, &Entry::Stop(StopRequest { cause, grace_ms }))?;
        // Read after the request was added: a supervisor that begins later finds it.
        if let Some(Marker::By(Some(supervisor))) = Journal::read(&dir)?.marker
            && supervisor.lives()
        {
            // It ends just now, or the pipe is full, which wakes, too.
            drop(wake(&supervisor));
        }
        Ok(())
    }

    fn collect(&self, attempt: AttemptRef, plan: &Plan) -> Result<Collected, ExecError> {
        let work = self.dir(attempt).work();
        let mounts: Vec<String> = plan
            .datasets
            .iter()
            .map(|dataset| dataset.mount.trim_end_matches('/').to_owned())
            .collect();
        // The attempt has ended, so that nothing is added after those who hold this.
        locked(&self.posting).remove(&key(attempt));
        let metrics = self.collect_metrics(attempt)?;
        let mut found =
            outputs::find(&work, &plan.outputs, &mounts).doing("look for outputs in", &work)?;
        let dir = self.dir(attempt);
        found
            .add_uploaded(&work, dir.path(), &attempt.run.to_string())
            .doing("take in artifacts from", dir.path())?;
        let snapshots = &self.config.snapshots;
        let stored = match found.files.as_slice() {
            [] => Ok((None, Vec::new())),
            files => snapshots.store_outputs(&work, files).and_then(|listing| {
                let files = snapshots.listing(listing)?;
                Ok((Some(listing), files))
            }),
        };
        let (outputs, files) = stored.map_err(|error| match error {
            SnapshotsError::Io { action, source } => ExecError::Io { action, source },
            other => ExecError::Objects(other.to_string()),
        })?;
        Ok(Collected {
            outputs,
            files,
            missing: found.missing,
            metrics,
        })
    }

    /// Reads all points once more and writes them, each with its step.
    fn collect_metrics(
        &self,
        attempt: AttemptRef,
    ) -> Result<BTreeMap<String, MetricSummary>, ExecError> {
        let mut metrics = self.metrics_of(attempt);
        let kept = self.tracking(attempt.run);
        points::keep(&mut metrics, &kept, attempt.number).doing("keep points in", &kept)?;
        if metrics.lines_bad > 0 {
            tracing::warn!(
                run = %attempt.run, lines = metrics.lines_bad, "lines of metrics.jsonl are no points"
            );
        }
        Ok(metrics.summaries())
    }

    /// Where points of a run are kept as long as it is.
    fn tracking(&self, run: RunId) -> PathBuf {
        let data = self.config.data_dir.join("data/tracking");
        data.join(run.to_string())
    }

    fn points(&self, attempt: AttemptRef, ask: &PointsAsk) -> Result<Vec<Series>, ExecError> {
        let live = self.metrics_of(attempt);
        let kept = self.tracking(attempt.run);
        points::read(ask, live, &kept, attempt.number).doing("read points in", &kept)
    }

    /// Where points are read: two files of the job, one of what it posted, and what it
    /// has logged through MLflow.
    fn metrics_of(&self, attempt: AttemptRef) -> Metrics {
        let dir = self.dir(attempt);
        let work = dir.work();
        Metrics::of(&[work.clone(), work.join(OUTPUT_DIR), dir.path().to_owned()])
            .and_spool(dir.path(), attempt.run)
    }

    fn post_metrics(
        &self,
        attempt: AttemptRef,
        key_sent: Option<&str>,
        lines: &[u8],
        bytes_max: u64,
    ) -> Result<Posted, ExecError> {
        let path = self.dir(attempt).path().join(crate::METRICS_FILE);
        let mut posting = locked(&self.posting);
        let Look::Alive { .. } = self.look(attempt)? else {
            return Ok(Posted::Ended);
        };
        let keys = match posting.entry(key(attempt)) {
            hash_map::Entry::Occupied(known) => known.into_mut(),
            hash_map::Entry::Vacant(free) => free.insert(Keys::read(&path).doing("read", &path)?),
        };
        keys.append(&path, key_sent, lines, bytes_max)
            .doing("write", &path)
    }

    fn metrics(&self, attempt: AttemptRef) -> Result<BTreeMap<String, MetricSummary>, ExecError> {
        let dir = self.dir(attempt);
        if !dir.path().is_dir() {
            return Err(ExecError::NoAttempt(attempt));
        }
        let work = dir.work();
        // Taken out while it reads, so that one long file does not hold up others.
        let known = locked(&self.metrics).remove(&key(attempt));
        let mut metrics = known.unwrap_or_else(|| self.metrics_of(attempt));
        metrics.read(&mut |_| {}).doing("read metrics in", &work)?;
        let summaries = metrics.summaries();
        locked(&self.metrics).insert(key(attempt), metrics);
        Ok(summaries)
    }

    fn discard(&self, attempt: AttemptRef) -> Result<(), ExecError> {
        let dir = self.dir(attempt);
        if let Look::Alive { .. } = self.look(attempt)? {
            return Err(io::Error::from(io::ErrorKind::ResourceBusy))
                .doing("remove the working directory of a live attempt", dir.path());
        }
        locked(&self.watches).remove(&key(attempt));
        locked(&self.metrics).remove(&key(attempt));
        remove_work(&dir)
    }

    fn read_log(
        &self,
        attempt: AttemptRef,
        from: u64,
        bytes_max: u64,
    ) -> Result<LogPage, ExecError> {
        let dir = self.dir(attempt);
        if !dir.path().is_dir() {
            return Err(ExecError::NoAttempt(attempt));
        }
        // Before the log is read: what is there at the end is there already.
        let ended = Journal::read(&dir)?.is_over();
        let path = dir.log();
        let (lines, next) = match log::read_lines(&path, from, bytes_max) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => (Vec::new(), from),
            read => read.doing("read", &path)?,
        };
        // A torn record stays at the end of a log whose supervisor was killed.
        let length = std::fs::metadata(&path).map_or(0, |facts| facts.len());
        let complete = ended && (lines.is_empty() || next >= length);
        Ok(LogPage {
            lines,
            next,
            complete,
        })
    }
}

/// What a spec says of an attempt that runs.
#[derive(Default)]
struct Facts {
    datasets_verified: Vec<String>,
    environment: Option<ResolvedEnvironment>,
    ports: BTreeMap<String, u16>,
}

impl Facts {
    fn of(spec: &Spec) -> Self {
        Self {
            datasets_verified: spec.datasets_verified.clone(),
            environment: spec.environment.clone(),
            ports: spec.ports.clone(),
        }
    }
}

fn started(running: Running, facts: Facts) -> Started {
    Started {
        time: running.time,
        isolation: running.isolation,
        datasets_verified: facts.datasets_verified,
        environment: facts.environment,
        ports: facts.ports,
    }
}

/// Writes a byte into the pipe that is the supervisor's standard input.
fn wake(supervisor: &ProcessIdentity) -> io::Result<()> {
    std::fs::OpenOptions::new()
        .write(true)
        .custom_flags(i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0))
        .open(format!("/proc/{}/fd/0", supervisor.pid))?
        .write_all(b"s")
}

/// Removes what an attempt worked in. A job may have left folders that its own
/// user cannot list; those are opened first.
fn remove_work(dir: &AttemptDir) -> Result<(), ExecError> {
    let posted = dir.path().join(crate::METRICS_FILE);
    match std::fs::remove_file(&posted) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        removed => removed.doing("remove", &posted)?,
    }
    // The token first: whatever fails later, it is gone.
    let [root, artifacts] = ["root", mlflow::ARTIFACTS].map(|name| dir.path().join(name));
    for folder in [
        dir.api(),
        dir.work(),
        dir.home(),
        dir.tmp(),
        root,
        artifacts,
    ] {
        let mut removed = std::fs::remove_dir_all(&folder);
        if removed
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
        {
            open_folders(&folder);
            removed = std::fs::remove_dir_all(&folder);
        }
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed.doing("remove", &folder)?,
        }
    }
    Ok(())
}

fn open_folders(top: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mut open = vec![top.to_owned()];
    while let Some(folder) = open.pop() {
        drop(std::fs::set_permissions(
            &folder,
            std::fs::Permissions::from_mode(0o700),
        ));
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        open.extend(
            entries
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
}

impl Executor for ProcessExecutor {
    fn abilities(&self) -> Abilities {
        self.inner.abilities.clone()
    }

    fn start(&self, spec: StartSpec) -> BoxFuture<'_, Result<Started, StartError>> {
        let inner = Arc::clone(&self.inner);
        Box::pin(async move {
            let joined = tokio::task::spawn_blocking(move || inner.start(&spec)).await;
            joined.unwrap_or_else(|error| {
                Err(prepare_failed(format!("prepare the attempt: {error}")))
            })
        })
    }

    fn wait(&self, attempt: AttemptRef) -> BoxFuture<'_, Result<Ended, ExecError>> {
        Box::pin(self.wait_for_end(attempt))
    }

    fn reattach(&self, attempt: AttemptRef) -> BoxFuture<'_, Result<Reattached, ExecError>> {
        Box::pin(self.take_over(attempt))
    }

    fn stop(
        &self,
        attempt: AttemptRef,
        cause: Cause,
        grace_ms: u64,
    ) -> BoxFuture<'_, Result<(), ExecError>> {
        Box::pin(self.blocking(move |inner| inner.stop(attempt, cause, grace_ms)))
    }

    fn collect(
        &self,
        attempt: AttemptRef,
        plan: Arc<Plan>,
    ) -> BoxFuture<'_, Result<Collected, ExecError>> {
        Box::pin(self.blocking(move |inner| inner.collect(attempt, &plan)))
    }

    fn discard(&self, attempt: AttemptRef) -> BoxFuture<'_, Result<(), ExecError>> {
        Box::pin(self.blocking(move |inner| inner.discard(attempt)))
    }

    fn read_log(
        &self,
        attempt: AttemptRef,
        from: u64,
        bytes_max: u64,
    ) -> BoxFuture<'_, Result<LogPage, ExecError>> {
        Box::pin(self.blocking(move |inner| inner.read_log(attempt, from, bytes_max)))
    }

    fn post_metrics(
        &self,
        attempt: AttemptRef,
        key: Option<String>,
        lines: Vec<u8>,
        bytes_max: u64,
    ) -> BoxFuture<'_, Result<Posted, ExecError>> {
        Box::pin(
            self.blocking(move |inner| {
                inner.post_metrics(attempt, key.as_deref(), &lines, bytes_max)
            }),
        )
    }

    fn metrics(
        &self,
        attempt: AttemptRef,
    ) -> BoxFuture<'_, Result<BTreeMap<String, MetricSummary>, ExecError>> {
        Box::pin(self.blocking(move |inner| inner.metrics(attempt)))
    }

    fn points(
        &self,
        attempt: AttemptRef,
        ask: PointsAsk,
    ) -> BoxFuture<'_, Result<Vec<Series>, ExecError>> {
        Box::pin(self.blocking(move |inner| inner.points(attempt, &ask)))
    }
}
