//! The wire: versioned data transfer objects, error codes, settings, and the typed
//! client that speaks to a daemon over HTTPS and WebSocket.
//!
//! The objects here are what scripts read; the model's types are what the daemon
//! computes with. `From` stands at the edge, so that a change inside never changes
//! the wire by accident. The client is synchronous: `ml` starts, asks and ends, and a
//! runtime would cost more than the call.
//!
//! ```text
//!   ml ── Client ──HTTPS──► meshd          model types ── From ──► DTO ── JSON ──► ml
//! ```

mod answer;
mod catalog_dto;
mod client;
mod client_error;
mod connection_file;
mod daemon_file;
pub mod error_code;
mod event_dto;
mod explain_dto;
mod fuzz;
mod gateway_page;
mod health_dto;
mod log_dto;
mod metrics_dto;
mod points_dto;
mod reproduction_dto;
mod run_dto;
mod scrub_dto;
mod secret_dto;
mod service_dto;
pub mod settings;
mod status_dto;
mod submission_schema;
mod telling_dto;
mod timestamp;
mod transport;
mod user_dto;
mod validation_dto;
mod web_socket;
pub mod wire;

pub use answer::*;
pub use catalog_dto::*;
pub use client::{Client, RunFilter};
pub use client_error::ClientError;
pub use connection_file::{CONNECTION_SCHEMA, ConnectionFile, SecretKey, beside};
pub use daemon_file::{DAEMON_SCHEMA, DaemonFile, DaemonFileError, DaemonUrls, read_key};
pub use event_dto::*;
pub use explain_dto::*;
pub use gateway_page::gateway_page;
pub use health_dto::*;
pub use log_dto::*;
pub use metrics_dto::*;
pub use points_dto::{BUCKETS_DEFAULT, BUCKETS_MAX, POINTS_SCHEMA, PointDto, PointsDto, SeriesDto};
pub use reproduction_dto::*;
pub use run_dto::*;
pub use scrub_dto::*;
pub use secret_dto::*;
pub use service_dto::*;
pub use status_dto::*;
pub use submission_schema::submission_schema;
pub use telling_dto::*;
pub use timestamp::Timestamp;
pub use transport::{Endpoint, IdempotencyKey};
pub use user_dto::*;
pub use validation_dto::*;
pub use web_socket::EventStream;
