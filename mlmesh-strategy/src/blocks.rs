//! Blocks of a prompt's raw bytes. No tokenizer: prompts that are the same byte for byte
//! are the same for every engine, and where they part, they part.

use crate::ask::BlockHash;
use crate::mix::mixed;

/// Bytes of a block, unless a router is told otherwise; some 64 tokens of prose.
pub const BLOCK_BYTES: usize = 256;
/// Blocks of one prompt; what comes after them is not looked at.
pub const BLOCKS_MAX: usize = 4_096;

const STRIDE: usize = 32;
/// What tells the lanes apart.
const LANES: [u64; 4] = [mixed(1), mixed(2), mixed(3), mixed(4)];

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
            self.strides(&[rest], blocks);
        }
        let (strides, rest) = bytes.as_chunks::<STRIDE>();
        self.strides(strides, blocks);
        self.rest[..rest.len()].copy_from_slice(rest);
        self.rest_bytes = rest.len();
    }

    /// Four words in four lanes, so that no multiplication waits for another.
    fn strides(&mut self, mut strides: &[[u8; STRIDE]], blocks: &mut Vec<BlockHash>) {
        while !strides.is_empty() && blocks.len() < BLOCKS_MAX {
            let (now, later) = strides.split_at(strides.len().min(self.strides_left));
            let mut lanes = self.lanes;
            for stride in now {
                let (words, _) = stride.as_chunks::<8>();
                for (lane, word) in lanes.iter_mut().zip(words) {
                    *lane = folded(*lane ^ u64::from_le_bytes(*word));
                }
            }
            self.lanes = lanes;
            self.strides_left -= now.len();
            strides = later;
            if self.strides_left == 0 {
                let [a, b, c, d] = self.lanes;
                let (ab, cd) = (folded(a ^ b.rotate_left(32)), folded(c ^ d.rotate_left(32)));
                self.chain = mixed(self.chain ^ ab ^ cd.rotate_left(17));
                blocks.push(BlockHash(self.chain));
                self.strides_left = self.strides_a_block;
                self.begin();
            }
        }
    }

    /// Each block's lanes begin with what came before it.
    fn begin(&mut self) {
        let first = self.chain ^ self.key;
        self.lanes = LANES.map(|lane| first ^ lane);
    }
}

/// Both halves of a product with an odd number that has its bits everywhere.
const fn folded(word: u64) -> u64 {
    let product = (word as u128) * 0xd6e8_feb8_6659_fd93;
    (product as u64) ^ ((product >> 64) as u64)
}
