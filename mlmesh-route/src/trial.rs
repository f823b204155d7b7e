//! Two strategies on one traffic: one that only says what it would do, and one that gets
//! a share of the requests.
//!
//! A shadow never changes where a request goes; it is judged by what both choices were
//! predicted to take. A trial is judged by what its requests really took: a session stays
//! with its arm, and the difference of the means comes with the interval in which it lies
//! with 95 % (Welch's, with the normal distribution's quantile: arms have thousands).

use std::sync::atomic::{AtomicU64, Ordering};

use mlmesh_strategy::{Ask, Candidate, Situation, Strategy, mixed, mixed_pair};

/// A strategy that is asked and not followed.
#[derive(Debug)]
pub struct Shadow {
    strategy: Box<dyn Strategy>,
    turn: AtomicU64,
    same: AtomicU64,
    better: AtomicU64,
    worse: AtomicU64,
    gained_us: AtomicU64,
    lost_us: AtomicU64,
}

/// How a shadow compares with what was done, by predictions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compared {
    /// It would have taken the same target.
    pub same: u64,
    /// Another one, with an earlier first token.
    pub better: u64,
    /// Another one, with a first token that is no earlier.
    pub worse: u64,
    /// By how much earlier, all together.
    pub gained_us: u64,
    /// By how much later, all together.
    pub lost_us: u64,
}

impl Shadow {
    /// One that was not asked yet.
    #[must_use]
    pub fn new(strategy: Box<dyn Strategy>) -> Self {
        Self {
            strategy,
            turn: AtomicU64::new(0),
            same: AtomicU64::new(0),
            better: AtomicU64::new(0),
            worse: AtomicU64::new(0),
            gained_us: AtomicU64::new(0),
            lost_us: AtomicU64::new(0),
        }
    }

    pub(crate) fn strategy(&self) -> &dyn Strategy {
        self.strategy.as_ref()
    }

    /// Asks it about a request that goes to the `chosen` target, or waits for it.
    pub(crate) fn ask(
        &self,
        ask: &Ask,
        chosen: &Candidate,
        candidates: &[Candidate],
        costs: &mut Vec<u64>,
    ) {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        costs.clear();
        costs.resize(candidates.len(), 0);
        self.strategy
            .score(Situation { ask, turn }, candidates, costs);
        let least = candidates
            .iter()
            .zip(costs.iter())
            .min_by_key(|(_, cost)| **cost);
        let Some((other, _)) = least else {
            return;
        };
        if other.target == chosen.target {
            self.same.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let (other_us, chosen_us) = (other.ttft_us(), chosen.ttft_us());
        let (count, sum) = match other_us < chosen_us {
            true => (&self.better, &self.gained_us),
            false => (&self.worse, &self.lost_us),
        };
        count.fetch_add(1, Ordering::Relaxed);
        sum.fetch_add(other_us.abs_diff(chosen_us), Ordering::Relaxed);
    }

    /// How it compares until now.
    #[must_use]
    pub fn compared(&self) -> Compared {
        Compared {
            same: self.same.load(Ordering::Relaxed),
            better: self.better.load(Ordering::Relaxed),
            worse: self.worse.load(Ordering::Relaxed),
            gained_us: self.gained_us.load(Ordering::Relaxed),
            lost_us: self.lost_us.load(Ordering::Relaxed),
        }
    }
}

/// Which strategy a request is given to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Arm {
    /// The router's own.
    #[default]
    Own,
    /// The one on trial.
    Other,
}

/// A strategy that gets a share of the requests.
#[derive(Debug)]
pub struct Trial {
    strategy: Box<dyn Strategy>,
    /// Of 2^64.
    share: u64,
    key: u64,
    own: Sums,
    other: Sums,
}

/// What one arm's first tokens took.
#[derive(Debug, Default)]
struct Sums {
    count: AtomicU64,
    met: AtomicU64,
    sum_us: AtomicU64,
    /// In milliseconds, so that they fit.
    squares: AtomicU64,
}

/// A difference, other minus own, and the interval in which it lies with 95 %.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// As it was seen.
    pub mean: f64,
    /// The interval's beginning.
    pub low: f64,
    /// Its end.
    pub high: f64,
}

/// How a trial stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// Requests of the router's own strategy that have a first token.
    pub own: u64,
    /// Of the other one.
    pub other: u64,
    /// Time to the first token, in seconds.
    pub ttft_s: Difference,
    /// Share of the requests whose first token came in time.
    pub in_time: Difference,
}

/// Of the normal distribution.
const QUANTILE_95: f64 = 1.96;

impl Trial {
    /// `percent` of the sessions, or of the requests without one; `key` says which.
    #[must_use]
    pub fn new(strategy: Box<dyn Strategy>, percent: u8, key: u64) -> Self {
        Self {
            strategy,
            share: u64::MAX / 100 * u64::from(percent.min(100)),
            key,
            own: Sums::default(),
            other: Sums::default(),
        }
    }

    /// Whose a request is.
    #[must_use]
    pub fn arm(&self, ask: &Ask) -> Arm {
        let unit = ask.session.unwrap_or_else(|| mixed(ask.request.0));
        match mixed_pair(self.key, unit) < self.share {
            true => Arm::Other,
            false => Arm::Own,
        }
    }

    /// A first token came.
    pub fn told(&self, arm: Arm, ttft_us: u64, in_time: bool) {
        let sums = match arm {
            Arm::Own => &self.own,
            Arm::Other => &self.other,
        };
        sums.count.fetch_add(1, Ordering::Relaxed);
        sums.met.fetch_add(u64::from(in_time), Ordering::Relaxed);
        sums.sum_us.fetch_add(ttft_us, Ordering::Relaxed);
        let ms = ttft_us.div_ceil(1_000);
        sums.squares
            .fetch_add(ms.saturating_mul(ms), Ordering::Relaxed);
    }

    /// What came of it until now; nothing as long as an arm has fewer than two.
    #[must_use]
    pub fn standing(&self) -> Option<Standing> {
        let (own, other) = (self.own.moments()?, self.other.moments()?);
        Some(Standing {
            own: own.count as u64,
            other: other.count as u64,
            ttft_s: difference(
                (own.mean_s, own.variance, own.count),
                (other.mean_s, other.variance, other.count),
            ),
            in_time: difference(
                (own.met, own.met * (1.0 - own.met), own.count),
                (other.met, other.met * (1.0 - other.met), other.count),
            ),
        })
    }

    pub(crate) fn strategy(&self) -> &dyn Strategy {
        self.strategy.as_ref()
    }
}

struct Moments {
    count: f64,
    mean_s: f64,
    variance: f64,
    met: f64,
}

impl Sums {
    fn moments(&self) -> Option<Moments> {
        let count = self.count.load(Ordering::Relaxed);
        let count = (count > 1).then_some(count as f64)?;
        let mean_s = self.sum_us.load(Ordering::Relaxed) as f64 / 1e6 / count;
        let square = self.squares.load(Ordering::Relaxed) as f64 / 1e6 / count;
        Some(Moments {
            count,
            mean_s,
            variance: (square - mean_s * mean_s).max(0.0) * count / (count - 1.0),
            met: self.met.load(Ordering::Relaxed) as f64 / count,
        })
    }
}

fn difference(own: (f64, f64, f64), other: (f64, f64, f64)) -> Difference {
    let mean = other.0 - own.0;
    let width = QUANTILE_95 * (own.1 / own.2 + other.1 / other.2).sqrt();
    Difference {
        mean,
        low: mean - width,
        high: mean + width,
    }
}
