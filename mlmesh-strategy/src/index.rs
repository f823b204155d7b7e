//! Which target probably holds which block: tables of a fixed size that every thread
//! reads and writes without a lock.
//!
//! Each target has a table of its own, in sets of eight slots, one cache line each. A
//! slot is half a block's hash and the target's clock when the block was last sent
//! there; the clock counts blocks that were new to the target, so that the difference
//! says how much has been put on top since. A full set gives up its oldest slot.
//!
//! How much a target really holds is learnt: a block that was believed to be there and
//! was not says that targets forget sooner, one that was there against belief that they
//! forget later.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::ask::{BlockHash, TargetId};
use crate::mix::mixed;

const WAYS: usize = 8;

/// What a fixed number of targets hold.
#[derive(Debug)]
pub struct BlockIndex {
    targets: Box<[Table]>,
}

#[derive(Debug)]
struct Table {
    slots: Box<[AtomicU64]>,
    /// New blocks that were sent there.
    clock: AtomicU32,
    /// After how many new blocks a block is forgotten.
    kept: AtomicU32,
}

/// What was believed of a prompt when it was sent, for [`BlockIndex::correct`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Belief {
    /// Blocks from the beginning that were believed to be there.
    pub held_blocks: u32,
    /// Age of the oldest of those.
    pub held_age: u32,
    /// Age of the first block that was remembered and believed to be forgotten; zero
    /// where there was none.
    pub forgotten_age: u32,
}

/// A new estimate counts for a quarter.
const KEPT_WEIGHT: u32 = 4;
/// Nothing says yet how much a target holds.
const UNKNOWN: u32 = u32::MAX;

impl BlockIndex {
    /// Tables for so many targets, together within so many bytes.
    #[must_use]
    pub fn new(targets: u16, bytes_max: usize) -> Self {
        let slots = bytes_max / size_of::<AtomicU64>() / usize::from(targets.max(1));
        let sets = (slots / WAYS).max(1);
        let sets = 1 << sets.ilog2();
        let table = |_| Table {
            slots: (0..sets * WAYS).map(|_| AtomicU64::new(0)).collect(),
            clock: AtomicU32::new(1),
            kept: AtomicU32::new(UNKNOWN),
        };
        Self {
            targets: (0..targets).map(table).collect(),
        }
    }

    /// How many blocks from the beginning the target holds. A target that holds a block
    /// holds all before it, since ends are given up first; so the end is searched for
    /// by halves.
    #[must_use]
    pub fn held(&self, target: TargetId, blocks: &[BlockHash]) -> usize {
        let Some(table) = self.targets.get(target.index()) else {
            return 0;
        };
        let holds = |block: &BlockHash| table.age(*block).is_some_and(|age| table.keeps(age));
        match blocks {
            [] => 0,
            [first, ..] if !holds(first) => 0,
            [.., last] if holds(last) => blocks.len(),
            _ => blocks.partition_point(holds),
        }
    }

    /// The prompt goes to the target, which will hold it.
    pub fn touch(&self, target: TargetId, blocks: &[BlockHash]) -> Belief {
        let Some(table) = self.targets.get(target.index()) else {
            return Belief::default();
        };
        let mut belief = Belief::default();
        let mut goes_on = true;
        for block in blocks {
            match table.age(*block) {
                Some(age) if goes_on && table.keeps(age) => {
                    belief.held_blocks += 1;
                    belief.held_age = belief.held_age.max(age);
                }
                Some(age) if goes_on => {
                    belief.forgotten_age = age.max(1);
                    goes_on = false;
                }
                Some(_) => {}
                None => goes_on = false,
            }
        }
        let new = blocks.len() as u32 - belief.held_blocks;
        let clock = table.clock.fetch_add(new, Ordering::Relaxed) + new;
        // What stands deeper is a little older, since it is given up first.
        for (depth, block) in (0..).zip(blocks) {
            table.put(*block, clock.saturating_sub(depth).max(1));
        }
        belief
    }

    /// The target has told how many blocks it held when the prompt came.
    pub fn correct(&self, target: TargetId, belief: Belief, held_blocks: u32) {
        let Some(table) = self.targets.get(target.index()) else {
            return;
        };
        let kept = table.kept.load(Ordering::Relaxed);
        let seen = if held_blocks < belief.held_blocks {
            belief.held_age
        } else if held_blocks > belief.held_blocks && belief.forgotten_age > 0 {
            belief.forgotten_age.saturating_add(1)
        } else {
            return;
        };
        let kept = match kept {
            UNKNOWN => seen,
            kept => kept / KEPT_WEIGHT * (KEPT_WEIGHT - 1) + seen / KEPT_WEIGHT,
        };
        table.kept.store(kept.max(1), Ordering::Relaxed);
    }

    /// The target has forgotten everything: it is another process now.
    pub fn forget(&self, target: TargetId) {
        if let Some(table) = self.targets.get(target.index()) {
            for slot in &table.slots {
                slot.store(0, Ordering::Relaxed);
            }
        }
    }
}

impl Table {
    fn keeps(&self, age: u32) -> bool {
        age <= self.kept.load(Ordering::Relaxed)
    }

    /// How many new blocks came after this one, if it is remembered.
    fn age(&self, block: BlockHash) -> Option<u32> {
        let (set, tag) = self.set(block);
        let found = set.iter().find_map(|slot| {
            let slot = slot.load(Ordering::Relaxed);
            (slot >> 32 == tag && slot != 0).then_some(slot as u32)
        });
        found.map(|stamp| self.clock.load(Ordering::Relaxed).saturating_sub(stamp))
    }

    fn put(&self, block: BlockHash, stamp: u32) {
        let (set, tag) = self.set(block);
        let (mut place, mut oldest) = (0, u32::MAX);
        for (way, slot) in set.iter().enumerate() {
            let slot = slot.load(Ordering::Relaxed);
            if slot >> 32 == tag && slot != 0 {
                place = way;
                break;
            }
            let stamp = slot as u32;
            if stamp < oldest {
                (place, oldest) = (way, stamp);
            }
        }
        set[place].store(tag << 32 | u64::from(stamp), Ordering::Relaxed);
    }

    fn set(&self, block: BlockHash) -> (&[AtomicU64], u64) {
        let spread = mixed(block.0);
        let first = spread as usize & (self.slots.len() / WAYS - 1);
        (&self.slots[first * WAYS..][..WAYS], spread >> 32)
    }
}
