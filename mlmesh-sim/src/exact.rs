//! A forecast that knows the reference engine: its cost, and what it holds.
//!
//! Its caches are made of nothing but what the router has bound, as any forecast's are.
//! Those of reference engines would be the same to the block, so that these ask for the
//! booking's memo, what a target held when a prompt was bound. With a deviation above
//! zero each request's prediction is off by a factor of its own.

use std::cell::RefCell;

use mlmesh_route::{Ask, Forecast, Seen, TargetId};

use crate::cache::PrefixCache;
use crate::chance::Chance;
use crate::engine::Profile;
use crate::fleet::Fleet;
use crate::reference::{self, Service};
use crate::replay::Replay;

#[derive(Debug)]
pub(crate) struct Exact {
    caches: RefCell<Vec<PrefixCache>>,
    works: Works,
    /// Standard deviation of the logarithm of a prediction's error.
    sigma: f64,
    seed: u64,
}

/// What is known of how long engines take.
#[derive(Debug)]
enum Works {
    Reference(Service),
    Engines(Vec<Profile>),
}

impl Exact {
    pub(crate) fn of(replay: &Replay<'_>) -> Self {
        let cache = |_| PrefixCache::new(replay.cache_blocks);
        let caches = (0..replay.engines).map(cache).collect();
        Self {
            caches: RefCell::new(caches),
            works: Works::Reference(replay.service),
            sigma: replay.sigma,
            seed: replay.seed,
        }
    }

    /// Of whole engines it knows what a prompt alone takes, and nothing of their answers.
    pub(crate) fn of_fleet(fleet: &Fleet, sigma: f64, seed: u64) -> Self {
        let cache = |profile: &Profile| {
            let blocks = profile.cached_blocks_max.unwrap_or(profile.memory_blocks);
            PrefixCache::new(blocks as usize)
        };
        Self {
            caches: RefCell::new(fleet.engines.iter().map(cache).collect()),
            works: Works::Engines(fleet.engines.clone()),
            sigma,
            seed,
        }
    }
}

/// How many of a prompt's tokens its target held when it was bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held(pub(crate) u64);

impl Forecast for Exact {
    type Memo = Held;

    fn cached_tokens(&self, target: TargetId, ask: &Ask) -> u64 {
        let hit = self.caches.borrow()[target.index()].hit_blocks(&ask.blocks);
        reference::cached_tokens(ask.prompt_tokens, hit)
    }

    fn prefill_us(&self, target: TargetId, ask: &Ask, cached_tokens: u64) -> u64 {
        let exact = match &self.works {
            Works::Reference(service) => service.prefill_us(ask.prompt_tokens, cached_tokens),
            Works::Engines(engines) => {
                engines[target.index()].prefill_us(ask.prompt_tokens, cached_tokens)
            }
        };
        if self.sigma == 0.0 {
            return exact;
        }
        let deviation = Chance::new(self.seed, ask.request.0).normal();
        (exact as f64 * (self.sigma * deviation).exp()).round() as u64
    }

    fn bound(&self, target: TargetId, ask: &Ask) -> Held {
        let cache = &mut self.caches.borrow_mut()[target.index()];
        let hit = cache.hit_blocks(&ask.blocks);
        match &self.works {
            Works::Reference(_) => cache.touch(&ask.blocks),
            Works::Engines(engines) => {
                let block_tokens = engines[target.index()].block_tokens;
                let full = |tokens: u64| (tokens.min(ask.prompt_tokens) / block_tokens) as u32;
                cache.touch_weighted(&ask.blocks, |at| {
                    let from = at as u64 * reference::BLOCK_TOKENS;
                    full(from + reference::BLOCK_TOKENS) - full(from)
                });
            }
        }
        Held(reference::cached_tokens(ask.prompt_tokens, hit))
    }

    fn seen(&self, _target: TargetId, _seen: Seen, _held: Held) {}
}
