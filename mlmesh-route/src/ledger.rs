//! What this process has sent where: a few atomics for each target, which every thread
//! reads and writes without a lock.
//!
//! A decision books the prefill that it predicts; the first token settles it. Two
//! threads that decide in the same moment may both find a target free: its backlog is
//! then one request longer than the bound, for once.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use mlmesh_strategy::TargetId;

use crate::snapshot::TARGETS_MAX;

/// Process-wide counts, one slot for each possible target.
#[derive(Debug)]
pub struct Ledger {
    turn: AtomicU64,
    slots: Box<[Slot]>,
}

/// On a cache line of its own, since targets are written by different threads.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Slot {
    in_flight: AtomicU32,
    /// Requests that were ever sent there.
    bookings: AtomicU64,
    /// Predicted prefill of all that has no first token yet.
    booked_us: AtomicU64,
    /// When that will be done, if it goes as predicted.
    free_at_us: AtomicU64,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            turn: AtomicU64::new(0),
            slots: (0..TARGETS_MAX).map(|_| Slot::default()).collect(),
        }
    }
}

impl Ledger {
    /// The number of this decision; no two decisions have the same.
    pub(crate) fn next_turn(&self) -> u64 {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// Requests sent there that have not ended.
    #[must_use]
    pub fn in_flight(&self, target: TargetId) -> u32 {
        self.slot(target).in_flight.load(Ordering::Relaxed)
    }

    /// Requests that were ever sent there.
    #[must_use]
    pub fn bookings(&self, target: TargetId) -> u64 {
        self.slot(target).bookings.load(Ordering::Relaxed)
    }

    /// For how long what was sent there keeps the target busy.
    #[must_use]
    pub fn backlog_us(&self, target: TargetId, now_us: u64) -> u64 {
        let slot = self.slot(target);
        slot.free_at_us
            .load(Ordering::Relaxed)
            .saturating_sub(now_us)
    }

    /// A request goes there.
    pub(crate) fn book(&self, target: TargetId, now_us: u64, prefill_us: u64) {
        let slot = self.slot(target);
        slot.in_flight.fetch_add(1, Ordering::Relaxed);
        slot.bookings.fetch_add(1, Ordering::Relaxed);
        slot.booked_us.fetch_add(prefill_us, Ordering::Relaxed);
        let later = |free_at: u64| Some(free_at.max(now_us).saturating_add(prefill_us));
        let updated = slot
            .free_at_us
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, later);
        debug_assert!(updated.is_ok(), "the closure always has a value");
    }

    /// What was booked for a request is done, or will not be: what is left begins now.
    pub(crate) fn settle(&self, target: TargetId, now_us: u64, prefill_us: u64) {
        let slot = self.slot(target);
        let booked = slot.booked_us.fetch_sub(prefill_us, Ordering::Relaxed);
        let left = booked.saturating_sub(prefill_us);
        slot.free_at_us
            .store(now_us.saturating_add(left), Ordering::Relaxed);
    }

    /// A request has ended there.
    pub(crate) fn ended(&self, target: TargetId) {
        self.slot(target).in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    fn slot(&self, target: TargetId) -> &Slot {
        &self.slots[target.index()]
    }
}
