//! Packs: files into which small objects are appended.
//!
//! One pack is open for writing. A batch becomes durable in this order, and is
//! acknowledged only after the last step:
//!
//! 1. records are written behind the acknowledged end of the pack
//! 2. the pack is synced
//! 3. the batch's entries are written behind the journal's end
//! 4. the journal is synced
//!
//! A crash before 4 leaves bytes that nothing points to. Recovery adopts whole
//! records among them (their digest proves them) and never cuts a file: bytes
//! that it cannot read stay where they are, and writing goes on in a new pack.
//! A full pack is sealed: its sorted index is written, synced and renamed into
//! place, then the journal goes.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mlmesh_model::{Digest, ObjectId};

use crate::fault;
use crate::format::{
    self, IndexEntry, JOURNAL_MAGIC, Location, MAGIC_BYTES, PACK_MAGIC, RECORD_HEADER_BYTES,
};
use crate::place;

/// A pack is sealed when it has this many bytes.
pub(crate) const PACK_BYTES_MAX: u64 = 512 << 20;
/// A pack is sealed when it holds this many objects.
pub(crate) const PACK_OBJECTS_MAX: usize = 1 << 16;
/// Records are gathered to pieces of this size before they are written.
const APPEND_BUFFER_BYTES: usize = 1 << 20;

/// A pack's file. Clones share the descriptor, so that a reader keeps what it
/// has found while a prune removes the name.
#[derive(Debug, Clone)]
pub(crate) struct PackFile {
    pub(crate) number: u32,
    pub(crate) file: Arc<File>,
}

/// A pack that no longer grows: 16 bytes of memory for each object.
#[derive(Debug)]
pub(crate) struct SealedPack {
    pub(crate) pack: PackFile,
    /// First eight bytes of each id, sorted.
    pub(crate) prefixes: Vec<u64>,
    /// Parallel to `prefixes`.
    pub(crate) locations: Vec<Location>,
}

/// What an open pack holds, acknowledged.
pub(crate) type OpenIndex = HashMap<ObjectId, Location>;

/// The pack that is written to.
#[derive(Debug)]
pub(crate) struct OpenPack {
    pub(crate) pack: PackFile,
    journal: File,
    pack_end: u64,
    journal_end: u64,
    objects: usize,
    /// Records not yet written, behind `pack_end + staged_bytes`.
    buffer: Vec<u8>,
    staged_bytes: u64,
    staged: Vec<IndexEntry>,
}

/// The first eight bytes of a digest, which are as good as random.
pub(crate) fn prefix(id: ObjectId) -> u64 {
    let mut bytes = [0_u8; 8];
    bytes.copy_from_slice(&id.0.as_bytes()[..8]);
    u64::from_be_bytes(bytes)
}

/// Index of the first of `sorted` that is not below `wanted`. Digests are spread
/// evenly, so the place to look first follows from the value; from there the steps
/// double. A few neighbouring cache lines instead of a whole binary search.
fn first_not_below(sorted: &[u64], wanted: u64) -> usize {
    let guess = ((u128::from(wanted) * sorted.len() as u128) >> 64) as usize;
    let (mut low, mut high, mut step) = (guess, guess, 8);
    while low > 0 && sorted[low - 1] >= wanted {
        high = low - 1;
        low = low.saturating_sub(step);
        step *= 2;
    }
    step = 8;
    while high < sorted.len() && sorted[high] < wanted {
        low = high + 1;
        high = sorted.len().min(high + step);
        step *= 2;
    }
    low += sorted[low..high].partition_point(|prefix| *prefix < wanted);
    low
}

pub(crate) fn pack_path(folder: &Path, number: u32, ending: &str) -> PathBuf {
    folder.join(format!("{number:08}.{ending}"))
}

impl PackFile {
    pub(crate) fn open(folder: &Path, number: u32) -> io::Result<Self> {
        let file = File::open(pack_path(folder, number, "pack"))?;
        Ok(Self {
            number,
            file: Arc::new(file),
        })
    }

    /// Reads the record's content; `None` when it is not the content of `id`.
    pub(crate) fn read(&self, id: ObjectId, location: Location) -> io::Result<Option<Vec<u8>>> {
        if self.header(location)? != Some((id, location.length)) {
            return Ok(None);
        }
        let mut content = vec![0_u8; location.length as usize];
        match self
            .file
            .read_exact_at(&mut content, location.content_offset())
        {
            Ok(()) => Ok((Digest::of(&content) == id.0).then_some(content)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The id and length that stand at `location`; `None` behind the end.
    pub(crate) fn header(&self, location: Location) -> io::Result<Option<(ObjectId, u32)>> {
        let mut header = [0_u8; RECORD_HEADER_BYTES];
        match self
            .file
            .read_exact_at(&mut header, u64::from(location.offset))
        {
            Ok(()) => Ok(Some(format::record_header(&header))),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whole records from `start` on, each checked against its digest, up to the
    /// first that is not one.
    pub(crate) fn scan(&self, start: u64) -> io::Result<Vec<IndexEntry>> {
        let end = self.file.metadata()?.len();
        let mut entries = Vec::new();
        let mut at = start.max(MAGIC_BYTES as u64);
        while let Ok(offset) = u32::try_from(at) {
            let Some((id, length)) = self.header(Location { offset, length: 0 })? else {
                break;
            };
            let location = Location { offset, length };
            if location.end() > end || self.read(id, location)?.is_none() {
                break;
            }
            entries.push((id, location));
            at = location.end();
        }
        Ok(entries)
    }
}

impl SealedPack {
    /// Takes entries sorted by id.
    pub(crate) fn new(pack: PackFile, entries: &[IndexEntry]) -> Self {
        let prefixes = entries.iter().map(|(id, _)| prefix(*id)).collect();
        let locations = entries.iter().map(|(_, location)| *location).collect();
        Self {
            pack,
            prefixes,
            locations,
        }
    }

    /// Where `id` is, confirmed by the record's own header.
    pub(crate) fn find(&self, id: ObjectId) -> io::Result<Option<Location>> {
        let wanted = prefix(id);
        let first = first_not_below(&self.prefixes, wanted);
        for index in first..self.prefixes.len() {
            if self.prefixes[index] != wanted {
                break;
            }
            let location = self.locations[index];
            if self.pack.header(location)? == Some((id, location.length)) {
                return Ok(Some(location));
            }
        }
        Ok(None)
    }
}

impl OpenPack {
    /// Creates pack and journal and makes their names durable.
    pub(crate) fn create(folder: &Path, number: u32) -> io::Result<Self> {
        let create = |ending| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(pack_path(folder, number, ending))
        };
        let file = create("pack")?;
        file.write_all_at(PACK_MAGIC, 0)?;
        fault::point("cas.pack.create");
        let journal = create("log")?;
        journal.write_all_at(JOURNAL_MAGIC, 0)?;
        place::sync_folder(folder)?;
        Ok(Self::at(
            PackFile {
                number,
                file: Arc::new(file),
            },
            journal,
            MAGIC_BYTES as u64,
            MAGIC_BYTES as u64,
            0,
        ))
    }

    /// Goes on behind what recovery has found whole.
    pub(crate) fn reopen(
        folder: &Path,
        number: u32,
        pack_end: u64,
        journal_end: u64,
        objects: usize,
    ) -> io::Result<Self> {
        let open = |ending| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(pack_path(folder, number, ending))
        };
        let pack = PackFile {
            number,
            file: Arc::new(open("pack")?),
        };
        Ok(Self::at(pack, open("log")?, pack_end, journal_end, objects))
    }

    fn at(pack: PackFile, journal: File, pack_end: u64, journal_end: u64, objects: usize) -> Self {
        Self {
            pack,
            journal,
            pack_end,
            journal_end,
            objects,
            buffer: Vec::new(),
            staged_bytes: 0,
            staged: Vec::new(),
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        let bytes = self.pack_end + self.staged_bytes + self.buffer.len() as u64;
        bytes >= PACK_BYTES_MAX || self.objects + self.staged.len() >= PACK_OBJECTS_MAX
    }

    /// Adds a record to the batch; `content` is shorter than a loose object.
    pub(crate) fn stage(&mut self, id: ObjectId, content: &[u8]) -> io::Result<()> {
        let offset = self.pack_end + self.staged_bytes + self.buffer.len() as u64;
        let location = Location {
            offset: offset as u32,
            length: content.len() as u32,
        };
        format::push_record_header(id, location.length, &mut self.buffer);
        self.buffer.extend_from_slice(content);
        self.staged.push((id, location));
        if self.buffer.len() >= APPEND_BUFFER_BYTES {
            self.write_buffer()
        } else {
            Ok(())
        }
    }

    /// Makes the batch durable and hands its entries out for lookups.
    pub(crate) fn commit(&mut self) -> io::Result<Vec<IndexEntry>> {
        if self.staged.is_empty() {
            return Ok(Vec::new());
        }
        if fault::armed("cas.pack.torn") {
            self.buffer.truncate(self.buffer.len() / 2);
            let _ = self.write_buffer();
            std::process::abort();
        }
        self.write_buffer()?;
        fault::point("cas.pack.append");
        self.pack.file.sync_data()?;
        fault::point("cas.pack.fsync");
        let mut batch = Vec::with_capacity(64 + self.staged.len() * 40);
        format::push_journal_batch(&self.staged, &mut batch);
        if fault::armed("cas.journal.torn") {
            let _ = self
                .journal
                .write_all_at(&batch[..batch.len() / 2], self.journal_end);
            std::process::abort();
        }
        self.journal.write_all_at(&batch, self.journal_end)?;
        fault::point("cas.journal.append");
        self.journal.sync_data()?;
        fault::point("cas.journal.fsync");
        self.pack_end += self.staged_bytes;
        self.journal_end += batch.len() as u64;
        self.objects += self.staged.len();
        self.staged_bytes = 0;
        Ok(std::mem::take(&mut self.staged))
    }

    /// Forgets the batch, for an object that is not what it says or a full disk.
    pub(crate) fn abandon(&mut self) {
        self.buffer.clear();
        self.staged.clear();
        self.staged_bytes = 0;
        // Bytes that stay behind the end are overwritten by the next batch.
        let _ = self.pack.file.set_len(self.pack_end);
        let _ = self.journal.set_len(self.journal_end);
    }

    fn write_buffer(&mut self) -> io::Result<()> {
        self.pack
            .file
            .write_all_at(&self.buffer, self.pack_end + self.staged_bytes)?;
        self.staged_bytes += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

/// Writes the index of pack `number` and removes its journal.
pub(crate) fn seal(
    folder: &Path,
    pack: PackFile,
    entries: &mut [IndexEntry],
) -> io::Result<SealedPack> {
    let number = pack.number;
    let bytes = format::encode_index(entries);
    let temporary = pack_path(folder, number, "idx.tmp");
    place::write_synced(&temporary, &bytes)?;
    fault::point("cas.seal.index");
    fs::rename(&temporary, pack_path(folder, number, "idx"))?;
    fault::point("cas.seal.rename");
    place::sync_folder(folder)?;
    match fs::remove_file(pack_path(folder, number, "log")) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    fault::point("cas.seal.unlink");
    Ok(SealedPack::new(pack, entries))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_guessed_search_finds_what_a_plain_one_finds(
            mut sorted in proptest::collection::vec(prop_oneof![any::<u64>(), 0..50_u64], 0..200),
            wanted in prop_oneof![any::<u64>(), 0..50_u64],
        ) {
            sorted.sort_unstable();
            for wanted in sorted.iter().copied().chain([wanted, 0, u64::MAX]) {
                let expected = sorted.partition_point(|prefix| *prefix < wanted);
                prop_assert_eq!(first_not_below(&sorted, wanted), expected);
            }
        }
    }
}
