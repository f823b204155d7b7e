//! An engine's memory in blocks: those that belong to one request, and those that are
//! known by their contents and may be shared. Of the latter the one that nobody uses
//! and that was used longest ago goes first.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use mlmesh_route::{BlockHash, mixed};

const NONE: u32 = u32::MAX;

/// Which blocks are taken, and by whom.
#[derive(Debug)]
pub(super) struct Memory {
    blocks: u64,
    cached_max: u64,
    /// Blocks of one request each.
    own: u64,
    places: HashMap<BlockHash, u32, BuildHasherDefault<Spread>>,
    entries: Vec<Entry>,
    vacant: Vec<u32>,
    /// Ends of the list of those that nobody uses.
    newest: u32,
    oldest: u32,
    unused: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    block: BlockHash,
    users: u32,
    newer: u32,
    older: u32,
}

impl Memory {
    /// Of so many blocks, of which at most `cached_max` are known by their contents.
    pub(super) fn new(blocks: u64, cached_max: u64) -> Self {
        Self {
            blocks,
            cached_max,
            own: 0,
            places: HashMap::default(),
            entries: Vec::new(),
            vacant: Vec::new(),
            newest: NONE,
            oldest: NONE,
            unused: 0,
        }
    }

    /// Blocks that somebody uses.
    pub(super) fn used(&self) -> u64 {
        self.own + self.places.len() as u64 - self.unused
    }

    /// Whether so many more can be had.
    pub(super) fn has(&self, blocks: u64) -> bool {
        self.used() + blocks <= self.blocks
    }

    /// Takes blocks that [`Memory::has`] has promised.
    pub(super) fn take(&mut self, blocks: u64) {
        self.own += blocks;
        while self.own + self.places.len() as u64 > self.blocks {
            self.evict();
        }
    }

    /// Gives blocks of one request back.
    pub(super) fn give(&mut self, blocks: u64) {
        self.own = self.own.strict_sub(blocks);
    }

    /// How many of these are here, from the first on without a gap.
    pub(super) fn held(&self, blocks: &[BlockHash]) -> usize {
        let here = |block: &&BlockHash| self.places.contains_key(block);
        blocks.iter().take_while(here).count()
    }

    /// Has somebody use blocks that are here.
    pub(super) fn share(&mut self, blocks: &[BlockHash]) {
        for block in blocks {
            let place = self.places[block];
            self.add_user(place);
        }
    }

    /// Makes a request's own block known by its contents; whether it is shared now.
    pub(super) fn publish(&mut self, block: BlockHash) -> bool {
        if let Some(place) = self.places.get(&block) {
            // Somebody else was as fast: one of the two is enough.
            let place = *place;
            self.add_user(place);
            self.give(1);
            return true;
        }
        if self.places.len() as u64 >= self.cached_max {
            if self.unused == 0 {
                return false;
            }
            self.evict();
        }
        let entry = Entry {
            block,
            users: 1,
            newer: NONE,
            older: NONE,
        };
        let place = match self.vacant.pop() {
            Some(place) => {
                self.entries[place as usize] = entry;
                place
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as u32
            }
        };
        self.places.insert(block, place);
        self.give(1);
        true
    }

    /// Takes a user away from each; the end of a prompt will go before its beginning.
    pub(super) fn leave(&mut self, blocks: &[BlockHash]) {
        for block in blocks.iter().rev() {
            let place = self.places[block];
            let entry = &mut self.entries[place as usize];
            entry.users -= 1;
            if entry.users == 0 {
                self.link(place);
            }
        }
    }

    fn add_user(&mut self, place: u32) {
        let entry = &mut self.entries[place as usize];
        entry.users += 1;
        if entry.users == 1 {
            self.unlink(place);
        }
    }

    fn evict(&mut self) {
        let place = self.oldest;
        assert!(place != NONE, "what is taken was promised");
        self.unlink(place);
        self.places.remove(&self.entries[place as usize].block);
        self.vacant.push(place);
    }

    fn link(&mut self, place: u32) {
        let older = self.newest;
        let entry = &mut self.entries[place as usize];
        (entry.newer, entry.older) = (NONE, older);
        match older {
            NONE => self.oldest = place,
            older => self.entries[older as usize].newer = place,
        }
        self.newest = place;
        self.unused += 1;
    }

    fn unlink(&mut self, place: u32) {
        let Entry { newer, older, .. } = self.entries[place as usize];
        match newer {
            NONE => self.newest = older,
            newer => self.entries[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.entries[older as usize].newer = newer,
        }
        self.unused -= 1;
    }
}

/// Spreads a block's number, which may be a small one.
#[derive(Debug, Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = mixed(self.0 ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = mixed(number);
    }
}
