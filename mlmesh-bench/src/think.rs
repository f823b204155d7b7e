//! How long a person of a closed loop thinks between an answer and the next request.

use std::fmt;
use std::str::FromStr;

use crate::chance::Chance;
use crate::error::BenchError;
use crate::slo::parse_duration_us;

/// A distribution of times.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Think {
    /// Always as long; zero asks again at once.
    Constant(u64),
    /// As often each time from `low_us` to `high_us`.
    Uniform {
        /// The shortest.
        low_us: u64,
        /// The longest.
        high_us: u64,
    },
    /// Exponential.
    Exponential {
        /// Mean.
        mean_us: u64,
    },
}

impl Think {
    pub(crate) fn draw_us(&self, chance: &mut Chance) -> u64 {
        match *self {
            Self::Constant(us) => us,
            Self::Uniform { low_us, high_us } => low_us + chance.below(high_us - low_us + 1),
            Self::Exponential { mean_us } => (mean_us as f64 * chance.exponential()) as u64,
        }
    }
}

impl FromStr for Think {
    type Err = BenchError;

    /// `500ms`, `uniform:1s,3s`, `exponential:2s`.
    fn from_str(text: &str) -> Result<Self, BenchError> {
        let wrong = || BenchError::Think {
            text: text.to_owned(),
        };
        match text.split_once(':') {
            None => parse_duration_us(text).map(Self::Constant),
            Some(("uniform", rest)) => {
                let (low, high) = rest.split_once(',').ok_or_else(wrong)?;
                let (low_us, high_us) = (parse_duration_us(low)?, parse_duration_us(high)?);
                match low_us <= high_us {
                    true => Ok(Self::Uniform { low_us, high_us }),
                    false => Err(wrong()),
                }
            }
            Some(("exponential", mean)) => {
                let mean_us = parse_duration_us(mean)?;
                Ok(Self::Exponential { mean_us })
            }
            Some(_) => Err(wrong()),
        }
    }
}

impl fmt::Display for Think {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant(us) => write!(f, "{us}us"),
            Self::Uniform { low_us, high_us } => write!(f, "uniform:{low_us}us,{high_us}us"),
            Self::Exponential { mean_us } => write!(f, "exponential:{mean_us}us"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Purpose;

    #[test]
    fn think_times_are_read_and_drawn() {
        let seed = 4;
        println!("seed {seed}");
        for (text, low, mean, high) in [
            ("500ms", 500_000.0, 500_000.0, 500_000.0),
            ("0s", 0.0, 0.0, 0.0),
            ("uniform:1s,3s", 1e6, 2e6, 3e6),
            ("exponential:2s", 0.0, 2e6, 1e9),
        ] {
            let think: Think = text.parse().unwrap();
            assert_eq!(think.to_string().parse::<Think>().unwrap(), think);
            let mut chance = Chance::new(seed, Purpose::Think, 0);
            let draws: Vec<f64> = (0..20_000)
                .map(|_| think.draw_us(&mut chance) as f64)
                .collect();
            assert!(
                draws.iter().all(|draw| (low..=high).contains(draw)),
                "{text}"
            );
            let seen = draws.iter().sum::<f64>() / 20_000.0;
            assert!((seen - mean).abs() <= mean * 0.03, "{text}: {seen}");
        }
        for text in [
            "",
            "5",
            "uniform:3s,1s",
            "uniform:1s",
            "normal:1s,1s",
            "exponential:x",
        ] {
            assert!(text.parse::<Think>().is_err(), "{text}");
        }
    }
}
