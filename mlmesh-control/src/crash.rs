//! Named points at which a test kills the process, in the order of an attempt's life.
//!
//! `MLMESH_CRASH_AT=NAME` aborts at that point's first hit, `NAME:7` at its seventh.
//! The variable is read once.

use std::sync::OnceLock;

use mlmesh_model::CrashPlan;

/// Every point of this crate.
pub const CRASH_POINTS: &[&str] = &[
    AFTER_CLAIM,
    AFTER_START,
    AFTER_EXIT,
    AFTER_COLLECT,
    AFTER_MANIFEST,
];

pub(crate) const AFTER_CLAIM: &str = "control.after_claim";
pub(crate) const AFTER_START: &str = "control.after_start";
pub(crate) const AFTER_EXIT: &str = "control.after_exit";
pub(crate) const AFTER_COLLECT: &str = "control.after_collect";
pub(crate) const AFTER_MANIFEST: &str = "control.after_manifest";

/// Aborts the process when the environment asks for it at `name`.
pub(crate) fn point(name: &'static str) {
    static PLAN: OnceLock<Option<CrashPlan>> = OnceLock::new();
    let plan = PLAN.get_or_init(|| CrashPlan::parse(&std::env::var("MLMESH_CRASH_AT").ok()?));
    if plan.as_ref().is_some_and(|plan| plan.is_due(name)) {
        std::process::abort();
    }
}
