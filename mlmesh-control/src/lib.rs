//! The job shell: executes the effects of `mlmesh-sched`, reconciles after a
//! restart, writes manifests.
//!
//! ```text
//!   explain ─┐                          ┌─► claim ─► start ─► watch ─► collect ─► record
//!   submit ──┼─► preflight ─► store ─► sched.step ─► effects ─┤
//!   cancel ──┘      (one function)      ▲              └─► stop
//!                                       └───────── events ◄───┘
//! ```
//!
//! It decides nothing: what starts next, what is tried again and what is refused
//! is decided by `mlmesh-sched`; what holds is what the store has committed. All
//! that it keeps in memory can be made again from the store and the executor.

mod actions;
mod admit;
mod attempt;
mod config;
mod control;
mod crash;
mod data;
mod error;
mod gpus;
mod ledger;
mod machine;
mod persist;
mod private_file;
mod reactor;
mod reconcile;
mod reproduce;
mod secret_store;
mod secrets;
mod services;
mod tending;
mod token;
mod weights;
mod world;

pub use actions::Changed;
pub use config::{ApiAddress, Caller, ControlConfig, GRACE_MS_DEFAULT, Interpreters, Ports};
pub use control::Control;
pub use crash::CRASH_POINTS;
pub use error::{Accepted, ControlError};
pub use mlmesh_sched::{Capacity, Groups, Load, PlannedRun, Preflight, SecretSource};
pub use secret_store::{SECRET_BYTES_MAX, STORED_SECRETS_MAX, StoredSecret};
pub use services::{ModelsSaid, Replica};
pub use token::run_of_token;

/// Target of the trace events that follow a run along the job path, one for each
/// `step`: admit, plan, queue, lease, start, watch, record.
pub const PATH: &str = "mlmesh_control::path";
