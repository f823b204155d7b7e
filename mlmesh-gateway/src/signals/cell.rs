//! What is known of the targets, for whoever decides: one value that is swapped.
//!
//! It also has the gateway's clock, since ages are differences of times that have one
//! beginning.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arc_swap::{ArcSwap, Guard};
use mlmesh_route::{Health, HealthSettings, Snapshot};

use crate::limits::SNAPSHOT_AGE_MAX;

/// The newest snapshot. Copies of it are the same cell.
#[derive(Debug, Clone)]
pub struct SnapshotCell(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    began: Instant,
    /// What our own requests have met at the targets.
    health: Health,
    /// As it was said, before anything is left out for its health.
    said: Mutex<Snapshot>,
    newest: ArcSwap<Snapshot>,
    /// Nothing reported, and left out what is out for its health.
    nothing: ArcSwap<Snapshot>,
}

impl SnapshotCell {
    /// Of so many targets, of which nothing is reported so far.
    pub fn of_equals(targets: u16) -> SnapshotCell {
        let nothing = Arc::new(Snapshot::of_equals(targets));
        SnapshotCell(Arc::new(Inner {
            began: Instant::now(),
            health: Health::new(targets, HealthSettings::default()),
            said: Mutex::new(Snapshot::of_equals(targets)),
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
        self.put(Some(snapshot));
    }

    /// What our own requests have met at the targets.
    pub(crate) fn health(&self) -> &Health {
        &self.0.health
    }

    /// Looks again at what is left out for its health, and says when to come again.
    pub(crate) fn refresh(&self) -> Option<u64> {
        self.put(None)
    }

    fn put(&self, snapshot: Option<Snapshot>) -> Option<u64> {
        // One after the other, so that nothing older is left behind.
        let mut said = self.0.said.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(snapshot) = snapshot {
            *said = snapshot;
        }
        let now_us = self.now_us();
        let count = u16::try_from(said.targets.len()).unwrap_or(u16::MAX);
        let mut nothing = Snapshot::of_equals(count);
        self.0.health.apply(now_us, &mut nothing);
        self.0.nothing.store(Arc::new(nothing));
        let mut newest = said.clone();
        let again_us = self.0.health.apply(now_us, &mut newest);
        self.0.newest.store(Arc::new(newest));
        again_us
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
