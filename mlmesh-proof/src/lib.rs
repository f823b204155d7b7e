//! What is kept as proof of a run: its manifest, and the trust that its record
//! earns. It computes and writes; what it says is taken from the run's record and
//! from what the executor reported, never from what a person typed.

mod fuzz;
mod manifest;
mod trust;

pub use manifest::{
    Defect, Extras, MANIFEST_FILE, MANIFEST_SCHEMA, completeness, manifest, write_manifest,
};
pub use trust::final_trust;
