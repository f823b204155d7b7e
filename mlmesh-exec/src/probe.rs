//! What this host can enforce, found by doing it once: the launch chain of a real
//! attempt runs `true` in the sandbox, with a door for a declared host.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use mlmesh_model::{Abilities, AttemptNumber, Exit, RunId};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::VERB_LAUNCHER;
use crate::cgroup::Base;
use crate::channel::{Inbox, JobEnvironment, Message, receive, send};
use crate::journal::{Entry, append};
use crate::record::{AttemptDir, Launch, SCHEMA, Spec};
use crate::sandbox::{Bind, Door, HOME, SYSTEM_PATH, SandboxSpec};

/// Tries what can be tried.
pub(crate) fn abilities(
    program: &Path,
    data_dir: &Path,
    bases: &[(&'static str, Result<Base, String>)],
) -> Abilities {
    let folder = data_dir.join(format!("data/cache/probe-{}", std::process::id()));
    let sandbox = try_launch(program, &folder, &|dir| {
        Launch::Sandbox(Box::new(SandboxSpec {
            root: dir.join("root"),
            network_none: true,
            doors: vec![Door {
                host: "probe.invalid".to_owned(),
                port: 443,
                listen: ([127, 77, 0, 1], 443).into(),
            }],
            system: Vec::new(),
            hidden: data_dir.to_owned(),
            writable: vec![Bind::new(dir.join("home"), HOME)],
            read_only: Vec::new(),
            devices: Vec::new(),
        }))
    });
    let network_none =
        sandbox.is_ok() || try_launch(program, &folder, &|_| Launch::NetworkNone).is_ok();
    let held = bases.iter().filter(|(_, base)| base.is_ok());
    let mut limits: Vec<String> = held.map(|(name, _)| (*name).to_owned()).collect();
    limits.push("time".to_owned());
    Abilities {
        sandbox: sandbox.is_ok(),
        sandbox_missing: sandbox.as_ref().err().cloned(),
        network_none,
        network_hosts: sandbox.is_ok(),
        limits,
        separates_users: sandbox.is_ok(),
    }
}

fn try_launch(
    program: &Path,
    folder: &Path,
    launch: &dyn Fn(&Path) -> Launch,
) -> Result<(), String> {
    let outcome = launch_true(program, folder, launch).map_err(|error| error.to_string());
    drop(std::fs::remove_dir_all(folder));
    outcome?
}

fn launch_true(
    program: &Path,
    folder: &Path,
    launch: &dyn Fn(&Path) -> Launch,
) -> io::Result<Result<(), String>> {
    for name in ["root", "home"] {
        std::fs::create_dir_all(folder.join(name))?;
    }
    let launch = launch(folder);
    let first_process = matches!(launch, Launch::Sandbox(_));
    let spec = Spec {
        schema: SCHEMA.to_owned(),
        run: RunId::from_random(0),
        number: AttemptNumber(1),
        argv: vec!["true".to_owned()],
        directory: "/".into(),
        env: BTreeMap::new(),
        launch,
        limits: Vec::new(),
        limits_required: false,
        tracking: false,
        network_enforced: true,
        log_bytes_max: 0,
        grace_ms: 0,
        umask: 0o022,
        ports: BTreeMap::new(),
        datasets_verified: Vec::new(),
        environment: None,
    };
    append(&AttemptDir::at(folder), &Entry::Spec(Box::new(spec))).map_err(io::Error::other)?;
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let mut child = Command::new(program)
        .arg(VERB_LAUNCHER)
        .arg(folder)
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let environment = JobEnvironment::from([("PATH".to_owned(), SYSTEM_PATH.to_owned())]);
    drop(send(&ours, &environment));
    let (messages, listeners) = read_all(ours)?;
    let status = child.wait()?;
    for message in &messages {
        if let Message::Failed { message, .. } = message {
            return Ok(Err(message.clone()));
        }
    }
    let done = if first_process {
        messages.contains(&Message::Exited(Exit::Code(0))) && listeners == 1
    } else {
        status.success()
    };
    Ok(done
        .then_some(())
        .ok_or_else(|| format!("the trial ended with {status}")))
}

/// Everything that is said, and how many descriptors came with it.
fn read_all(channel: OwnedFd) -> io::Result<(Vec<Message>, usize)> {
    let mut inbox = Inbox::default();
    let mut messages = Vec::new();
    let mut descriptors = Vec::new();
    let mut buffer = [0_u8; 4096];
    loop {
        match receive(&channel, &mut buffer, &mut descriptors) {
            Ok(0) | Err(Errno::CONNRESET) => return Ok((messages, descriptors.len())),
            Ok(length) => {
                let whole = inbox.push(&buffer[..length]).map_err(io::Error::other)?;
                messages.extend(whole);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
