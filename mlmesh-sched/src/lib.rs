//! The job brain: what may run at all, and what runs next.
//!
//! Two parts, both without I/O, clock or randomness:
//!
//! * [`preflight`](crate::preflight()) turns a submission and the facts of the
//!   world into plans and refusals. `ml explain` and `ml queue` both call it, so
//!   that what one says the other does.
//! * `Scheduler` is a state machine: events in, effects out. It does not know what
//!   time it is, which store it runs on, or how a process is started.

#![warn(missing_docs)]

mod capacity;

pub use capacity::{Account, Capacity};
