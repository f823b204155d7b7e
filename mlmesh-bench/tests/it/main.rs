//! The integration tests of the load client, one binary.

#![expect(
    clippy::unwrap_used,
    reason = "a test panics when its own set-up fails"
)]

mod client;
mod events;
mod figures;
mod framing;
mod fuzz;
mod secure;
mod server;
mod traces;
