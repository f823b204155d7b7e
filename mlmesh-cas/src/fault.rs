//! Named points at which a test kills the process.
//!
//! Between two steps that a crash could tear apart stands a call of [`point`].
//! With `MLMESH_CRASH_AT=NAME` in the environment the process aborts when it
//! comes to that point; `NAME:COUNT` lets it pass `COUNT` times before. The
//! variable is read once, so a point costs one comparison of a pointer.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

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
    static CRASH: OnceLock<Option<Crash>> = OnceLock::new();
    let crash = CRASH.get_or_init(|| Crash::parse(&std::env::var("MLMESH_CRASH_AT").ok()?));
    crash
        .as_ref()
        .is_some_and(|crash| crash.name == name && crash.is_due())
}

struct Crash {
    name: String,
    passes_left: AtomicU64,
}

impl Crash {
    fn parse(text: &str) -> Option<Self> {
        let (name, passes) = text.split_once(':').unwrap_or((text, "0"));
        Some(Self {
            name: name.to_owned(),
            passes_left: AtomicU64::new(passes.parse().ok()?),
        })
    }

    fn is_due(&self) -> bool {
        self.passes_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            })
            .is_err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_lets_the_process_pass() {
        let crash = Crash::parse("cas.x:2").unwrap();
        assert_eq!(crash.name, "cas.x");
        assert_eq!(
            [crash.is_due(), crash.is_due(), crash.is_due()],
            [false, false, true]
        );
        assert!(Crash::parse("cas.x").unwrap().is_due());
        assert!(Crash::parse("cas.x:y").is_none());
    }
}
