//! Requests that were once seen: when they came, how long they were, and what they had
//! in common.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;

use mlmesh_route::BlockHash;
use serde::Deserialize;

use crate::reference::BLOCK_TOKENS;

/// Requests in the order of their coming.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// Never empty in a trace that was read.
    pub requests: Vec<Request>,
}

/// One request of a trace.
#[derive(Debug, Clone)]
pub struct Request {
    /// When it came.
    pub at_us: u64,
    /// Length of its prompt.
    pub prompt_tokens: u64,
    /// Length of its answer.
    pub output_tokens: u64,
    /// Blocks of 512 tokens, numbered from zero over the whole trace in the order of
    /// their first use. Equal numbers are equal prompts up to there.
    pub blocks: Arc<[BlockHash]>,
}

/// How a trace is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JSON lines of `timestamp` (ms), `input_length`, `output_length`, `hash_ids`.
    Mooncake,
    /// Comma-separated `TIMESTAMP`, `ContextTokens`, `GeneratedTokens`, as the traces of
    /// Azure's inference service are. Nothing says what prompts have in common, so they
    /// have nothing.
    Azure,
}

/// Virtual time ends after some thousand years.
const AT_US_MAX: u64 = 1 << 57;
/// Tokens of a prompt.
const TOKENS_MAX: u64 = 1 << 24;

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// A line is not what the format says.
    #[error("read line {line} of a {format} trace: {reason}\nhint: {form}")]
    Line {
        /// From one.
        line: usize,
        /// Its name.
        format: &'static str,
        /// What is wrong.
        reason: String,
        /// What each line should be.
        form: &'static str,
    },
    /// There is no request.
    #[error("the trace holds no request; at least one is needed")]
    Empty,
    /// The name of a format is unknown.
    #[error("trace format `{0}` is unknown; known are `mooncake` and `azure`")]
    Format(String),
}

impl FromStr for Format {
    type Err = TraceError;

    fn from_str(text: &str) -> Result<Self, TraceError> {
        match text {
            "mooncake" => Ok(Self::Mooncake),
            "azure" => Ok(Self::Azure),
            _ => Err(TraceError::Format(text.to_owned())),
        }
    }
}

impl Trace {
    /// Reads a whole trace.
    pub fn read(text: &str, format: Format) -> Result<Self, TraceError> {
        let mut requests = match format {
            Format::Mooncake => mooncake(text)?,
            Format::Azure => azure(text)?,
        };
        if requests.is_empty() {
            return Err(TraceError::Empty);
        }
        requests.sort_by_key(|request| request.at_us);
        Ok(Self { requests })
    }
}

const MOONCAKE: &str = "each line is `{\"timestamp\": 0, \"input_length\": 6758, \
\"output_length\": 500, \"hash_ids\": [0, 1]}` with one id for each 512 tokens begun";

#[derive(Deserialize)]
struct MooncakeLine {
    timestamp: u64,
    input_length: u64,
    output_length: u64,
    hash_ids: Vec<u64>,
}

fn mooncake(text: &str) -> Result<Vec<Request>, TraceError> {
    let mut numbers: HashMap<u64, u64> = HashMap::new();
    let mut requests = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let refused = |reason: String| TraceError::Line {
            line: index + 1,
            format: "mooncake",
            reason,
            form: MOONCAKE,
        };
        let read: MooncakeLine =
            serde_json::from_str(line).map_err(|error| refused(error.to_string()))?;
        if read.input_length > TOKENS_MAX {
            return Err(refused(too_long(read.input_length)));
        }
        let blocks = read.input_length.div_ceil(BLOCK_TOKENS);
        if read.hash_ids.len() as u64 != blocks {
            return Err(refused(format!(
                "{} ids for {} tokens; {blocks} are needed",
                read.hash_ids.len(),
                read.input_length
            )));
        }
        let at_us = read.timestamp.checked_mul(1_000);
        let at_us = at_us.filter(|at_us| *at_us <= AT_US_MAX);
        let numbered = read.hash_ids.iter().map(|id| {
            let next = numbers.len() as u64;
            BlockHash(*numbers.entry(*id).or_insert(next))
        });
        requests.push(Request {
            blocks: numbered.collect(),
            at_us: at_us.ok_or_else(|| refused(format!("time {} ms", read.timestamp)))?,
            prompt_tokens: read.input_length,
            output_tokens: read.output_length,
        });
    }
    Ok(requests)
}

const AZURE_HEADING: &str = "TIMESTAMP,ContextTokens,GeneratedTokens";
const AZURE: &str = "the heading is `TIMESTAMP,ContextTokens,GeneratedTokens`, and each line \
after it such as `2023-11-16 18:15:46.6805900,374,44`";

fn azure(text: &str) -> Result<Vec<Request>, TraceError> {
    let refused = |line: usize, reason: String| TraceError::Line {
        line,
        format: "azure",
        reason,
        form: AZURE,
    };
    let mut requests = Vec::new();
    let (mut first_us, mut blocks_before) = (None, 0);
    for (index, line) in text.lines().enumerate() {
        if index == 0 {
            if line.trim_start_matches('\u{feff}') != AZURE_HEADING {
                let seen: String = line.chars().take(80).collect();
                return Err(refused(1, format!("the heading is `{seen}`")));
            }
            continue;
        }
        if line.is_empty() {
            continue;
        }
        let read = azure_line(line).map_err(|reason| refused(index + 1, reason))?;
        let (at_us, prompt_tokens, output_tokens) = read;
        let since_first_us = at_us - *first_us.get_or_insert(at_us);
        let early = || refused(index + 1, "it is earlier than the first one".to_owned());
        let blocks_after = blocks_before + prompt_tokens.div_ceil(BLOCK_TOKENS);
        requests.push(Request {
            at_us: u64::try_from(since_first_us).map_err(|_| early())?,
            prompt_tokens,
            output_tokens,
            blocks: (blocks_before..blocks_after).map(BlockHash).collect(),
        });
        blocks_before = blocks_after;
    }
    Ok(requests)
}

fn azure_line(line: &str) -> Result<(i64, u64, u64), String> {
    let mut cells = line.split(',');
    let (Some(time), Some(prompt), Some(output), None) =
        (cells.next(), cells.next(), cells.next(), cells.next())
    else {
        return Err("it has not three fields".to_owned());
    };
    let tokens = |text: &str| match text.parse::<u64>() {
        Ok(count @ 0..=TOKENS_MAX) => Ok(count),
        Ok(count) => Err(too_long(count)),
        Err(_) => Err(format!("`{text}` is no number of tokens")),
    };
    // Times have seven decimals there; microseconds have six.
    let (whole, decimals) = time.split_once('.').unwrap_or((time, "0"));
    let decimals: String = decimals.chars().take(6).collect();
    let text = format!("{}.{decimals}Z", whole.replacen(' ', "T", 1));
    let at = mlmesh_model::parse_utc(&text).ok_or_else(|| format!("`{time}` is no time"))?;
    Ok((at.0, tokens(prompt)?, tokens(output)?))
}

fn too_long(tokens: u64) -> String {
    format!("{tokens} tokens; at most {TOKENS_MAX} are allowed")
}
