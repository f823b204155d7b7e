//! Runs that wait for resources only, in order.
//!
//! Runs of one owner with one priority and one shape form a class; a class is
//! served in order of arrival, so that only the heads of classes need a rank.
//! Insertion, removal and choice cost the logarithm of the number of runs.

use std::collections::{BTreeMap, BTreeSet};

use mlmesh_model::{Micros, Resources, RunId};

use crate::order::{OwnerIndex, Rank, Usage};

/// Heads of classes that one choice looks at when the first does not fit.
const BACKFILL_MAX: usize = 256;

/// A run among those that are ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReadyRun {
    pub(crate) run: RunId,
    pub(crate) class: Class,
    pub(crate) arrival: u64,
    pub(crate) since: Micros,
}

/// What runs have in common that are served in order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Class {
    pub(crate) priority: i32,
    pub(crate) owner: OwnerIndex,
    cpu_milli: u64,
    memory_bytes: Option<u64>,
    gpus: u32,
}

impl Class {
    pub(crate) fn new(priority: i32, owner: OwnerIndex, resources: &Resources) -> Self {
        Self {
            priority,
            owner,
            cpu_milli: resources.cpu_milli,
            memory_bytes: resources.memory_bytes,
            gpus: resources.gpus,
        }
    }

    pub(crate) fn resources(&self) -> Resources {
        Resources {
            cpu_milli: self.cpu_milli,
            memory_bytes: self.memory_bytes,
            gpus: self.gpus,
            time_s: None,
        }
    }
}

/// The ready runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ready {
    classes: BTreeMap<Class, BTreeMap<u64, RunId>>,
    ranks: BTreeSet<(Rank, Class)>,
    owners: BTreeMap<OwnerIndex, BTreeSet<Class>>,
    oldest: BTreeSet<(Micros, u64, RunId)>,
}

impl Ready {
    pub(crate) fn len(&self) -> usize {
        self.oldest.len()
    }

    pub(crate) fn insert(&mut self, ready: ReadyRun, usage: &Usage) {
        let ReadyRun {
            run,
            class,
            arrival,
            since,
        } = ready;
        self.unrank(class, usage);
        self.classes.entry(class).or_default().insert(arrival, run);
        self.owners.entry(class.owner).or_default().insert(class);
        self.rank(class, usage);
        self.oldest.insert((since, arrival, run));
    }

    pub(crate) fn remove(&mut self, ready: ReadyRun, usage: &Usage) {
        let ReadyRun {
            run,
            class,
            arrival,
            since,
        } = ready;
        self.unrank(class, usage);
        if let Some(queue) = self.classes.get_mut(&class) {
            queue.remove(&arrival);
            if queue.is_empty() {
                self.classes.remove(&class);
                if let Some(classes) = self.owners.get_mut(&class.owner) {
                    classes.remove(&class);
                }
            }
        }
        self.rank(class, usage);
        self.oldest.remove(&(since, arrival, run));
    }

    /// Changes what an owner used, and with it the place of the owner's runs.
    pub(crate) fn charge(
        &mut self,
        owner: OwnerIndex,
        usage: &mut Usage,
        charge: impl FnOnce(&mut Usage),
    ) {
        let classes: Vec<Class> = self
            .owners
            .get(&owner)
            .map(|classes| classes.iter().copied().collect())
            .unwrap_or_default();
        for class in &classes {
            self.unrank(*class, usage);
        }
        charge(usage);
        for class in &classes {
            self.rank(*class, usage);
        }
    }

    /// Makes all ranks anew, after [`Usage::rebase`].
    pub(crate) fn rerank(&mut self, usage: &Usage) {
        self.ranks.clear();
        let classes: Vec<Class> = self.classes.keys().copied().collect();
        for class in classes {
            self.rank(class, usage);
        }
    }

    /// The run that goes first.
    pub(crate) fn first(&self) -> Option<(RunId, Class)> {
        let (_, class) = self.ranks.first()?;
        let run = self.classes.get(class)?.values().next()?;
        Some((*run, *class))
    }

    /// The first run that fits.
    pub(crate) fn first_fitting(&self, fits: impl Fn(&Resources) -> bool) -> Option<RunId> {
        self.ranks
            .iter()
            .take(BACKFILL_MAX)
            .find(|(_, class)| fits(&class.resources()))
            .and_then(|(_, class)| self.classes.get(class)?.values().next().copied())
    }

    /// The run that waits longest, and since when.
    pub(crate) fn oldest(&self) -> Option<(RunId, Micros)> {
        self.oldest.first().map(|(since, _, run)| (*run, *since))
    }

    fn head_rank(&self, class: Class, usage: &Usage) -> Option<Rank> {
        let arrival = *self.classes.get(&class)?.keys().next()?;
        Some(Rank::of(class.priority, usage.of(class.owner), arrival))
    }

    fn rank(&mut self, class: Class, usage: &Usage) {
        if let Some(rank) = self.head_rank(class, usage) {
            self.ranks.insert((rank, class));
        }
    }

    fn unrank(&mut self, class: Class, usage: &Usage) {
        if let Some(rank) = self.head_rank(class, usage) {
            self.ranks.remove(&(rank, class));
        }
    }
}
