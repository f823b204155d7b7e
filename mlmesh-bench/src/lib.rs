//! Load on an engine that speaks OpenAI's API, and what was measured.
//!
//! ```text
//!   Plan (pace, lengths, prompts, seed) ─▶ calls, each with its instant
//!        │                                       │
//!        ▼                                       ▼
//!   client: one loop a thread ── HTTP/1.1 ──▶ engine
//!        │   epoll, a timer for the next instant, sockets of its own
//!        ▼
//!   Sample (time stamps of one request) ─▶ statistics ─▶ Report ─▶ JSON
//! ```
//!
//! The crate has no asynchronous runtime: the loop owns its sockets, so that a time
//! stamp is taken where the bytes are read and nothing stands between. It prints
//! nothing, guesses no token (what the engine does not count is absent), and never
//! retries an answer: a retry would be load that nobody asked for.

mod arrivals;
mod chance;
mod client;
mod delta;
mod error;
mod http;
mod length;
mod plan;
mod prompt;
mod report;
mod sample;
mod slo;
mod sse;
mod statistics;
mod target;
mod think;
mod trace;
mod words;

pub use arrivals::{Arrivals, Instants};
pub use client::{Watch, run};
pub use delta::{Delta, Reader as DeltaReader, Usage};
pub use error::BenchError;
pub use http::{Answer, Body, HttpError};
pub use length::Lengths;
pub use plan::{Bound, Endpoint, Pace, Plan, PromptLength};
pub use prompt::{Popularity, Prompts, SharedPrefix};
pub use report::{Report, SCHEDULE_DELAY_MS_MAX, SCHEMA, Validity};
pub use sample::{Fault, Run, Sample, Stamps};
pub use slo::{Slo, parse_duration_us};
pub use sse::Scanner;
pub use statistics::{Figure, Summary, summarise};
pub use target::Target;
pub use think::Think;
pub use trace::{Recorded, Trace, TraceDefect, TraceFormat};
