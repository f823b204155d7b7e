//! Named places at which a test can make the process die.
//!
//! `MLMESH_CRASH_AT=store.submit.before_commit` aborts at that point's first hit,
//! `…:7` at its seventh. Without the variable a point costs one load.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Every point of this crate. `rows_written` lies inside the write's savepoint,
/// `before_commit` and `after_commit` around the group's commit, the latter
/// before anybody is answered.
pub const CRASH_POINTS: [&str; 12] = [
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
];

/// What a write is, as far as crash points tell writes apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteKind {
    Submit,
    Claim,
    Advance,
    Move,
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
    static ARMED: OnceLock<Option<(String, AtomicU64)>> = OnceLock::new();
    let armed = ARMED.get_or_init(|| armed_by(&std::env::var("MLMESH_CRASH_AT").ok()?));
    let Some((name, hits_left)) = armed else {
        return;
    };
    if point(kind, stage) == Some(name.as_str()) && hits_left.fetch_sub(1, Ordering::Relaxed) == 1 {
        std::process::abort();
    }
}

fn point(kind: WriteKind, stage: Stage) -> Option<&'static str> {
    let first = match kind {
        WriteKind::Submit => 0,
        WriteKind::Claim => 3,
        WriteKind::Advance => 6,
        WriteKind::Move => 9,
        WriteKind::Other => return None,
    };
    let step = match stage {
        Stage::RowsWritten => 0,
        Stage::BeforeCommit => 1,
        Stage::AfterCommit => 2,
    };
    Some(CRASH_POINTS[first + step])
}

fn armed_by(setting: &str) -> Option<(String, AtomicU64)> {
    let (name, hits) = match setting.split_once(':') {
        Some((name, hits)) => (name, hits.parse().ok()?),
        None => (setting, 1),
    };
    CRASH_POINTS
        .contains(&name)
        .then(|| (name.to_owned(), AtomicU64::new(hits)))
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

    #[test]
    fn the_setting_is_a_known_name_and_perhaps_a_count() {
        let (name, hits) = armed_by("store.claim.after_commit:7").unwrap();
        assert_eq!(name, "store.claim.after_commit");
        assert_eq!(hits.into_inner(), 7);
        assert!(armed_by("store.claim.after_commit").is_some());
        assert!(armed_by("store.claim.after_commit:x").is_none());
        assert!(armed_by("exec.start.before_exec").is_none());
    }
}
