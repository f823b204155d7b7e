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
}

impl Queue {
    pub(crate) const fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn push(&mut self, ask: &Ask) {
        self.came += 1;
        self.waiting.push(Waiting {
            ask: ask.clone(),
            came: self.came,
            estimates: Vec::new(),
        });
    }

    pub(crate) fn remove(&mut self, request: RequestId) {
        self.waiting.retain(|one| one.ask.request != request);
    }

    /// Binds whatever can be bound, refuses what has become hopeless.
    pub(crate) fn drain<F: Forecast>(
        &mut self,
        router: &Router<F>,
        now_us: u64,
        snapshot: &Snapshot,
        effects: &mut Vec<Effect>,
    ) {
        loop {
            let mut next: Option<((u64, u64), usize, Candidate)> = None;
            let mut wake_us = u64::MAX;
            let mut place = 0;
            while place < self.waiting.len() {
                let scratch = &mut self.scratch;
                let one = &mut self.waiting[place];
                match one.verdict(router, now_us, snapshot, scratch) {
                    Verdict::Bind(best) => {
                        let key = (one.key(router, &best), one.came);
                        if next.is_none_or(|(least, _, _)| key < least) {
                            next = Some((key, place, best));
                        }
                    }
                    Verdict::Wait(best) => {
                        wake_us = wake_us.min(router.free_us(now_us, &best));
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
                return;
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
                };
            }
            candidate.cached_tokens = estimate.cached_tokens;
            candidate.prefill_us = estimate.prefill_us;
        })
    }

    /// What the least of goes first.
    fn key<F: Forecast>(&self, router: &Router<F>, best: &Candidate) -> u64 {
        match router.policy().late.map(|late| late.order) {
            Some(Order::ShortestPrefill) => best.prefill_us,
            Some(Order::Fifo) | None => self.came,
        }
    }
}
