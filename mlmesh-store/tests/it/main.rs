//! Integration tests of the store: one conformance suite on both backends, then
//! what each backend promises on its own.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test stops where an expectation fails, and says what it leaves out"
)]

mod conformance;
mod encrypted;
mod faults;
mod fixtures;
mod golden;
mod kill;
mod property;
mod sqlite;
