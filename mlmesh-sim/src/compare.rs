//! Strategies side by side on the same requests.

use std::borrow::Cow;

use serde::Serialize;

use crate::fleet::{Fleet, FleetRun};
use crate::lineup::Contender;
use crate::reference::{CACHE_BLOCKS, NODE_GPUS, Service, slo_us};
use crate::replay::{Replay, Replayed, floor, replay};
use crate::statistics::{Summary, half_width_95, mean};
use crate::trace::{Request, Trace};

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
    /// Whole engines and what is around them, as many as `engines` says; without, each
    /// is the reference engine.
    pub fleet: Option<Fleet>,
    /// Requests that come before this time are served and not counted.
    pub leave_out_us: u64,
}

/// What came of a comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Compared {
    /// [`COMPARE_SCHEMA`].
    pub schema: &'static str,
    /// In the order in which they were named.
    pub strategies: Vec<Row>,
    /// Arrivals, first tokens and looks at queues of all replays; of whole engines
    /// arrivals, iterations and ends.
    #[serde(skip)]
    pub events: u64,
    /// Requests of one replay that were counted.
    #[serde(skip)]
    pub requests: usize,
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
    /// Mean time of a token but the first, of those that were served; none of engines
    /// that only prefill.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tpot_s: Option<Spread>,
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
    compare_drawn(comparison, |_| Cow::Borrowed(trace))
}

/// The same where each seed has requests of its own, which all contenders meet.
pub fn compare_drawn<'a>(
    comparison: &Comparison,
    draw: impl Fn(u64) -> Cow<'a, Trace>,
) -> Compared {
    let (mut events, mut requests) = (0, 0);
    let mut outcomes: Vec<Vec<Outcome>> = Vec::new();
    outcomes.resize_with(comparison.contenders.len(), Vec::new);
    for seed in &comparison.seeds {
        let trace = draw(*seed);
        let common_blocks = common_blocks(&trace);
        requests = trace.requests[comparison.first(&trace)..].len();
        for (contender, outcomes) in comparison.contenders.iter().zip(&mut outcomes) {
            let one = comparison.replay(&trace, contender, common_blocks, *seed);
            events += one.events;
            outcomes.push(Outcome::of(&trace, &one, comparison));
        }
    }
    let rows = comparison.contenders.iter().zip(outcomes);
    Compared {
        schema: COMPARE_SCHEMA,
        strategies: rows.map(|(one, outcomes)| Row::of(one, outcomes)).collect(),
        events,
        requests,
    }
}

impl Comparison {
    /// The first request that counts.
    fn first(&self, trace: &Trace) -> usize {
        let is_left_out = |request: &Request| request.at_us < self.leave_out_us;
        trace.requests.partition_point(is_left_out)
    }

    fn replay(
        &self,
        trace: &Trace,
        contender: &Contender,
        common_blocks: usize,
        seed: u64,
    ) -> Replayed {
        let (strategy, policy) = (contender.strategy(common_blocks, seed), contender.policy());
        match &self.fleet {
            None if contender.is_floor() => floor(trace),
            Some(fleet) if contender.is_floor() => fleet.floor(trace),
            Some(fleet) => Fleet::run(FleetRun {
                trace,
                fleet,
                strategy,
                policy,
                learns: contender.learns(),
                sigma: self.sigma,
                seed,
            }),
            None => replay(Replay {
                trace,
                engines: self.engines,
                service: Service::Reference,
                cache_blocks: CACHE_BLOCKS,
                strategy,
                policy,
                learns: contender.learns(),
                sigma: self.sigma,
                seed,
            }),
        }
    }
}

/// What came of one replay.
struct Outcome {
    sorted_ttft_s: Vec<f64>,
    ttft: Summary,
    e2e: Summary,
    tpot: Option<Summary>,
    cached_ratio: f64,
    gpu_s: f64,
    imbalance: f64,
    goodput: f64,
    goodput_by_length: [f64; 10],
}

impl Outcome {
    fn of(trace: &Trace, replayed: &Replayed, comparison: &Comparison) -> Self {
        let fleet = comparison.fleet.as_ref();
        let from = comparison.first(trace);
        let (requests, replayed_served) = (&trace.requests[from..], &replayed.served[from..]);
        let (mut ttft_s, mut e2e_s, mut tpot_s) = (Vec::new(), Vec::new(), Vec::new());
        let (mut cached, mut tokens) = (0, 0);
        let mut is_good = Vec::new();
        for (request, served) in requests.iter().zip(replayed_served) {
            is_good.push(served.is_some_and(|served| match fleet {
                Some(fleet) => fleet.is_good(request, &served),
                None => served.ttft_us <= slo_us(request.prompt_tokens),
            }));
            if let Some(served) = served {
                ttft_s.push(served.ttft_us as f64 / 1e6);
                e2e_s.push(served.e2e_us as f64 / 1e6);
                if fleet.is_some() && request.output_tokens > 1 {
                    tpot_s.push(served.tpot_us(request.output_tokens) / 1e6);
                }
                cached += served.cached_tokens;
                tokens += request.prompt_tokens;
            }
        }
        for times in [&mut ttft_s, &mut e2e_s, &mut tpot_s] {
            times.sort_unstable_by(f64::total_cmp);
        }
        let gpus = |place: usize| match fleet {
            Some(fleet) => f64::from(fleet.engines[place].accelerators),
            None => NODE_GPUS,
        };
        let busy_s = replayed.busy_us.iter().map(|us| *us as f64 / 1e6);
        let busy_s: Vec<f64> = busy_s.collect();
        let most = busy_s.iter().fold(0.0, |most: f64, one| most.max(*one));
        let gpu_s = busy_s.iter().enumerate().map(|(at, busy)| busy * gpus(at));
        let good = is_good.iter().filter(|good| **good).count();
        Self {
            ttft: Summary::of_sorted(&ttft_s),
            e2e: Summary::of_sorted(&e2e_s),
            tpot: fleet.map(|_| Summary::of_sorted(&tpot_s)),
            sorted_ttft_s: ttft_s,
            cached_ratio: cached as f64 / (tokens as f64).max(1.0),
            gpu_s: gpu_s.sum(),
            imbalance: most / f64::max(mean(&busy_s), f64::MIN_POSITIVE),
            goodput: good as f64 / (is_good.len() as f64).max(1.0),
            goodput_by_length: by_length(requests, &is_good),
        }
    }
}

impl Row {
    fn of(contender: &Contender, mut outcomes: Vec<Outcome>) -> Self {
        let over = |value: fn(&Outcome) -> f64| {
            let values: Vec<f64> = outcomes.iter().map(value).collect();
            mean(&values)
        };
        let spread = |of: &dyn Fn(&Outcome) -> Summary| {
            let each: Vec<Summary> = outcomes.iter().map(of).collect();
            let over = |value: fn(&Summary) -> f64| {
                let values: Vec<f64> = each.iter().map(value).collect();
                (mean(&values), half_width_95(&values))
            };
            let (mean, ci95) = over(|one| one.mean);
            Spread {
                mean,
                p50: over(|one| one.p50).0,
                p90: over(|one| one.p90).0,
                p99: over(|one| one.p99).0,
                ci95,
            }
        };
        let ttft_s = spread(&|one| one.ttft);
        let e2e_s = spread(&|one| one.e2e);
        let has_tpot = outcomes.iter().all(|one| one.tpot.is_some());
        let tpot_s = has_tpot.then(|| spread(&|one| one.tpot.unwrap_or_default()));
        let mut goodput_by_length = [0.0; 10];
        for outcome in &outcomes {
            for (sum, one) in goodput_by_length.iter_mut().zip(outcome.goodput_by_length) {
                *sum += one / outcomes.len() as f64;
            }
        }
        Self {
            strategy: contender.name.clone(),
            ttft_s,
            e2e_s,
            tpot_s,
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
fn by_length(requests: &[Request], is_good: &[bool]) -> [f64; 10] {
    let mut places: Vec<usize> = (0..is_good.len()).collect();
    places.sort_by_key(|place| requests[*place].prompt_tokens);
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
