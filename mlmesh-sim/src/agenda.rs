//! What happens when: a heap of times. Of two things at the same time the one that was
//! written down first happens first, so that nothing depends on the heap's order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Times with what happens then.
#[derive(Debug)]
pub(crate) struct Agenda<T> {
    heap: BinaryHeap<Reverse<Entry<T>>>,
    written: u64,
}

#[derive(Debug)]
struct Entry<T> {
    at_us: u64,
    written: u64,
    what: T,
}

impl<T> Default for Agenda<T> {
    fn default() -> Self {
        Self {
            heap: BinaryHeap::new(),
            written: 0,
        }
    }
}

impl<T> Agenda<T> {
    /// Writes down what happens then.
    pub(crate) fn push(&mut self, at_us: u64, what: T) {
        self.written += 1;
        self.heap.push(Reverse(Entry {
            at_us,
            written: self.written,
            what,
        }));
    }

    /// The next thing that happens, if it is not after `until_us`.
    pub(crate) fn pop_until(&mut self, until_us: u64) -> Option<(u64, T)> {
        if self.heap.peek()?.0.at_us > until_us {
            return None;
        }
        self.heap
            .pop()
            .map(|Reverse(entry)| (entry.at_us, entry.what))
    }
}

impl<T> Entry<T> {
    const fn key(&self) -> (u64, u64) {
        (self.at_us, self.written)
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}
