//! How a supervisor starts the command: by itself where nothing stands between,
//! else through a launcher.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use mlmesh_model::StartError;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::Attempt;
use crate::VERB_LAUNCHER;
use crate::channel::{JobEnvironment, send};
use crate::launcher::{command, isolation_failed, not_executed};
use crate::record::{Launch, LimitMeans, Spec};

pub(super) type Launched = (std::process::Child, Option<OwnedFd>);

/// The command itself where nothing stands between, else its launcher.
pub(super) fn start(
    attempt: &Attempt,
    spec: &Spec,
    environment: &JobEnvironment,
) -> Result<Launched, StartError> {
    let grouped = spec
        .limits
        .iter()
        .any(|limit| matches!(limit.by, LimitMeans::Cgroup { .. }));
    if spec.launch == Launch::Plain && !grouped {
        let mut command = command(spec, environment)?;
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn();
        return Ok((
            child.map_err(|error| not_executed(spec, environment, &error))?,
            None,
        ));
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
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed("start the launcher", error))?;
    // When the launcher fails before it reads, what it says about that is worth more.
    drop(send(&ours, environment));
    Ok((child, Some(ours)))
}
