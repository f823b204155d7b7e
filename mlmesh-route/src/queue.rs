//! Requests that wait for a target, and which of them goes next.
//!
//! Each waits for the target that suits it best at that moment, and goes when that
//! target's backlog is within the bound; a target that is free and suits nobody best is
//! left free. What is predicted of a request at a target is kept until something else
//! is sent to that target.

use mlmesh_strategy::{Ask, Candidate, Forecast, RequestId};

use crate::policy::Order;
use crate::router::{Effect, Router, Scratch, Verdict};
use crate::snapshot::Snapshot;

/// Who has waited so many times the prefill by which it is longer goes before a shorter
/// one. Low values turn the order into that of coming.
const AGING: u64 = 8;

#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: Vec<Waiting>,
    came: u64,
    scratch: Scratch,
}

#[derive(Debug)]
struct Waiting {
    ask: Ask,
    /// Its number among all that have waited.
    came: u64,
    since_us: u64,
    /// By target.
    estimates: Vec<Estimate>,
}

/// What was predicted of one request at one target.
#[derive(Debug, Clone, Copy, Default)]
struct Estimate {
    /// [`crate::Ledger::bookings`] plus one, from when it is; zero is never.
    bookings: u64,
    cached_tokens: u64,
    prefill_us: u64,
    prefill_doubt_us: u64,
}

impl Queue {
    pub(crate) const fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn push(&mut self, now_us: u64, ask: &Ask) {
        self.came += 1;
        self.waiting.push(Waiting {
            ask: ask.clone(),
            came: self.came,
            since_us: now_us,
            estimates: Vec::new(),
        });
    }

    /// Takes out the one that came last.
    pub(crate) fn pop(&mut self) -> Option<RequestId> {
        let places = 0..self.waiting.len();
        let last = places.max_by_key(|place| self.waiting[*place].came)?;
        Some(self.waiting.swap_remove(last).ask.request)
    }

    /// Whether it was there.
    pub(crate) fn remove(&mut self, request: RequestId) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|one| one.ask.request != request);
        self.waiting.len() < before
    }

    /// Binds whatever can be bound, refuses what has become hopeless, and says how much
    /// prefill still waits.
    pub(crate) fn drain<F: Forecast>(
        &mut self,
        router: &Router<F>,
        now_us: u64,
        snapshot: &Snapshot,
        effects: &mut Vec<Effect<F::Memo>>,
    ) -> u64 {
        loop {
            let mut next: Option<((i64, u64), usize, Candidate)> = None;
            let mut wake_us = u64::MAX;
            let mut waiting_us = 0_u64;
            let mut place = 0;
            while place < self.waiting.len() {
                let scratch = &mut self.scratch;
                let one = &mut self.waiting[place];
                match one.verdict(router, now_us, snapshot, scratch) {
                    Verdict::Bind(best) => {
                        let key = (one.key(router, now_us, &best), one.came);
                        if next.is_none_or(|(least, _, _)| key < least) {
                            next = Some((key, place, best));
                        }
                    }
                    Verdict::Wait(best) => {
                        wake_us = wake_us.min(router.free_us(now_us, &best));
                        waiting_us = waiting_us.saturating_add(best.prefill_us);
                    }
                    Verdict::Reject(refusal) => {
                        effects.push(Effect::Refuse(one.ask.request, refusal));
                        self.waiting.swap_remove(place);
                        continue;
                    }
                }
                place += 1;
            }
            let Some((_, place, best)) = next else {
                if wake_us < u64::MAX {
                    effects.push(Effect::WakeAt(wake_us));
                }
                return waiting_us;
            };
            let one = self.waiting.swap_remove(place);
            effects.push(Effect::Bind(router.bind(now_us, &one.ask, best)));
        }
    }
}

impl Waiting {
    fn verdict<F: Forecast>(
        &mut self,
        router: &Router<F>,
        now_us: u64,
        snapshot: &Snapshot,
        scratch: &mut Scratch,
    ) -> Verdict {
        let Self {
            ask,
            estimates,
            came,
            ..
        } = self;
        router.consider(now_us, snapshot, ask, *came, scratch, |candidate| {
            let place = candidate.target.index();
            if estimates.len() <= place {
                estimates.resize(place + 1, Estimate::default());
            }
            let estimate = &mut estimates[place];
            let bookings = router.ledger().bookings(candidate.target) + 1;
            if estimate.bookings != bookings {
                router.predict(ask, candidate);
                *estimate = Estimate {
                    bookings,
                    cached_tokens: candidate.cached_tokens,
                    prefill_us: candidate.prefill_us,
                    prefill_doubt_us: candidate.prefill_doubt_us,
                };
            }
            candidate.cached_tokens = estimate.cached_tokens;
            candidate.prefill_us = estimate.prefill_us;
            candidate.prefill_doubt_us = estimate.prefill_doubt_us;
        })
    }

    /// Who has the least goes first.
    fn key<F: Forecast>(&self, router: &Router<F>, now_us: u64, best: &Candidate) -> i64 {
        match router.policy().late.map(|late| late.order) {
            Some(Order::ShortestPrefill) => {
                let waited_us = now_us.saturating_sub(self.since_us);
                best.prefill_us.cast_signed() - (waited_us / AGING).cast_signed()
            }
            // Its number alone decides.
            Some(Order::Fifo) | None => 0,
        }
    }
}
