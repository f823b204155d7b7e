//! What a target probably holds of a prompt, and how long it works on the rest.

use crate::ask::{Ask, TargetId};

/// Predictions about targets, made of what was seen of them.
pub trait Forecast {
    /// How many tokens from the prompt's beginning the target holds already.
    fn cached_tokens(&self, target: TargetId, ask: &Ask) -> u64;

    /// How long the target works on the prompt when it holds so many of its tokens, in
    /// microseconds.
    fn prefill_us(&self, target: TargetId, ask: &Ask, cached_tokens: u64) -> u64;

    /// The request goes to the target, which will hold its prompt.
    fn bound(&self, target: TargetId, ask: &Ask);
}
