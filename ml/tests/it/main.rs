//! Tests of `ml` as a program: what it prints, what it exits with.

mod golden;
mod program;

mod errors;
mod help;
mod offline;
