//! One running command: its launch, its streams, its limits of time, its end.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use mlmesh_model::{
    Cause, Clock, Ended, Exit, Isolation, LogStream, Micros, SecretText, StartError,
};
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, wait};

use super::Attempt;
use super::end::{end_message, exit_text, own_cause};
use super::launch::{Launched, start};
use crate::channel::{Inbox, JobEnvironment, Message, receive};
use crate::launcher::isolation_failed;
use crate::log::LogWriter;
use crate::mlflow::Tracking;
use crate::prepare::TOKEN_FILE;
use crate::process::{descendants, signal};
use crate::record::{Launch, LimitMeans, Spec};
use crate::relay::Relay;
use crate::sandbox::exit_of;

/// A piece without an end of line is shown after this time.
const PIECE_WAIT_US: u64 = 100_000;
/// Processes that do not end within this time after SIGKILL are reported, not waited for.
const KILL_WAIT_US: u64 = 30_000_000;
const READ_BYTES: usize = 64 << 10;

pub(super) struct Job<'a> {
    attempt: &'a Attempt,
    spec: &'a Spec,
    isolation: Isolation,
    log: LogWriter,
    streams: [Option<OwnedFd>; 2],
    control: OwnedFd,
    channel: Option<(OwnedFd, Inbox)>,
    main: Main,
    phase: Phase,
    /// When the oldest piece without an end of line must be shown.
    piece_due_us: Option<u64>,
    /// Ends of children that were reaped before anybody asked.
    reaped: BTreeMap<i32, Exit>,
    /// How the command ended, as the sandbox's first process tells it.
    told: Option<Exit>,
    /// Sockets of the doors, until the relay has them.
    listeners: Vec<OwnedFd>,
    relay: Option<Relay>,
    tracking: Option<Tracking>,
}

/// The process whose end is the end of the attempt.
struct Main {
    pid: i32,
    watch: OwnedFd,
    /// The sandbox's first process, once known; the launcher is watched before.
    init: Option<i32>,
}

enum Phase {
    /// The launcher prepares.
    Launching,
    /// The command runs.
    Running {
        started_at: Micros,
        time_out_us: Option<u64>,
    },
    /// It was asked to end.
    Stopping {
        started_at: Option<Micros>,
        cause: Cause,
        kill_at_us: u64,
    },
}

impl<'a> Job<'a> {
    /// Starts the command or its launcher.
    pub(super) fn begin(
        attempt: &'a Attempt,
        spec: &'a Spec,
        secrets: &BTreeMap<String, SecretText>,
        isolation: Isolation,
        control: OwnedFd,
    ) -> Result<Self, StartError> {
        let system = |what: &str, error: io::Error| {
            let message = format!("{what}: {error}");
            StartError::of(Cause::PrepareFailed, message, Some(&error))
        };
        let mut hidden = secrets.clone();
        if spec.env.contains_key(TOKEN_FILE) {
            let token = std::fs::read_to_string(attempt.dir.token())
                .map_err(|error| system("read the attempt's token", error))?;
            hidden.insert(TOKEN_FILE.to_owned(), SecretText(token));
        }
        let mut environment: JobEnvironment = spec.env.clone();
        for (name, value) in secrets {
            environment.insert(name.clone(), value.0.clone());
        }
        let tracking = Tracking::outside(&attempt.dir, spec, &mut environment, &mut hidden)
            .map_err(|error| system("offer the run's tracking", error))?;
        let log = LogWriter::new(attempt.dir.log(), spec.log_bytes_max, &hidden);
        let Launched {
            mut child,
            channel,
            refused,
        } = start(attempt, spec, &environment)?;
        let pid = i32::try_from(child.id()).unwrap_or(0);
        let watch = watch(pid).map_err(|error| system("watch the command", error))?;
        let streams = [
            child.stdout.take().map(OwnedFd::from),
            child.stderr.take().map(OwnedFd::from),
        ];
        for stream in streams.iter().flatten() {
            let _ = rustix::fs::fcntl_setfl(stream, OFlags::NONBLOCK);
        }
        let mut job = Self {
            attempt,
            spec,
            isolation,
            log,
            streams,
            control,
            channel: channel.map(|channel| (channel, Inbox::default())),
            main: Main {
                pid,
                watch,
                init: None,
            },
            phase: Phase::Launching,
            piece_due_us: None,
            reaped: BTreeMap::new(),
            told: None,
            listeners: Vec::new(),
            relay: None,
            tracking,
        };
        for (group, why) in refused {
            job.limits_lost(&group, &why);
        }
        Ok(job)
    }

    /// Follows the command to its end, and everything that it has started.
    pub(super) fn follow(mut self) -> Result<Ended, StartError> {
        if self.channel.is_none() {
            self.command_runs()?;
        }
        // A request may have come before there was a pipe to be woken on.
        self.read_control();
        loop {
            let ready = self.wait_for_something();
            self.read_streams();
            if ready.channel {
                self.read_channel()?;
            }
            if ready.control {
                self.read_control();
            }
            if ready.tracking
                && let Some(tracking) = &mut self.tracking
            {
                tracking.begin();
            }
            self.act_on_time();
            if ready.main
                && let Some(exit) = self.main_ended()?
            {
                return Ok(self.finish(exit));
            }
        }
    }

    fn now_us(&self) -> u64 {
        self.attempt.clock.monotonic_us()
    }

    fn command_runs(&mut self) -> Result<(), StartError> {
        let started_at = self.attempt.now();
        let limit = self.spec.limits.iter().find(|limit| limit.name == "time");
        match &mut self.phase {
            Phase::Launching => {
                let now = self.attempt.clock.monotonic_us();
                self.phase = Phase::Running {
                    started_at,
                    time_out_us: limit
                        .map(|limit| now.saturating_add(limit.asked.saturating_mul(1_000_000))),
                };
            }
            Phase::Stopping { started_at: at, .. } => *at = Some(started_at),
            Phase::Running { .. } => return Ok(()),
        }
        if let Err(error) = self.attempt.started(started_at, &self.isolation) {
            // A command without a record would be lost to the next daemon.
            self.end_tree();
            return Err(StartError {
                cause: Cause::PrepareFailed,
                message: format!("the command was ended again: {error}"),
            });
        }
        Ok(())
    }

    fn wait_for_something(&mut self) -> Ready {
        let due = [
            self.piece_due_us,
            match &self.phase {
                Phase::Launching => None,
                Phase::Running { time_out_us, .. } => *time_out_us,
                Phase::Stopping { kill_at_us, .. } => Some(*kill_at_us),
            },
        ];
        let now = self.now_us();
        let wait_us = due
            .into_iter()
            .flatten()
            .min()
            .map(|due| due.saturating_sub(now));
        let mut watched: Vec<(BorrowedFd<'_>, usize)> =
            vec![(self.main.watch.as_fd(), 0), (self.control.as_fd(), 1)];
        if let Some((channel, _)) = &self.channel {
            watched.push((channel.as_fd(), 2));
        }
        if let Some(listener) = self.tracking.as_ref().and_then(Tracking::waits_on) {
            watched.push((listener, 4));
        }
        watched.extend(self.streams.iter().flatten().map(|fd| (fd.as_fd(), 3)));
        let mut polled: Vec<PollFd<'_>> = watched
            .iter()
            .map(|(fd, _)| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
            .collect();
        let timeout = wait_us.and_then(timespec);
        let mut ready = [false; 5];
        if poll(&mut polled, timeout.as_ref()).is_ok() {
            for (fd, (_, kind)) in polled.iter().zip(&watched) {
                ready[*kind] |= !fd.revents().is_empty();
            }
        }
        Ready {
            main: ready[0],
            control: ready[1],
            channel: ready[2],
            tracking: ready[4],
        }
    }

    /// Reads what is there, at most one buffer per stream, so that no stream and
    /// no signal waits for another.
    fn read_streams(&mut self) {
        // Not zeroed: most reads find little, and memory is paid for when it is touched.
        let mut buffer = Vec::with_capacity(READ_BYTES);
        for (place, stream) in [LogStream::Stdout, LogStream::Stderr]
            .into_iter()
            .enumerate()
        {
            let Some(fd) = &self.streams[place] else {
                continue;
            };
            buffer.clear();
            match rustix::io::read(fd, spare_capacity(&mut buffer)) {
                Ok(0) => self.streams[place] = None,
                Ok(_) => {
                    let time = self.attempt.now();
                    self.log.push(stream, time, &buffer);
                    let wait = self.now_us().saturating_add(PIECE_WAIT_US);
                    self.piece_due_us = self.log.has_pending().then_some(wait);
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => self.streams[place] = None,
            }
        }
    }

    fn read_channel(&mut self) -> Result<(), StartError> {
        let Some((channel, inbox)) = &mut self.channel else {
            return Ok(());
        };
        let mut buffer = [0_u8; 4096];
        let messages = match receive(&*channel, &mut buffer, &mut self.listeners) {
            Ok(0) | Err(Errno::CONNRESET) => {
                self.channel = None;
                // The launcher's end closes when the command takes its place.
                return match (&self.spec.launch, &self.phase) {
                    (Launch::Sandbox(_), Phase::Launching) => {
                        self.end_tree();
                        Err(isolation_failed(
                            "the sandbox ended before the command was executed".to_owned(),
                        ))
                    }
                    (Launch::Sandbox(_), _) => Ok(()),
                    (Launch::Plain | Launch::NetworkNone, _) => self.command_runs(),
                };
            }
            Ok(length) => match inbox.push(&buffer[..length]) {
                Ok(messages) => messages,
                Err(error) => {
                    self.end_tree();
                    return Err(isolation_failed(error.to_string()));
                }
            },
            Err(_) => return Ok(()),
        };
        for message in messages {
            self.take(message)?;
        }
        Ok(())
    }

    fn take(&mut self, message: Message) -> Result<(), StartError> {
        let launching = matches!(self.phase, Phase::Launching) && self.told.is_none();
        match message {
            Message::CgroupRefused { group, why } if launching => {
                self.limits_lost(Path::new(&group), &why);
                Ok(())
            }
            // The first process may be faster than the launcher that tells of it:
            // the command may have started, or ended, by now.
            Message::Init { pid } if self.main.init.is_none() => {
                self.main.init = Some(pid);
                Ok(())
            }
            Message::Tracking => {
                let (dir, run) = (&self.attempt.dir, self.spec.run);
                let listener = (!self.listeners.is_empty()).then(|| self.listeners.remove(0));
                self.tracking = listener.map(|listener| Tracking::inside(dir, run, listener));
                Ok(())
            }
            Message::Doors => self.open_doors(),
            Message::Started => self.command_runs(),
            Message::Exited(exit) => {
                self.told.get_or_insert(exit);
                Ok(())
            }
            Message::Failed { cause, message } if launching => {
                self.end_tree();
                Err(StartError { cause, message })
            }
            // Late or repeated: nothing to learn from it.
            Message::CgroupRefused { .. } | Message::Init { .. } | Message::Failed { .. } => Ok(()),
        }
    }

    fn open_doors(&mut self) -> Result<(), StartError> {
        let Launch::Sandbox(sandbox) = &self.spec.launch else {
            return Ok(());
        };
        let listeners = std::mem::take(&mut self.listeners);
        let relay = Relay::start(&sandbox.doors, listeners).map_err(|error| {
            self.end_tree();
            isolation_failed(format!("the declared hosts cannot be reached: {error}"))
        })?;
        self.relay = Some(relay);
        Ok(())
    }

    fn limits_lost(&mut self, group: &Path, why: &str) {
        for limit in &self.spec.limits {
            let affected = matches!(&limit.by, LimitMeans::Cgroup { path, .. } if path == group);
            let report = self.isolation.limits.iter_mut();
            for report in report.filter(|report| affected && report.name == limit.name) {
                *report = limit.not_held(format!("join `{}`: {why}", group.display()));
            }
        }
    }

    fn read_control(&mut self) {
        let mut buffer = [0_u8; 64];
        while matches!(rustix::io::read(&self.control, &mut buffer), Ok(length) if length > 0) {}
        let journal = self.attempt.journal.borrow().read();
        if let Some(request) = journal.ok().and_then(|journal| journal.stop) {
            self.stop(request.cause, request.grace_ms);
        }
    }

    fn act_on_time(&mut self) {
        let now = self.now_us();
        if self.piece_due_us.is_some_and(|due| due <= now) {
            self.log.flush(self.attempt.now());
            self.piece_due_us = None;
        }
        match &mut self.phase {
            Phase::Running {
                time_out_us: Some(due),
                ..
            } if *due <= now => self.stop(Cause::Timeout, self.spec.grace_ms),
            Phase::Stopping { kill_at_us, .. } if *kill_at_us <= now => {
                // Again after a while, for what was started in the meantime.
                *kill_at_us = now.saturating_add(100_000);
                self.signal_tree(Signal::KILL);
            }
            _ => {}
        }
    }

    /// The first cause stays; a shorter grace is taken.
    fn stop(&mut self, cause: Cause, grace_ms: u64) {
        let now = self.now_us();
        let kill_at = now.saturating_add(grace_ms.saturating_mul(1000));
        let started_at = match &mut self.phase {
            Phase::Stopping { kill_at_us, .. } => {
                *kill_at_us = kill_at.min(*kill_at_us);
                return;
            }
            Phase::Launching => None,
            Phase::Running { started_at, .. } => Some(*started_at),
        };
        self.phase = Phase::Stopping {
            started_at,
            cause,
            kill_at_us: kill_at,
        };
        self.signal_tree(Signal::TERM);
    }

    fn signal_tree(&self, kind: Signal) {
        for pid in descendants(self.attempt.identity.pid) {
            signal(pid, kind);
        }
    }

    /// Looks whether the watched process has ended. When that was the launcher of
    /// a sandbox, goes on with the first process.
    fn main_ended(&mut self) -> Result<Option<Exit>, StartError> {
        self.reap();
        let Some(exit) = self.reaped.get(&self.main.pid).copied() else {
            return Ok(None);
        };
        // What it has said before it ended still lies in the channel.
        while self.channel.is_some() {
            let (channel, _) = self.channel.as_ref().expect("the channel is there");
            let mut polled = [PollFd::new(channel, PollFlags::IN)];
            match poll(
                &mut polled,
                Some(&Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                }),
            ) {
                Ok(1..) => self.read_channel()?,
                _ => break,
            }
        }
        match self.main.init {
            Some(init) if init != self.main.pid => {
                self.main.pid = init;
                match watch(init) {
                    Ok(watch) => self.main.watch = watch,
                    // It has ended and been reaped.
                    Err(_) => return Ok(Some(self.reaped.get(&init).copied().unwrap_or(exit))),
                }
                Ok(None)
            }
            _ if matches!(self.phase, Phase::Launching) => {
                self.end_tree();
                Err(isolation_failed(format!(
                    "the launcher ended early ({})",
                    exit_text(exit)
                )))
            }
            _ => Ok(Some(exit)),
        }
    }

    /// Takes the ends of all children that have ended; `false` when none is left.
    fn reap(&mut self) -> bool {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    if let Some(exit) = exit_of(status) {
                        self.reaped.insert(pid.as_raw_nonzero().get(), exit);
                    }
                }
                Ok(None) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Ends every process of the attempt. As a subreaper we are the parent of all
    /// whose own parents are gone: without children there are no descendants.
    fn end_tree(&mut self) -> bool {
        let give_up_us = self.now_us().saturating_add(KILL_WAIT_US);
        while self.reap() {
            if self.now_us() > give_up_us {
                return false;
            }
            self.signal_tree(Signal::KILL);
            self.read_streams();
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        true
    }

    fn finish(mut self, main_exit: Exit) -> Ended {
        let exit = self.told.unwrap_or(main_exit);
        let all_ended = self.end_tree();
        // Nobody writes any more: what is read now is the rest. A stream that
        // somebody outside still holds open has no end; an empty one is enough.
        while self.streams.iter().any(Option::is_some) {
            let before: usize = self.streams.iter().flatten().count();
            let pending = self.streams_have_more();
            self.read_streams();
            if !pending && before == self.streams.iter().flatten().count() {
                break;
            }
        }
        let tracking = self.tracking.take();
        let logged = tracking.and_then(|tracking| tracking.finish(self.log.redactor()));
        if let Some(relay) = self.relay.take() {
            self.isolation.hosts = relay.finish();
        }
        let (started_at, stopped) = match &self.phase {
            Phase::Launching => (None, None),
            Phase::Running { started_at, .. } => (Some(*started_at), None),
            Phase::Stopping {
                started_at, cause, ..
            } => (*started_at, Some(*cause)),
        };
        let cause = stopped.or_else(|| own_cause(self.spec, exit));
        let mut message = end_message(self.spec, exit, cause);
        if !all_ended {
            message.push_str("; some of its processes did not end after SIGKILL");
        }
        let ended_at = self.attempt.now();
        Ended {
            started_at,
            ended_at,
            exit: Some(exit),
            cause,
            message,
            isolation: self.isolation,
            log_bytes_dropped: self.log.finish(ended_at),
            logged,
        }
    }

    fn streams_have_more(&self) -> bool {
        self.streams.iter().flatten().any(|fd| {
            let mut polled = [PollFd::new(fd, PollFlags::IN)];
            poll(
                &mut polled,
                Some(&Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                }),
            )
            .is_ok_and(|ready| ready > 0)
        })
    }
}

struct Ready {
    main: bool,
    control: bool,
    channel: bool,
    tracking: bool,
}

fn watch(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

fn timespec(wait_us: u64) -> Option<Timespec> {
    Some(Timespec {
        tv_sec: i64::try_from(wait_us / 1_000_000).ok()?,
        // Rounded up, so that the time has come when poll returns.
        tv_nsec: i64::try_from((wait_us % 1_000_000) * 1000 + 999).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::journal::Appender;
    use crate::process::ProcessIdentity;
    use crate::record::{AttemptDir, SCHEMA};
    use mlmesh_model::{AttemptNumber, RunId};

    /// The launcher's end was once taken for the command's, because what it said
    /// after the first process had spoken was not listened to.
    #[test]
    fn the_first_process_may_speak_before_the_launcher() {
        let folder = tempfile::tempdir().unwrap();
        let dir = AttemptDir::at(folder.path());
        let attempt = Attempt {
            journal: Appender::open(&dir).unwrap().into(),
            dir,
            identity: ProcessIdentity::of_self().unwrap(),
            clock: SystemClock,
        };
        let spec = Spec {
            schema: SCHEMA.to_owned(),
            run: RunId::from_random(1),
            number: AttemptNumber(1),
            argv: vec!["true".to_owned()],
            directory: "/".into(),
            env: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]),
            launch: Launch::Plain,
            limits: Vec::new(),
            limits_required: false,
            network_enforced: false,
            log_bytes_max: 1 << 20,
            grace_ms: 0,
            umask: 0o022,
            ports: BTreeMap::new(),
            tracking: false,
            datasets_verified: Vec::new(),
            environment: None,
        };
        let (control, _wakes) = std::io::pipe().unwrap();
        let job = Job::begin(
            &attempt,
            &spec,
            &BTreeMap::new(),
            Isolation::default(),
            control.into(),
        );
        let Ok(mut job) = job else {
            panic!("`true` runs")
        };
        job.take(Message::Started).unwrap();
        job.take(Message::Exited(Exit::Code(3))).unwrap();
        job.take(Message::Init { pid: 42 }).unwrap();
        assert_eq!(job.main.init, Some(42));
        assert_eq!(job.told, Some(Exit::Code(3)));
        // Neither is believed twice.
        job.take(Message::Init { pid: 43 }).unwrap();
        job.take(Message::Exited(Exit::Code(0))).unwrap();
        assert_eq!((job.main.init, job.told), (Some(42), Some(Exit::Code(3))));
        rustix::process::waitpid(Pid::from_raw(job.main.pid), WaitOptions::empty()).unwrap();
    }
}
