//! Large files on their way to the daemon: only the chunks that changed when it has
//! an earlier version of the file, else the whole in pieces that go on where an
//! earlier attempt stopped. Memory stays within a few pieces, whatever the size.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use mlmesh_api::Client;
use mlmesh_cas::{
    BASES_MAX, CHUNKED_BYTES_MIN, CHUNKS_MAX, FrameError, FrameWriter, Snapshot, Tree, TreeEntry,
    chunk_manifest,
};
use mlmesh_model::{Digest, ObjectId};

use crate::error::{Failure, Outcome};
use crate::output::Progress;
use crate::upload::{frame_failure, moving};

/// Files of this size travel alone.
pub(crate) const LARGE_BYTES_MIN: u64 = 8 << 20;
/// Bytes of one piece.
const PIECE_BYTES: usize = 8 << 20;
/// When more than this has changed, the whole travels in pieces.
const CHANGED_BYTES_MAX: u64 = 32 << 20;

/// Which objects the large files of a project were when they were last sent.
#[derive(Debug)]
pub(crate) struct Bases {
    by_path: HashMap<String, Vec<ObjectId>>,
    remembered: Option<PathBuf>,
}

impl Bases {
    /// What was remembered beside the stat cache, and what the snapshot knows.
    pub(crate) fn of(snapshot: &Snapshot, stat_cache: Option<&Path>) -> Self {
        let remembered = stat_cache.map(|path| path.with_extension("sent"));
        let mut by_path: HashMap<String, Vec<ObjectId>> = HashMap::new();
        let bytes = remembered.as_ref().and_then(|path| fs::read(path).ok());
        let tree = bytes.and_then(|bytes| Tree::parse(&bytes).ok());
        for entry in tree.into_iter().flat_map(|tree| tree.entries) {
            by_path.entry(entry.path).or_default().push(entry.object);
        }
        for (index, object) in &snapshot.previous {
            if let Some(entry) = snapshot.tree.entries.get(*index) {
                let bases = by_path.entry(entry.path.clone()).or_default();
                if bases.len() < BASES_MAX && !bases.contains(object) {
                    bases.push(*object);
                }
            }
        }
        Self {
            by_path,
            remembered,
        }
    }

    /// Remembers the large files of a tree that the daemon has now. A cache: when
    /// it cannot be written, the next change of a large file sends the whole.
    pub(crate) fn remember(&self, snapshot: &Snapshot) {
        let Some(path) = &self.remembered else {
            return;
        };
        let large = snapshot.tree.entries.iter();
        let large = large
            .filter(|entry| entry.size >= CHUNKED_BYTES_MIN)
            .cloned();
        let Ok(tree) = Tree::from_entries(large.collect()) else {
            return;
        };
        let temporary = path.with_extension(format!("new-{}", std::process::id()));
        let written = fs::write(&temporary, tree.canonical_bytes())
            .and_then(|()| fs::rename(&temporary, path));
        if written.is_err() {
            drop(fs::remove_file(&temporary));
        }
    }

    /// Earlier versions of the file that the daemon has.
    fn known(&self, client: &Client, entry: &TreeEntry) -> Outcome<Vec<ObjectId>> {
        let bases = self.by_path.get(&entry.path).cloned().unwrap_or_default();
        if bases.is_empty() || entry.size < CHUNKED_BYTES_MIN {
            return Ok(Vec::new());
        }
        let there = client.have(&bases)?;
        let known = bases.into_iter().zip(there).filter(|(_, there)| *there);
        Ok(known.map(|(base, _)| base).collect())
    }
}

/// Sends a file alone if that is better than with others. Gives the bytes that were
/// sent; none when the file is to travel with others.
pub(crate) fn send(
    client: &Client,
    snapshot: &Snapshot,
    entry: &TreeEntry,
    bases: &Bases,
    progress: &mut Progress,
) -> Outcome<Option<u64>> {
    let path = snapshot.path_of(entry);
    let known = bases.known(client, entry)?;
    if !known.is_empty()
        && let Some(sent) = send_changed(client, entry, &path, &known)?
    {
        progress.add(entry.size);
        return Ok(Some(sent));
    }
    if entry.size >= LARGE_BYTES_MIN {
        return send_pieces(client, entry, &path, progress).map(Some);
    }
    Ok(None)
}

/// Sends the chunks that no base has; nothing when that is nearly the whole file.
fn send_changed(
    client: &Client,
    entry: &TreeEntry,
    path: &Path,
    bases: &[ObjectId],
) -> Outcome<Option<u64>> {
    let manifest = chunk_manifest(path).map_err(|error| Failure::io("read", path, &error))?;
    if manifest.object != entry.object {
        return Err(moving(path));
    }
    if manifest.chunks.len() > CHUNKS_MAX {
        return Ok(None);
    }
    let list = manifest.to_bytes();
    let missing = client.missing_chunks(bases, &list)?;
    let lengths: HashMap<Digest, u32> = manifest.chunks.iter().copied().collect();
    let length_of = |digest| lengths.get(digest).copied().unwrap_or(0);
    let changed: u64 = missing
        .iter()
        .map(|digest| u64::from(length_of(digest)))
        .sum();
    if changed > CHANGED_BYTES_MAX {
        return Ok(None);
    }
    let mut frames = FrameWriter::new(Vec::new()).map_err(frame_failure)?;
    manifest
        .send_chunks(path, &missing, |digest, content| {
            frames.record(ObjectId(digest), content)
        })
        .map_err(|error| match error {
            FrameError::Io(error) => Failure::io("read", path, &error),
            error => frame_failure(error),
        })?;
    let frames = frames.finish().map_err(frame_failure)?;
    client.put_chunks(bases, &list, &frames)?;
    Ok(Some((2 * list.len() + frames.len()) as u64))
}

/// Sends the whole in pieces, from where an earlier attempt stopped.
fn send_pieces(
    client: &Client,
    entry: &TreeEntry,
    path: &Path,
    progress: &mut Progress,
) -> Outcome<u64> {
    let failed = |error: std::io::Error| Failure::io("read", path, &error);
    let mut file = File::open(path).map_err(failed)?;
    let mut upload = client.upload_position(entry.object)?;
    progress.add(upload.offset);
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    let mut sent = 0;
    while !upload.complete {
        let offset = upload.offset;
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        piece.clear();
        let wanted = (PIECE_BYTES as u64).min(entry.size.saturating_sub(offset));
        (&mut file)
            .take(wanted)
            .read_to_end(&mut piece)
            .map_err(failed)?;
        if (piece.len() as u64) < wanted {
            return Err(moving(path));
        }
        upload = client.upload_piece(entry.object, entry.size, offset, &piece)?;
        sent += piece.len() as u64;
        progress.add(upload.offset.saturating_sub(offset));
    }
    Ok(sent)
}
