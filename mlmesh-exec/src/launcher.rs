//! The short-lived process between supervisor and command: joins control groups,
//! makes namespaces, and then becomes the command or starts the sandbox's first
//! process.
//!
//! ```text
//!   supervisor ── attempt-launcher ── exec ─► command              (no network)
//!                        └─ unshare ── attempt-init ── fork ─► command    (sandbox)
//! ```
//!
//! It exists because a process must enter namespaces before it executes the
//! command and cannot leave them again, and the supervisor must stay outside.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use mlmesh_model::{Cause, StartError};
use rustix::process::Signal;
use rustix::thread::UnshareFlags;

use crate::channel::{JobEnvironment, Message, receive_environment, send, send_with};
use crate::journal::Journal;
use crate::record::{AttemptDir, Launch, LimitMeans, Spec};
use crate::{cgroup, mlflow, namespace};

/// Runs the launcher; returns only when the command did not take its place.
pub(crate) fn launch(dir: &Path) -> Result<(), StartError> {
    let channel = own_channel()?;
    let outcome = launch_on(&AttemptDir::at(dir), &channel);
    if let Err(error) = &outcome {
        report_failure(&channel, error);
    }
    outcome
}

/// The socket that the supervisor gave as standard input, closed on exec.
pub(crate) fn own_channel() -> Result<OwnedFd, StartError> {
    rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)
        .map_err(|error| isolation_failed(format!("take over the channel: {error}")))
}

pub(crate) fn report_failure(channel: &OwnedFd, error: &StartError) {
    let message = Message::Failed {
        cause: error.cause,
        message: error.message.clone(),
    };
    // Without a supervisor there is nobody to tell.
    drop(send(channel, &message));
}

pub(crate) fn isolation_failed(message: String) -> StartError {
    StartError {
        cause: Cause::IsolationFailed,
        message,
    }
}

/// Reads the attempt's spec, which the launcher and the first process share.
pub(crate) fn read_spec(dir: &AttemptDir) -> Result<Spec, StartError> {
    match Journal::read(dir).map(|journal| journal.spec) {
        Ok(Some(spec)) => Ok(spec),
        Ok(None) => Err(isolation_failed("the attempt has no spec".to_owned())),
        Err(error) => Err(isolation_failed(error.to_string())),
    }
}

fn launch_on(dir: &AttemptDir, channel: &OwnedFd) -> Result<(), StartError> {
    let spec = read_spec(dir)?;
    join_groups(&spec, channel)?;
    match &spec.launch {
        Launch::Plain => Err(isolation_failed(
            "a command without namespaces has no launcher".to_owned(),
        )),
        Launch::NetworkNone => {
            namespace::enter_empty_network()
                .map_err(|error| isolation_failed(format!("make an empty network: {error}")))?;
            become_command(&spec, channel)
        }
        Launch::Sandbox(sandbox) => start_init(dir, sandbox.network_none, channel),
    }
}

fn join_groups(spec: &Spec, channel: &OwnedFd) -> Result<(), StartError> {
    let mut joined: Vec<&Path> = Vec::new();
    for limit in &spec.limits {
        let LimitMeans::Cgroup { version, path, .. } = &limit.by else {
            continue;
        };
        if joined.contains(&path.as_path()) {
            continue;
        }
        joined.push(path);
        let Err(error) = cgroup::join(*version, path) else {
            continue;
        };
        if spec.limits_required {
            return Err(isolation_failed(format!(
                "the {} limit does not hold: joining `{}`: {error}",
                limit.name,
                path.display()
            )));
        }
        let message = Message::CgroupRefused {
            group: path.display().to_string(),
            why: error.to_string(),
        };
        drop(send(channel, &message));
    }
    Ok(())
}

/// The job's command line, directory, environment and standard input.
pub(crate) fn command(spec: &Spec, environment: &JobEnvironment) -> Result<Command, StartError> {
    let name = spec.argv.first().map_or("", String::as_str);
    command_at(Path::new(name), spec, environment)
}

/// The same with the program's place.
pub(crate) fn command_at(
    program: &Path,
    spec: &Spec,
    environment: &JobEnvironment,
) -> Result<Command, StartError> {
    let (name, arguments) = spec.argv.split_first().ok_or_else(|| StartError {
        cause: Cause::CommandNotFound,
        message: "the command is empty".to_owned(),
    })?;
    let mut command = Command::new(program);
    command
        .arg0(name)
        .args(arguments)
        .env_clear()
        .envs(environment)
        .current_dir(&spec.directory)
        .stdin(Stdio::null())
        .process_group(0);
    Ok(command)
}

/// What a failed execution of the command means.
pub(crate) fn not_executed(
    spec: &Spec,
    environment: &JobEnvironment,
    error: &std::io::Error,
) -> StartError {
    let program = spec.argv.first().map_or("", String::as_str);
    let path = environment.get("PATH").map_or("", String::as_str);
    StartError {
        cause: Cause::CommandNotFound,
        message: format!(
            "execute `{program}`: {error}\nhint: PATH of the job is `{path}`; the program must be \
             there, or in the project with its executable bit set"
        ),
    }
}

fn become_command(spec: &Spec, channel: &OwnedFd) -> Result<(), StartError> {
    let own_end = channel
        .try_clone()
        .map_err(|error| isolation_failed(error.to_string()))?;
    let mut environment = receive_environment(own_end)
        .map_err(|error| isolation_failed(format!("receive the environment: {error}")))?;
    offer_tracking(spec, channel, &mut environment)?;
    let mut command = command(spec, &environment)?;
    // Outlives the execution: should the supervisor be killed, the command ends at
    // once, and not only when the next daemon looks. Its children wait for that.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let error = command.exec();
    Err(not_executed(spec, &environment, &error))
}

/// Listens for the job's MLflow client in the namespace that the caller is in, and
/// hands the socket to the supervisor, which answers.
pub(crate) fn offer_tracking(
    spec: &Spec,
    channel: &OwnedFd,
    environment: &mut JobEnvironment,
) -> Result<(), StartError> {
    if !spec.tracking {
        return Ok(());
    }
    let offered = mlflow::listen_inside().and_then(|listener| {
        mlflow::point_to(&listener, environment)?;
        send_with(channel, &Message::Tracking, &[listener.as_fd()])
    });
    offered.map_err(|error| isolation_failed(format!("offer the run's tracking: {error}")))
}

fn start_init(dir: &AttemptDir, network_none: bool, channel: &OwnedFd) -> Result<(), StartError> {
    let failed = |what: &str, error: std::io::Error| isolation_failed(format!("{what}: {error}"));
    let mut flags = UnshareFlags::NEWUSER
        | UnshareFlags::NEWNS
        | UnshareFlags::NEWPID
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS;
    if network_none {
        flags |= UnshareFlags::NEWNET;
    }
    namespace::enter_as(flags, namespace::INSIDE_ID)
        .map_err(|error| failed("make namespaces", error))?;
    namespace::keep_capabilities().map_err(|error| failed("keep capabilities", error))?;
    let own_end = channel.as_fd().try_clone_to_owned();
    let own_end = own_end.map_err(|error| failed("copy the channel", error))?;
    // `/proc/self/exe` is the binary that runs now, also after an upgrade has
    // replaced the file.
    let child = Command::new("/proc/self/exe")
        .arg(crate::VERB_INIT)
        .arg(dir.path())
        .env_clear()
        .stdin(Stdio::from(own_end))
        .spawn()
        .map_err(|error| failed("start the sandbox's first process", error))?;
    let pid = i32::try_from(child.id()).unwrap_or(0);
    send(channel, &Message::Init { pid }).map_err(|error| failed("tell the supervisor", error))
}
