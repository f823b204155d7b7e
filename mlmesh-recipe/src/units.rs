//! Sizes, times and CPU shares as people type them, into whole numbers.
//!
//! A bare number is refused: `memory: 512` and `time: 10` mean different things
//! to different people.

use crate::error::{Fault, shown};
use crate::scalar::INTEGER_END;

/// CPUs that a recipe may ask for.
pub(crate) const CPUS_MAX: u64 = 65_536;
/// GPUs that a recipe may ask for.
pub(crate) const GPUS_MAX: u64 = 1024;
/// Longest time limit: 366 days.
pub(crate) const TIME_S_MAX: u64 = 366 * 86_400;

const SIZE_UNITS: &[(&str, u64)] = &[
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// Bytes from `1GiB`, `1.5GB`, `512MiB`.
pub(crate) fn memory_bytes(text: &str) -> Result<u64, Fault> {
    let fault = |hint: String| {
        Fault::new(
            format!(
                "`{}` is not a size; a size is a number and one of `B`, `kB`, `MB`, `GB`, `TB`, `KiB`, `MiB`, `GiB`, `TiB`",
                shown(text)
            ),
            hint,
        )
    };
    let split = text
        .find(|character: char| !character.is_ascii_digit() && character != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let Some(milli) = milli(number) else {
        return Err(fault("write it like `1GiB` or `512MiB`".to_owned()));
    };
    let Some((_, factor)) = SIZE_UNITS.iter().find(|(name, _)| *name == unit) else {
        let hint = match nearest_unit(unit) {
            Some(unit) => format!("write `{number}{unit}`"),
            None => "write it like `1GiB` or `512MiB`".to_owned(),
        };
        return Err(fault(hint));
    };
    let bytes = u128::from(milli) * u128::from(*factor);
    if bytes % 1000 != 0 {
        return Err(fault(
            "write a size that is a whole number of bytes".to_owned(),
        ));
    }
    u64::try_from(bytes / 1000)
        .ok()
        .filter(|bytes| (1..INTEGER_END).contains(bytes))
        .ok_or_else(|| {
            Fault::new(
                format!("`{}` is out of range; memory is above 0 and below 8 PiB", shown(text)),
                "write the memory that the job needs, like `1GiB`; without the key there is no limit",
            )
        })
}

fn nearest_unit(unit: &str) -> Option<&'static str> {
    Some(match unit.trim().to_ascii_lowercase().as_str() {
        "k" | "kb" => "kB",
        "ki" | "kib" => "KiB",
        "m" | "mb" => "MB",
        "" | "mi" | "mib" => "MiB",
        "g" | "gb" => "GB",
        "gi" | "gib" => "GiB",
        "t" | "tb" => "TB",
        "ti" | "tib" => "TiB",
        "b" => "B",
        _ => return None,
    })
}

/// Seconds from `90s`, `10m`, `1h30m`, `2d`.
pub(crate) fn time_s(text: &str) -> Result<u64, Fault> {
    let fault = || {
        let hint = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            format!(
                "write `{0}s` for seconds or `{0}m` for minutes",
                shown(text)
            )
        } else {
            "write it like `90s`, `10m` or `1h30m`".to_owned()
        };
        Fault::new(
            format!(
                "`{}` is not a time; a time is whole numbers with `d`, `h`, `m`, `s`, the larger unit first",
                shown(text)
            ),
            hint,
        )
    };
    let mut rest = text;
    let mut total: u64 = 0;
    let mut last_unit = u64::MAX;
    while !rest.is_empty() {
        let split = rest
            .find(|character: char| !character.is_ascii_digit())
            .ok_or_else(fault)?;
        let (number, tail) = rest.split_at(split);
        let unit = match tail.bytes().next() {
            Some(b'd') => 86_400,
            Some(b'h') => 3_600,
            Some(b'm') => 60,
            Some(b's') => 1,
            _ => return Err(fault()),
        };
        if unit >= last_unit {
            return Err(fault());
        }
        last_unit = unit;
        let number: u64 = number.parse().map_err(|_| fault())?;
        total = number
            .checked_mul(unit)
            .and_then(|seconds| seconds.checked_add(total))
            .ok_or_else(fault)?;
        rest = &tail[1..];
    }
    if text.is_empty() {
        return Err(fault());
    }
    if !(1..=TIME_S_MAX).contains(&total) {
        return Err(Fault::new(
            format!(
                "`{}` is out of range; a time limit is from 1 s to 366 d",
                shown(text)
            ),
            "without the key there is no limit",
        ));
    }
    Ok(total)
}

/// Thousandths of a CPU from `1`, `0.5`, `2.125`.
pub(crate) fn cpu_milli(text: &str) -> Result<u64, Fault> {
    milli(text)
        .filter(|milli| (1..=CPUS_MAX * 1000).contains(milli))
        .ok_or_else(|| {
            Fault::new(
                format!(
                    "`{}` is not a number of CPUs; it is above 0, at most {CPUS_MAX}, with at most three decimals",
                    shown(text)
                ),
                "write it like `1` or `0.5`",
            )
        })
}

/// Whole GPUs.
pub(crate) fn gpus(text: &str) -> Result<u32, Fault> {
    whole(text, GPUS_MAX)
        .and_then(|gpus| u32::try_from(gpus).ok())
        .ok_or_else(|| {
            Fault::new(
                format!(
                    "`{}` is not a number of GPUs; it is a whole number from 0 to {GPUS_MAX}",
                    shown(text)
                ),
                "a GPU is given whole; write `0` or `1`",
            )
        })
}

/// A whole number in plain decimal form, at most `max`.
pub(crate) fn whole(text: &str, max: u64) -> Option<u64> {
    crate::scalar::integer(text)
        .and_then(|value| u64::try_from(value).ok())
        .filter(|value| *value <= max)
}

/// Thousandths from a decimal number with at most three decimals.
fn milli(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 3 {
        return None;
    }
    let scale = 10_u64.pow(3 - u32::try_from(fraction.len()).ok()?);
    let fraction = fraction.parse::<u64>().ok()? * scale;
    whole
        .parse::<u64>()
        .ok()?
        .checked_mul(1000)?
        .checked_add(fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_exact_bytes() {
        for (text, bytes) in [
            ("1B", 1),
            ("1kB", 1000),
            ("1KiB", 1024),
            ("512MiB", 512 << 20),
            ("1GB", 1_000_000_000),
            ("1.5GiB", 3 << 29),
            ("0.001kB", 1),
        ] {
            assert_eq!(memory_bytes(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "1",
            "GiB",
            "1 GiB",
            "1Gi",
            "1G",
            "-1GiB",
            "0GiB",
            "1e3MB",
            "9999999999TiB",
            "0.0001kB",
            "1.5B",
            "1.2.3GB",
        ] {
            assert!(memory_bytes(text).is_err(), "{text}");
        }
        assert_eq!(memory_bytes("4Gi").unwrap_err().hint, "write `4GiB`");
    }

    #[test]
    fn times_add_up_from_larger_to_smaller() {
        for (text, seconds) in [
            ("90s", 90),
            ("10m", 600),
            ("1h30m", 5400),
            ("2d", 172_800),
            ("1d1h1m1s", 90_061),
        ] {
            assert_eq!(time_s(text), Ok(seconds), "{text}");
        }
        for text in [
            "",
            "10",
            "m",
            "1m1h",
            "1m1m",
            "1.5h",
            "0s",
            "-1s",
            "10 m",
            "400d",
            "99999999999999999999s",
            "1é",
        ] {
            assert!(time_s(text).is_err(), "{text}");
        }
        assert_eq!(
            time_s("10").unwrap_err().hint,
            "write `10s` for seconds or `10m` for minutes"
        );
    }

    #[test]
    fn cpus_have_at_most_three_decimals() {
        for (text, milli) in [("1", 1000), ("0.5", 500), ("2.125", 2125), ("0.001", 1)] {
            assert_eq!(cpu_milli(text), Ok(milli), "{text}");
        }
        for text in ["", "0", "0.0001", ".5", "1.", "-1", "1e1", "65537"] {
            assert!(cpu_milli(text).is_err(), "{text}");
        }
    }
}
