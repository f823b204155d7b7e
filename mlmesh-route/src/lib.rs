//! The request brain: whether a request is taken, where it goes, and when.
//!
//! ```text
//!   Snapshot (swapped) ─┐                     ┌─► Bind(Booking)   send it there, now
//!   Ledger (atomics) ───┼─ Router::offer ─────┼─► Wait            it is in the queue
//!   Ask ────────────────┘      │              └─► Reject(Refusal) 429, with a time
//!                              ▼
//!                            Queue ◄── Router::step(first token, end, tick) ─► Effects
//! ```
//!
//! The queue belongs to the router: a target is sent work only while what it was sent
//! before keeps it busy for less than a bound, so that whatever comes next can still be
//! put before what waits. What cannot meet its deadline any more is refused at once.
//!
//! A request that does not wait takes no lock: [`Router::decide`] reads an immutable
//! snapshot and atomics. The crate has no clock, socket or thread; times are
//! microseconds that come in, from any beginning, as long as they never go back.

#![warn(missing_docs)]

mod allowance;
mod explain;
pub mod fusion;
mod health;
mod hedge;
mod ledger;
mod line;
mod named;
mod policy;
mod queue;
mod retry;
mod router;
mod snapshot;
mod tenants;
mod trial;
mod word;

pub use mlmesh_strategy::{
    Ask, BLOCK_BYTES, BLOCKS_MAX, BaselineRoundRobin, BlockAffinity, BlockHash, BlockHasher,
    Candidate, Class, Forecast, INDEX_BYTES, Learnt, LeastPredictedTtft, LeastQueue, LeastWork,
    PowerOfTwo, PrefixHash, Random, RequestId, Seen, SessionHash, Situation, Strategy, TargetId,
    TenantId, mixed, mixed_pair,
};

pub use allowance::Allowance;
pub use explain::{
    Change, Decided, Enough, Explanation, Explanations, Kept, Later, TERMS_MAX, Term,
};
pub use health::{Circuit, Evidence, Health, HealthSettings, Rule};
pub use hedge::{Attempt, Hedge, HedgeCosts, Hedges, NoHedge};
pub use ledger::{Backlog, Ledger};
pub use named::{NameError, STRATEGIES, strategy_by_name};
pub use policy::{BACKLOG_US, Late, Order, Policy, QUEUE_MAX};
pub use retry::{NoRetry, Progress, Repeatable, RetryBudget, stalled_after_us};
pub use router::Router;
pub use snapshot::{Snapshot, TARGETS_MAX, Target};
pub use tenants::TENANTS_MAX;
pub use trial::{Arm, Compared, Difference, Shadow, Standing, Trial};
pub use word::{Booking, Budget, Effect, Event, Outcome, Reason, Refusal, Scratch, Verdict};
