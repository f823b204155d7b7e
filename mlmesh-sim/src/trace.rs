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
}

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
    #[error("trace format `{0}` is unknown; known are `mooncake`")]
    Format(String),
}

impl FromStr for Format {
    type Err = TraceError;

    fn from_str(text: &str) -> Result<Self, TraceError> {
        match text {
            "mooncake" => Ok(Self::Mooncake),
            _ => Err(TraceError::Format(text.to_owned())),
        }
    }
}

impl Trace {
    /// Reads a whole trace.
    pub fn read(text: &str, format: Format) -> Result<Self, TraceError> {
        let mut requests = match format {
            Format::Mooncake => mooncake(text)?,
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
        let blocks = read.input_length.div_ceil(BLOCK_TOKENS);
        if read.hash_ids.len() as u64 != blocks {
            return Err(refused(format!(
                "{} ids for {} tokens; {blocks} are needed",
                read.hash_ids.len(),
                read.input_length
            )));
        }
        let at_us = read.timestamp.checked_mul(1_000);
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
