//! What was written or asked for lately, and therefore survives a prune.
//!
//! Between a have-check and the run that refers to its objects lies time in which
//! nothing but the client knows that they are needed. So each put and each
//! have-check leaves the ids' prefixes here, in generations by age, and a prune
//! spares what is younger than its grace time or than the oldest sync under way.
//! Memory is bounded: a generation that grows too large stands for every object.
//!
//! The memory dies with the process. That is enough, since a run is accepted only
//! after its commit was asked for again (`has_commit`).

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

/// The longest grace time that a prune can ask for.
pub const GRACE_MAX: Duration = Duration::from_secs(60 * 60);
/// A generation takes ids for so long.
const GENERATION: Duration = Duration::from_secs(5 * 60);
/// Above this, a generation stands for everything.
const GENERATION_IDS_MAX: usize = 1 << 20;

#[derive(Debug, Default)]
pub(crate) struct Touched {
    /// Oldest first.
    generations: Vec<Generation>,
    /// Begin of each sync under way.
    syncs: BTreeMap<u64, Instant>,
    next_sync: u64,
}

#[derive(Debug)]
struct Generation {
    begun: Instant,
    prefixes: HashSet<u64>,
    everything: bool,
}

impl Touched {
    pub(crate) fn touch(&mut self, prefixes: impl IntoIterator<Item = u64>) {
        let now = Instant::now();
        if self
            .generations
            .last()
            .is_none_or(|last| now.duration_since(last.begun) >= GENERATION)
        {
            self.begin_generation(now);
        }
        let Some(last) = self.generations.last_mut() else {
            return;
        };
        if !last.everything {
            last.prefixes.extend(prefixes);
            if last.prefixes.len() > GENERATION_IDS_MAX {
                last.everything = true;
                last.prefixes = HashSet::new();
            }
        }
    }

    /// Closes the present generation, so that what comes now is younger than it;
    /// returns from when on ids are protected.
    pub(crate) fn begin_prune(&mut self, grace: Duration) -> Instant {
        let now = Instant::now();
        self.begin_generation(now);
        let begun = now.checked_sub(grace.min(GRACE_MAX)).unwrap_or(now);
        self.syncs
            .values()
            .copied()
            .min()
            .map_or(begun, |oldest| oldest.min(begun))
    }

    /// Whether something touched this id after `since`.
    pub(crate) fn protects(&self, prefix: u64, since: Instant) -> bool {
        self.since(since)
            .any(|generation| generation.everything || generation.prefixes.contains(&prefix))
    }

    /// Everything that was touched after `since`; `None` stands for every object.
    pub(crate) fn protected(&self, since: Instant) -> Option<HashSet<u64>> {
        let mut all = HashSet::new();
        for generation in self.since(since) {
            if generation.everything {
                return None;
            }
            all.extend(&generation.prefixes);
        }
        Some(all)
    }

    pub(crate) fn begin_sync(&mut self) -> u64 {
        self.next_sync += 1;
        self.syncs.insert(self.next_sync, Instant::now());
        self.next_sync
    }

    pub(crate) fn end_sync(&mut self, sync: u64) {
        self.syncs.remove(&sync);
    }

    /// Generations that took ids after `since`: those whose successor began later.
    fn since(&self, since: Instant) -> impl Iterator<Item = &Generation> {
        self.generations
            .iter()
            .enumerate()
            .filter_map(move |(index, generation)| {
                let ended = self.generations.get(index + 1).map(|next| next.begun);
                ended
                    .is_none_or(|ended| ended > since)
                    .then_some(generation)
            })
    }

    fn begin_generation(&mut self, now: Instant) {
        let grace = now.checked_sub(GRACE_MAX);
        let needed = self
            .syncs
            .values()
            .copied()
            .min()
            .into_iter()
            .chain(grace)
            .min();
        if let Some(needed) = needed {
            let old = self
                .generations
                .windows(2)
                .take_while(|pair| pair[1].begun <= needed)
                .count();
            self.generations.drain(..old);
        }
        self.generations.push(Generation {
            begun: now,
            prefixes: HashSet::new(),
            everything: false,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_touched_after_a_prune_began_is_protected_whatever_the_grace() {
        let mut touched = Touched::default();
        touched.touch([1]);
        let since = touched.begin_prune(Duration::ZERO);
        touched.touch([2]);
        assert!(!touched.protects(1, since) && touched.protects(2, since));
        let since = touched.begin_prune(GRACE_MAX);
        assert!(touched.protects(1, since) && touched.protects(2, since));
    }

    #[test]
    fn a_sync_under_way_protects_what_came_since_its_begin() {
        let mut touched = Touched::default();
        touched.touch([1]);
        touched.begin_prune(Duration::ZERO);
        let sync = touched.begin_sync();
        touched.touch([2]);
        let since = touched.begin_prune(Duration::ZERO);
        assert!(touched.protects(2, since));
        touched.end_sync(sync);
        let since = touched.begin_prune(Duration::ZERO);
        assert!(!touched.protects(2, since));
    }

    #[test]
    fn too_many_ids_stand_for_everything() {
        let mut touched = Touched::default();
        touched.touch(0..=GENERATION_IDS_MAX as u64);
        let since = touched.begin_prune(GRACE_MAX);
        assert!(touched.protects(u64::MAX, since));
        assert_eq!(touched.protected(since), None);
    }
}
