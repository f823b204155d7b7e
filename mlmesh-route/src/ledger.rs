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
    /// Requests that have no first token yet.
    pending: AtomicU32,
    /// Predicted prefill of those.
    booked_us: AtomicU64,
    /// When that will be done, if it goes as predicted.
    free_at_us: AtomicU64,
    /// When the newest first token came.
    told_us: AtomicU64,
    /// Since when the target has worked on those that came together with it.
    group_from_us: AtomicU64,
    /// Predicted prefill of those.
    group_us: AtomicU64,
    /// When the newest of the requests that have one was bound.
    told_bound_us: AtomicU64,
    /// By how much predictions are off, up or down, as a part of 2^20.
    error: AtomicU32,
    /// How long the target works on a prompt; zero if none was seen.
    pace_us: AtomicU64,
}

/// What keeps a target from new work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// How long it is expected to.
    pub expected_us: u64,
    /// By how much longer it may well take, from how wrong earlier predictions were.
    pub doubt_us: u64,
}

const ONE: f64 = (1 << 20) as f64;
/// Weight of the newest prediction in the mean of errors.
const ERROR_WEIGHT: f64 = 1.0 / 16.0;
/// First tokens come together when the later one comes within so long, or within this
/// part of what was predicted for it alone.
const TOGETHER_US: u64 = 1_000;
const TOGETHER_PART: u64 = 20;
/// An error counts for no more than a factor of e².
const ERROR_MAX: f64 = 2.0;

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

    /// For how long what was sent there keeps the target busy. What should be done and
    /// is not goes on for half of what predictions are usually off.
    #[must_use]
    pub fn backlog(&self, target: TargetId, now_us: u64) -> Backlog {
        let slot = self.slot(target);
        let free_at_us = slot.free_at_us.load(Ordering::Relaxed);
        if slot.pending.load(Ordering::Relaxed) == 0 {
            // Of what is silent only time tells that it is done.
            return Backlog {
                expected_us: free_at_us.saturating_sub(now_us),
                doubt_us: 0,
            };
        }
        let booked_us = slot.booked_us.load(Ordering::Relaxed);
        let doubt_us = self.doubt_us(target, booked_us);
        Backlog {
            expected_us: free_at_us.saturating_sub(now_us).max(overdue_us(doubt_us)),
            doubt_us,
        }
    }

    /// How long it works on one of our prompts, of late; none if none was seen.
    #[must_use]
    pub fn pace_us(&self, target: TargetId) -> Option<u64> {
        let pace_us = self.slot(target).pace_us.load(Ordering::Relaxed);
        (pace_us > 0).then_some(pace_us)
    }

    /// Whether all that was sent there has its first token.
    pub(crate) fn is_idle(&self, target: TargetId) -> bool {
        self.slot(target).pending.load(Ordering::Relaxed) == 0
    }

    /// A request goes there; one that is silent is done when its time has passed.
    pub(crate) fn book(&self, target: TargetId, now_us: u64, prefill_us: u64, is_silent: bool) {
        let slot = self.slot(target);
        slot.in_flight.fetch_add(1, Ordering::Relaxed);
        slot.bookings.fetch_add(1, Ordering::Relaxed);
        if !is_silent {
            slot.pending.fetch_add(1, Ordering::Relaxed);
            slot.booked_us.fetch_add(prefill_us, Ordering::Relaxed);
        }
        let later = |free_at: u64| Some(free_at.max(now_us).saturating_add(prefill_us));
        let _ = slot
            .free_at_us
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, later);
    }

    /// By how much the target may well need longer, or less, than was predicted.
    pub(crate) fn doubt_us(&self, target: TargetId, prefill_us: u64) -> u64 {
        let error = f64::from(self.slot(target).error.load(Ordering::Relaxed)) / ONE;
        (prefill_us as f64 * error) as u64
    }

    /// A first token came: what was booked for it is done, and what is left begins now.
    /// Says how long the target worked on it, if it does one thing after the other; a
    /// request that later ones have overtaken was not worked on all the time, and says
    /// nothing.
    pub(crate) fn answered(
        &self,
        target: TargetId,
        now_us: u64,
        bound_us: u64,
        prefill_us: u64,
    ) -> Option<u64> {
        let slot = self.slot(target);
        if slot.told_bound_us.fetch_max(bound_us, Ordering::Relaxed) > bound_us {
            self.release(target, now_us, prefill_us);
            return None;
        }
        let told_us = slot.told_us.swap(now_us, Ordering::Relaxed);
        let took_us = share_of_group(slot, now_us, told_us.max(bound_us), prefill_us);
        let off = (took_us as f64 / prefill_us.max(1) as f64).ln().abs();
        let error = f64::from(slot.error.load(Ordering::Relaxed)) / ONE;
        let error = error + ERROR_WEIGHT * (off.min(ERROR_MAX) - error);
        slot.error.store((error * ONE) as u32, Ordering::Relaxed);
        let pace_us = slot.pace_us.load(Ordering::Relaxed) as f64;
        let weight = if pace_us > 0.0 { ERROR_WEIGHT } else { 1.0 };
        let pace_us = pace_us + weight * (took_us as f64 - pace_us);
        slot.pace_us
            .store((pace_us as u64).max(1), Ordering::Relaxed);
        self.release(target, now_us, prefill_us);
        Some(took_us)
    }

    /// What was booked for a request is done, or will not be.
    pub(crate) fn release(&self, target: TargetId, now_us: u64, prefill_us: u64) {
        let slot = self.slot(target);
        lower(&slot.pending, 1);
        let less = |booked: u64| Some(booked.saturating_sub(prefill_us));
        let booked = slot
            .booked_us
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        let left = booked.unwrap_or_default().saturating_sub(prefill_us);
        slot.free_at_us
            .store(now_us.saturating_add(left), Ordering::Relaxed);
    }

    /// A silent request was done so much sooner than was booked.
    pub(crate) fn spare(&self, target: TargetId, now_us: u64, unused_us: u64) {
        let sooner = |free_at: u64| Some(free_at.saturating_sub(unused_us).max(now_us));
        let _ =
            self.slot(target)
                .free_at_us
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, sooner);
    }

    /// A request has ended there.
    pub(crate) fn ended(&self, target: TargetId) {
        lower(&self.slot(target).in_flight, 1);
    }

    fn slot(&self, target: TargetId) -> &Slot {
        &self.slots[target.index()]
    }
}

/// For how long something goes on that should be done and is not.
pub(crate) const fn overdue_us(doubt_us: u64) -> u64 {
    doubt_us / 2
}

/// How long the target worked on a prompt whose first token has come, `from_us` being
/// when it could begin. Engines that put several prompts into one iteration answer
/// them together: these share the time since the answer before them, each by its
/// predicted part, as far as they have come.
fn share_of_group(slot: &Slot, now_us: u64, from_us: u64, prefill_us: u64) -> u64 {
    let alone_us = now_us.saturating_sub(from_us).max(1);
    if alone_us >= TOGETHER_US.max(prefill_us / TOGETHER_PART) {
        slot.group_from_us.store(from_us, Ordering::Relaxed);
        slot.group_us.store(prefill_us, Ordering::Relaxed);
        return alone_us;
    }
    let all_us = slot.group_us.fetch_add(prefill_us, Ordering::Relaxed) + prefill_us;
    let since_us = now_us.saturating_sub(slot.group_from_us.load(Ordering::Relaxed));
    let share = u128::from(since_us) * u128::from(prefill_us) / u128::from(all_us.max(1));
    u64::try_from(share).unwrap_or(u64::MAX).max(1)
}

/// Never below zero, whatever is told twice.
fn lower(count: &AtomicU32, by: u32) {
    let less = |count: u32| Some(count.saturating_sub(by));
    // The closure always has a value, so there is no refusal to look at.
    let _ = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
}
