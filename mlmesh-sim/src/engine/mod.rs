//! A whole inference engine as a state machine: batches made anew for each iteration,
//! prompts in chunks, paged memory, a prefix cache, and preemption where memory is short.
//!
//! ```text
//!   submit(now, Job) ─► waiting ─► prefill ─► decode ─► Done
//!                          ▲                    │
//!                          └──── preempted ◄────┘
//!   next_us() ─► when something happens next;  step(events) ─► what happened then
//! ```
//!
//! Whoever drives it brings the time: a virtual clock jumps to [`Engine::next_us`], a
//! real one waits for it. An iteration ends when its cost says, however late it is
//! looked at. It draws no chance and knows neither prompts nor answers, only how long
//! they are and which blocks two prompts have in common.

mod machine;
mod memory;
mod profile;
mod text;

pub use machine::{Counts, Detail, Engine, Job, Occurrence, Refused, Ticket, What};
pub use profile::{Cost, PROFILES, Prefill, Profile, ProfileError};
pub use text::text_blocks;
