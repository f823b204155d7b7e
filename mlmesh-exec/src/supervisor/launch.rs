//! How a supervisor starts the command: by itself where nothing stands between,
//! else through a launcher.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use mlmesh_model::StartError;

use rustix::fs::{Access, Mode, access};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::umask;

use super::Attempt;
use crate::VERB_LAUNCHER;
use crate::cgroup;
use crate::channel::{JobEnvironment, send};
use crate::launcher::{command, command_at, isolation_failed, not_executed};
use crate::record::{Launch, LimitMeans, Spec};

/// What was started.
pub(super) struct Launched {
    pub(super) child: Child,
    /// To the launcher, when there is one.
    pub(super) channel: Option<OwnedFd>,
    /// Control groups that could not be joined, and why.
    pub(super) refused: Vec<(PathBuf, String)>,
}

/// Starts the command under the file mode creation mask of jobs; the supervisor has
/// one thread and keeps its own.
pub(super) fn start(
    attempt: &Attempt,
    spec: &Spec,
    environment: &JobEnvironment,
) -> Result<Launched, StartError> {
    let own = umask(Mode::from_raw_mode(spec.umask));
    let launched = start_masked(attempt, spec, environment);
    umask(own);
    launched
}

/// The command itself where no namespace stands between, else its launcher.
fn start_masked(
    attempt: &Attempt,
    spec: &Spec,
    environment: &JobEnvironment,
) -> Result<Launched, StartError> {
    if spec.launch == Launch::Plain {
        return start_in_groups(spec, environment);
    }
    let failed = |what: &str, error: io::Error| isolation_failed(format!("{what}: {error}"));
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|error| failed("make the launch channel", error.into()))?;
    let child = Command::new("/proc/self/exe")
        .arg(VERB_LAUNCHER)
        .arg(attempt.dir.path())
        .env_clear()
        // Ours lies outside of the sandbox.
        .current_dir("/")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed("start the launcher", error))?;
    // When the launcher fails before it reads, what it says about that is worth more.
    drop(send(&ours, environment));
    Ok(Launched {
        child,
        channel: Some(ours),
        refused: Vec::new(),
    })
}

/// Enters the attempt's control groups, starts the command, which stays in them,
/// and returns. One execution less than with a launcher, a third of what a short
/// command costs.
fn start_in_groups(spec: &Spec, environment: &JobEnvironment) -> Result<Launched, StartError> {
    let mut joined: Vec<(u8, &Path, &Path)> = Vec::new();
    let mut refused: Vec<(PathBuf, String)> = Vec::new();
    for limit in &spec.limits {
        let LimitMeans::Cgroup {
            version,
            path,
            home,
        } = &limit.by
        else {
            continue;
        };
        let known = joined.iter().any(|(_, group, _)| group == path)
            || refused.iter().any(|(group, _)| group == path);
        if known {
            continue;
        }
        match cgroup::join(*version, path) {
            Ok(true) => joined.push((*version, path, home)),
            Ok(false) => {}
            Err(error) => refused.push((path.clone(), error.to_string())),
        }
    }
    let child = match refused.first() {
        Some((group, why)) if spec.limits_required => Err(isolation_failed(format!(
            "a limit does not hold: join `{}`: {why}",
            group.display()
        ))),
        _ => spawn(spec, environment),
    };
    for (version, _, home) in joined {
        // Should that fail, the supervisor shares the job's limits.
        drop(cgroup::join(version, home));
    }
    Ok(Launched {
        child: child?,
        channel: None,
        refused,
    })
}

/// Executes the command. A program that is found on the job's path before is started
/// without a copy of this process, which a search by the child would need.
fn spawn(spec: &Spec, environment: &JobEnvironment) -> Result<Child, StartError> {
    let piped = |mut command: Command| {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn()
    };
    let spawned = match found(spec, environment) {
        Some(program) => match piped(command_at(&program, spec, environment)?) {
            // A script without `#!` is the shell's, as everywhere; the search knows that.
            Err(error) if error.raw_os_error() == Some(Errno::NOEXEC.raw_os_error()) => {
                piped(command(spec, environment)?)
            }
            spawned => spawned,
        },
        None => piped(command(spec, environment)?),
    };
    spawned.map_err(|error| not_executed(spec, environment, &error))
}

/// The first program of the command's name on the job's path, unless the command is a
/// path itself.
fn found(spec: &Spec, environment: &JobEnvironment) -> Option<PathBuf> {
    let name = spec.argv.first().filter(|name| !name.contains('/'))?;
    let folders = environment.get("PATH")?.split(':');
    folders
        .map(|folder| spec.directory.join(folder).join(name))
        .find(|path| access(path, Access::EXEC_OK).is_ok() && path.is_file())
}
