//! Virtual time: the router of `mlmesh-route` and the strategies of `mlmesh-strategy`,
//! the very code that the gateway runs, in front of engines that are only numbers.
//!
//! ```text
//!   trace ─► Agenda ─► Router::offer ─► engines ─► Agenda ─► Router::step ─► …
//!              time, in order                         first tokens, ends
//! ```
//!
//! One seed gives one answer to the byte. There is no clock, thread, file or socket
//! here; what is simulated is labelled so wherever it is shown.

mod agenda;
mod cache;
mod calibrate;
mod chance;
mod compare;
pub mod engine;
mod exact;
mod fleet;
mod lineup;
mod measured;
mod reference;
mod replay;
mod scenario;
mod statistics;
mod synthetic;
mod trace;
mod yaml;

pub use calibrate::{Calibrated, Off, Score, calibrate, score_profile};
pub use compare::{COMPARE_SCHEMA, Compared, Comparison, Row, Spread, compare, compare_drawn};
pub use fleet::{Fleet, FleetRun, Slo, Telemetry};
pub use lineup::{Contender, LineupError};
pub use measured::{Measured, MeasuredError, read_measured};
pub use reference::{BLOCK_TOKENS, CACHE_BLOCKS, Service, prefill_us, slo_us};
pub use replay::{Replay, Replayed, Served, floor, replay};
pub use scenario::{Scenario, ScenarioError, Workload};
pub use statistics::{Summary, half_width, percentile};
pub use synthetic::{Lengths, Shared, poisson, shared_prefixes};
pub use trace::{Format, Request, Trace, TraceError};
