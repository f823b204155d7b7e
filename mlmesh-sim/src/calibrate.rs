//! A profile's costs, fitted to what a real engine did.
//!
//! The engine model runs the same requests, and the six costs are moved until its times
//! are as near to the measured ones as they come: by the simplex search of Nelder and
//! Mead ("A simplex method for function minimization", 1965) over the logarithms of the
//! costs, from several beginnings. No chance is drawn: the same measurement gives the
//! same profile. What the engine holds and how many it works on at once is not fitted.

use mlmesh_route::{BlockHash, mixed_pair};
use serde::Serialize;

use crate::engine::{Cost, Detail, Engine, Job, Occurrence, Profile, What};
use crate::measured::Measured;

/// What came of a fit.
#[derive(Debug, Clone)]
pub struct Calibrated {
    /// The profile with the costs that were found.
    pub profile: Profile,
    /// How far it is off on what it was fitted to,
    pub fitted: Score,
    /// and on the rest, where there is one.
    pub scored: Option<Score>,
}

/// How far simulated times are off, as parts of the measured ones.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Score {
    /// Requests.
    pub requests: usize,
    /// Of the time to the first token.
    pub ttft: Off,
    /// Of the time of each other token.
    pub tpot: Off,
    /// Of the whole answer.
    pub e2e: Off,
}

/// How far one time is off.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Off {
    /// The mean, over the mean that was measured, less one; with its sign.
    pub mean: f64,
    /// The mean of what each request is off by, without sign.
    pub each: f64,
}

/// Costs are not searched for outside of these.
const COST_MIN: f64 = 1e-4;
const COST_MAX: f64 = 1e7;
const STEPS: usize = 260;
/// Where all corners of the simplex are as good as that, there is nothing to be found.
const FLAT: f64 = 2e-5;
const COSTS: usize = 6;

type Point = [f64; COSTS];

/// Fits the costs of `base` to the first `count` requests of a run; the others come, too,
/// since they share the engine, and their times are what the result is scored on.
#[must_use]
pub fn calibrate(base: &Profile, measured: &[Measured], count: usize) -> Calibrated {
    let count = count.min(measured.len());
    let loss = |point: &Point| {
        let simulated = simulate(&at(base, point), measured);
        let pairs = measured.iter().zip(&simulated).take(count);
        pairs.map(|(real, ours)| miss(real, ours)).sum::<f64>() / count as f64
    };
    let found = beginnings(measured).map(|begin| {
        let found = search(&loss, begin);
        // Once more from there, with a fresh simplex: the first one may have collapsed.
        search(&loss, found.1).min_by_loss(found)
    });
    let [first, second] = found;
    let found = second.min_by_loss(first);
    let profile = at(base, &found.1);
    let simulated = simulate(&profile, measured);
    Calibrated {
        fitted: score(&measured[..count], &simulated[..count]),
        scored: (count < measured.len()).then(|| score(&measured[count..], &simulated[count..])),
        profile,
    }
}

/// How far a profile is off on a run.
#[must_use]
pub fn score_profile(profile: &Profile, measured: &[Measured]) -> Score {
    score(measured, &simulate(profile, measured))
}

trait MinByLoss {
    fn min_by_loss(self, other: Self) -> Self;
}

impl MinByLoss for (f64, Point) {
    fn min_by_loss(self, other: Self) -> Self {
        if other.0 < self.0 { other } else { self }
    }
}

/// What the engine model makes of the same requests.
fn simulate(profile: &Profile, measured: &[Measured]) -> Vec<Measured> {
    let mut engine = Engine::new(profile.clone(), Detail::Ends);
    let mut told = Vec::new();
    let mut simulated = measured.to_vec();
    let hear = |simulated: &mut Vec<Measured>, told: &mut Vec<Occurrence>| {
        for one in told.drain(..) {
            let request = &mut simulated[one.name as usize];
            let took_us = one.at_us - request.at_us;
            match one.what {
                What::FirstToken => request.ttft_us = took_us,
                What::Done => request.e2e_us = took_us,
                What::Begun { .. } | What::Token | What::Preempted => {}
            }
        }
    };
    for (name, request) in measured.iter().enumerate() {
        while engine
            .next_us()
            .is_some_and(|next_us| next_us <= request.at_us)
        {
            engine.step(&mut told);
        }
        let prompt_tokens = request.prompt_tokens.saturating_sub(request.cached_tokens);
        let full = prompt_tokens / profile.block_tokens;
        let blocks = (0..full).map(|block| BlockHash(mixed_pair(name as u64, block)));
        let job = Job {
            name: name as u64,
            prompt_tokens,
            output_tokens: request.output_tokens,
            blocks: blocks.collect(),
        };
        // One that the profile cannot hold keeps its measured times.
        let _ = engine.submit(request.at_us, job);
        hear(&mut simulated, &mut told);
    }
    while engine.next_us().is_some() {
        engine.step(&mut told);
    }
    hear(&mut simulated, &mut told);
    simulated
}

/// How far one request is off: logarithms of all three ratios, so that twice and half
/// are equally wrong.
fn miss(real: &Measured, ours: &Measured) -> f64 {
    let off = |ours: f64, real: f64| (ours.max(1.0) / real.max(1.0)).ln().abs();
    let tpot = match (ours.tpot_us(), real.tpot_us()) {
        (Some(ours), Some(real)) => off(ours, real),
        _ => 0.0,
    };
    off(ours.ttft_us as f64, real.ttft_us as f64)
        + off(ours.e2e_us as f64, real.e2e_us as f64)
        + tpot
}

fn score(real: &[Measured], ours: &[Measured]) -> Score {
    let off = |of: &dyn Fn(&Measured) -> Option<f64>| {
        let (mut sums, mut each, mut count) = ([0.0; 2], 0.0, 0.0);
        for (real, ours) in real.iter().zip(ours) {
            if let (Some(real), Some(ours)) = (of(real), of(ours)) {
                sums = [sums[0] + real, sums[1] + ours];
                each += (ours / real.max(1.0) - 1.0).abs();
                count += 1.0;
            }
        }
        Off {
            mean: sums[1] / f64::max(sums[0], 1.0) - 1.0,
            each: each / f64::max(count, 1.0),
        }
    };
    Score {
        requests: real.len(),
        ttft: off(&|one| Some(one.ttft_us as f64)),
        tpot: off(&Measured::tpot_us),
        e2e: off(&|one| Some(one.e2e_us as f64)),
    }
}

/// The profile with these costs, given as logarithms.
fn at(base: &Profile, point: &Point) -> Profile {
    let [iteration, sequence, context, prefill, token, pair] =
        point.map(|log| log.exp().clamp(0.0, COST_MAX));
    // What is too little to be seen is left out.
    let seen = |cost: f64| if cost < COST_MIN { 0.0 } else { rounded(cost) };
    Profile {
        cost: Cost {
            iteration_us: rounded(iteration),
            sequence_us: seen(sequence),
            context_token_ns: seen(context),
            prefill_us: seen(prefill),
            prefill_token_us: rounded(token),
            prefill_pair_ns: seen(pair),
        },
        ..base.clone()
    }
}

/// Four digits: more are not in any measurement.
fn rounded(cost: f64) -> f64 {
    let scale = 10_f64.powf(3.0 - cost.max(COST_MIN).log10().floor());
    (cost * scale).round() / scale
}

/// Where searches begin: what the measured times are at least, shared out in two ways.
fn beginnings(measured: &[Measured]) -> [Point; 2] {
    let least =
        |times: &mut dyn Iterator<Item = f64>| times.fold(f64::MAX, f64::min).clamp(1.0, 1e7);
    let token_us = least(&mut measured.iter().filter_map(Measured::tpot_us));
    let per_prompt = |one: &Measured| one.ttft_us as f64 / one.prompt_tokens.max(1) as f64;
    let prompt_us = least(&mut measured.iter().map(per_prompt));
    let spread = |shares: [f64; COSTS]| shares.map(|cost| cost.max(COST_MIN).ln());
    [
        spread([
            token_us * 0.8,
            token_us * 0.01,
            30.0,
            token_us * 0.1,
            prompt_us * 0.8,
            1.0,
        ]),
        spread([
            token_us * 0.4,
            token_us * 0.1,
            5.0,
            token_us,
            prompt_us * 0.4,
            10.0,
        ]),
    ]
}

/// Nelder and Mead's search, with their own coefficients.
fn search(loss: &impl Fn(&Point) -> f64, begin: Point) -> (f64, Point) {
    let mut simplex: Vec<(f64, Point)> = vec![(loss(&begin), begin)];
    for axis in 0..COSTS {
        let mut point = begin;
        point[axis] += 0.7;
        simplex.push((loss(&point), point));
    }
    let along = |from: &Point, to: &Point, part: f64| {
        let mut point = *from;
        for (coordinate, to) in point.iter_mut().zip(to) {
            *coordinate += part * (to - *coordinate);
        }
        point
    };
    for _ in 0..STEPS {
        simplex.sort_by(|a, b| a.0.total_cmp(&b.0));
        if simplex[COSTS].0 - simplex[0].0 < FLAT {
            break;
        }
        let worst = simplex[COSTS];
        let mut centre = [0.0; COSTS];
        for (_, point) in &simplex[..COSTS] {
            for (sum, coordinate) in centre.iter_mut().zip(point) {
                *sum += coordinate / COSTS as f64;
            }
        }
        let try_at = |part: f64| {
            let point = along(&centre, &worst.1, part);
            (loss(&point), point)
        };
        let reflected = try_at(-1.0);
        let better = if reflected.0 < simplex[0].0 {
            try_at(-2.0).min_by_loss(reflected)
        } else if reflected.0 < simplex[COSTS - 1].0 {
            reflected
        } else {
            let part = if reflected.0 < worst.0 { -0.5 } else { 0.5 };
            try_at(part).min_by_loss(reflected)
        };
        if better.0 < worst.0 {
            simplex[COSTS] = better;
            continue;
        }
        let best = simplex[0].1;
        for (value, point) in &mut simplex[1..] {
            *point = along(&best, point, 0.5);
            *value = loss(point);
        }
    }
    let least = simplex.into_iter().reduce(MinByLoss::min_by_loss);
    least.unwrap_or((f64::MAX, begin))
}
