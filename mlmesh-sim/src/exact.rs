//! A forecast that knows the reference engine: its cost, and what it was sent.
//!
//! It keeps caches of its own beside those of the engines, made of nothing but what the
//! router has bound, as any forecast has to. With a deviation above zero each request's
//! prediction is off by a factor of its own.

use std::cell::RefCell;

use mlmesh_route::{Ask, Forecast, Seen, TargetId};

use crate::cache::PrefixCache;
use crate::chance::Chance;
use crate::reference::{self, Service};
use crate::replay::Replay;

#[derive(Debug)]
pub(crate) struct Exact {
    caches: RefCell<Vec<PrefixCache>>,
    service: Service,
    /// Standard deviation of the logarithm of a prediction's error.
    sigma: f64,
    seed: u64,
}

impl Exact {
    pub(crate) fn of(replay: &Replay<'_>) -> Self {
        let cache = |_| PrefixCache::new(replay.cache_blocks);
        let caches = (0..replay.engines).map(cache).collect();
        Self {
            caches: RefCell::new(caches),
            service: replay.service,
            sigma: replay.sigma,
            seed: replay.seed,
        }
    }
}

impl Forecast for Exact {
    type Memo = ();

    fn cached_tokens(&self, target: TargetId, ask: &Ask) -> u64 {
        let hit = self.caches.borrow()[target.index()].hit_blocks(&ask.blocks);
        reference::cached_tokens(ask.prompt_tokens, hit)
    }

    fn prefill_us(&self, _target: TargetId, ask: &Ask, cached_tokens: u64) -> u64 {
        let exact = self.service.prefill_us(ask.prompt_tokens, cached_tokens);
        if self.sigma == 0.0 {
            return exact;
        }
        let deviation = Chance::new(self.seed, ask.request.0).normal();
        (exact as f64 * (self.sigma * deviation).exp()).round() as u64
    }

    fn bound(&self, target: TargetId, ask: &Ask) {
        self.caches.borrow_mut()[target.index()].touch(&ask.blocks);
    }

    fn seen(&self, _target: TargetId, _seen: Seen, (): ()) {}
}
