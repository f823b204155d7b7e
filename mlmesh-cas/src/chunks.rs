//! Chunks: sending only what changed of a large object.
//!
//! Both sides cut a file by content (FastCDC, Xia et al. 2016), so that a change
//! moves only the cuts beside it. The client sends the list of chunks and the
//! objects that the file was before; the server answers which chunks those
//! objects do not have; the client sends these in a frame; the server puts the
//! object together, checks its digest and stores it whole. An object in the store
//! is always one piece, so that checkouts can reflink it and scrub stays simple.
//!
//! ```text
//! "mlchnk" 0 1, [u8; 32] object, u64 size, u32 count,
//! count times [u8; 32] digest, u32 length; SHA-256 of all before
//! ```
//!
//! This is what travels, and what is kept under `chunks/` for objects that were
//! asked for. A gigabyte has about 8,000 chunks, 300 KB of list.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use fastcdc::v2020::{Normalization, select_masks};
use mlmesh_model::{Digest, ObjectId};
use sha2::{Digest as _, Sha256};

use crate::error::{StoreError, io_error};
use crate::frame::{FrameLimits, FrameReader};
use crate::place;
use crate::store::{Found, ObjectStore};

/// Chunks are never shorter, but for the last one.
pub const CHUNK_BYTES_MIN: usize = 64 << 10;
/// Chunks are about this long.
pub const CHUNK_BYTES_AVERAGE: usize = 128 << 10;
/// Chunks are never longer.
pub const CHUNK_BYTES_MAX: usize = 256 << 10;
/// From this size on a changed file is worth a list of chunks.
pub const CHUNKED_BYTES_MIN: u64 = 2 << 20;
/// The longest list, of about 256 GiB. Larger objects are sent whole.
pub const CHUNKS_MAX: usize = 2 << 20;
/// Objects that one transfer may name as what the file was before.
pub const BASES_MAX: usize = 16;

/// The chunks of an object, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkManifest {
    /// Digest of the whole.
    pub object: ObjectId,
    /// Bytes of the whole.
    pub size: u64,
    /// Digest and length of each chunk.
    pub chunks: Vec<(Digest, u32)>,
}

const MAGIC: &[u8; 8] = b"mlchnk\0\x01";
const HEAD_BYTES: usize = 8 + 32 + 8 + 4;
const CHUNK_ENTRY_BYTES: usize = 36;
const CHECKSUM_BYTES: usize = 32;

/// Cuts the file at `path`. The digest in the result is that of the bytes read.
pub fn chunk_manifest(path: &Path) -> io::Result<ChunkManifest> {
    cut(File::open(path)?)
}

/// Cuts what `input` gives, with one buffer of a few chunks.
fn cut(mut input: impl Read) -> io::Result<ChunkManifest> {
    const BUFFER_BYTES: usize = 8 * CHUNK_BYTES_MAX;
    let (mask_small, mask_large) = select_masks(CHUNK_BYTES_AVERAGE, Normalization::Level1);
    let mut buffer = vec![0_u8; BUFFER_BYTES];
    let (mut start, mut end, mut ended) = (0, 0, false);
    let mut hasher = Sha256::new();
    let mut manifest = ChunkManifest {
        object: ObjectId(Digest::from_bytes([0; 32])),
        size: 0,
        chunks: Vec::new(),
    };
    loop {
        if end - start < CHUNK_BYTES_MAX && !ended {
            buffer.copy_within(start..end, 0);
            (start, end) = (0, end - start);
            while end < BUFFER_BYTES && !ended {
                match input.read(&mut buffer[end..]) {
                    Ok(0) => ended = true,
                    Ok(read) => end += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let rest = &buffer[start..end];
        if rest.is_empty() {
            break;
        }
        if manifest.chunks.len() == CHUNKS_MAX {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "the object is too large for a list of chunks",
            ));
        }
        let (_, length) = fastcdc::v2020::cut(
            rest,
            CHUNK_BYTES_MIN,
            CHUNK_BYTES_AVERAGE,
            CHUNK_BYTES_MAX,
            mask_small,
            mask_large,
            mask_small << 1,
            mask_large << 1,
        );
        let chunk = &rest[..length];
        hasher.update(chunk);
        manifest.chunks.push((Digest::of(chunk), length as u32));
        manifest.size += length as u64;
        start += length;
    }
    manifest.object = ObjectId(Digest::from_bytes(hasher.finalize().into()));
    Ok(manifest)
}

impl ChunkManifest {
    /// The form in which a list travels.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes =
            Vec::with_capacity(HEAD_BYTES + self.chunks.len() * CHUNK_ENTRY_BYTES + CHECKSUM_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(self.object.0.as_bytes());
        bytes.extend_from_slice(&self.size.to_le_bytes());
        bytes.extend_from_slice(&(self.chunks.len() as u32).to_le_bytes());
        for (digest, length) in &self.chunks {
            bytes.extend_from_slice(digest.as_bytes());
            bytes.extend_from_slice(&length.to_le_bytes());
        }
        let checksum = Digest::of(&bytes);
        bytes.extend_from_slice(checksum.as_bytes());
        bytes
    }

    /// Reads a list; `None` for anything that is not a consistent one.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (body, checksum) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM_BYTES)?)?;
        if Digest::of(body).as_bytes() != checksum {
            return None;
        }
        let (object, rest) = body.strip_prefix(MAGIC)?.split_first_chunk::<32>()?;
        let (size, rest) = rest.split_first_chunk::<8>()?;
        let (count, entries) = rest.split_first_chunk::<4>()?;
        let count = u32::from_le_bytes(*count) as usize;
        if count > CHUNKS_MAX || entries.len() != count * CHUNK_ENTRY_BYTES {
            return None;
        }
        let chunks: Vec<_> = entries
            .chunks_exact(CHUNK_ENTRY_BYTES)
            .filter_map(|entry| {
                let (digest, length) = entry.split_first_chunk::<32>()?;
                let length = u32::from_le_bytes(*length.first_chunk::<4>()?);
                Some((Digest::from_bytes(*digest), length))
            })
            .collect();
        let size = u64::from_le_bytes(*size);
        let lengths_hold = chunks
            .iter()
            .all(|(_, length)| (1..=CHUNK_BYTES_MAX as u32).contains(length));
        let sum: u64 = chunks.iter().map(|(_, length)| u64::from(*length)).sum();
        let object = ObjectId(Digest::from_bytes(*object));
        (lengths_hold && sum == size).then_some(Self {
            object,
            size,
            chunks,
        })
    }

    /// Opens the file that was cut and gives its chunks with the digests `wanted`,
    /// each once, in order: `send` gets digest and content.
    pub fn send_chunks<E: From<io::Error>>(
        &self,
        path: &Path,
        wanted: &[Digest],
        mut send: impl FnMut(Digest, &[u8]) -> Result<(), E>,
    ) -> Result<u64, E> {
        let mut wanted: std::collections::HashSet<Digest> = wanted.iter().copied().collect();
        let file = File::open(path)?;
        let mut buffer = vec![0_u8; CHUNK_BYTES_MAX];
        let (mut offset, mut sent) = (0, 0);
        for (digest, length) in &self.chunks {
            if wanted.remove(digest) {
                let content = &mut buffer[..*length as usize];
                file.read_exact_at(content, offset)?;
                send(*digest, content)?;
                sent += u64::from(*length);
            }
            offset += u64::from(*length);
        }
        Ok(sent)
    }
}

impl ObjectStore {
    /// The chunks of a large object that is there; kept for the next time.
    pub fn chunks_of(&self, id: ObjectId) -> Result<ChunkManifest, StoreError> {
        let path = place::fanned(&self.folder("chunks"), id.0);
        if let Some(manifest) = fs::read(&path)
            .ok()
            .and_then(|bytes| ChunkManifest::parse(&bytes))
            && manifest.object == id
        {
            return Ok(manifest);
        }
        let manifest = cut(self.reader(id)?).map_err(|source| self.read_error(id, source))?;
        if !self.is_reader() {
            // A cache: not synced, its checksum tells a torn one.
            let (mut file, temporary) = self.temporary()?;
            let folder = path.parent().unwrap_or(&self.root);
            let kept = place::create_folder(folder)
                .and_then(|()| file.write_all(&manifest.to_bytes()))
                .and_then(|()| fs::rename(&temporary.0, &path));
            kept.map_err(|source| io_error("keep a chunk list in", &path, source))?;
        }
        Ok(manifest)
    }

    /// Chunks of `manifest` that none of `bases` has, each once, in order. `bases`
    /// that are not there, or small, have none.
    pub fn missing_chunks(
        &self,
        manifest: &ChunkManifest,
        bases: &[ObjectId],
    ) -> Result<Vec<Digest>, StoreError> {
        let sources = self.chunk_sources(manifest, bases)?;
        let mut seen = std::collections::HashSet::new();
        let missing = manifest.chunks.iter().map(|(digest, _)| *digest);
        Ok(missing
            .filter(|digest| !sources.chunks.contains_key(digest) && seen.insert(*digest))
            .collect())
    }

    /// Puts an object together from chunks of `bases` and those that `supplied`, a
    /// frame, brings in the order of [`Self::missing_chunks`].
    pub fn put_from_chunks(
        &self,
        manifest: &ChunkManifest,
        bases: &[ObjectId],
        supplied: impl Read,
    ) -> Result<ObjectId, StoreError> {
        self.require_writer()?;
        let _operation = self.operation();
        let mut sources = self.chunk_sources(manifest, bases)?;
        let limits = FrameLimits {
            records_max: manifest.chunks.len() as u64,
            record_bytes_max: CHUNK_BYTES_MAX as u64,
            total_bytes_max: manifest.size,
        };
        let mut frames = FrameReader::new(supplied, limits);
        let (mut file, temporary) = self.temporary()?;
        let io = |source| io_error("put chunks together in", &temporary.0, source);
        let output = Arc::new(file.try_clone().map_err(io)?);
        let mut hasher = Sha256::new();
        let (mut content, mut offset) = (Vec::new(), 0);
        for (digest, length) in &manifest.chunks {
            match sources.chunks.get(digest) {
                Some((source, at)) => {
                    content.resize(*length as usize, 0);
                    source.read_exact_at(&mut content, *at).map_err(io)?;
                }
                None => {
                    let record = frames.next_record()?;
                    if record.is_none_or(|record| record.id.0 != *digest) {
                        return Err(StoreError::Missing(ObjectId(*digest)));
                    }
                    frames.content(&mut content)?;
                    sources
                        .chunks
                        .insert(*digest, (Arc::clone(&output), offset));
                }
            }
            hasher.update(&content);
            file.write_all(&content).map_err(io)?;
            offset += content.len() as u64;
        }
        if let Some(record) = frames.next_record()? {
            return Err(StoreError::Missing(record.id));
        }
        let actual = Digest::from_bytes(hasher.finalize().into());
        if actual != manifest.object.0 {
            return Err(StoreError::Digest {
                expected: manifest.object,
                actual,
            });
        }
        if offset < crate::store::LOOSE_BYTES_MIN {
            file.seek(SeekFrom::Start(0)).map_err(io)?;
            return self.put_stream(file, Some(manifest.object));
        }
        self.adopt_loose(&file, &temporary.0, manifest.object)?;
        Ok(manifest.object)
    }

    /// Where chunks of `manifest` can be read: open files keep what a prune removes.
    fn chunk_sources(
        &self,
        manifest: &ChunkManifest,
        bases: &[ObjectId],
    ) -> Result<ChunkSources, StoreError> {
        let wanted: HashMap<Digest, u32> = manifest.chunks.iter().copied().collect();
        let mut sources = ChunkSources {
            chunks: HashMap::new(),
        };
        for base in bases.iter().take(BASES_MAX) {
            self.touch(&[*base]);
            let Some(Found::Loose(path)) = self.find(*base)? else {
                continue;
            };
            let file =
                Arc::new(File::open(&path).map_err(|source| io_error("open", &path, source))?);
            let mut offset = 0;
            for (digest, length) in self.chunks_of(*base)?.chunks {
                if wanted.get(&digest) == Some(&length) {
                    sources
                        .chunks
                        .entry(digest)
                        .or_insert_with(|| (Arc::clone(&file), offset));
                }
                offset += u64::from(length);
            }
        }
        Ok(sources)
    }
}

struct ChunkSources {
    chunks: HashMap<Digest, (Arc<File>, u64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(bytes: usize) -> Vec<u8> {
        let mut state = 1_u64;
        (0..bytes)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 56) as u8
            })
            .collect()
    }

    #[test]
    fn an_inserted_byte_changes_few_chunks() {
        let before = noise(8 << 20);
        let mut after = before.clone();
        after.insert(4 << 20, 7);
        let (first, second) = (cut(&before[..]).unwrap(), cut(&after[..]).unwrap());
        assert_eq!(first.object.0, Digest::of(&before));
        assert_eq!(
            (second.object.0, second.size),
            (Digest::of(&after), after.len() as u64)
        );
        let known: std::collections::HashSet<_> =
            first.chunks.iter().map(|(digest, _)| digest).collect();
        let new = second
            .chunks
            .iter()
            .filter(|(digest, _)| !known.contains(digest))
            .count();
        assert!((1..=3).contains(&new), "{new} of {}", second.chunks.len());
        let average = first.size / first.chunks.len() as u64;
        assert!(
            (100 << 10..190 << 10).contains(&average),
            "average {average}"
        );
        assert!(
            first
                .chunks
                .iter()
                .all(|(_, length)| *length as usize <= CHUNK_BYTES_MAX)
        );
    }

    #[test]
    fn cuts_do_not_depend_on_how_the_input_is_read() {
        struct Dribble<'a>(&'a [u8]);
        impl Read for Dribble<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let bytes = buffer.len().min(9_973);
                self.0.read(&mut buffer[..bytes])
            }
        }
        let content = noise(3 << 20);
        assert_eq!(cut(Dribble(&content)).unwrap(), cut(&content[..]).unwrap());
    }

    #[test]
    fn a_list_reads_back_and_no_bit_may_flip() {
        let manifest = cut(&noise(300 << 10)[..]).unwrap();
        let bytes = manifest.to_bytes();
        assert_eq!(ChunkManifest::parse(&bytes), Some(manifest));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(ChunkManifest::parse(&flipped), None, "bit {bit}");
        }
    }
}
