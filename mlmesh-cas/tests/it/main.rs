//! The integration tests of the content store, one binary.

mod snapshots;
mod support;
