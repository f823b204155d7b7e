//! Preflight and the scheduler from outside.

mod jobs;
mod preflight;
mod properties;
mod scheduler;
