//! The metadata store: runs, the queue, attempts, events, audit, datasets, keys.
//!
//! Two backends of one port, [`mlmesh_model::Store`]. What a write does stands
//! once (`write`, `catalog`, over the pure `laws`); a backend brings a session
//! that can run SQL, a writer that commits in groups, and readers.
//!
//! ```text
//!   Store ─► port ─┬─► write, catalog ─► laws        what changes
//!                  └─► read ─► rows                  Run ⇄ columns
//!                        │
//!                       sql (trait) ─┬─ sqlite    one file, WAL, one writing connection
//!                        │           └─ postgres  a server, several daemons
//!                      group          many writes, one commit
//! ```
//!
//! It reads no clock and draws no randomness: times and ids come with the calls.

mod audit;
mod catalog;
mod crash;
mod derived;
mod facts;
mod find;
mod group;
mod import;
mod labels;
mod last_values;
mod laws;
mod logged_values;
mod migrate;
mod moves;
mod pages;
mod pins;
mod port;
mod postgres;
mod postgres_tls;
mod read;
mod reproductions;
mod rows;
mod sql;
mod sqlite;
mod tellings;
mod users;
mod write;

pub use audit::{AUDIT_START, AuditDefect, AuditHead, verify_chain};
pub use catalog::IDEMPOTENCY_KEPT_US;
pub use crash::CRASH_POINTS;
pub use migrate::SCHEMA_VERSION;
pub use postgres::PostgresStore;
pub use sqlite::SqliteStore;
