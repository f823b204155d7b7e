//! Recorded requests: when they came, how long they were, and which blocks of their
//! prompts were the same.
//!
//! Two public formats are read. *Mooncake* (JSON lines): `timestamp` in milliseconds,
//! `input_length`, `output_length` in tokens, `hash_ids`, an id for each block of 512
//! tokens that depends on all before it. *Azure* (CSV): `TIMESTAMP`, `ContextTokens`,
//! `GeneratedTokens`; nothing is known of what prompts share. Both count from the
//! first request. Texts are not recorded: equal blocks get equal words.

use std::io::BufRead;
use std::ops::Range;

use serde::Deserialize;

use crate::error::BenchError;

/// Tokens of a block of the Mooncake format.
pub(crate) const BLOCK_TOKENS: u64 = 512;
/// Bytes of a line; longer ones are a defect and are not kept.
const LINE_BYTES_MAX: usize = 1024 * 1024;
/// Requests of a trace.
const REQUESTS_MAX: usize = 10_000_000;
/// Tokens of one prompt or answer.
const TOKENS_MAX: u64 = 10_000_000;

/// Which format a trace has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceFormat {
    /// JSON lines with block ids.
    Mooncake,
    /// CSV with times and lengths.
    Azure,
}

/// Recorded requests, in the order of their instants.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// At least one.
    pub requests: Vec<Recorded>,
    blocks: Vec<u64>,
}

/// A recorded request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// From the first request.
    pub at_us: u64,
    /// Tokens of the prompt.
    pub input_tokens: u64,
    /// Tokens of the answer; at least 1.
    pub output_tokens: u64,
    /// Its blocks, as a range of all blocks; empty where none are known.
    blocks: Range<usize>,
}

/// A line that is no recorded request.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {rule}")]
pub struct TraceDefect {
    line: usize,
    rule: String,
}

#[derive(Deserialize)]
struct MooncakeLine {
    timestamp: f64,
    input_length: u64,
    output_length: u64,
    hash_ids: Vec<u64>,
}

impl Trace {
    /// Reads a trace and names the first line that is not of its format.
    pub fn read(format: TraceFormat, mut source: impl BufRead) -> Result<Self, BenchError> {
        let mut trace = Self::default();
        let (mut line, mut number) = (Vec::new(), 0);
        let mut first_us = None;
        loop {
            line.clear();
            number += 1;
            let limit = LINE_BYTES_MAX as u64 + 1;
            let read = std::io::Read::take(&mut source, limit).read_until(b'\n', &mut line);
            let count = read.map_err(|source| BenchError::System {
                action: "read the trace",
                source,
            })?;
            if count == 0 {
                break;
            }
            let defect = |rule: String| BenchError::Trace(TraceDefect { line: number, rule });
            trace
                .line(format, number, &line, &mut first_us)
                .map_err(defect)?;
        }
        if trace.requests.is_empty() {
            let rule = "the trace has no request".to_owned();
            return Err(BenchError::Trace(TraceDefect { line: number, rule }));
        }
        Ok(trace)
    }

    /// The ids of a request's blocks.
    pub(crate) fn blocks(&self, recorded: &Recorded) -> &[u64] {
        &self.blocks[recorded.blocks.clone()]
    }

    fn line(
        &mut self,
        format: TraceFormat,
        number: usize,
        line: &[u8],
        first_us: &mut Option<i64>,
    ) -> Result<(), String> {
        if line.len() > LINE_BYTES_MAX {
            return Err(format!("longer than {LINE_BYTES_MAX} bytes"));
        }
        if number == 1 && (line.starts_with(b"\x1f\x8b") || line.starts_with(b"\x28\xb5\x2f\xfd")) {
            return Err("the file is compressed; decompress it first".to_owned());
        }
        let text = std::str::from_utf8(line).map_err(|_| "no UTF-8".to_owned())?;
        let text = text.trim_end_matches(['\r', '\n']);
        if text.is_empty() {
            return Ok(());
        }
        let (at_us, input, output, blocks) = match format {
            TraceFormat::Mooncake => mooncake(text)?,
            TraceFormat::Azure if number == 1 => return azure_heading(text),
            TraceFormat::Azure => azure(text)?,
        };
        if self.requests.len() == REQUESTS_MAX {
            return Err(format!("more than {REQUESTS_MAX} requests"));
        }
        let at_us = at_us - *first_us.get_or_insert(at_us);
        let before = self.requests.last().map_or(0, |recorded| recorded.at_us);
        let at_us = u64::try_from(at_us).ok().filter(|at_us| *at_us >= before);
        let first_block = self.blocks.len();
        self.blocks.extend(blocks);
        self.requests.push(Recorded {
            at_us: at_us.ok_or("earlier than the line before it")?,
            input_tokens: tokens("the prompt", input)?,
            // An answer without a token cannot be asked for.
            output_tokens: tokens("the answer", output.max(1))?,
            blocks: first_block..self.blocks.len(),
        });
        Ok(())
    }
}

type Fields = (i64, u64, u64, Vec<u64>);

fn mooncake(text: &str) -> Result<Fields, String> {
    let line: MooncakeLine = serde_json::from_str(text).map_err(|error| {
        let error = error.to_string();
        let rule = error
            .split(" at line ")
            .next()
            .unwrap_or_default()
            .to_owned();
        format!("not of the Mooncake format: {rule}")
    })?;
    let blocks = line.input_length.div_ceil(BLOCK_TOKENS);
    if line.hash_ids.len() as u64 != blocks {
        return Err(format!(
            "{} tokens have {blocks} blocks, found {}",
            line.input_length,
            line.hash_ids.len()
        ));
    }
    if !(0.0..1e15).contains(&line.timestamp) {
        return Err(format!("`{}` is no time in milliseconds", line.timestamp));
    }
    let at_us = (line.timestamp * 1e3) as i64;
    Ok((at_us, line.input_length, line.output_length, line.hash_ids))
}

fn azure_heading(text: &str) -> Result<(), String> {
    match text {
        "TIMESTAMP,ContextTokens,GeneratedTokens" => Ok(()),
        _ => Err(format!(
            "the heading is `TIMESTAMP,ContextTokens,GeneratedTokens`, found `{}`",
            text.chars().take(80).collect::<String>()
        )),
    }
}

fn azure(text: &str) -> Result<Fields, String> {
    let mut fields = text.split(',');
    let (Some(time), Some(input), Some(output), None) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err("a line has three fields".to_owned());
    };
    let at_us = instant_us(time)
        .ok_or_else(|| format!("`{time}` is no time such as `2023-11-16 18:15:46.6805900`"))?;
    let number = |text: &str| {
        let number = text.parse::<u64>();
        number.map_err(|_| format!("`{text}` is no number of tokens"))
    };
    Ok((at_us, number(input)?, number(output)?, Vec::new()))
}

fn tokens(what: &str, count: u64) -> Result<u64, String> {
    match count {
        1..=TOKENS_MAX => Ok(count),
        _ => Err(format!(
            "{what} has {count} tokens; 1 to {TOKENS_MAX} are allowed"
        )),
    }
}

/// Microseconds since 1970 of `2023-11-16 18:15:46.6805900`.
fn instant_us(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let (date, time) = whole.split_once(' ')?;
    let number = |text: &str, digits: usize| -> Option<i64> {
        let fits = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
        fits.then(|| text.parse().ok())?
    };
    let mut date = date.split('-');
    let (year, month, day) = (date.next()?, date.next()?, date.next()?);
    let (year, month, day) = (number(year, 4)?, number(month, 2)?, number(day, 2)?);
    let mut time = time.split(':');
    let (hour, minute, second) = (time.next()?, time.next()?, time.next()?);
    let (hour, minute, second) = (number(hour, 2)?, number(minute, 2)?, number(second, 2)?);
    let in_range = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !in_range || fraction.len() > 9 {
        return None;
    }
    let digits: String = fraction.chars().chain("000000".chars()).take(6).collect();
    let fraction_us = number(&digits, 6)?;
    Some(
        (days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second) * 1_000_000
            + fraction_us,
    )
}

/// Days since 1970 in the Gregorian calendar, years counted from March.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let shifted = year - i64::from(month <= 2);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    shifted * 365 + shifted / 4 - shifted / 100 + shifted / 400 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (text, us) in [
            ("1970-01-01 00:00:00", 0),
            ("2023-11-16 18:15:46.6805900", 1_700_158_546_680_590),
            ("2024-02-29 23:59:59.9999999", 1_709_251_199_999_999),
            ("2024-03-01 00:00:00.5", 1_709_251_200_500_000),
        ] {
            assert_eq!(instant_us(text), Some(us), "{text}");
        }
        for text in [
            "",
            "2023-11-16",
            "2023-13-01 00:00:00",
            "2023-11-16T18:15:46",
            "2023-11-16 18:15:4x",
            "2023-11-16 18:15:46.x",
        ] {
            assert_eq!(instant_us(text), None, "{text}");
        }
    }
}
