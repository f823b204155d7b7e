//! What is known of the targets, for whoever decides: one value that is swapped.
//!
//! It also has the gateway's clock, since ages are differences of times that have one
//! beginning.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::{ArcSwap, Guard};
use mlmesh_route::Snapshot;

use crate::limits::SNAPSHOT_AGE_MAX;

/// The newest snapshot. Copies of it are the same cell.
#[derive(Debug, Clone)]
pub struct SnapshotCell(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    began: Instant,
    newest: ArcSwap<Snapshot>,
    /// All targets usable and nothing reported.
    nothing: ArcSwap<Snapshot>,
}

impl SnapshotCell {
    /// Of so many targets, of which nothing is reported so far.
    pub fn of_equals(targets: u16) -> SnapshotCell {
        let nothing = Arc::new(Snapshot::of_equals(targets));
        SnapshotCell(Arc::new(Inner {
            began: Instant::now(),
            newest: ArcSwap::new(Arc::clone(&nothing)),
            nothing: ArcSwap::new(nothing),
        }))
    }

    /// Microseconds since the gateway began; never goes back.
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.0.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// What is known now; of what is too old to be believed nothing. Takes no lock and
    /// is to be let go of before anything is waited for.
    pub fn load(&self, now_us: u64) -> Guard<Arc<Snapshot>> {
        let newest = self.0.newest.load();
        match u128::from(now_us.saturating_sub(newest.at_us)) > SNAPSHOT_AGE_MAX.as_micros() {
            true => self.0.nothing.load(),
            false => newest,
        }
    }

    /// Replaces it.
    pub fn store(&self, snapshot: Snapshot) {
        self.0.newest.store(Arc::new(snapshot));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_old_is_not_believed() {
        let cell = SnapshotCell::of_equals(2);
        let mut snapshot = Snapshot::of_equals(2);
        snapshot.at_us = 5;
        snapshot.targets[1].usable = false;
        cell.store(snapshot);
        let usable = |now_us| cell.load(now_us).targets[1].usable;
        let limit_us = u64::try_from(SNAPSHOT_AGE_MAX.as_micros()).unwrap();
        assert!(!usable(0) && !usable(limit_us + 5));
        assert!(usable(limit_us + 6));
    }
}
