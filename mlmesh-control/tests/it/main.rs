//! Control over the real embedded store and an executor whose attempts do what
//! their command line says.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod actions;
mod fake;
mod faults;
mod path;
mod reproduce;
mod restart;
mod world;
