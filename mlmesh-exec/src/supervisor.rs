//! The process that owns one attempt: its command, everything the command starts,
//! its log, its limits and the record of its end.
//!
//! It outlives the daemon. It has no runtime and one thread: a loop over the job's
//! two streams, the control pipe, the launch channel and the end of the job. Only
//! declared hosts add threads, which carry their connections.
//!
//! ```text
//!   daemon ─ journal: spec; secrets on stdin ─► supervisor ─ report on stdout ─► daemon
//!   any daemon ─ journal: stop; a byte into stdin ─► supervisor ─ journal: ended ─► any daemon
//! ```
//!
//! The order is what makes a command run at most once: lock, marker, command, end.

mod end;
mod job;
mod launch;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use mlmesh_model::{
    Cause, Clock, Ended, ExecError, Isolation, LimitReport, Micros, SecretText, StartError,
};
use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::cgroup;
use crate::clock::SystemClock;
use crate::journal::{Appender, Entry, Running};
use crate::prepare::exec_failed;
use crate::process::ProcessIdentity;
use crate::record::{
    AttemptDir, AttemptLock, Doing, Launch, LimitMeans, LimitSpec, Report, SCHEMA, Spec,
};

/// Between two tries to record an end on a full disk.
const FULL_DISK_WAIT: std::time::Duration = std::time::Duration::from_millis(250);

/// Runs an attempt from its folder to its recorded end.
pub(crate) fn supervise(dir: &Path) -> Result<(), ExecError> {
    let dir = AttemptDir::at(dir);
    // Both fail only when they hold already.
    let _ = rustix::process::setsid();
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    let identity = ProcessIdentity::of_self().doing("read", Path::new("/proc/self/stat"))?;
    let lock = AttemptLock::take(&dir)?;
    // Where `ps` and `lsof` show whose it is, and an unmount is refused.
    rustix::process::chdir(dir.path())
        .map_err(std::io::Error::from)
        .doing("enter", dir.path())?;
    let attempt = Attempt {
        journal: RefCell::new(Appender::open(&dir)?),
        dir,
        identity,
        clock: SystemClock,
    };
    let outcome = attempt.run();
    if let Err(error) = &outcome {
        let StartError { cause, message } = exec_failed(error);
        report(&Report::Failed { cause, message });
    }
    drop(lock);
    outcome
}

fn refused(message: impl Into<String>) -> Report {
    Report::Failed {
        cause: Cause::PrepareFailed,
        message: message.into(),
    }
}

/// One line to the daemon, which may be gone.
fn report(report: &Report) {
    if let Ok(mut line) = serde_json::to_vec(report) {
        line.push(b'\n');
        drop(std::io::stdout().write_all(&line));
        drop(std::io::stdout().flush());
    }
}

struct Attempt {
    dir: AttemptDir,
    journal: RefCell<Appender>,
    identity: ProcessIdentity,
    clock: SystemClock,
}

impl Attempt {
    fn run(&self) -> Result<(), ExecError> {
        let journal = self.journal.borrow().read()?;
        let spec = journal.spec.ok_or_else(|| ExecError::Io {
            action: "find the attempt's spec".to_owned(),
            source: std::io::ErrorKind::NotFound.into(),
        })?;
        if spec.schema != SCHEMA {
            report(&refused(format!(
                "the spec is `{}`; this supervisor reads `{SCHEMA}`",
                spec.schema
            )));
            return Ok(());
        }
        if let Ok(name) = CString::new(format!("ml-{}", spec.run)) {
            // For people only.
            let _ = rustix::thread::set_name(&name);
        }
        // With the lock in hand nobody else makes one.
        if journal.marker.is_some() {
            report(&refused("this attempt was given up or started before"));
            return Ok(());
        }
        let secrets = read_secrets()?;
        if let Some(stop) = journal.stop {
            return self.not_started(
                &Isolation::default(),
                StartError {
                    cause: stop.cause,
                    message: "it was stopped before its command was executed".to_owned(),
                },
            );
        }
        let isolation = Isolation {
            namespaces: namespaces(&spec.launch),
            sandboxed: matches!(spec.launch, Launch::Sandbox(_)),
            network_enforced: spec.network_enforced,
            hosts: Vec::new(),
            limits: spec.limits.iter().map(set_limit).collect(),
        };
        let outcome = self.run_limited(&spec, &secrets, isolation);
        for group in groups(&spec) {
            // What is left empty costs nothing; the next daemon's probe would not mind.
            drop(cgroup::remove(group));
        }
        outcome
    }

    fn run_limited(
        &self,
        spec: &Spec,
        secrets: &BTreeMap<String, SecretText>,
        isolation: Isolation,
    ) -> Result<(), ExecError> {
        if spec.limits_required
            && let Some(limit) = isolation.limits.iter().find(|limit| limit.held.is_none())
        {
            let message = format!(
                "the {} limit does not hold: {}\nhint: `limits: recorded` runs without it, `ml doctor` \
                 says what the host lacks",
                limit.name, limit.by
            );
            return self.not_started(
                &isolation,
                StartError {
                    cause: Cause::IsolationFailed,
                    message,
                },
            );
        }
        self.add(Entry::Begun(self.identity.clone()))?;
        let begun = control()
            .map_err(|error| StartError {
                cause: Cause::PrepareFailed,
                message: error.to_string(),
            })
            .and_then(|control| job::Job::begin(self, spec, secrets, isolation.clone(), control));
        let finished = match begun {
            Ok(job) => job.follow(),
            Err(error) => Err(error),
        };
        match finished {
            Ok(ended) => self.ended(ended),
            Err(error) => self.not_started(&isolation, error),
        }
    }

    fn add(&self, entry: Entry) -> Result<(), ExecError> {
        self.journal.borrow_mut().add(&entry)
    }

    /// Nobody but us knows how it ended: on a full disk that is kept until there is
    /// space, however long that takes.
    fn ended(&self, ended: Ended) -> Result<(), ExecError> {
        let entry = Entry::Ended(ended);
        loop {
            match self.journal.borrow_mut().add(&entry) {
                Err(error) if error.is_disk_full() => std::thread::sleep(FULL_DISK_WAIT),
                written => return written,
            }
        }
    }

    /// Records that the command never ran.
    fn not_started(&self, isolation: &Isolation, error: StartError) -> Result<(), ExecError> {
        self.ended(Ended {
            started_at: None,
            ended_at: self.now(),
            exit: None,
            cause: Some(error.cause),
            message: error.message.clone(),
            isolation: isolation.clone(),
            log_bytes_dropped: 0,
            logged: None,
        })?;
        report(&Report::Failed {
            cause: error.cause,
            message: error.message,
        });
        Ok(())
    }

    /// Records and reports that the command runs.
    fn started(&self, time: Micros, isolation: &Isolation) -> Result<(), ExecError> {
        let running = Running {
            time,
            isolation: isolation.clone(),
        };
        self.add(Entry::Started(running.clone()))?;
        report(&Report::Started(running));
        Ok(())
    }

    fn now(&self) -> Micros {
        self.clock.now()
    }
}

/// Values of secrets, which no file and no argument ever carries: one line. What
/// comes after it wakes.
fn read_secrets() -> Result<BTreeMap<String, SecretText>, ExecError> {
    const SECRETS_BYTES_MAX: usize = 16 << 20;
    let stdin = Path::new("standard input");
    let mut bytes = Vec::new();
    let mut buffer = [0_u8; 4096];
    let mut whole = false;
    while !whole && bytes.len() < SECRETS_BYTES_MAX {
        match std::io::stdin().lock().read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                whole = buffer[..length].contains(&b'\n');
                bytes.extend_from_slice(&buffer[..length]);
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).doing("read", stdin),
        }
    }
    let line = bytes.split(|byte| *byte == b'\n').next();
    match line.filter(|line| !line.is_empty()) {
        None => Ok(BTreeMap::new()),
        Some(line) => serde_json::from_slice(line)
            .map_err(std::io::Error::other)
            .doing("understand", stdin),
    }
}

/// The pipe that is our standard input, opened anew: as a writer of it, too, we
/// never see its end when the daemon is gone. Any daemon reaches it through `/proc`.
fn control() -> Result<OwnedFd, ExecError> {
    let path = Path::new("/proc/self/fd/0");
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let pipe = rustix::fs::openat(CWD, path, flags, Mode::empty()).doing("open", path)?;
    let facts = rustix::fs::fstat(&pipe).doing("look at", path)?;
    if FileType::from_raw_mode(facts.st_mode) != FileType::Fifo {
        return Err(std::io::Error::from(std::io::ErrorKind::InvalidInput))
            .doing("be woken through", path);
    }
    Ok(pipe)
}

fn namespaces(launch: &Launch) -> Vec<String> {
    let root = rustix::process::geteuid().is_root();
    let names: &[&str] = match launch {
        Launch::Plain => &[],
        Launch::NetworkNone if root => &["net"],
        Launch::NetworkNone => &["user", "net"],
        Launch::Sandbox(sandbox) if sandbox.network_none => {
            &["user", "mount", "pid", "net", "ipc", "uts"]
        }
        Launch::Sandbox(_) => &["user", "mount", "pid", "ipc", "uts"],
    };
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn set_limit(limit: &LimitSpec) -> LimitReport {
    match &limit.by {
        LimitMeans::Nothing(why) => limit.not_held(why.clone()),
        LimitMeans::Supervisor => LimitReport {
            name: limit.name.clone(),
            asked: limit.asked,
            held: Some(limit.asked),
            by: "supervisor".to_owned(),
        },
        LimitMeans::Cgroup { version, path, .. } => {
            match cgroup::set(*version, path, &limit.name, limit.asked) {
                Ok(held) => LimitReport {
                    name: limit.name.clone(),
                    asked: limit.asked,
                    held: Some(held),
                    by: format!("cgroup{version}"),
                },
                Err(error) => limit.not_held(format!("set it in `{}`: {error}", path.display())),
            }
        }
    }
}

/// The attempt's control groups, each once.
pub(crate) fn groups(spec: &Spec) -> Vec<&Path> {
    let mut groups: Vec<&Path> = Vec::new();
    for limit in &spec.limits {
        if let LimitMeans::Cgroup { path, .. } = &limit.by
            && !groups.contains(&path.as_path())
        {
            groups.push(path);
        }
    }
    groups
}
