//! Requests that nobody ever sent, of known distributions.

use crate::chance::Chance;
use crate::trace::{Request, Trace};

/// How long prompts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lengths {
    /// All the same.
    Constant(u64),
    /// Exponential with this mean.
    Exponential(u64),
}

/// So many requests without anything in common, at times of a Poisson process with this
/// mean between two of them.
#[must_use]
pub fn poisson(count: usize, gap_us: u64, lengths: Lengths, seed: u64) -> Trace {
    let mut gaps = Chance::new(seed, 0x6a95);
    let mut sizes = Chance::new(seed, 0x51ce);
    let mut at = 0.0;
    let nothing: std::sync::Arc<[_]> = [].into();
    let requests = (0..count).map(|_| {
        at += gaps.exponential() * gap_us as f64;
        let prompt_tokens = match lengths {
            Lengths::Constant(tokens) => tokens,
            Lengths::Exponential(mean) => (sizes.exponential() * mean as f64).round() as u64,
        };
        Request {
            at_us: at as u64,
            prompt_tokens,
            output_tokens: 1,
            blocks: nothing.clone(),
        }
    });
    Trace {
        requests: requests.collect(),
    }
}
