//! The simulator against figures that are known from elsewhere.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod calibration;
mod engine;
mod fleet;
mod published;
mod queueing;
mod trace;
