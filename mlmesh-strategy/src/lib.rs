//! How a request's target is chosen: plain data in, one cost for each target out.
//!
//! A [`Strategy`] sees what is known about each target as a [`Candidate`] and says what
//! it would cost to send the request there; the least cost wins, and of equal ones the
//! first. What is known comes from a [`Forecast`]: how much of a prompt a target holds
//! already, and how long the rest takes it.
//!
//! ```text
//!   request ─► Ask ──┐
//!                    ├─ Forecast ─► Candidate… ─► Strategy ─► cost… ─► the least
//!   ledger, snapshot ┘
//! ```
//!
//! The crate has no dependency, clock, file, socket or thread, and fits wasm32: times
//! are microseconds and chance is a number, and both come in as arguments. It does not
//! know what a queue, a connection or a deadline is; that is the router's part.

#![warn(missing_docs)]

mod ask;
mod blocks;
mod built_in;
mod candidate;
mod forecast;
mod index;
mod learnt;
mod mix;
mod prefill;
mod strategy;

pub use ask::{Ask, BlockHash, Class, RequestId, TargetId, TenantId};
pub use blocks::{BLOCK_BYTES, BLOCKS_MAX, BlockHasher};
pub use built_in::{
    BaselineRoundRobin, BlockAffinity, COPY_PERCENT, LeastPredictedTtft, LeastQueue, LeastWork,
    PowerOfTwo, PrefixHash, Random, SessionHash,
};
pub use candidate::Candidate;
pub use forecast::{Forecast, Seen};
pub use index::{Belief, BlockIndex};
pub use learnt::{INDEX_BYTES, Learnt};
pub use mix::{mixed, mixed_pair};
pub use prefill::{FACTORS_AT_FIRST, Factors, PrefillFit, predicted_us};
pub use strategy::{Situation, Strategy};
