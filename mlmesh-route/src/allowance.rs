//! How much somebody may ask for in a time: so many units a minute, and as many at once
//! as fit into a burst.
//!
//! It is the generic cell rate algorithm (ITU-T I.371, annex A): one number says until
//! when what was taken is paid for, and what would bring it further ahead than the burst
//! is refused. So it is one atomic, without a lock, a timer or a task that refills it.

use std::sync::atomic::{AtomicU64, Ordering};

const MINUTE_US: u64 = 60_000_000;

/// Units a minute, with a burst.
#[derive(Debug)]
pub struct Allowance {
    per_minute: u64,
    /// How far ahead of now may be taken, in microseconds.
    burst_us: u64,
    /// Until when what was taken is paid for.
    paid_us: AtomicU64,
}

impl Allowance {
    /// So many units a minute; at once as many as `burst`, at least one.
    #[must_use]
    pub const fn per_minute(per_minute: u64, burst: u64) -> Self {
        let per_minute = if per_minute == 0 { 1 } else { per_minute };
        let burst = if burst == 0 { 1 } else { burst };
        Self {
            per_minute,
            burst_us: price_us(per_minute, burst),
            paid_us: AtomicU64::new(0),
        }
    }

    /// Takes so many units, or says in how many microseconds they may be had. More units
    /// than fit into the burst may be had when nothing else was taken before.
    pub fn take(&self, now_us: u64, units: u64) -> Result<(), u64> {
        let price_us = price_us(self.per_minute, units);
        let ahead_us_max = self.burst_us.max(price_us);
        let mut wait_us = 0;
        let taken = self
            .paid_us
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid_us| {
                let ahead_us = paid_us.saturating_sub(now_us);
                // Until what is ahead leaves room for it.
                wait_us = ahead_us.saturating_sub(ahead_us_max - price_us);
                let paid_us = now_us.saturating_add(ahead_us).saturating_add(price_us);
                (wait_us == 0).then_some(paid_us)
            });
        taken.map(drop).map_err(|_| wait_us)
    }

    /// Takes note that what was taken as `taken` units was `used` units in the end. Nothing
    /// is refused by it: who has used more waits longer the next time.
    pub fn settle(&self, now_us: u64, taken: u64, used: u64) {
        let taken_us = price_us(self.per_minute, taken);
        let used_us = price_us(self.per_minute, used);
        let settled = |paid_us: u64| {
            let paid_us = paid_us.max(now_us);
            Some(paid_us.saturating_add(used_us).saturating_sub(taken_us))
        };
        let updated = self
            .paid_us
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, settled);
        debug_assert!(updated.is_ok(), "the closure always has a value");
    }
}

/// The time in which so many units come in.
const fn price_us(per_minute: u64, units: u64) -> u64 {
    let price = (units as u128 * MINUTE_US as u128).div_ceil(per_minute as u128);
    if price > u64::MAX as u128 {
        u64::MAX
    } else {
        price as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_US: u64 = 1_000_000;

    #[test]
    fn a_burst_goes_and_the_rest_waits_for_its_time() {
        // One a second, three at once.
        let allowance = Allowance::per_minute(60, 3);
        let now = 1_000 * SECOND_US;
        for _ in 0..3 {
            assert_eq!(allowance.take(now, 1), Ok(()));
        }
        assert_eq!(allowance.take(now, 1), Err(SECOND_US));
        assert_eq!(allowance.take(now, 2), Err(2 * SECOND_US));
        assert_eq!(
            allowance.take(now + SECOND_US / 4, 1),
            Err(SECOND_US * 3 / 4)
        );
        assert_eq!(allowance.take(now + SECOND_US, 1), Ok(()));
        assert_eq!(allowance.take(now + SECOND_US, 1), Err(SECOND_US));
        // Whoever was away has the burst again, and no more.
        let later = now + 1_000 * SECOND_US;
        assert_eq!(allowance.take(later, 3), Ok(()));
        assert_eq!(allowance.take(later, 1), Err(SECOND_US));
    }

    #[test]
    fn more_than_a_burst_is_had_alone() {
        let allowance = Allowance::per_minute(60, 3);
        assert_eq!(allowance.take(SECOND_US, 10), Ok(()));
        assert_eq!(allowance.take(SECOND_US, 1), Err(8 * SECOND_US));
        assert_eq!(allowance.take(SECOND_US, 10), Err(10 * SECOND_US));
        assert_eq!(allowance.take(11 * SECOND_US, 10), Ok(()));
    }

    #[test]
    fn what_was_really_used_counts() {
        let allowance = Allowance::per_minute(60, 10);
        assert_eq!(allowance.take(0, 10), Ok(()));
        allowance.settle(0, 10, 2);
        assert_eq!(allowance.take(0, 8), Ok(()));
        allowance.settle(0, 8, 20);
        assert_eq!(allowance.take(0, 1), Err(13 * SECOND_US));
        // What was paid for long ago is not given back twice.
        allowance.settle(100 * SECOND_US, 1, 1);
        assert_eq!(allowance.take(100 * SECOND_US, 10), Ok(()));
        assert_eq!(allowance.take(100 * SECOND_US, 1), Err(SECOND_US));
    }

    #[test]
    fn extremes_neither_overflow_nor_divide_by_zero() {
        let none = Allowance::per_minute(0, 0);
        assert_eq!(none.take(5, 1), Ok(()));
        assert_eq!(none.take(5, u64::MAX), Err(60 * SECOND_US));
        let many = Allowance::per_minute(u64::MAX, u64::MAX);
        assert_eq!(many.take(u64::MAX - 1, u64::MAX), Ok(()));
        many.settle(u64::MAX, u64::MAX, u64::MAX);
    }

    #[test]
    fn threads_together_get_what_one_would_get() {
        let allowance = Allowance::per_minute(60, 1_000);
        let had: u64 = std::thread::scope(|scope| {
            let take = || (0..1_000).filter(|_| allowance.take(0, 1).is_ok()).count() as u64;
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            let counts = threads.into_iter().map(|thread| thread.join());
            counts.map(|count| count.unwrap()).sum()
        });
        assert_eq!(had, 1_000);
    }
}
