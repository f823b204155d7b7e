//! Runs attempts as processes of this machine: the `Executor` port, the supervisor
//! that owns each attempt, the sandbox, limits, environments, logs, outputs and
//! metrics.
//!
//! It decides nothing about runs (that is `mlmesh-sched`) and writes nothing to the
//! store of runs (that is `mlmesh-control`); it knows attempts only.
//!
//! ```text
//!   ProcessExecutor::start ─ checkout, environment, datasets ─► journal: spec
//!        └─► attempt-starter ─ fork ─► supervisor ─► (attempt-launcher ─► attempt-init ─►) command
//!                                          │ owns: log, limits, stop, end       in the sandbox
//!                                          └─► journal: ended ─► ProcessExecutor::{wait, reattach}
//!                                                                of any daemon
//! ```
//!
//! The `attempt-…` processes are the daemon's binary executed again; its `main` hands
//! their arguments to [`supervise_main`] before anything else. A supervisor is a copy of
//! the starter; it is named `ml-` and the run's id, and works in the attempt's folder.

mod cgroup;
mod channel;
mod clock;
mod entry;
mod environment;
mod executor;
mod fuzz;
mod gpu;
mod interpreter;
mod journal;
mod launcher;
mod log;
mod look;
mod metrics;
mod mlflow;
mod namespace;
mod outputs;
mod points;
mod posted;
mod prepare;
mod probe;
mod process;
mod record;
mod redact;
mod relay;
mod sandbox;
mod serving;
mod starter;
mod supervisor;

pub use clock::SystemClock;
pub use entry::{VERBS, supervise_main};
pub use environment::HeldEnvironments;
pub use executor::{LOG_BYTES_MAX_DEFAULT, PIDS_MAX_DEFAULT, ProcessConfig, ProcessExecutor};
pub use interpreter::find_interpreter;
pub use metrics::METRICS_FILE;
pub use redact::{SECRET_BYTES_MIN, SECRET_LINE_BYTES_MIN};

pub(crate) use entry::{VERB_INIT, VERB_LAUNCHER};
