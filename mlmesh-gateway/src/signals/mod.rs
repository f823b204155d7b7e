//! What is known of the targets beyond our own requests: who asks them, what comes of it,
//! and the pages on which it stands.
//!
//! ```text
//!   a thread of its own
//!     a task for each engine ── GET its metrics ─► adapter ─┐
//!     a task for each page of GPUs ─► adapter ──────────────┼─► Fusion ─► SnapshotCell ─► router
//!     NVML, on another thread ──────────────────────────────┘      └────► Known ─► /-/targets
//! ```
//!
//! No request waits for any of it: threads that serve read one swapped value.

mod cell;
mod page;
mod said;
mod source;
mod watch;

pub use cell::SnapshotCell;
pub(crate) use page::{json, text};
pub use source::{Runtime, SignalError, SignalSource, Signals};
pub(crate) use watch::Watch;
