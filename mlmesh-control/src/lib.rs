//! The job shell: executes the effects of `mlmesh-sched`, reconciles after a
//! restart, writes manifests.
//!
//! ```text
//!   explain ─┐                          ┌─► claim ─► start ─► wait ─► collect ─► record
//!   submit ──┼─► preflight ─► store ─► sched.step ─► effects ─┤
//!   cancel ──┘      (one function)      ▲              └─► stop
//!                                       └───────── events ◄───┘
//! ```
//!
//! It decides nothing: what starts next, what is tried again and what is refused
//! is decided by `mlmesh-sched`; what holds is what the store has committed.

mod config;
mod error;

pub use config::{Caller, ControlConfig, GRACE_MS_DEFAULT, Interpreters, Ports};
pub use error::{Accepted, ControlError};

/// Places at which a test may crash the daemon (`MLMESH_CRASH_AT`), in the order
/// in which an attempt passes them.
pub const CRASH_POINTS: [&str; 5] = [
    "control.after_claim",
    "control.after_start",
    "control.after_exit",
    "control.after_collect",
    "control.after_manifest",
];
