//! Named places at which a test can make the process die.
//!
//! `MLMESH_CRASH_AT=store.submit.before_commit` aborts at that point's first hit,
//! `…:7` at its seventh. Without the variable a point costs one load.

use std::sync::OnceLock;

use mlmesh_model::CrashPlan;

/// Every point of this crate. `rows_written` lies inside the write's savepoint,
/// `before_commit` and `after_commit` around the group's commit, the latter
/// before anybody is answered.
pub const CRASH_POINTS: [&str; 15] = [
    "store.submit.rows_written",
    "store.submit.before_commit",
    "store.submit.after_commit",
    "store.claim.rows_written",
    "store.claim.before_commit",
    "store.claim.after_commit",
    "store.advance.rows_written",
    "store.advance.before_commit",
    "store.advance.after_commit",
    "store.move.rows_written",
    "store.move.before_commit",
    "store.move.after_commit",
    "store.judge.rows_written",
    "store.judge.before_commit",
    "store.judge.after_commit",
];

/// What a write is, as far as crash points tell writes apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteKind {
    Submit,
    Claim,
    Advance,
    Move,
    /// A judgement of a repetition, and what is signed about it.
    Judge,
    Other,
}

/// Where in a write the process stands.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stage {
    RowsWritten,
    BeforeCommit,
    AfterCommit,
}

/// Dies here when the environment says so.
pub(crate) fn hit(kind: WriteKind, stage: Stage) {
    static PLAN: OnceLock<Option<CrashPlan>> = OnceLock::new();
    let plan = PLAN.get_or_init(|| CrashPlan::parse(&std::env::var("MLMESH_CRASH_AT").ok()?));
    let Some(plan) = plan else {
        return;
    };
    if point(kind, stage).is_some_and(|name| plan.is_due(name)) {
        std::process::abort();
    }
}

fn point(kind: WriteKind, stage: Stage) -> Option<&'static str> {
    let first = match kind {
        WriteKind::Submit => 0,
        WriteKind::Claim => 3,
        WriteKind::Advance => 6,
        WriteKind::Move => 9,
        WriteKind::Judge => 12,
        WriteKind::Other => return None,
    };
    let step = match stage {
        Stage::RowsWritten => 0,
        Stage::BeforeCommit => 1,
        Stage::AfterCommit => 2,
    };
    Some(CRASH_POINTS[first + step])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_stages_name_the_listed_points() {
        assert_eq!(
            point(WriteKind::Advance, Stage::BeforeCommit),
            Some("store.advance.before_commit")
        );
        assert_eq!(
            point(WriteKind::Move, Stage::AfterCommit),
            Some("store.move.after_commit")
        );
        assert_eq!(point(WriteKind::Other, Stage::AfterCommit), None);
    }
}
