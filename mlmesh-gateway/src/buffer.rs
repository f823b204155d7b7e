//! Bytes between two sockets. A buffer borrows its memory from the thread while it holds
//! something and gives it back when it is empty, so that idle connections cost none.

use std::cell::RefCell;

use crate::limits::{BUFFER_BYTES, SPARE_BUFFERS_MAX};

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
        self.end - self.start == BUFFER_BYTES
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

    /// Puts other bytes where `old` stood, counted from the first byte held.
    /// Says `false` and does nothing if they do not fit.
    pub(crate) fn splice(&mut self, old: std::ops::Range<usize>, new: &[u8]) -> bool {
        let (start, end) = (self.start, self.end);
        let Some(memory) = self.memory.as_deref_mut() else {
            return false;
        };
        let grown = end + new.len() - old.len();
        if grown > memory.len() {
            return false;
        }
        let tail = start + old.start + new.len();
        memory.copy_within(start + old.end..end, tail);
        memory[start + old.start..tail].copy_from_slice(new);
        self.end = grown;
        true
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

    fn give(&self, memory: Box<[u8]>) {
        let mut free = self.free.borrow_mut();
        if free.len() < SPARE_BUFFERS_MAX {
            free.push(memory);
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
    fn a_part_is_replaced_by_a_longer_and_by_a_shorter_one() {
        let spare = Spare::default();
        let mut buffer = holding(b"Host: a:1\r\n", &spare);
        assert!(buffer.splice(6..9, b"bcd:23"));
        assert_eq!(buffer.filled(), b"Host: bcd:23\r\n");
        assert!(buffer.splice(6..12, b"e"));
        assert_eq!(buffer.filled(), b"Host: e\r\n");
        let mut full = holding(&vec![7; BUFFER_BYTES], &spare);
        assert!(!full.splice(0..1, b"22"));
    }
}
