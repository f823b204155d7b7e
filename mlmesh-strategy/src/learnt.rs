//! A forecast that knows of targets only what it was told since it began.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::ask::{Ask, TargetId};
use crate::forecast::{Forecast, Seen};
use crate::index::{Belief, BlockIndex};
use crate::prefill::{FACTORS_AT_FIRST, PrefillFit, predicted_us};

/// Bytes of all tables of a forecast.
pub const INDEX_BYTES: usize = 32 << 20;

/// What each target holds, and how long it works. Predictions read atomics alone; two
/// threads that learn of one target in the same moment lose one of the samples.
#[derive(Debug)]
pub struct Learnt {
    index: BlockIndex,
    targets: Box<[Pace]>,
}

#[derive(Debug)]
struct Pace {
    fit: Mutex<PrefillFit>,
    /// The fit's factors as bits; readers may see some of two fits, which differ little.
    factors: [AtomicU64; 3],
    /// A sample was learnt.
    is_known: AtomicBool,
    /// The target says in the end what it held, and is learnt from then: what was only
    /// believed to be held would be learnt as a target that is slow.
    tells: AtomicBool,
}

impl Learnt {
    /// For targets below so many.
    #[must_use]
    pub fn new(targets: u16, index_bytes_max: usize) -> Self {
        let pace = |_| Pace {
            fit: Mutex::new(PrefillFit::default()),
            factors: FACTORS_AT_FIRST.map(|factor| AtomicU64::new(factor.to_bits())),
            is_known: AtomicBool::new(false),
            tells: AtomicBool::new(false),
        };
        Self {
            index: BlockIndex::new(targets, index_bytes_max),
            targets: (0..targets).map(pace).collect(),
        }
    }

    /// The target is another process now, and holds nothing.
    pub fn forget_prompts(&self, target: TargetId) {
        self.index.forget(target);
    }
}

impl Forecast for Learnt {
    type Memo = Belief;

    fn cached_tokens(&self, target: TargetId, ask: &Ask) -> u64 {
        let held = self.index.held(target, &ask.blocks) as u64;
        ask.prompt_tokens.min(held.saturating_mul(ask.block_tokens))
    }

    fn prefill_us(&self, target: TargetId, ask: &Ask, cached_tokens: u64) -> u64 {
        let factors = match self.targets.get(target.index()) {
            Some(pace) => pace
                .factors
                .each_ref()
                .map(|bits| f64::from_bits(bits.load(Ordering::Relaxed))),
            None => FACTORS_AT_FIRST,
        };
        predicted_us(&factors, ask.prompt_tokens, cached_tokens)
    }

    fn knows(&self, target: TargetId) -> bool {
        let pace = self.targets.get(target.index());
        pace.is_some_and(|pace| pace.is_known.load(Ordering::Relaxed))
    }

    fn bound(&self, target: TargetId, ask: &Ask) -> Belief {
        self.index.touch(target, &ask.blocks)
    }

    fn seen(&self, target: TargetId, seen: Seen, belief: Belief) {
        let Some(pace) = self.targets.get(target.index()) else {
            return;
        };
        match seen {
            Seen::Prefill {
                prompt_tokens,
                cached_tokens,
                took_us,
            } => {
                if !pace.tells.load(Ordering::Relaxed) {
                    pace.learn(prompt_tokens, cached_tokens, took_us);
                }
            }
            Seen::Cached {
                prompt_tokens,
                cached_tokens,
                block_tokens,
                took_us,
            } => {
                let told_before = pace.tells.swap(true, Ordering::Relaxed);
                if told_before && took_us > 0 {
                    pace.learn(prompt_tokens, cached_tokens, took_us);
                }
                let held = cached_tokens.div_ceil(block_tokens.max(1));
                let held = u32::try_from(held).unwrap_or(u32::MAX);
                self.index.correct(target, belief, held);
            }
        }
    }
}

impl Pace {
    fn learn(&self, prompt_tokens: u64, cached_tokens: u64, took_us: u64) {
        let Ok(mut fit) = self.fit.try_lock() else {
            return;
        };
        fit.observe(prompt_tokens, cached_tokens, took_us);
        self.is_known.store(true, Ordering::Relaxed);
        for (bits, factor) in self.factors.iter().zip(fit.factors()) {
            bits.store(factor.to_bits(), Ordering::Relaxed);
        }
    }
}
