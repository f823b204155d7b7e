//! Strategies side by side on the same requests.

use serde::Serialize;

use crate::lineup::Contender;
use crate::reference::{CACHE_BLOCKS, NODE_GPUS, Service, slo_us};
use crate::replay::{Replay, Replayed, floor, replay};
use crate::statistics::{Summary, half_width_95, mean};
use crate::trace::Trace;

/// Schema of [`Compared`] as JSON.
pub const COMPARE_SCHEMA: &str = "mlmesh.sim_compare/1";

/// What is compared.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// So many engines.
    pub engines: u16,
    /// Who takes part.
    pub contenders: Vec<Contender>,
    /// Each contender meets the same seeds.
    pub seeds: Vec<u64>,
    /// Deviation of the logarithm of predictions' errors.
    pub sigma: f64,
}

/// What came of a comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Compared {
    /// [`COMPARE_SCHEMA`].
    pub schema: &'static str,
    /// In the order in which they were named.
    pub strategies: Vec<Row>,
    /// Arrivals, first tokens and looks at queues of all replays.
    #[serde(skip)]
    pub events: u64,
}

/// What came of one contender, as the mean over its seeds.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// As it was typed.
    pub strategy: String,
    /// Time to the first token of those that were served.
    pub ttft_s: Spread,
    /// Time to the end of the answer of those that were served.
    pub e2e_s: Spread,
    /// Share of the prompts' tokens that engines held already.
    pub cached_ratio: f64,
    /// How long accelerators worked.
    pub gpu_s: f64,
    /// What the engine with the most work did, in terms of the mean.
    pub imbalance: f64,
    /// Share of all requests whose first token came within the SLO.
    pub goodput: f64,
    /// First tokens of the first seed in ascending order, for a report.
    #[serde(skip)]
    pub sorted_ttft_s: Vec<f64>,
    /// [`Row::goodput`] by tenth of the requests in the order of their prompts' length.
    #[serde(skip)]
    pub goodput_by_length: [f64; 10],
}

/// A time, and how sure its mean is.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Spread {
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90 % are not above it.
    pub p90: f64,
    /// 99 % are not above it.
    pub p99: f64,
    /// Half the width of the 95 % interval of the mean over the seeds.
    pub ci95: f64,
}

/// Replays the trace for each contender and each seed.
#[must_use]
pub fn compare(trace: &Trace, comparison: &Comparison) -> Compared {
    let common_blocks = common_blocks(trace);
    let mut events = 0;
    let row = |contender: &Contender| {
        let replays = comparison.seeds.iter().map(|seed| {
            if contender.is_floor() {
                return floor(trace);
            }
            replay(Replay {
                trace,
                engines: comparison.engines,
                service: Service::Reference,
                cache_blocks: CACHE_BLOCKS,
                strategy: contender.strategy(common_blocks, *seed),
                policy: contender.policy(),
                learns: contender.learns(),
                sigma: comparison.sigma,
                seed: *seed,
            })
        });
        let outcomes = replays.map(|one| {
            events += one.events;
            Outcome::of(trace, &one)
        });
        let outcomes: Vec<Outcome> = outcomes.collect();
        Row::of(contender, outcomes)
    };
    let strategies = comparison.contenders.iter().map(row).collect();
    Compared {
        schema: COMPARE_SCHEMA,
        strategies,
        events,
    }
}

/// What came of one replay.
struct Outcome {
    sorted_ttft_s: Vec<f64>,
    summary: Summary,
    cached_ratio: f64,
    gpu_s: f64,
    imbalance: f64,
    goodput: f64,
    goodput_by_length: [f64; 10],
}

impl Outcome {
    fn of(trace: &Trace, replayed: &Replayed) -> Self {
        let mut ttft_s = Vec::new();
        let (mut cached, mut tokens) = (0, 0);
        let mut is_good = Vec::new();
        for (request, served) in trace.requests.iter().zip(&replayed.served) {
            let slo_us = slo_us(request.prompt_tokens);
            is_good.push(served.is_some_and(|served| served.ttft_us <= slo_us));
            if let Some(served) = served {
                ttft_s.push(served.ttft_us as f64 / 1e6);
                cached += served.cached_tokens;
                tokens += request.prompt_tokens;
            }
        }
        ttft_s.sort_by(f64::total_cmp);
        let busy: Vec<f64> = replayed.busy_us.iter().map(|us| *us as f64 / 1e6).collect();
        let most = busy.iter().copied().fold(0.0, f64::max);
        let good = is_good.iter().filter(|good| **good).count();
        Self {
            summary: Summary::of_sorted(&ttft_s),
            sorted_ttft_s: ttft_s,
            cached_ratio: cached as f64 / f64::max(tokens as f64, 1.0),
            gpu_s: busy.iter().sum::<f64>() * NODE_GPUS,
            imbalance: most / f64::max(mean(&busy), f64::MIN_POSITIVE),
            goodput: good as f64 / is_good.len() as f64,
            goodput_by_length: by_length(trace, &is_good),
        }
    }
}

impl Row {
    fn of(contender: &Contender, mut outcomes: Vec<Outcome>) -> Self {
        let over = |value: fn(&Outcome) -> f64| {
            let values: Vec<f64> = outcomes.iter().map(value).collect();
            mean(&values)
        };
        let means: Vec<f64> = outcomes.iter().map(|one| one.summary.mean).collect();
        let ttft_s = Spread {
            mean: mean(&means),
            p50: over(|one| one.summary.p50),
            p90: over(|one| one.summary.p90),
            p99: over(|one| one.summary.p99),
            ci95: half_width_95(&means),
        };
        let mut goodput_by_length = [0.0; 10];
        for outcome in &outcomes {
            for (sum, one) in goodput_by_length.iter_mut().zip(outcome.goodput_by_length) {
                *sum += one / outcomes.len() as f64;
            }
        }
        Self {
            strategy: contender.name.clone(),
            ttft_s,
            // The reference engine answers with one token.
            e2e_s: ttft_s,
            cached_ratio: over(|one| one.cached_ratio),
            gpu_s: over(|one| one.gpu_s),
            imbalance: over(|one| one.imbalance),
            goodput: over(|one| one.goodput),
            goodput_by_length,
            sorted_ttft_s: match outcomes.first_mut() {
                Some(first) => std::mem::take(&mut first.sorted_ttft_s),
                None => Vec::new(),
            },
        }
    }
}

/// Blocks at the beginning that all requests share.
fn common_blocks(trace: &Trace) -> usize {
    let Some((first, others)) = trace.requests.split_first() else {
        return 0;
    };
    others.iter().fold(first.blocks.len(), |common, request| {
        let pairs = first.blocks.iter().zip(request.blocks.iter()).take(common);
        pairs.take_while(|(a, b)| a == b).count()
    })
}

/// The share of good ones in each tenth of the requests by the length of their prompts.
fn by_length(trace: &Trace, is_good: &[bool]) -> [f64; 10] {
    let mut places: Vec<usize> = (0..is_good.len()).collect();
    places.sort_by_key(|place| trace.requests[*place].prompt_tokens);
    let mut shares = [0.0; 10];
    for (tenth, share) in shares.iter_mut().enumerate() {
        let (from, to) = (places.len() * tenth / 10, places.len() * (tenth + 1) / 10);
        let good = places[from..to]
            .iter()
            .filter(|place| is_good[**place])
            .count();
        *share = good as f64 / (to - from).max(1) as f64;
    }
    shares
}
