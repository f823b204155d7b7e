//! What a target probably holds of a prompt, and how long it works on the rest.

use std::fmt::Debug;

use crate::ask::{Ask, TargetId};

/// Predictions about targets, made of what was seen of them.
pub trait Forecast {
    /// What it wants to remember of a request while that runs.
    type Memo: Copy + Debug + Default + PartialEq + Eq;

    /// How many tokens from the prompt's beginning the target holds already.
    fn cached_tokens(&self, target: TargetId, ask: &Ask) -> u64;

    /// How long the target works on the prompt when it holds so many of its tokens, in
    /// microseconds.
    fn prefill_us(&self, target: TargetId, ask: &Ask, cached_tokens: u64) -> u64;

    /// Whether anything was seen of the target that its predictions are made of.
    fn knows(&self, _target: TargetId) -> bool {
        true
    }

    /// The request goes to the target, which will hold its prompt.
    fn bound(&self, target: TargetId, ask: &Ask) -> Self::Memo;

    /// Something came of a request that was bound there.
    fn seen(&self, target: TargetId, seen: Seen, memo: Self::Memo);
}

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Its first token.
    Prefill {
        /// Length of the prompt.
        prompt_tokens: u64,
        /// How much of it the target was believed to hold.
        cached_tokens: u64,
        /// How long the target worked on the rest.
        took_us: u64,
    },
    /// Its end, with the engine's own word on how much it held.
    Cached {
        /// Length of the prompt.
        prompt_tokens: u64,
        /// In tokens.
        cached_tokens: u64,
        /// What a block of the request stands for.
        block_tokens: u64,
        /// How long the target worked on the rest; zero if no token came.
        took_us: u64,
    },
}
