//! An engine's prefix cache: blocks, of which the one that was used longest ago goes.

use mlmesh_route::BlockHash;

const NONE: u32 = u32::MAX;

/// Blocks of a trace, which numbers them from zero, in the order of their use.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    blocks_max: usize,
    held: usize,
    /// By block, where its link is; grows with the largest block seen.
    places: Vec<u32>,
    /// As many as blocks are held, and some that are free.
    links: Vec<Link>,
    free: Vec<u32>,
    newest: u32,
    oldest: u32,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    block: u32,
    newer: u32,
    older: u32,
}

impl PrefixCache {
    pub(crate) fn new(blocks_max: usize) -> Self {
        Self {
            blocks_max,
            held: 0,
            places: Vec::new(),
            links: Vec::new(),
            free: Vec::new(),
            newest: NONE,
            oldest: NONE,
        }
    }

    /// How many blocks from the beginning are held without a gap.
    pub(crate) fn hit_blocks(&self, blocks: &[BlockHash]) -> usize {
        let held = |block: &&BlockHash| {
            let place = self.places.get(number(**block) as usize);
            place.is_some_and(|place| *place != NONE)
        };
        blocks.iter().take_while(held).count()
    }

    /// Uses all blocks, the last one first, so that of one prompt its end is the first
    /// to go and what is left can still be hit.
    pub(crate) fn touch(&mut self, blocks: &[BlockHash]) {
        for block in blocks.iter().rev() {
            let block = number(*block);
            if self.places.len() <= block as usize {
                self.places.resize(block as usize + 1, NONE);
            }
            let place = match self.places[block as usize] {
                NONE => self.place(block),
                place => {
                    self.unlink(place);
                    place
                }
            };
            self.link(place);
        }
        while self.held > self.blocks_max {
            let oldest = self.oldest;
            self.unlink(oldest);
            self.places[self.links[oldest as usize].block as usize] = NONE;
            self.free.push(oldest);
            self.held -= 1;
        }
    }

    /// A place for a block that is not held.
    fn place(&mut self, block: u32) -> u32 {
        let link = Link {
            block,
            newer: NONE,
            older: NONE,
        };
        let place = self.free.pop().unwrap_or(self.links.len() as u32);
        match self.links.get_mut(place as usize) {
            Some(free) => *free = link,
            None => self.links.push(link),
        }
        self.places[block as usize] = place;
        self.held += 1;
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
