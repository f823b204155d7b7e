//! Tests of the process executor against this machine.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test stops where an expectation fails, and says what it leaves out"
)]

mod conformance;
mod environment;
mod hosts;
mod limits;
mod process;
mod sandbox;
mod support;
