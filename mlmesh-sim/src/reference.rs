//! The engine of the reference replay: prefill only, one prompt after the other.
//!
//! What it costs is counted in operations of a model with 80 layers of width 8,192 on
//! a node of eight accelerators that reach 30 % of 312 TFLOP/s each, and 20 ms for
//! everything else. What a node holds of a prompt costs nothing.

/// Tokens of a block.
pub const BLOCK_TOKENS: u64 = 512;
/// Blocks that a node holds.
pub const CACHE_BLOCKS: usize = 1_000;
/// Accelerators of a node.
pub(crate) const NODE_GPUS: f64 = 8.0;

/// How long an engine works on a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// As the reference replay has it.
    Reference,
    /// A microsecond for each token that it does not hold: whatever distribution the
    /// lengths have, the times have.
    MicrosecondAToken,
}

impl Service {
    pub(crate) fn prefill_us(self, prompt_tokens: u64, cached_tokens: u64) -> u64 {
        match self {
            Self::Reference => prefill_us(prompt_tokens, cached_tokens),
            Self::MicrosecondAToken => prompt_tokens.saturating_sub(cached_tokens),
        }
    }
}

const LAYERS: f64 = 80.0;
const WIDTH: f64 = 8_192.0;
const FLOPS_A_SECOND: f64 = NODE_GPUS * 312e12 * 0.30;
const FIXED_S: f64 = 0.02;

/// How long a node works on a prompt of which it holds so many tokens.
#[must_use]
pub fn prefill_us(prompt_tokens: u64, cached_tokens: u64) -> u64 {
    let flops = flops(prompt_tokens as f64) - flops(cached_tokens as f64);
    ((FIXED_S + flops / FLOPS_A_SECOND) * 1e6).round() as u64
}

/// Until when a first token counts as good: 5 s and twice what the prompt alone takes
/// an empty node.
#[must_use]
pub fn slo_us(prompt_tokens: u64) -> u64 {
    5_000_000 + 2 * prefill_us(prompt_tokens, 0)
}

/// The part of a prompt that so many blocks hold; the last block need not be full.
pub(crate) fn cached_tokens(prompt_tokens: u64, hit_blocks: usize) -> u64 {
    prompt_tokens.min(BLOCK_TOKENS * hit_blocks as u64)
}

fn flops(tokens: f64) -> f64 {
    LAYERS * (4.0 * tokens * tokens * WIDTH + 22.0 * tokens * WIDTH * WIDTH)
}
