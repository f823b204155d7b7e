//! `ml sim serve`: engines of `mlmesh-sim` behind real sockets.
//!
//! ```text
//!   epoll ─► Client (bytes ─► Wish) ─► Engine::submit
//!   timer ─► Engine::step ─► occurrences ─► Client (pieces ─► bytes)
//! ```
//!
//! One thread has all engines, and sleeps until a socket is ready or an iteration ends.
//! An iteration that is looked at late does not make the next one later: lateness is
//! told and never added up. There is no model: an answer is `sim`, so often.

mod client;
mod figures;
mod serve;
mod wish;

pub(crate) use serve::{Plan, serve};

/// The one model that is served.
const MODEL: &str = "sim";
