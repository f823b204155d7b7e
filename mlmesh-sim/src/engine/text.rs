//! A prompt's text as blocks, where there is no tokenizer: so many characters are taken
//! for a token.

use std::sync::Arc;

use mlmesh_route::{BlockHash, mixed, mixed_pair};

use super::profile::Profile;

/// The full blocks of a text. Two texts have the same ones as far as they are the same.
#[must_use]
pub fn text_blocks(text: &str, profile: &Profile) -> Arc<[BlockHash]> {
    let block_bytes = profile.block_tokens * profile.characters_per_token;
    let mut before = mixed(block_bytes);
    let blocks = text.as_bytes().chunks_exact(block_bytes as usize);
    let blocks = blocks.map(|block| {
        let (words, rest) = block.as_chunks::<8>();
        for word in words {
            before = mixed_pair(before, u64::from_le_bytes(*word));
        }
        for byte in rest {
            before = mixed_pair(before, u64::from(*byte));
        }
        BlockHash(before)
    });
    blocks.collect()
}
