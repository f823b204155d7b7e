//! `ml` of this build, in a place of its own.

pub(crate) use mlmesh_testkit::place::{Answer, Place, answer};

/// Empty folders for one test.
pub(crate) fn place() -> Place {
    Place::new(env!("CARGO_BIN_EXE_ml"))
}
