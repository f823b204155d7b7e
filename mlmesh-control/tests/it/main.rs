//! Control over the real embedded store and an executor whose attempts do what
//! their command line says.

mod actions;
mod fake;
mod faults;
mod path;
mod restart;
mod world;
