//! Blocks of a prompt's raw bytes. No tokenizer: prompts that are the same byte for byte
//! are the same for every engine, and where they part, they part.

use crate::ask::BlockHash;
use crate::mix::{mixed, mixed_pair};

/// Bytes of a block, unless a router is told otherwise; some 64 tokens of prose.
pub const BLOCK_BYTES: usize = 256;
/// Blocks of one prompt; what comes after them is not looked at.
pub const BLOCKS_MAX: usize = 4_096;

const STRIDE: usize = 32;

/// Hashes pieces of a prompt as if they were one, block by block. Each hash covers
/// everything before it; what does not fill a block has none.
#[derive(Debug)]
pub struct BlockHasher {
    key: u64,
    lanes: [u64; 4],
    chain: u64,
    strides_left: usize,
    strides_a_block: usize,
    rest: [u8; STRIDE],
    rest_bytes: usize,
}

impl BlockHasher {
    /// `key` makes hashes nobody can foresee who does not know it. Blocks have
    /// `block_bytes`, rounded up to 32.
    #[must_use]
    pub fn new(key: u64, block_bytes: usize) -> Self {
        let strides_a_block = block_bytes.div_ceil(STRIDE).max(1);
        let mut hasher = Self {
            key,
            lanes: [0; 4],
            chain: mixed(key),
            strides_left: strides_a_block,
            strides_a_block,
            rest: [0; STRIDE],
            rest_bytes: 0,
        };
        hasher.begin();
        hasher
    }

    /// Takes the next piece and adds the hashes of the blocks that it completes.
    pub fn push(&mut self, mut bytes: &[u8], blocks: &mut Vec<BlockHash>) {
        if self.rest_bytes > 0 {
            let taken = bytes.len().min(STRIDE - self.rest_bytes);
            self.rest[self.rest_bytes..self.rest_bytes + taken].copy_from_slice(&bytes[..taken]);
            self.rest_bytes += taken;
            bytes = &bytes[taken..];
            if self.rest_bytes < STRIDE {
                return;
            }
            let rest = self.rest;
            self.rest_bytes = 0;
            self.stride(&rest, blocks);
        }
        let (strides, rest) = bytes.as_chunks::<STRIDE>();
        for stride in strides {
            if blocks.len() >= BLOCKS_MAX {
                return;
            }
            self.stride(stride, blocks);
        }
        self.rest[..rest.len()].copy_from_slice(rest);
        self.rest_bytes = rest.len();
    }

    /// Four words in four lanes, so that no multiplication waits for another.
    fn stride(&mut self, bytes: &[u8; STRIDE], blocks: &mut Vec<BlockHash>) {
        let (words, _) = bytes.as_chunks::<8>();
        for (lane, word) in self.lanes.iter_mut().zip(words) {
            *lane = folded(*lane ^ u64::from_le_bytes(*word));
        }
        self.strides_left -= 1;
        if self.strides_left == 0 && blocks.len() < BLOCKS_MAX {
            for lane in self.lanes {
                self.chain = mixed_pair(self.chain, lane);
            }
            blocks.push(BlockHash(self.chain));
            self.strides_left = self.strides_a_block;
            self.begin();
        }
    }

    /// Each block's lanes begin with what came before it.
    fn begin(&mut self) {
        for (number, lane) in (1..).zip(&mut self.lanes) {
            *lane = mixed_pair(self.key ^ self.chain, number);
        }
    }
}

/// Both halves of a product with an odd number that has its bits everywhere.
const fn folded(word: u64) -> u64 {
    let product = (word as u128) * 0xd6e8_feb8_6659_fd93;
    (product as u64) ^ ((product >> 64) as u64)
}
