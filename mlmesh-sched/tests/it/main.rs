//! Preflight and the scheduler from outside.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod jobs;
mod preflight;
mod properties;
mod scheduler;
