//! A request that is booked at a target: what its answer tells goes to the router, and its
//! end with the value.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use mlmesh_route::{Booking, Event, Later, TargetId, TenantId};

use super::{BYTES_A_TOKEN_WEIGHT, Brain, Memo, PROMPT_TOKENS_TOLD_MIN};
use crate::call::Call;
use crate::usage::Usage;

/// A request that is booked at a target, until this is dropped.
pub(crate) struct Bound {
    brain: Arc<Brain>,
    booking: Booking<Memo>,
    /// When its request came.
    since_us: u64,
    /// Of the prompt, as it came.
    pub(crate) prompt_bytes: u64,
    /// Whose it is.
    pub(crate) tenant: TenantId,
    has_token: bool,
    /// A piece of a good response has come.
    is_answered: bool,
    usage: Usage,
}

impl Brain {
    pub(super) fn bound(self: &Arc<Brain>, booking: Booking<Memo>, since_us: u64) -> Bound {
        self.counts.bound.fetch_add(1, Ordering::Relaxed);
        let waited_us = booking.bound_us.saturating_sub(since_us);
        self.times.wait.add(waited_us);
        Bound {
            brain: Arc::clone(self),
            booking,
            since_us,
            prompt_bytes: 0,
            tenant: TenantId::default(),
            has_token: false,
            is_answered: false,
            usage: Usage::default(),
        }
    }
}

impl Bound {
    pub(crate) fn target(&self) -> usize {
        self.booking.terms.target.index()
    }

    pub(crate) fn id(&self) -> TargetId {
        self.booking.terms.target
    }

    /// What its first token was predicted to take.
    pub(crate) fn predicted_us(&self) -> u64 {
        self.booking.terms.ttft_us()
    }

    /// A piece of a good response's body has come.
    pub(crate) fn follow(&mut self, call: Call, is_stream: bool, piece: &[u8]) {
        self.usage.follow(piece);
        self.is_answered = true;
        if self.has_token {
            return;
        }
        self.has_token = true;
        // An answer in one piece says when all of it was done, not when the prompt was.
        if is_stream || call == Call::Inference {
            let took_us = self.brain.now_us().saturating_sub(self.since_us);
            self.brain.times.of(self.target()).first_token.add(took_us);
            self.brain.later(self.booking.request, Later::FirstToken);
        }
        let event = Event::FirstToken(&mut self.booking);
        self.brain.step(event, &mut Vec::new());
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let mut booking = self.booking;
        if let Some(tokens) = self.usage.answer_tokens {
            self.brain.router.written(self.tenant, tokens);
        }
        if self.is_answered {
            let took_us = self.brain.now_us().saturating_sub(self.since_us);
            self.brain
                .times
                .of(self.target())
                .ended(took_us, &self.usage);
        }
        if let Some(tokens) = self
            .usage
            .prompt_tokens
            .filter(|tokens| *tokens >= PROMPT_TOKENS_TOLD_MIN)
        {
            // From now on in the engine's own tokens.
            let guessed = booking.prompt_tokens.max(1) as f32;
            let was = f32::from_bits(self.brain.bytes_a_token.load(Ordering::Relaxed));
            let now = self.prompt_bytes as f32 / tokens as f32;
            let mean = was + BYTES_A_TOKEN_WEIGHT * (now.clamp(0.5, 64.0) - was);
            let bits = mean.to_bits();
            self.brain.bytes_a_token.store(bits, Ordering::Relaxed);
            let block = booking.block_tokens as f32 * tokens as f32 / guessed;
            booking.block_tokens = (block.round() as u64).max(1);
            booking.prompt_tokens = tokens;
        }
        let ended = Event::Ended {
            booking,
            cached_tokens: self.usage.cached_tokens,
        };
        self.brain.step(ended, &mut Vec::new());
    }
}
