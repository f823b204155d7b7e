//! The way in for the processes of an attempt, from the very top of `main`.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use crate::starter::{self, Served};

pub(crate) const VERB_STARTER: &str = "attempt-starter";
pub(crate) const VERB_LAUNCHER: &str = "attempt-launcher";
pub(crate) const VERB_INIT: &str = "attempt-init";

/// First arguments with which [`supervise_main`] is meant.
pub const VERBS: [&str; 3] = [VERB_STARTER, VERB_LAUNCHER, VERB_INIT];

/// Runs one process of an attempt. `args` are the program's arguments without its
/// name: one of [`VERBS`] and, but for the starter, the attempt's folder.
///
/// It must be called before any thread is started: a process with threads cannot
/// enter a user namespace.
pub fn supervise_main(args: Vec<OsString>) -> ExitCode {
    let verb = args.first().and_then(|verb| verb.to_str());
    match (verb, &args[..]) {
        (Some(VERB_STARTER), [_]) => start(),
        // These two report over their channel; their standard error is the job's.
        (Some(VERB_LAUNCHER), [_, folder]) => {
            code(crate::launcher::launch(Path::new(folder)).is_ok())
        }
        (Some(VERB_INIT), [_, folder]) => code(crate::sandbox::run_init(Path::new(folder)).is_ok()),
        _ => {
            complain("expected a verb of an attempt, and its folder");
            ExitCode::from(2)
        }
    }
}

/// Ends as the starter, or as one of the supervisors that are copies of it.
fn start() -> ExitCode {
    let supervised = match starter::serve() {
        Ok(Served::Done) => Ok(()),
        Ok(Served::Supervisor(folder)) => {
            crate::supervisor::supervise(&folder).map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    };
    if let Err(message) = &supervised {
        complain(message);
    }
    code(supervised.is_ok())
}

fn code(done: bool) -> ExitCode {
    if done {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Standard error of a supervisor leads to the daemon that started it.
#[expect(
    clippy::print_stderr,
    reason = "there is no other place: no daemon listens"
)]
fn complain(message: &str) {
    eprintln!("mlmesh attempt: {message}");
}
