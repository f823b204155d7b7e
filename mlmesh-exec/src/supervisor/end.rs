//! Why a command ended, and what a person reads about it.

use mlmesh_model::{Cause, Exit};

use crate::cgroup;
use crate::record::{LimitMeans, Spec};

/// The cause of an end that nobody of ours has asked for.
pub(super) fn own_cause(spec: &Spec, exit: Exit) -> Option<Cause> {
    match exit {
        Exit::Code(0) => None,
        // Whoever was ended for memory, the command did not succeed for that.
        _ if oom_kills(spec) > 0 => Some(Cause::OutOfMemory),
        Exit::Code(_) => Some(Cause::Exit),
        Exit::Signal(_) => Some(Cause::Signal),
    }
}

fn oom_kills(spec: &Spec) -> u64 {
    let memory = spec.limits.iter().find(|limit| limit.name == "memory");
    match memory.map(|limit| &limit.by) {
        Some(LimitMeans::Cgroup { version, path, .. }) => cgroup::oom_kills(*version, path),
        _ => 0,
    }
}

/// Empty for a success.
pub(super) fn end_message(spec: &Spec, exit: Exit, cause: Option<Cause>) -> String {
    let limit = |name: &str| {
        let limit = spec.limits.iter().find(|limit| limit.name == name);
        limit.map_or(0, |limit| limit.asked)
    };
    let exit = exit_text(exit);
    match cause {
        None => String::new(),
        Some(Cause::Timeout) => format!(
            "its time limit of {} s was over; it ended with {exit}\nhint: raise `resources: time:`",
            limit("time")
        ),
        Some(Cause::OutOfMemory) => format!(
            "the kernel ended it at its memory limit of {} bytes\nhint: raise `resources: memory:`",
            limit("memory")
        ),
        Some(Cause::Exit | Cause::Signal) => format!("the command ended with {exit}"),
        Some(cause) => format!("it was stopped ({}); it ended with {exit}", cause.as_str()),
    }
}

pub(super) fn exit_text(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("exit code {code}"),
        Exit::Signal(number) => format!("signal {number}"),
    }
}
