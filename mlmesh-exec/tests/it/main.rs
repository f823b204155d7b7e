//! Tests of the process executor against this machine.

mod conformance;
mod environment;
mod limits;
mod process;
mod sandbox;
mod support;
