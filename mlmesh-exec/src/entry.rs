//! The way in for the processes of an attempt, from the very top of `main`.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

pub(crate) const VERB_SUPERVISOR: &str = "attempt-supervisor";
pub(crate) const VERB_LAUNCHER: &str = "attempt-launcher";
pub(crate) const VERB_INIT: &str = "attempt-init";

/// First arguments with which [`supervise_main`] is meant.
pub const VERBS: [&str; 3] = [VERB_SUPERVISOR, VERB_LAUNCHER, VERB_INIT];

/// Runs one process of an attempt. `args` are the program's arguments without its
/// name: one of [`VERBS`] and the attempt's folder.
///
/// It must be called before any thread is started: a process with threads cannot
/// enter a user namespace.
pub fn supervise_main(args: Vec<OsString>) -> ExitCode {
    let [verb, folder] = args.as_slice() else {
        complain("expected a verb and the folder of an attempt");
        return ExitCode::from(2);
    };
    let folder = Path::new(folder);
    let outcome = match verb.to_str() {
        Some(VERB_SUPERVISOR) => {
            crate::supervisor::supervise(folder).map_err(|error| error.to_string())
        }
        // These two report over their channel; their standard error is the job's.
        Some(VERB_LAUNCHER) => return code(crate::launcher::launch(folder).is_ok()),
        Some(VERB_INIT) => return code(crate::sandbox::run_init(folder).is_ok()),
        _ => Err(format!("`{}` is no verb of an attempt", verb.display())),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            complain(&message);
            ExitCode::FAILURE
        }
    }
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
