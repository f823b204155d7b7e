//! One line of the queue: by class first, then by tenant, then by what is next for that
//! tenant.

use std::collections::{BTreeMap, BTreeSet};

use mlmesh_strategy::{Class, TenantId};

/// Who goes before whom; the least goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    pub(crate) class: Class,
    /// The tenant's counter.
    pub(crate) counter: u64,
    pub(crate) key: u64,
}

impl Rank {
    pub(crate) const FIRST: Self = Self {
        class: Class::High,
        counter: 0,
        key: 0,
    };
    pub(crate) const LAST: Self = Self {
        class: Class::Low,
        counter: u64::MAX,
        key: u64::MAX,
    };
}

/// A request's place in a line: its key, its number among all that came, its slot.
pub(crate) type Entry = (u64, u64, usize);

#[derive(Debug, Default)]
pub(crate) struct Line {
    queues: BTreeMap<(Class, TenantId), BTreeSet<Entry>>,
    /// Whose turn it is: class, counter, tenant.
    turns: BTreeSet<(Class, u64, TenantId)>,
    /// When what it waits for can begin only after that, the one in this slot is looked
    /// at again.
    limits: BTreeSet<(u64, usize)>,
}

impl Line {
    pub(crate) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    pub(crate) fn insert(&mut self, whose: (Class, TenantId), counter: u64, entry: Entry) {
        let queue = self.queues.entry(whose).or_default();
        if queue.is_empty() {
            self.turns.insert((whose.0, counter, whose.1));
        }
        queue.insert(entry);
    }

    pub(crate) fn remove(&mut self, whose: (Class, TenantId), counter: u64, entry: Entry) {
        let Some(queue) = self.queues.get_mut(&whose) else {
            return;
        };
        queue.remove(&entry);
        if queue.is_empty() {
            self.queues.remove(&whose);
            self.turns.remove(&(whose.0, counter, whose.1));
        }
    }

    pub(crate) fn limit(&mut self, limit_us: u64, slot: usize) {
        if limit_us < u64::MAX {
            self.limits.insert((limit_us, slot));
        }
    }

    pub(crate) fn unlimit(&mut self, limit_us: u64, slot: usize) {
        self.limits.remove(&(limit_us, slot));
    }

    /// A tenant's counter is another one now.
    pub(crate) fn recount(&mut self, whose: (Class, TenantId), before: u64, after: u64) {
        if self.turns.remove(&(whose.0, before, whose.1)) {
            self.turns.insert((whose.0, after, whose.1));
        }
    }

    /// The first few, among them the first two.
    pub(crate) fn heads(&self) -> impl Iterator<Item = (Rank, Entry)> {
        self.turns
            .iter()
            .take(2)
            .flat_map(|(class, counter, tenant)| {
                let queue = self.queues.get(&(*class, *tenant));
                let first = queue.into_iter().flat_map(|queue| queue.iter().take(2));
                first.map(|entry| {
                    let rank = Rank {
                        class: *class,
                        counter: *counter,
                        key: entry.0,
                    };
                    (rank, *entry)
                })
            })
    }

    /// Somebody whose limit has passed, now that what it waits for begins then, or never.
    pub(crate) fn overdue(&self, begins_us: Option<u64>) -> Option<usize> {
        let Some(begins_us) = begins_us else {
            let queue = self.queues.first_key_value()?.1;
            return queue.first().map(|(_, _, slot)| *slot);
        };
        let (limit_us, slot) = self.limits.first()?;
        (*limit_us < begins_us).then_some(*slot)
    }
}
