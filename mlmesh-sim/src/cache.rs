//! An engine's prefix cache: blocks, of which the one that was used longest ago goes.

use mlmesh_route::BlockHash;

const NONE: u32 = u32::MAX;

/// Blocks of a trace, which numbers them from zero, in the order of their use.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    blocks_max: usize,
    held: usize,
    /// By block; grows with the largest one seen.
    links: Vec<Link>,
    newest: u32,
    oldest: u32,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    held: bool,
    newer: u32,
    older: u32,
}

const LOOSE: Link = Link {
    held: false,
    newer: NONE,
    older: NONE,
};

impl PrefixCache {
    pub(crate) fn new(blocks_max: usize) -> Self {
        Self {
            blocks_max,
            held: 0,
            links: Vec::new(),
            newest: NONE,
            oldest: NONE,
        }
    }

    /// How many blocks from the beginning are held without a gap.
    pub(crate) fn hit_blocks(&self, blocks: &[BlockHash]) -> usize {
        let held = |block: &&BlockHash| {
            let link = self.links.get(place(**block) as usize);
            link.is_some_and(|link| link.held)
        };
        blocks.iter().take_while(held).count()
    }

    /// Uses all blocks, the last one first, so that of one prompt its end is the first
    /// to go and what is left can still be hit.
    pub(crate) fn touch(&mut self, blocks: &[BlockHash]) {
        for block in blocks.iter().rev() {
            let place = place(*block);
            if self.links.len() <= place as usize {
                self.links.resize(place as usize + 1, LOOSE);
            }
            if self.links[place as usize].held {
                self.unlink(place);
            } else {
                self.held += 1;
            }
            self.link(place);
        }
        while self.held > self.blocks_max {
            let oldest = self.oldest;
            self.unlink(oldest);
            self.held -= 1;
        }
    }

    fn link(&mut self, place: u32) {
        let older = self.newest;
        self.links[place as usize] = Link {
            held: true,
            newer: NONE,
            older,
        };
        match older {
            NONE => self.oldest = place,
            older => self.links[older as usize].newer = place,
        }
        self.newest = place;
    }

    fn unlink(&mut self, place: u32) {
        let Link { newer, older, .. } = self.links[place as usize];
        self.links[place as usize] = LOOSE;
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

fn place(block: BlockHash) -> u32 {
    u32::try_from(block.0).expect("a trace numbers its blocks from zero")
}
