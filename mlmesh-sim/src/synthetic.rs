//! Requests that nobody ever sent, of known distributions.

use mlmesh_route::BlockHash;
use serde::Deserialize;

use crate::chance::Chance;
use crate::reference::BLOCK_TOKENS;
use crate::trace::{Request, Trace};

/// How long prompts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lengths {
    /// All the same.
    Constant(u64),
    /// Exponential with this mean.
    Exponential(u64),
}

/// So many requests without anything in common, at times of a Poisson process with this
/// mean between two of them.
#[must_use]
pub fn poisson(count: usize, gap_us: u64, lengths: Lengths, seed: u64) -> Trace {
    let mut gaps = Chance::new(seed, 0x6a95);
    let mut sizes = Chance::new(seed, 0x51ce);
    let mut at = 0.0;
    let nothing: std::sync::Arc<[_]> = [].into();
    let requests = (0..count).map(|_| {
        at += gaps.exponential() * gap_us as f64;
        let prompt_tokens = match lengths {
            Lengths::Constant(tokens) => tokens,
            Lengths::Exponential(mean) => (sizes.exponential() * mean as f64).round() as u64,
        };
        Request {
            at_us: at as u64,
            prompt_tokens,
            output_tokens: 1,
            blocks: nothing.clone(),
        }
    });
    Trace {
        requests: requests.collect(),
    }
}

/// Prompts of which each begins with one of a few texts, and how many come.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shared {
    /// So many requests,
    pub requests: usize,
    /// so many a second, at times of a Poisson process.
    pub rate: f64,
    /// So many texts to begin with; how often each is used goes with one by its rank.
    pub prefixes: u64,
    /// Their length, a multiple of 512.
    pub prefix_tokens: u64,
    /// What comes behind, and is in no other prompt.
    pub unique_tokens: u64,
    /// Length of an answer.
    pub output_tokens: u64,
}

/// Requests like that.
#[must_use]
pub fn shared_prefixes(shared: &Shared, seed: u64) -> Trace {
    let mut gaps = Chance::new(seed, 0x6a95);
    let mut choices = Chance::new(seed, 0x94ef);
    let weights = (1..=shared.prefixes.max(1)).map(|rank| 1.0 / rank as f64);
    let all: f64 = weights.clone().sum();
    let prefix_blocks = shared.prefix_tokens / BLOCK_TOKENS;
    let own_blocks =
        (shared.prefix_tokens % BLOCK_TOKENS + shared.unique_tokens).div_ceil(BLOCK_TOKENS);
    let mut next_block = shared.prefixes.max(1) * prefix_blocks;
    let mut at_us = 0.0;
    let requests = (0..shared.requests).map(|_| {
        at_us += gaps.exponential() * 1e6 / shared.rate;
        let mut left = choices.part() * all;
        let chosen = weights.clone().position(|weight| {
            left -= weight;
            left <= 0.0
        });
        let prefix = chosen.unwrap_or_default() as u64;
        let first = prefix * prefix_blocks;
        let own = next_block..next_block + own_blocks;
        next_block = own.end;
        Request {
            at_us: at_us as u64,
            prompt_tokens: shared.prefix_tokens + shared.unique_tokens,
            output_tokens: shared.output_tokens,
            blocks: (first..first + prefix_blocks)
                .chain(own)
                .map(BlockHash)
                .collect(),
        }
    });
    Trace {
        requests: requests.collect(),
    }
}
