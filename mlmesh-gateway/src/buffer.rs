//! Bytes between two sockets. A buffer borrows its memory from the thread while it holds
//! something and gives it back when it is empty, so that idle connections cost none. It
//! grows only where it is told to, for a body that has to be there as a whole.

use std::cell::{Cell, RefCell};

use crate::limits::{
    BUFFER_BYTES, GROWN_BYTES, GROWN_BYTES_MAX, SPARE_BUFFERS_MAX, SPARE_GROWN_MAX,
};

/// Bytes that were received and not yet passed on.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    memory: Option<Box<[u8]>>,
    start: usize,
    end: usize,
}

/// Memory that no buffer of this thread holds.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    free: RefCell<Vec<Box<[u8]>>>,
    /// Of [`GROWN_BYTES`] each.
    grown: RefCell<Vec<Box<[u8]>>>,
    /// Bytes of grown memory that buffers hold.
    lent: Cell<usize>,
}

impl Buffer {
    pub(crate) fn filled(&self) -> &[u8] {
        self.memory
            .as_deref()
            .map_or(&[], |memory| &memory[self.start..self.end])
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether nothing can be received before something is passed on.
    pub(crate) fn is_full(&self) -> bool {
        let memory = self.memory.as_deref();
        memory.is_some_and(|memory| self.end - self.start == memory.len())
    }

    /// Makes room for more than `bytes` in all. Says `false` and does nothing if the
    /// thread has lent as much as it may.
    pub(crate) fn grow(&mut self, bytes: usize, spare: &Spare) -> bool {
        if self.memory.as_deref().map_or(BUFFER_BYTES, <[u8]>::len) > bytes {
            return true;
        }
        let Some(mut memory) = spare.take_grown(bytes) else {
            return false;
        };
        let filled = self.filled().len();
        memory[..filled].copy_from_slice(self.filled());
        self.clear(spare);
        (self.memory, self.end) = (Some(memory), filled);
        true
    }

    /// Where more can be received; empty only if the buffer is full.
    pub(crate) fn room(&mut self, spare: &Spare) -> &mut [u8] {
        let memory = self.memory.get_or_insert_with(|| spare.take());
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == memory.len() && self.start > 0 {
            memory.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut memory[self.end..]
    }

    /// So many bytes were received into [`Buffer::room`].
    pub(crate) fn received(&mut self, bytes: usize) {
        self.end += bytes;
    }

    /// So many bytes were passed on.
    pub(crate) fn passed(&mut self, bytes: usize) {
        self.start += bytes;
    }

    /// Appends as much as there is room for, and says how much that was.
    pub(crate) fn append(&mut self, bytes: &[u8], spare: &Spare) -> usize {
        let room = self.room(spare);
        let fits = bytes.len().min(room.len());
        room[..fits].copy_from_slice(&bytes[..fits]);
        self.end += fits;
        fits
    }

    /// Forgets what stands behind the first so many bytes.
    pub(crate) fn truncate(&mut self, bytes: usize) {
        self.end = self.end.min(self.start + bytes);
    }

    /// Takes back bytes that were marked as passed on.
    pub(crate) fn rewind(&mut self, bytes: usize) {
        self.start -= bytes;
    }

    /// Forgets what is held and gives the memory back.
    pub(crate) fn clear(&mut self, spare: &Spare) {
        (self.start, self.end) = (0, 0);
        if let Some(memory) = self.memory.take() {
            spare.give(memory);
        }
    }

    /// Gives the memory back if nothing is held.
    pub(crate) fn rest(&mut self, spare: &Spare) {
        if self.is_empty() {
            self.clear(spare);
        }
    }
}

impl Spare {
    fn take(&self) -> Box<[u8]> {
        let free = self.free.borrow_mut().pop();
        free.unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice())
    }

    /// Counts bytes that are held elsewhere among those that are lent. Says `false` and
    /// counts nothing if the thread has lent as much as it may.
    pub(crate) fn lend(&self, bytes: usize) -> bool {
        let lent = self.lent.get() + bytes;
        let may = lent <= GROWN_BYTES_MAX;
        if may {
            self.lent.set(lent);
        }
        may
    }

    /// They are held no more.
    pub(crate) fn lent_back(&self, bytes: usize) {
        self.lent.set(self.lent.get() - bytes);
    }

    /// More than so many bytes, as long as not too much is lent.
    fn take_grown(&self, bytes: usize) -> Option<Box<[u8]>> {
        let size = (bytes + 1).next_power_of_two().max(GROWN_BYTES);
        if !self.lend(size) {
            return None;
        }
        let kept = match size {
            GROWN_BYTES => self.grown.borrow_mut().pop(),
            _ => None,
        };
        Some(kept.unwrap_or_else(|| vec![0; size].into_boxed_slice()))
    }

    fn give(&self, memory: Box<[u8]>) {
        let (spare, count_max) = match memory.len() {
            BUFFER_BYTES => (&self.free, SPARE_BUFFERS_MAX),
            size => {
                self.lent_back(size);
                (&self.grown, SPARE_GROWN_MAX)
            }
        };
        let mut spare = spare.borrow_mut();
        if memory.len() <= GROWN_BYTES && spare.len() < count_max {
            spare.push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(bytes: &[u8], spare: &Spare) -> Buffer {
        let mut buffer = Buffer::default();
        assert_eq!(buffer.append(bytes, spare), bytes.len());
        buffer
    }

    #[test]
    fn memory_is_held_only_with_bytes() {
        let spare = Spare::default();
        let mut buffer = holding(b"abc", &spare);
        buffer.passed(3);
        buffer.rest(&spare);
        assert_eq!(spare.free.borrow().len(), 1);
        assert!(buffer.filled().is_empty());
        let again = holding(b"d", &spare);
        assert_eq!(spare.free.borrow().len(), 0);
        assert_eq!(again.filled(), b"d");
    }

    #[test]
    fn what_was_passed_on_makes_room() {
        let spare = Spare::default();
        let mut buffer = holding(&vec![7; BUFFER_BYTES], &spare);
        assert!(buffer.is_full());
        assert!(buffer.room(&spare).is_empty());
        buffer.passed(10);
        assert_eq!(buffer.room(&spare).len(), 10);
        assert_eq!(buffer.filled().len(), BUFFER_BYTES - 10);
    }

    #[test]
    fn a_buffer_grows_within_what_a_thread_lends() {
        let spare = Spare::default();
        let mut buffer = holding(&vec![7; BUFFER_BYTES], &spare);
        buffer.passed(1);
        assert!(buffer.grow(BUFFER_BYTES - 1, &spare));
        assert_eq!(buffer.room(&spare).len(), 1);
        assert!(buffer.grow(BUFFER_BYTES, &spare));
        assert_eq!(buffer.filled(), vec![7; BUFFER_BYTES - 1]);
        assert_eq!(buffer.room(&spare).len(), GROWN_BYTES - BUFFER_BYTES + 1);
        assert_eq!(spare.free.borrow().len(), 1);
        assert!(!Buffer::default().grow(GROWN_BYTES_MAX - GROWN_BYTES, &spare));
        buffer.clear(&spare);
        assert_eq!((spare.lent.get(), spare.grown.borrow().len()), (0, 1));
        let mut whole = Buffer::default();
        assert!(whole.grow(GROWN_BYTES_MAX - 1, &spare));
        assert!(!Buffer::default().grow(GROWN_BYTES - 1, &spare));
        whole.clear(&spare);
        assert_eq!((spare.lent.get(), spare.grown.borrow().len()), (0, 1));
    }
}
