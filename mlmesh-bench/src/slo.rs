//! A service level: what a request has to keep to count as good.

use std::str::FromStr;

use crate::error::BenchError;

/// Upper bounds in microseconds; a request that fails keeps none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Slo {
    /// Time to first token.
    pub ttft_us: Option<u64>,
    /// Time per output token after the first.
    pub tpot_us: Option<u64>,
    /// From the intended instant to the last byte.
    pub e2e_us: Option<u64>,
}

impl FromStr for Slo {
    type Err = BenchError;

    /// `ttft=200ms,tpot=20ms,e2e=5s`, any of the three.
    fn from_str(text: &str) -> Result<Self, BenchError> {
        let wrong = |rule| BenchError::Slo {
            text: text.to_owned(),
            rule,
        };
        let mut slo = Self::default();
        for part in text.split(',') {
            let (name, value) = part
                .split_once('=')
                .ok_or_else(|| wrong("a part has no `=`"))?;
            let bound = match name.trim() {
                "ttft" => &mut slo.ttft_us,
                "tpot" => &mut slo.tpot_us,
                "e2e" => &mut slo.e2e_us,
                _ => return Err(wrong("its parts are ttft, tpot and e2e")),
            };
            if bound.replace(parse_duration_us(value.trim())?).is_some() {
                return Err(wrong("a part stands twice"));
            }
        }
        Ok(slo)
    }
}

/// Microseconds of `250us`, `200ms`, `1.5s`, `2m`, `1h`.
pub fn parse_duration_us(text: &str) -> Result<u64, BenchError> {
    let wrong = || BenchError::Duration {
        text: text.to_owned(),
    };
    let split = text
        .find(|character: char| character.is_ascii_alphabetic())
        .ok_or_else(wrong)?;
    let (number, unit) = text.split_at(split);
    let scale = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "m" => 60e6,
        "h" => 3600e6,
        _ => return Err(wrong()),
    };
    let digits = |character: char| character.is_ascii_digit() || character == '.';
    if !number.chars().all(digits) {
        return Err(wrong());
    }
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let us = (number * scale).round();
    // Thirty years: what is longer is a mistake.
    if us <= 1e15 {
        Ok(us as u64)
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, us) in [
            ("250us", 250),
            ("200ms", 200_000),
            ("1.5s", 1_500_000),
            ("2m", 120_000_000),
            ("1h", 3_600_000_000),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration_us(text).unwrap(), us, "{text}");
        }
        for text in [
            "",
            "5",
            "ms",
            "-1s",
            "1 s",
            "1d",
            "1e3s",
            "nans",
            "1.2.3s",
            "99999999999h",
        ] {
            assert!(parse_duration_us(text).is_err(), "{text}");
        }
    }

    #[test]
    fn service_levels() {
        let slo: Slo = "ttft=200ms,e2e=5s".parse().unwrap();
        assert_eq!(
            (slo.ttft_us, slo.tpot_us, slo.e2e_us),
            (Some(200_000), None, Some(5_000_000))
        );
        for text in ["", "ttft", "ttft=5", "itl=5ms", "ttft=1s,ttft=2s"] {
            assert!(text.parse::<Slo>().is_err(), "{text}");
        }
    }
}
