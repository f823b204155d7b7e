//! Tests of `ml` as a program: what it prints, what it exits with.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test stops where an expectation fails, and says what it left out"
)]

mod golden;
mod mesh;
mod program;
mod shape;

mod bench;
mod boot;
mod compare;
mod daemon;
mod data;
mod errors;
mod exports;
mod following;
mod help;
mod hooks;
mod json;
mod metrics;
mod offline;
mod plots;
mod reproductions;
mod roles;
mod runs;
mod secrets;
mod sim;
mod simulated;
mod sweeps;
mod terminal;
mod transfer;
mod users;
