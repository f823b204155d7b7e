//! Named points at which a test kills the process, in the order of an attempt's life.
//!
//! `MLMESH_CRASH_AT=NAME` aborts at that point's first hit, `NAME:7` at its seventh.
//! The variable is read once.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

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
    static CRASH: OnceLock<Option<Crash>> = OnceLock::new();
    let crash = CRASH.get_or_init(|| Crash::parse(&std::env::var("MLMESH_CRASH_AT").ok()?));
    if crash
        .as_ref()
        .is_some_and(|crash| crash.name == name && crash.is_due())
    {
        std::process::abort();
    }
}

struct Crash {
    name: String,
    hits_left: AtomicU64,
}

impl Crash {
    fn parse(text: &str) -> Option<Self> {
        let (name, hit) = text.split_once(':').unwrap_or((text, "1"));
        Some(Self {
            name: name.to_owned(),
            hits_left: AtomicU64::new(hit.parse().ok()?),
        })
    }

    /// Counts a hit; true from the one that was asked for on.
    fn is_due(&self) -> bool {
        let left = self
            .hits_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                Some(left.saturating_sub(1))
            });
        left.is_ok_and(|left| left <= 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_names_the_hit() {
        let crash = Crash::parse("control.x:2").unwrap();
        assert_eq!(crash.name, "control.x");
        assert_eq!([crash.is_due(), crash.is_due()], [false, true]);
        assert!(Crash::parse("control.x").unwrap().is_due());
        assert!(Crash::parse("control.x:y").is_none());
    }
}
