//! A target as a strategy sees it, for one request.

use crate::ask::TargetId;

/// What is known and predicted of one target for one request. These are also the terms
/// of which an explanation consists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Which target.
    pub target: TargetId,
    /// Requests that this router has sent there and that have not ended.
    pub in_flight: u32,
    /// Until when what was sent there before keeps it from this prompt.
    pub queued_us: u64,
    /// By how much longer that may well take; not a part of the prediction.
    pub queued_doubt_us: u64,
    /// How much of the prompt it is expected to hold already.
    pub cached_tokens: u64,
    /// How long it works on the rest of the prompt.
    pub prefill_us: u64,
    /// By how much longer, or less; not a part of the prediction.
    pub prefill_doubt_us: u64,
    /// What the answers that it is writing meanwhile add to that; zero where nobody says.
    pub decode_us: u64,
    /// The way there and back.
    pub rtt_us: u64,
    /// What is added because it is not in good health.
    pub penalty_us: u64,
}

impl Candidate {
    /// The predicted time to the first token.
    #[must_use]
    pub const fn ttft_us(&self) -> u64 {
        self.queued_us
            .saturating_add(self.prefill_us)
            .saturating_add(self.decode_us)
            .saturating_add(self.rtt_us)
            .saturating_add(self.penalty_us)
    }
}
