//! What is to be sent: everything that a seed and a plan determine, before the first
//! request.

use std::path::PathBuf;
use std::sync::Arc;

use crate::arrivals::Arrivals;
use crate::chance::{Chance, Purpose};
use crate::error::BenchError;
use crate::length::Lengths;
use crate::prompt::{Prompts, SharedPrefix};
use crate::target::Target;
use crate::think::Think;
use crate::trace::Trace;
use crate::words::CHARS_PER_TOKEN;

/// Threads that a client may have.
const THREADS_MAX: usize = 64;
/// People that a closed loop may have.
const CONCURRENCY_MAX: usize = 1_000_000;

/// A load and where it goes.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where requests go.
    pub target: Target,
    /// Which of the API's calls.
    pub endpoint: Endpoint,
    /// The model that each request names.
    pub model: String,
    /// Whether answers are streamed.
    pub stream: bool,
    /// When requests are sent.
    pub pace: Pace,
    /// When no more are sent.
    pub bound: Bound,
    /// What is sent earlier counts in no figure.
    pub warmup_us: u64,
    /// An answer that takes longer is a fault.
    pub timeout_us: u64,
    /// Length of each prompt behind its shared prefix.
    pub prompt: PromptLength,
    /// Tokens that each request asks for.
    pub output_tokens: Lengths,
    /// Whether the engine is asked to go on to the last of them.
    pub ignore_eos: bool,
    /// Whether the engine is asked to count tokens in each chunk.
    pub count_each_chunk: bool,
    /// Lengths and shared blocks of recorded requests, instead of drawn ones.
    pub trace: Option<Arc<Trace>>,
    /// Beginnings that prompts share.
    pub shared_prefix: Option<SharedPrefix>,
    /// Fixes instants, lengths and texts.
    pub seed: u64,
    /// Loops that send, each on a thread of its own.
    pub threads: usize,
    /// Connections that may be open, over all threads.
    pub connections_max: usize,
    /// Certificates to believe instead of the system's, of an `https` target.
    pub ca_file: Option<PathBuf>,
    /// The API key; stands in no result.
    pub key: Option<String>,
}

/// Which of the API's calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
}

/// When requests are sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Pace {
    /// At instants that the engine does not change.
    Open {
        /// Requests a second.
        rate: f64,
        /// How the gaps are drawn.
        arrivals: Arrivals,
    },
    /// So many people, each of whom asks again when they have their answer and have
    /// thought about it. A slow engine is asked less.
    Closed {
        /// How many.
        concurrency: usize,
        /// How long they think.
        think: Think,
    },
    /// At the instants of the plan's trace.
    Trace {
        /// How much faster than recorded.
        speed: f64,
    },
}

/// When no more is sent; whichever comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bound {
    /// After so many.
    pub requests: Option<u64>,
    /// After so long.
    pub duration_us: Option<u64>,
}

/// Length of a prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PromptLength {
    /// In characters, exact.
    Chars(Lengths),
    /// In tokens, about: four characters each. What it became the engine says.
    Tokens(Lengths),
}

/// One request, before it is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) index: u64,
    pub(crate) prompt_chars: u64,
    pub(crate) output_tokens: u64,
    pub(crate) group: Option<u32>,
    pub(crate) blocks: Blocks<'a>,
}

/// Recorded blocks of a prompt.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Blocks<'a> {
    pub(crate) ids: &'a [u64],
    /// How often the whole trace was sent before: blocks of another round are others.
    pub(crate) round: u64,
}

impl Plan {
    /// Finds what does not fit together.
    pub fn check(&self) -> Result<(), BenchError> {
        let wrong = |rule: String, hint| Err(BenchError::Plan { rule, hint });
        let is_replay = matches!(self.pace, Pace::Trace { .. });
        if self.bound == Bound::default() && !is_replay {
            let rule = "the load has no end".to_owned();
            return wrong(rule, "say `--requests N` or `--duration D`");
        }
        self.check_pace()?;
        if self
            .bound
            .duration_us
            .is_some_and(|end| end <= self.warmup_us)
        {
            let rule = "the warm-up is not shorter than the whole".to_owned();
            return wrong(rule, "a shorter `--warmup`, or a longer `--duration`");
        }
        if !(1..=THREADS_MAX).contains(&self.threads) {
            let rule = format!("{} threads; 1 to {THREADS_MAX} are allowed", self.threads);
            return wrong(rule, "`--threads 1` sends thousands of requests a second");
        }
        if self.connections_max < self.threads {
            let rule = format!(
                "{} connections for {} threads",
                self.connections_max, self.threads
            );
            return wrong(rule, "at least one for each thread");
        }
        let visible = |key: &String| key.bytes().all(|byte| byte.is_ascii_graphic());
        if !self.key.as_ref().is_none_or(visible) {
            return Err(BenchError::Key);
        }
        Ok(())
    }

    fn check_pace(&self) -> Result<(), BenchError> {
        let wrong = |rule: String, hint| Err(BenchError::Plan { rule, hint });
        let within = |value: f64, low: f64, high: f64| (low..=high).contains(&value);
        match self.pace {
            Pace::Open { rate, .. } if !within(rate, 1e-6, 1e6) => wrong(
                format!("`{rate}` requests a second; the rate is above 0 and at most 1000000"),
                "`--rate 10`",
            ),
            Pace::Open {
                arrivals: Arrivals::Gamma { cv },
                ..
            } if !within(cv, 0.01, 100.0) => wrong(
                format!("a coefficient of variation of `{cv}`; 0.01 to 100 are allowed"),
                "`--cv 2`",
            ),
            Pace::Closed { concurrency, .. } if !(1..=CONCURRENCY_MAX).contains(&concurrency) => {
                wrong(
                    format!("{concurrency} at once; 1 to {CONCURRENCY_MAX} are allowed"),
                    "`--concurrency 8`",
                )
            }
            Pace::Closed { concurrency, .. } if concurrency < self.threads => wrong(
                format!("{concurrency} at once on {} threads", self.threads),
                "no more threads than requests at once",
            ),
            Pace::Trace { speed } if !within(speed, 1e-6, 1e6) => wrong(
                format!("`{speed}` times as fast; above 0 and at most 1000000 are allowed"),
                "`--speed 10`",
            ),
            Pace::Trace { .. } if self.trace.is_none() => wrong(
                "the instants of a trace, and no trace".to_owned(),
                "`--trace FILE --format mooncake`",
            ),
            _ => Ok(()),
        }
    }

    /// The request of an index. Equal plans give equal requests.
    pub(crate) fn call(&self, index: u64, prompts: &Prompts) -> Call<'_> {
        if let Some(trace) = &self.trace {
            let length = trace.requests.len() as u64;
            let recorded = &trace.requests[(index % length) as usize];
            return Call {
                index,
                prompt_chars: recorded.input_tokens * CHARS_PER_TOKEN,
                output_tokens: recorded.output_tokens,
                group: None,
                blocks: Blocks {
                    ids: trace.blocks(recorded),
                    round: index / length,
                },
            };
        }
        let mut chance = Chance::new(self.seed, Purpose::Call, index);
        let prompt_chars = match self.prompt {
            PromptLength::Chars(lengths) => lengths.draw(&mut chance),
            PromptLength::Tokens(lengths) => lengths.draw(&mut chance) * CHARS_PER_TOKEN,
        };
        Call {
            index,
            prompt_chars,
            output_tokens: self.output_tokens.draw(&mut chance),
            group: prompts.group(&mut chance),
            blocks: Blocks::default(),
        }
    }
}
