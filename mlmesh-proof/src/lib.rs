//! What is kept as proof of a run: its manifest, and the trust that its record
//! earns. It computes and writes; what it says is taken from the run's record and
//! from what the executor reported, never from what a person typed.

mod code_diff;
mod compare;
mod completeness;
mod defect;
pub mod export;
mod fuzz;
mod json_schema;
mod manifest;
mod reproduction;
mod stored;
mod trust;
mod validate;

pub use code_diff::{
    DIFF_BYTES_MAX, DIFF_FILES_MAX, FileChange, FileDifference, compare_trees, unified,
};
pub use compare::{Difference, DifferenceGroup, compare};
pub use completeness::completeness;
pub use defect::Defect;
pub use manifest::{
    Extras, MANIFEST_FILE, MANIFEST_JSON_SCHEMA, MANIFEST_SCHEMA, OUTPUTS_LISTED_MAX, manifest,
    shape, write_manifest, write_manifest_bytes,
};
pub use reproduction::{RunResult, judge};
pub use trust::final_trust;
pub use validate::{Evidence, validate_commit, validate_run};
