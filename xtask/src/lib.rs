//! The project's own commands: `cargo xtask demo | test | tidy | bench | soak | dist`.
//!
//! Each command is one module. They share three things: [`workspace`] (where the
//! source and the target directory are), [`step`] (child processes that are named,
//! timed and checked) and [`parts`] (the one list of what a machine must have).
//! No command keeps state outside the target directory, which is the one that
//! `CARGO_TARGET_DIR` names when it is set.

pub mod bench;
pub mod burst;
pub mod demo;
pub mod dist;
pub mod gate;
pub mod llama;
pub mod mesh;
pub mod meter;
pub mod parts;
pub mod soak;
pub mod step;
pub mod tidy;
pub mod workspace;

mod command;

pub use command::run;
