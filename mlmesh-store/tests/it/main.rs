//! Integration tests of the store: one conformance suite on both backends, then
//! what each backend promises on its own.

mod conformance;
mod faults;
mod fixtures;
mod golden;
mod kill;
mod property;
mod sqlite;
