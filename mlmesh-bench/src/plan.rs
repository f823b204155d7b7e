//! What is to be sent: everything that a seed and a plan determine, before the first
//! request.

use crate::arrivals::Arrivals;
use crate::chance::{Chance, Purpose};
use crate::error::BenchError;
use crate::length::Lengths;
use crate::prompt::{Prompts, SharedPrefix};
use crate::target::Target;
use crate::words::CHARS_PER_TOKEN;

/// Threads that a client may have.
const THREADS_MAX: usize = 64;

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
    /// Beginnings that prompts share.
    pub shared_prefix: Option<SharedPrefix>,
    /// Fixes instants, lengths and texts.
    pub seed: u64,
    /// Loops that send, each on a thread of its own.
    pub threads: usize,
    /// Connections that may be open, over all threads.
    pub connections_max: usize,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) index: u64,
    pub(crate) prompt_chars: u64,
    pub(crate) output_tokens: u64,
    pub(crate) group: Option<u32>,
}

impl Plan {
    /// Finds what does not fit together.
    pub fn check(&self) -> Result<(), BenchError> {
        let wrong = |rule: String, hint| Err(BenchError::Plan { rule, hint });
        if self.bound == Bound::default() {
            let rule = "the load has no end".to_owned();
            return wrong(rule, "say `--requests N` or `--duration D`");
        }
        let Pace::Open { rate, arrivals } = self.pace;
        if !(rate.is_finite() && (1e-6..=1e6).contains(&rate)) {
            let rule =
                format!("`{rate}` requests a second; the rate is above 0 and at most 1000000");
            return wrong(rule, "`--rate 10`");
        }
        if let Arrivals::Gamma { cv } = arrivals
            && !(cv.is_finite() && (0.01..=100.0).contains(&cv))
        {
            let rule = format!("a coefficient of variation of `{cv}`; 0.01 to 100 are allowed");
            return wrong(rule, "`--cv 2`");
        }
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

    /// The request of an index. Equal plans give equal requests.
    pub(crate) fn call(&self, index: u64, prompts: &Prompts) -> Call {
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
        }
    }
}
