//! The first process of a sandbox: builds the root, gives up every capability,
//! starts the command, and ends when the command or the supervisor has ended.
//! With it the kernel ends everything else in the pid namespace.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use mlmesh_model::{Exit, StartError};
use rustix::process::{
    DumpableBehavior, Signal, WaitOptions, WaitStatus, set_dumpable_behavior, wait,
};

use super::{doors, root};
use crate::channel::{Message, receive_environment, send, send_with};
use crate::launcher::{
    command, isolation_failed, not_executed, offer_tracking, own_channel, read_spec, report_failure,
};
use crate::namespace;
use crate::process::signal;
use crate::record::{AttemptDir, Launch};

/// Runs the first process to its end.
pub(crate) fn run(dir: &Path) -> Result<(), StartError> {
    let channel = own_channel()?;
    let outcome = run_on(&AttemptDir::at(dir), &channel);
    if let Err(error) = &outcome {
        report_failure(&channel, error);
    }
    outcome
}

fn run_on(dir: &AttemptDir, channel: &OwnedFd) -> Result<(), StartError> {
    let failed = |what: &str, error: io::Error| isolation_failed(format!("{what}: {error}"));
    let spec = read_spec(dir)?;
    let Launch::Sandbox(sandbox) = &spec.launch else {
        return Err(isolation_failed("the spec names no sandbox".to_owned()));
    };
    let own_end = channel.try_clone();
    let mut environment = own_end
        .and_then(receive_environment)
        .map_err(|error| failed("receive the environment", error))?;
    if sandbox.network_none {
        namespace::loopback_up().map_err(|error| failed("bring up the loopback", error))?;
        offer_tracking(&spec, channel, &mut environment)?;
    }
    if !sandbox.doors.is_empty() {
        let listeners = doors::open(&sandbox.doors);
        let listeners = listeners.map_err(|error| failed("open the declared hosts", error))?;
        let descriptors: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
        send_with(channel, &Message::Doors, &descriptors)
            .map_err(|error| failed("hand over the declared hosts", error))?;
    }
    rustix::system::sethostname(b"mlmesh")
        .map_err(|error| failed("set the host name", error.into()))?;
    root::build(sandbox).map_err(isolation_failed)?;
    namespace::drop_capabilities().map_err(|error| failed("drop capabilities", error))?;
    // The job has our user and must not trace us: we hold the channel.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| failed("become untraceable", error.into()))?;
    let child = command(&spec, &environment)?
        .spawn()
        .map_err(|error| not_executed(&spec, &environment, &error))?;
    let job = i32::try_from(child.id()).unwrap_or(0);
    drop(send(channel, &Message::Started));
    end_with_supervisor(channel, job).map_err(|error| failed("watch the supervisor", error))?;
    let exit = reap_until(job);
    drop(send(channel, &Message::Exited(exit)));
    Ok(())
}

/// The supervisor sends nothing after the environment: when its end of the
/// channel closes, it is gone, and so must the command be.
fn end_with_supervisor(channel: &OwnedFd, job: i32) -> io::Result<()> {
    let channel = channel.try_clone()?;
    std::thread::Builder::new()
        .stack_size(64 << 10)
        .spawn(move || {
            let mut byte = [0_u8; 1];
            while rustix::io::retry_on_intr(|| rustix::io::read(&channel, &mut byte))
                .is_ok_and(|length| length > 0)
            {}
            signal(job, Signal::KILL);
        })?;
    Ok(())
}

/// Orphans of the pid namespace become our children; their ends are of no interest.
fn reap_until(job: i32) -> Exit {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get() == job => {
                if let Some(exit) = exit_of(status) {
                    return exit;
                }
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return Exit::Signal(Signal::KILL.as_raw()),
        }
    }
}

/// How a child ended; `None` when it was only stopped.
pub(crate) fn exit_of(status: WaitStatus) -> Option<Exit> {
    let signal = status.terminating_signal().map(Exit::Signal);
    signal.or_else(|| status.exit_status().map(Exit::Code))
}
