//! The instants of an open loop: fixed before the first request, and never moved by
//! how the engine answers.

use crate::chance::{Chance, Purpose};

/// How the gaps between requests are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrivals {
    /// Every gap is the mean.
    Constant,
    /// Exponential gaps: many independent people. Their coefficient of variation is 1.
    Poisson,
    /// Gamma gaps with this coefficient of variation: above 1 comes in bursts.
    Gamma {
        /// Standard deviation of a gap over its mean.
        cv: f64,
    },
}

/// The instants of a schedule, in microseconds from the start, without an end.
#[derive(Debug, Clone)]
pub struct Instants {
    arrivals: Arrivals,
    gap_us: f64,
    at_us: f64,
    count: u64,
    chance: Chance,
}

impl Instants {
    /// A schedule of `rate` requests a second. Equal arguments give equal instants.
    pub fn new(arrivals: Arrivals, rate: f64, seed: u64) -> Self {
        Self {
            arrivals,
            gap_us: 1e6 / rate,
            at_us: 0.0,
            count: 0,
            chance: Chance::new(seed, Purpose::Arrivals, 0),
        }
    }
}

impl Iterator for Instants {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.count += 1;
        self.at_us = match self.arrivals {
            // Of a product, so that a million gaps do not add up their rounding.
            Arrivals::Constant => (self.count - 1) as f64 * self.gap_us,
            Arrivals::Poisson => self.at_us + self.gap_us * self.chance.exponential(),
            Arrivals::Gamma { cv } => {
                let shape = 1.0 / (cv * cv);
                self.at_us + self.gap_us * self.chance.gamma(shape) / shape
            }
        };
        Some(self.at_us as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 77;
    const COUNT: usize = 100_000;

    /// Mean of the gaps and their coefficient of variation.
    fn shape(arrivals: Arrivals) -> (f64, f64) {
        let instants: Vec<u64> = Instants::new(arrivals, 200.0, SEED).take(COUNT).collect();
        let gaps: Vec<f64> = instants
            .windows(2)
            .map(|pair| (pair[1] - pair[0]) as f64)
            .collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let squares = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>();
        (mean, (squares / gaps.len() as f64).sqrt() / mean)
    }

    #[test]
    fn gaps_have_the_mean_and_variation_that_were_asked_for() {
        println!("seed {SEED}");
        for (arrivals, cv) in [
            (Arrivals::Constant, 0.0),
            (Arrivals::Poisson, 1.0),
            (Arrivals::Gamma { cv: 0.5 }, 0.5),
            (Arrivals::Gamma { cv: 3.0 }, 3.0),
        ] {
            let (mean, seen) = shape(arrivals);
            assert!((mean / 5000.0 - 1.0).abs() < 0.04, "{arrivals:?}: {mean}");
            assert!((seen - cv).abs() <= 0.04 * cv, "{arrivals:?}: cv {seen}");
        }
    }

    #[test]
    fn a_seed_fixes_the_schedule() {
        let first = |seed| -> Vec<u64> {
            Instants::new(Arrivals::Poisson, 10.0, seed)
                .take(5)
                .collect()
        };
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
    }

    #[test]
    fn constant_instants_do_not_drift() {
        let last = Instants::new(Arrivals::Constant, 3.0, 0).nth(3_000_000);
        assert_eq!(last, Some(1_000_000_000_000));
    }
}
