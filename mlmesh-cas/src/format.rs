//! Byte forms of the files under `packs/`. Little-endian; every file starts with
//! eight bytes: six of magic, a zero, the format byte (now 1).
//!
//! ```text
//! NNNNNNNN.pack  "mlpack" 0 1, then records: [u8; 32] id, u32 length, content
//! NNNNNNNN.log   "mljrnl" 0 1, then batches: u32 count, count entries,
//!                [u8; 16] start of the SHA-256 of count and entries
//! NNNNNNNN.idx   "mlindx" 0 1, u64 count, entries sorted by id, SHA-256 of all before
//! entry          [u8; 32] id, u32 offset of the record, u32 length of the content
//! ```
//!
//! A pack that is written to has a journal: a batch of entries per acknowledged
//! batch of objects. A sealed pack has an index instead. Since a record's id is
//! the SHA-256 of its content, both can be rebuilt from the pack.

use mlmesh_model::{Digest, ObjectId};

/// Where a pack holds an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Location {
    /// Of the record; the content follows its header.
    pub(crate) offset: u32,
    /// Of the content.
    pub(crate) length: u32,
}

/// One line of a journal or an index.
pub(crate) type IndexEntry = (ObjectId, Location);

pub(crate) const PACK_MAGIC: &[u8; 8] = b"mlpack\0\x01";
pub(crate) const JOURNAL_MAGIC: &[u8; 8] = b"mljrnl\0\x01";
pub(crate) const INDEX_MAGIC: &[u8; 8] = b"mlindx\0\x01";
pub(crate) const MAGIC_BYTES: usize = 8;
pub(crate) const RECORD_HEADER_BYTES: usize = 36;
const ENTRY_BYTES: usize = 40;
const BATCH_CHECKSUM_BYTES: usize = 16;
const INDEX_CHECKSUM_BYTES: usize = 32;

impl Location {
    /// Offset of the content.
    pub(crate) const fn content_offset(self) -> u64 {
        self.offset as u64 + RECORD_HEADER_BYTES as u64
    }

    /// Offset behind the content.
    pub(crate) const fn end(self) -> u64 {
        self.content_offset() + self.length as u64
    }
}

pub(crate) fn push_record_header(id: ObjectId, length: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(id.0.as_bytes());
    out.extend_from_slice(&length.to_le_bytes());
}

pub(crate) fn record_header(bytes: &[u8; RECORD_HEADER_BYTES]) -> (ObjectId, u32) {
    let (id, length) = bytes.split_at(32);
    (object_id(id), u32_from(length))
}

/// Appends the journal's batch for `entries`.
pub(crate) fn push_journal_batch(entries: &[IndexEntry], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    for entry in entries {
        push_entry(entry, out);
    }
    let checksum = Digest::of(&out[start..]);
    out.extend_from_slice(&checksum.as_bytes()[..BATCH_CHECKSUM_BYTES]);
}

/// What a journal holds, and how many of its bytes are whole batches. A journal
/// may end in the middle of a batch that was never acknowledged.
pub(crate) fn parse_journal(bytes: &[u8]) -> (Vec<IndexEntry>, usize) {
    let mut entries = Vec::new();
    if !bytes.starts_with(JOURNAL_MAGIC) {
        return (entries, 0);
    }
    let mut good = MAGIC_BYTES;
    while let Some((batch, bytes_used)) = parse_batch(&bytes[good..]) {
        entries.extend(batch.chunks_exact(ENTRY_BYTES).map(parse_entry));
        good += bytes_used;
    }
    (entries, good)
}

fn parse_batch(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let (count, _) = bytes.split_first_chunk::<4>()?;
    let body_bytes = 4 + (u32::from_le_bytes(*count) as usize).checked_mul(ENTRY_BYTES)?;
    let (body, rest) = bytes.split_at_checked(body_bytes)?;
    let checksum = rest.get(..BATCH_CHECKSUM_BYTES)?;
    let whole = Digest::of(body).as_bytes()[..BATCH_CHECKSUM_BYTES] == *checksum;
    whole.then_some((&body[4..], body_bytes + BATCH_CHECKSUM_BYTES))
}

/// The index of a sealed pack; sorts `entries`.
pub(crate) fn encode_index(entries: &mut [IndexEntry]) -> Vec<u8> {
    entries.sort_unstable_by_key(|(id, _)| *id);
    let mut bytes =
        Vec::with_capacity(MAGIC_BYTES + 8 + entries.len() * ENTRY_BYTES + INDEX_CHECKSUM_BYTES);
    bytes.extend_from_slice(INDEX_MAGIC);
    bytes.extend_from_slice(&(entries.len() as u64).to_le_bytes());
    for entry in entries.iter() {
        push_entry(entry, &mut bytes);
    }
    let checksum = Digest::of(&bytes);
    bytes.extend_from_slice(checksum.as_bytes());
    bytes
}

/// Reads an index; `None` when a single bit is wrong.
pub(crate) fn parse_index(bytes: &[u8]) -> Option<Vec<IndexEntry>> {
    let (body, checksum) =
        bytes.split_at_checked(bytes.len().checked_sub(INDEX_CHECKSUM_BYTES)?)?;
    if Digest::of(body).as_bytes() != checksum {
        return None;
    }
    let (count, entries) = body.strip_prefix(INDEX_MAGIC)?.split_first_chunk::<8>()?;
    let count = usize::try_from(u64::from_le_bytes(*count)).ok()?;
    if entries.len() != count.checked_mul(ENTRY_BYTES)? {
        return None;
    }
    let entries: Vec<_> = entries.chunks_exact(ENTRY_BYTES).map(parse_entry).collect();
    entries
        .is_sorted_by(|left, right| left.0 < right.0)
        .then_some(entries)
}

fn push_entry((id, location): &IndexEntry, out: &mut Vec<u8>) {
    out.extend_from_slice(id.0.as_bytes());
    out.extend_from_slice(&location.offset.to_le_bytes());
    out.extend_from_slice(&location.length.to_le_bytes());
}

/// `bytes` has [`ENTRY_BYTES`] bytes.
fn parse_entry(bytes: &[u8]) -> IndexEntry {
    let location = Location {
        offset: u32_from(&bytes[32..36]),
        length: u32_from(&bytes[36..40]),
    };
    (object_id(&bytes[..32]), location)
}

fn object_id(bytes: &[u8]) -> ObjectId {
    let mut id = [0_u8; 32];
    id.copy_from_slice(bytes);
    ObjectId(Digest::from_bytes(id))
}

fn u32_from(bytes: &[u8]) -> u32 {
    let mut number = [0_u8; 4];
    number.copy_from_slice(bytes);
    u32::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<IndexEntry> {
        (0..5_u32)
            .map(|n| {
                (
                    ObjectId(Digest::of(&n.to_le_bytes())),
                    Location {
                        offset: n * 100,
                        length: 60,
                    },
                )
            })
            .collect()
    }

    #[test]
    fn an_index_reads_back_and_no_bit_may_flip() {
        let mut expected = entries();
        let bytes = encode_index(&mut expected);
        assert_eq!(parse_index(&bytes), Some(expected));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse_index(&flipped), None, "bit {bit}");
        }
    }

    #[test]
    fn a_journal_cut_anywhere_gives_its_whole_batches() {
        let all = entries();
        let mut bytes = JOURNAL_MAGIC.to_vec();
        let mut ends = vec![(bytes.len(), 0)];
        for count in [2, 3] {
            let start = ends.last().unwrap().1;
            push_journal_batch(&all[start..start + count], &mut bytes);
            ends.push((bytes.len(), start + count));
        }
        for cut in JOURNAL_MAGIC.len()..=bytes.len() {
            let (end, count) = *ends.iter().rfind(|(end, _)| *end <= cut).unwrap();
            assert_eq!(
                parse_journal(&bytes[..cut]),
                (all[..count].to_vec(), end),
                "cut {cut}"
            );
        }
    }
}
