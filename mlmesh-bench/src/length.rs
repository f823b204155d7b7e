//! Lengths of prompts and answers, and think times: numbers by a distribution.

use std::fmt;
use std::str::FromStr;

use crate::chance::Chance;
use crate::error::BenchError;

/// Largest number that a distribution gives; what is drawn beyond it becomes it.
pub(crate) const LENGTH_MAX: u64 = 100_000_000;

/// A distribution over whole numbers from 1 on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Lengths {
    /// Always the same.
    Constant(u64),
    /// Each number from `low` to `high`, both included, as often.
    Uniform {
        /// The smallest.
        low: u64,
        /// The largest.
        high: u64,
    },
    /// Normal; what falls below 1 becomes 1.
    Normal {
        /// Mean.
        mean: f64,
        /// Standard deviation.
        deviation: f64,
    },
    /// The logarithm is normal: many short ones, few long ones.
    LogNormal {
        /// Half are shorter.
        median: f64,
        /// Standard deviation of the natural logarithm.
        sigma: f64,
    },
}

impl Lengths {
    pub(crate) fn draw(&self, chance: &mut Chance) -> u64 {
        let rounded = |value: f64| (value.round().max(1.0) as u64).min(LENGTH_MAX);
        match *self {
            Self::Constant(value) => value,
            Self::Uniform { low, high } => low + chance.below(high - low + 1),
            Self::Normal { mean, deviation } => rounded(mean + deviation * chance.normal()),
            Self::LogNormal { median, sigma } => rounded(median * (sigma * chance.normal()).exp()),
        }
    }
}

impl FromStr for Lengths {
    type Err = BenchError;

    /// `512`, `uniform:100,900`, `normal:512,128`, `lognormal:512,0.6`.
    fn from_str(text: &str) -> Result<Self, BenchError> {
        let wrong = || BenchError::Lengths {
            text: text.to_owned(),
        };
        let whole = |part: &str| {
            let number = part.trim().parse::<u64>().ok();
            number.filter(|number| (1..=LENGTH_MAX).contains(number))
        };
        let real = |part: &str, least: f64| {
            let number = part.trim().parse::<f64>().ok();
            number.filter(|number| (least..=LENGTH_MAX as f64).contains(number))
        };
        let Some((kind, rest)) = text.split_once(':') else {
            return whole(text).map(Self::Constant).ok_or_else(wrong);
        };
        let (first, second) = rest.split_once(',').ok_or_else(wrong)?;
        let lengths = match kind {
            "uniform" => match (whole(first), whole(second)) {
                (Some(low), Some(high)) if low <= high => Some(Self::Uniform { low, high }),
                _ => None,
            },
            "normal" => real(first, 1.0)
                .zip(real(second, 0.0))
                .map(|(mean, deviation)| Self::Normal { mean, deviation }),
            "lognormal" => real(first, 1.0)
                .zip(real(second, 0.0).filter(|sigma| *sigma <= 10.0))
                .map(|(median, sigma)| Self::LogNormal { median, sigma }),
            _ => None,
        };
        lengths.ok_or_else(wrong)
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant(value) => write!(f, "{value}"),
            Self::Uniform { low, high } => write!(f, "uniform:{low},{high}"),
            Self::Normal { mean, deviation } => write!(f, "normal:{mean},{deviation}"),
            Self::LogNormal { median, sigma } => write!(f, "lognormal:{median},{sigma}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Purpose;

    #[test]
    fn each_form_is_read_and_written_the_same() {
        for text in [
            "512",
            "uniform:100,900",
            "normal:512,128",
            "lognormal:512,0.6",
        ] {
            assert_eq!(text.parse::<Lengths>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "0",
            "-1",
            "1.5",
            "uniform:9,1",
            "uniform:5",
            "normal:0,1",
            "normal:nan,1",
            "lognormal:1,inf",
            "lognormal:1,11",
            "zipf:1,2",
            "100000001",
            "uniform:,",
        ] {
            assert!(text.parse::<Lengths>().is_err(), "{text}");
        }
    }

    #[test]
    fn draws_follow_their_distribution() {
        let seed = 5;
        println!("seed {seed}");
        let draws = |text: &str| -> Vec<u64> {
            let lengths: Lengths = text.parse().unwrap();
            let mut chance = Chance::new(seed, Purpose::Call, 0);
            let mut draws: Vec<u64> = (0..50_000).map(|_| lengths.draw(&mut chance)).collect();
            draws.sort_unstable();
            draws
        };
        let uniform = draws("uniform:10,12");
        assert_eq!((uniform[0], uniform[49_999]), (10, 12));
        let normal = draws("normal:1000,100");
        assert!(normal[25_000].abs_diff(1000) < 5, "{}", normal[25_000]);
        assert!(normal[42_067].abs_diff(1100) < 8, "{}", normal[42_067]);
        let lognormal = draws("lognormal:1000,1");
        assert!(
            lognormal[25_000].abs_diff(1000) < 25,
            "{}",
            lognormal[25_000]
        );
        assert!(
            lognormal[42_067].abs_diff(2718) < 90,
            "{}",
            lognormal[42_067]
        );
        assert_eq!(draws("normal:1,100")[0], 1, "never below 1");
    }
}
