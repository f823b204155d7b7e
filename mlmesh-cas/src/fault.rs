//! Named points at which a test kills the process.
//!
//! Between two steps that a crash could tear apart stands a call of [`point`].
//! With `MLMESH_CRASH_AT=NAME` in the environment the process aborts when it
//! comes to that point, `NAME:7` at the seventh time. The variable is read once,
//! so a point costs one load.

use std::sync::OnceLock;

use mlmesh_model::CrashPlan;

/// Every point of this crate, in the order of the steps that they interrupt.
pub const CRASH_POINTS: &[&str] = &[
    "cas.pack.create",
    "cas.pack.torn",
    "cas.pack.append",
    "cas.pack.fsync",
    "cas.journal.torn",
    "cas.journal.append",
    "cas.journal.fsync",
    "cas.seal.index",
    "cas.seal.rename",
    "cas.seal.unlink",
    "cas.loose.write",
    "cas.loose.fsync",
    "cas.loose.rename",
    "cas.loose.fsync_folder",
    "cas.commit.write",
    "cas.commit.fsync",
    "cas.commit.rename",
    "cas.commit.fsync_folder",
    "cas.upload.append",
    "cas.prune.commit",
    "cas.prune.loose",
    "cas.prune.copied",
    "cas.prune.indexed",
    "cas.prune.unlink",
];

/// Aborts the process when the environment asks for it at `name`.
pub(crate) fn point(name: &'static str) {
    if armed(name) {
        std::process::abort();
    }
}

/// Whether the process is to die at `name` now. For points that first leave a
/// half-written record behind.
pub(crate) fn armed(name: &'static str) -> bool {
    static PLAN: OnceLock<Option<CrashPlan>> = OnceLock::new();
    PLAN.get_or_init(|| CrashPlan::parse(&std::env::var("MLMESH_CRASH_AT").ok()?))
        .as_ref()
        .is_some_and(|plan| plan.is_due(name))
}
