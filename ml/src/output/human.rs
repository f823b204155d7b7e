//! Sizes, durations and dates as people read them. Pure.

use mlmesh_api::Timestamp;

/// `1 file`, `2 files`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

/// `1.5 GiB`, `12 B`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `0.4 s`, `12 s`, `3m 05s`, `2h 07m`, `4d 11h`. Never negative.
pub(crate) fn duration_us(us: i64) -> String {
    let us = us.max(0);
    let s = us / 1_000_000;
    match s {
        0..=9 => format!("{}.{} s", s, us / 100_000 % 10),
        10..=59 => format!("{s} s"),
        60..=3599 => format!("{}m {:02}s", s / 60, s % 60),
        3600..=86_399 => format!("{}h {:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d {:02}h", s / 86_400, s / 3600 % 24),
    }
}

/// `2026-03-01 12:00:09Z`.
pub(crate) fn date_time(time: Timestamp) -> String {
    let text = time.to_string();
    let whole = text.split('.').next().unwrap_or(&text);
    format!("{}Z", whole.replacen('T', " ", 1))
}

/// Microseconds of an age such as `30d`, `12h`, `5m`, `10s`.
pub(crate) fn parse_age_us(text: &str) -> Result<i64, String> {
    let wrong = || format!("`{text}` is not an age; write a number and one of s, m, h, d, w");
    let split = text
        .find(|character: char| !character.is_ascii_digit())
        .ok_or_else(wrong)?;
    let (number, unit) = text.split_at(split);
    let number: i64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(seconds * 1_000_000)
        .ok_or_else(|| format!("`{text}` is too long ago"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let texts = [0, 1023, 1024, 1536, 1 << 20, (1 << 30) - 1, u64::MAX].map(bytes);
        assert_eq!(
            texts,
            [
                "0 B",
                "1023 B",
                "1.0 KiB",
                "1.5 KiB",
                "1.0 MiB",
                "1.0 GiB",
                "16384.0 PiB"
            ]
        );
    }

    #[test]
    fn durations() {
        let s = 1_000_000;
        let texts = [-5, 400_000, 12 * s, 185 * s, 7620 * s, 385_200 * s].map(duration_us);
        assert_eq!(
            texts,
            ["0.0 s", "0.4 s", "12 s", "3m 05s", "2h 07m", "4d 11h"]
        );
    }

    #[test]
    fn dates() {
        let time = Timestamp(mlmesh_model::Micros(1_772_366_409_000_250));
        assert_eq!(date_time(time), "2026-03-01 12:00:09Z");
    }

    #[test]
    fn ages() {
        assert_eq!(parse_age_us("30d"), Ok(30 * 86_400 * 1_000_000));
        assert_eq!(parse_age_us("0s"), Ok(0));
        for wrong in ["", "30", "d", "3 d", "-1d", "1y", "99999999999999d"] {
            assert!(parse_age_us(wrong).is_err(), "{wrong}");
        }
    }
}
