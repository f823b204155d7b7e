//! The integration tests of the content store, one binary.

mod crash;
mod golden;
mod objects;
mod pruning;
mod scrubbing;
mod snapshots;
mod support;
mod transfer;
