//! The one trait behind which all strategies stand.

use std::fmt::Debug;

use crate::ask::Ask;
use crate::candidate::Candidate;

/// What a strategy is told beside the candidates.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// The request.
    pub ask: &'a Ask,
    /// How many decisions this router has made before.
    pub turn: u64,
}

/// A way of choosing among targets.
///
/// Called from several threads at once; what it keeps beyond its settings are atomics.
pub trait Strategy: Debug + Send + Sync {
    /// As it is typed and reported.
    fn name(&self) -> &'static str;

    /// Whether it looks at what is predicted of the request at each target. Without,
    /// `cached_tokens` and `prefill_us` of candidates are zero, which costs nothing.
    fn needs_forecast(&self) -> bool;

    /// Whether it looks at the prompt, or at what its length makes of a target's work.
    /// Without, a request may be sent on before its body is there.
    fn reads_prompt(&self) -> bool {
        true
    }

    /// Writes one cost for each candidate; the least wins, of equal ones the first.
    /// `costs` is as long as `candidates`, which is never empty.
    fn score(&self, situation: Situation<'_>, candidates: &[Candidate], costs: &mut [u64]);
}
