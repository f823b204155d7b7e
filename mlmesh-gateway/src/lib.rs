//! The data plane: HTTP/1.1 requests of clients, carried to engines and back.
//!
//! ```text
//!   listener ─► connection ─► head ─► target ─► exchange ─► the engine
//!   (a thread)  (a task)      checked  in turn   one task, both sockets
//! ```
//!
//! A thread has a runtime, a listener and idle connections of its own; threads share
//! atomics and nothing else. One task serves a client's connection and holds the engine's
//! while a request is under way, so that a client that goes away is seen by the same wait.
//! Bytes of a body are passed on as they came.
//!
//! It decides nothing about requests beyond the order of targets, keeps nothing on disk,
//! and knows neither the daemon nor a configuration file.

mod bill;
mod body;
mod brain;
mod buffer;
mod call;
mod connection;
mod deadline;
mod errand;
mod exchange;
mod explain;
mod farewell;
mod field;
#[cfg(test)]
mod fuzz;
mod gateway;
mod hop;
mod http2;
pub mod keys;
pub mod limits;
mod linger;
mod metrics;
mod pages;
mod pool;
mod refusal;
mod request;
mod response;
pub mod scan;
mod signals;
mod target;
mod telling;
mod thread;
mod times;
mod usage;

pub use bill::Used;
pub use gateway::{Gateway, GatewayError, Settings};
pub use limits::Waits;
pub use signals::{Runtime, SignalError, SignalSource, Signals, SnapshotCell};
pub use target::{Target, TargetError};
pub use telling::{Collector, CollectorError, Done, Told};
