//! An engine's prefix cache: blocks, of which the one that was used longest ago goes.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use mlmesh_route::{BlockHash, mixed};

const NONE: u32 = u32::MAX;

/// Blocks of a trace, which numbers them from zero, in the order of their use.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    blocks_max: usize,
    /// Weights of all that are held.
    held: usize,
    /// By block that is held, where its link is.
    places: HashMap<u32, u32, BuildHasherDefault<Mixing>>,
    /// As many as blocks are held, and some that are free.
    links: Vec<Link>,
    free: Vec<u32>,
    newest: u32,
    oldest: u32,
}

/// Numbers of blocks are nobody's choice, so they need no more than to be spread.
#[derive(Debug, Default)]
struct Mixing(u64);

impl Hasher for Mixing {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = mixed(self.0 ^ u64::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = mixed(self.0 ^ u64::from(number));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[derive(Debug, Clone, Copy)]
struct Link {
    block: u32,
    weight: u32,
    newer: u32,
    older: u32,
}

impl PrefixCache {
    pub(crate) fn new(blocks_max: usize) -> Self {
        Self {
            blocks_max,
            held: 0,
            places: HashMap::default(),
            links: Vec::new(),
            free: Vec::new(),
            newest: NONE,
            oldest: NONE,
        }
    }

    /// How many blocks from the beginning are held without a gap.
    pub(crate) fn hit_blocks(&self, blocks: &[BlockHash]) -> usize {
        let held = |block: &&BlockHash| self.places.contains_key(&number(**block));
        blocks.iter().take_while(held).count()
    }

    /// Uses all blocks, the last one first, so that of one prompt its end is the first
    /// to go and what is left can still be hit.
    pub(crate) fn touch(&mut self, blocks: &[BlockHash]) {
        self.touch_weighted(blocks, |_| 1);
    }

    /// The same where a block, by its place in the prompt, counts as so many.
    pub(crate) fn touch_weighted(&mut self, blocks: &[BlockHash], weight: impl Fn(usize) -> u32) {
        for (at, block) in blocks.iter().enumerate().rev() {
            let block = number(*block);
            let place = match self.places.get(&block) {
                None => self.place(block, weight(at)),
                Some(place) => {
                    let place = *place;
                    self.unlink(place);
                    place
                }
            };
            self.link(place);
        }
        while self.held > self.blocks_max {
            let oldest = self.oldest;
            self.unlink(oldest);
            self.places.remove(&self.links[oldest as usize].block);
            self.free.push(oldest);
            self.held -= self.links[oldest as usize].weight as usize;
        }
    }

    /// A place for a block that is not held.
    fn place(&mut self, block: u32, weight: u32) -> u32 {
        let link = Link {
            block,
            weight,
            newer: NONE,
            older: NONE,
        };
        let place = self.free.pop().unwrap_or(self.links.len() as u32);
        match self.links.get_mut(place as usize) {
            Some(free) => *free = link,
            None => self.links.push(link),
        }
        self.places.insert(block, place);
        self.held += weight as usize;
        place
    }

    fn link(&mut self, place: u32) {
        let older = self.newest;
        let link = &mut self.links[place as usize];
        (link.newer, link.older) = (NONE, older);
        match older {
            NONE => self.oldest = place,
            older => self.links[older as usize].newer = place,
        }
        self.newest = place;
    }

    fn unlink(&mut self, place: u32) {
        let Link { newer, older, .. } = self.links[place as usize];
        match newer {
            NONE => self.newest = older,
            newer => self.links[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.links[older as usize].newer = newer,
        }
    }
}

fn number(block: BlockHash) -> u32 {
    u32::try_from(block.0).expect("a trace numbers its blocks from zero")
}
