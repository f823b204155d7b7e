//! What the daemon's `main` does first, for the tests of this crate alone.

use std::process::ExitCode;

fn main() -> ExitCode {
    mlmesh_exec::supervise_main(std::env::args_os().skip(1).collect())
}
