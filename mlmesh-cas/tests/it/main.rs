//! The integration tests of the content store, one binary.

#![expect(
    clippy::unwrap_used,
    reason = "a test panics when its own set-up fails"
)]

mod crash;
mod golden;
mod node;
mod objects;
mod pruning;
mod scrubbing;
mod snapshots;
mod support;
mod transfer;
