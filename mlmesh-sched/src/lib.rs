//! The job brain: what may run at all, and what runs next.
//!
//! Two parts, both without I/O, clock or randomness:
//!
//! * [`preflight`](crate::preflight()) turns a submission and the facts of the
//!   world into plans and refusals. `ml explain` and `ml queue` both call it, so
//!   that what one says the other does.
//! * [`Scheduler`] is a state machine: events in, effects out. It does not know what
//!   time it is, which store it runs on, or how a process is started.

#![warn(missing_docs)]

mod capacity;
mod event;
mod order;
mod preflight;
mod ready;
mod retry;
mod rules;
mod scheduler;
mod template;
mod world;

pub use capacity::{Account, Capacity};
pub use event::{Effect, Effects, Event, Job};
pub use mlmesh_recipe::lock::{LOCK_BYTES_MAX, facts as lock_facts};
pub use order::USAGE_HALF_LIFE_US;
pub use preflight::{
    DatasetGroup, DepsGroup, ExperimentGroup, Groups, PlannedRun, Preflight, SecretGroup,
    SecretSource, SnapshotGroup, preflight,
};
pub use retry::{
    Again, BACKOFF_FIRST_MS, BACKOFF_MAX_MS, NODE_FAULTS_MAX, Outcome, Verdict, delay_ms_max,
    node_faults, retries_used,
};
pub use scheduler::{AGED_AFTER_US, AGED_EVERY, PASSED_BY_MAX_US, Scheduler};
pub use world::{Load, LockSeen, ModelSeen, ParentSeen, World};
