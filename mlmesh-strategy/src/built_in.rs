//! The strategies that come with the router.
//!
//! | strategy | sends to | knows |
//! |---|---|---|
//! | [`BaselineRoundRobin`] | the next one | nothing |
//! | [`Random`] | any | nothing |
//! | [`LeastQueue`] | the one with the fewest requests | its own counts |
//! | [`PowerOfTwo`] | the one with fewer requests of two drawn ones | its own counts |
//! | [`LeastWork`] | the one that is free first | predicted work |
//! | [`SessionHash`] | one for each conversation | the session |
//! | [`BlockAffinity`] | one for each first block that tells prompts apart | the prompt |
//! | [`PrefixHash`] | the same, but not above a bound on its load | the prompt, counts |
//! | [`LeastPredictedTtft`] | the one with the first token first | everything |

use std::sync::atomic::{AtomicU64, Ordering};

use crate::ask::{Ask, BlockHash};
use crate::candidate::Candidate;
use crate::mix::{mixed, mixed_pair};
use crate::strategy::{Situation, Strategy};

/// One after the other, in the order of the targets.
#[derive(Debug)]
pub struct BaselineRoundRobin;

impl Strategy for BaselineRoundRobin {
    fn name(&self) -> &'static str {
        "baseline_rr"
    }

    fn needs_forecast(&self) -> bool {
        false
    }

    fn reads_prompt(&self) -> bool {
        false
    }

    fn score(&self, situation: Situation<'_>, candidates: &[Candidate], costs: &mut [u64]) {
        let count = candidates.len() as u64;
        let first = situation.turn % count;
        for (place, cost) in (0..count).zip(costs) {
            *cost = (place + count - first) % count;
        }
    }
}

/// Any target, each as often as another.
#[derive(Debug)]
pub struct Random;

impl Strategy for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn needs_forecast(&self) -> bool {
        false
    }

    fn reads_prompt(&self) -> bool {
        false
    }

    fn score(&self, situation: Situation<'_>, candidates: &[Candidate], costs: &mut [u64]) {
        let drawn = drawn(situation.ask.chance, candidates.len());
        for (place, cost) in costs.iter_mut().enumerate() {
            *cost = u64::from(place != drawn);
        }
    }
}

/// The target with the fewest requests of this router's.
#[derive(Debug)]
pub struct LeastQueue;

impl Strategy for LeastQueue {
    fn name(&self) -> &'static str {
        "least_queue"
    }

    fn needs_forecast(&self) -> bool {
        false
    }

    fn reads_prompt(&self) -> bool {
        false
    }

    fn score(&self, _situation: Situation<'_>, candidates: &[Candidate], costs: &mut [u64]) {
        for (candidate, cost) in candidates.iter().zip(costs) {
            *cost = u64::from(candidate.in_flight);
        }
    }
}

/// Of two drawn targets the one with fewer requests (Mitzenmacher, "The power of two
/// choices in randomized load balancing", 2001).
#[derive(Debug)]
pub struct PowerOfTwo;

impl Strategy for PowerOfTwo {
    fn name(&self) -> &'static str {
        "power_of_two"
    }

    fn needs_forecast(&self) -> bool {
        false
    }

    fn reads_prompt(&self) -> bool {
        false
    }

    fn score(&self, situation: Situation<'_>, candidates: &[Candidate], costs: &mut [u64]) {
        costs.fill(u64::MAX);
        let count = candidates.len();
        let first = drawn(situation.ask.chance, count);
        let step = match count {
            1 => 0,
            _ => 1 + drawn(mixed(situation.ask.chance), count - 1),
        };
        // Of two with as many requests the one that was drawn first.
        for (second, place) in [(1, (first + step) % count), (0, first)] {
            costs[place] = 2 * u64::from(candidates[place].in_flight) + second;
        }
    }
}

/// The target that has done first what it was sent.
#[derive(Debug)]
pub struct LeastWork;

impl Strategy for LeastWork {
    fn name(&self) -> &'static str {
        "least_work"
    }

    fn needs_forecast(&self) -> bool {
        false
    }

    fn score(&self, _situation: Situation<'_>, candidates: &[Candidate], costs: &mut [u64]) {
        for (candidate, cost) in candidates.iter().zip(costs) {
            *cost = candidate.queued_us;
        }
    }
}

/// The same target for all requests of a session; without one, of a first block. A
/// target that comes or goes moves only its own share (rendezvous hashing: Thaler and
/// Ravishankar, 1998).
#[derive(Debug)]
pub struct SessionHash;

impl Strategy for SessionHash {
    fn name(&self) -> &'static str {
        "session_hash"
    }

    fn needs_forecast(&self) -> bool {
        false
    }

    fn score(&self, situation: Situation<'_>, candidates: &[Candidate], costs: &mut [u64]) {
        let ask = situation.ask;
        let first = || ask.blocks.first().map(|block| block.0);
        let key = ask.session.or_else(first).unwrap_or(ask.chance);
        rendezvous(key, candidates, costs);
    }
}

/// The same target for all prompts with the same block at one depth: one prefix, one
/// target, whatever its load.
#[derive(Debug)]
pub struct BlockAffinity {
    /// Blocks at the beginning of each prompt that all have in common.
    pub common_blocks: usize,
    /// Which of the many ways to hash is used.
    pub key: u64,
}

impl Strategy for BlockAffinity {
    fn name(&self) -> &'static str {
        "block_affinity"
    }

    fn needs_forecast(&self) -> bool {
        false
    }

    fn score(&self, situation: Situation<'_>, candidates: &[Candidate], costs: &mut [u64]) {
        let blocks = &situation.ask.blocks;
        let block = blocks.get(self.common_blocks).or(blocks.last());
        let key = block.map_or(situation.ask.chance, |block| mixed_pair(self.key, block.0));
        rendezvous(key, candidates, costs);
    }
}

/// Depths at which a block that most prompts share is looked for.
const DEPTHS_MAX: usize = 8;
/// By so many votes a block has to lead at its depth before it is passed over.
const VOTES_MIN: u64 = 8;
/// A target takes no more than this share of the mean load, in percent (Mirrokni,
/// Thorup and Zadimoghaddam, "Consistent hashing with bounded loads", 2018).
const LOAD_PERCENT_MAX: u64 = 125;

/// The same target for all prompts that begin the same, as long as its load is within a
/// bound; then the next one in the prefix's own order.
///
/// What tells prompts apart is the first block that not most of them share: a system
/// prompt that stands before everything must not send everything to one target.
#[derive(Debug, Default)]
pub struct PrefixHash {
    /// At each depth the block that leads, and by how many votes (Boyer and Moore's
    /// majority vote). Threads that meet here may lose a vote, which costs nothing.
    depths: [(AtomicU64, AtomicU64); DEPTHS_MAX],
}

impl PrefixHash {
    /// The first block that tells this prompt from most others.
    fn telling(&self, ask: &Ask) -> Option<BlockHash> {
        for (block, (leader, votes)) in ask.blocks.iter().zip(&self.depths) {
            let standing = votes.load(Ordering::Relaxed);
            if leader.load(Ordering::Relaxed) == block.0 {
                votes.store((standing + 1).min(1 << 20), Ordering::Relaxed);
                if standing >= VOTES_MIN {
                    continue;
                }
            } else if standing == 0 {
                leader.store(block.0, Ordering::Relaxed);
                votes.store(1, Ordering::Relaxed);
            } else {
                votes.store(standing - 1, Ordering::Relaxed);
            }
            return Some(*block);
        }
        ask.blocks.last().copied()
    }
}

impl Strategy for PrefixHash {
    fn name(&self) -> &'static str {
        "prefix_hash"
    }

    fn needs_forecast(&self) -> bool {
        false
    }

    fn score(&self, situation: Situation<'_>, candidates: &[Candidate], costs: &mut [u64]) {
        let block = self.telling(situation.ask);
        let key = block.map_or(situation.ask.chance, |block| block.0);
        rendezvous(key, candidates, costs);
        let load: u64 = candidates.iter().map(|one| u64::from(one.in_flight)).sum();
        let bound = ((load + 1) * LOAD_PERCENT_MAX).div_ceil(100 * candidates.len() as u64);
        for (candidate, cost) in candidates.iter().zip(costs) {
            *cost >>= 1;
            if u64::from(candidate.in_flight) >= bound {
                *cost |= 1 << 63;
            }
        }
    }
}

/// What a copy of a part of a prompt is taken to cost beside its own time, in percent of
/// that: what it puts aside there may be asked for again.
pub const COPY_PERCENT: u64 = 50;

/// The target where the first token is expected first.
#[derive(Debug)]
pub struct LeastPredictedTtft {
    /// As it is typed and reported; the router gives this one also a queue of its own.
    pub name: &'static str,
    /// What is added, in percent of its time, for what another target holds and this one
    /// would hold, too; see [`COPY_PERCENT`].
    pub copy_percent: u64,
}

impl Strategy for LeastPredictedTtft {
    fn name(&self) -> &'static str {
        self.name
    }

    fn needs_forecast(&self) -> bool {
        true
    }

    fn score(&self, situation: Situation<'_>, candidates: &[Candidate], costs: &mut [u64]) {
        let held = candidates.iter().map(|one| one.cached_tokens).max();
        let held = held.unwrap_or_default();
        for (candidate, cost) in candidates.iter().zip(costs) {
            *cost = candidate.ttft_us();
            let copied = held - candidate.cached_tokens;
            if copied > 0 && self.copy_percent > 0 {
                let new = situation.ask.prompt_tokens.max(held) - candidate.cached_tokens;
                let percent = u128::from(copied * self.copy_percent);
                let copy_us = u128::from(candidate.prefill_us) * percent / u128::from(100 * new);
                *cost = cost.saturating_add(u64::try_from(copy_us).unwrap_or(u64::MAX));
            }
        }
    }
}

/// Each target's own place in the order of a key.
fn rendezvous(key: u64, candidates: &[Candidate], costs: &mut [u64]) {
    for (candidate, cost) in candidates.iter().zip(costs) {
        *cost = mixed_pair(key, u64::from(candidate.target.0));
    }
}

/// A place below `count`, all equally often.
fn drawn(chance: u64, count: usize) -> usize {
    ((u128::from(chance) * count as u128) >> 64) as usize
}
