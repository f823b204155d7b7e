//! Large files on their way to the daemon: only the chunks that changed when it has
//! an earlier version of the file, else the whole in pieces that go on where an
//! earlier attempt stopped. Memory stays within a few pieces, whatever the size.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use mlmesh_api::Client;
use mlmesh_cas::{
    CHUNKED_BYTES_MIN, CHUNKS_MAX, FrameWriter, Snapshot, Tree, TreeEntry, chunk_manifest,
};
use mlmesh_model::{Digest, ObjectId};

use crate::error::{Failure, Outcome};
use crate::output::Progress;
use crate::upload::{frame_failure, moving};

/// Bytes of one piece.
const PIECE_BYTES: usize = 8 << 20;
/// When more than this has changed, the whole travels in pieces.
const CHANGED_BYTES_MAX: u64 = 32 << 20;

/// Remembers, beside the stat cache, which objects the large files of a project were
/// when they were last sent. The stat cache alone forgets that when a snapshot is
/// taken without a sync, as `ml explain` does.
#[derive(Debug)]
pub(crate) struct Sent(Option<PathBuf>);

impl Sent {
    /// The memory that belongs to a stat cache.
    pub(crate) fn beside(stat_cache: Option<&Path>) -> Self {
        Self(stat_cache.map(|path| path.with_extension("sent")))
    }

    /// Whether anything is remembered.
    pub(crate) fn is_known(&self) -> bool {
        self.0.as_ref().is_none_or(|path| path.exists())
    }

    /// Tells a snapshot what its changed files were when they were last sent.
    pub(crate) fn add_to(&self, snapshot: &mut Snapshot) {
        let bytes = self.0.as_ref().and_then(|path| fs::read(path).ok());
        let Some(tree) = bytes.and_then(|bytes| Tree::parse(&bytes).ok()) else {
            return;
        };
        let mut previous: HashMap<usize, ObjectId> = snapshot.previous.drain(..).collect();
        for (index, entry) in snapshot.tree().entries.iter().enumerate() {
            if entry.size < CHUNKED_BYTES_MIN {
                continue;
            }
            if let Some(before) = tree.entry(&entry.path) {
                previous.insert(index, before.object);
            }
        }
        snapshot.previous = previous.into_iter().collect();
    }

    /// Remembers the large files of a tree that the daemon has now. A cache: when
    /// it cannot be written, the next change of a large file sends the whole.
    pub(crate) fn remember(&self, snapshot: &Snapshot) {
        let Some(path) = &self.0 else {
            return;
        };
        let large = snapshot.tree().entries.iter();
        let large = large.filter(|entry| entry.size >= CHUNKED_BYTES_MIN);
        let Ok(tree) = Tree::from_entries(large.cloned().collect()) else {
            return;
        };
        let temporary = path.with_extension(format!("new-{}", std::process::id()));
        let written = fs::write(&temporary, tree.canonical_bytes())
            .and_then(|()| fs::rename(&temporary, path));
        if written.is_err() {
            drop(fs::remove_file(&temporary));
        }
    }
}

/// Sends the chunks that the earlier version has not; the whole in pieces when the
/// daemon does not have that version, or nearly everything is new. Gives the bytes
/// that were sent.
pub(crate) fn send_changed(
    client: &Client,
    snapshot: &Snapshot,
    entry: &TreeEntry,
    before: ObjectId,
    progress: &mut Progress,
) -> Outcome<u64> {
    if client.have(&[before])? != [true] {
        return send_pieces(client, snapshot, entry, progress);
    }
    let path = snapshot.path_of(entry);
    let manifest = chunk_manifest(&path).map_err(|error| Failure::io("read", &path, &error))?;
    if manifest.object != entry.object {
        return Err(moving(&path));
    }
    let list = manifest.to_bytes();
    let missing = match manifest.chunks.len() <= CHUNKS_MAX {
        true => client.missing_chunks(&[before], &list)?,
        false => return send_pieces(client, snapshot, entry, progress),
    };
    let lengths: HashMap<Digest, u32> = manifest.chunks.iter().copied().collect();
    let length_of = |digest| u64::from(lengths.get(digest).copied().unwrap_or(0));
    if missing.iter().map(length_of).sum::<u64>() > CHANGED_BYTES_MAX {
        return send_pieces(client, snapshot, entry, progress);
    }
    let failed = |error| frame_failure(&path, error);
    let mut frames = FrameWriter::new(Vec::new()).map_err(failed)?;
    manifest
        .send_chunks(&path, &missing, |digest, content| {
            frames.record(ObjectId(digest), content)
        })
        .map_err(failed)?;
    let frames = frames.finish().map_err(failed)?;
    client.put_chunks(&[before], &list, &frames)?;
    progress.add(entry.size);
    Ok((2 * list.len() + frames.len()) as u64)
}

/// Sends the whole in pieces, from where an earlier attempt stopped.
pub(crate) fn send_pieces(
    client: &Client,
    snapshot: &Snapshot,
    entry: &TreeEntry,
    progress: &mut Progress,
) -> Outcome<u64> {
    let path = snapshot.path_of(entry);
    let failed = |error: std::io::Error| Failure::io("read", &path, &error);
    let mut file = File::open(&path).map_err(failed)?;
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
            return Err(moving(&path));
        }
        upload = client.upload_piece(entry.object, entry.size, offset, &piece)?;
        sent += piece.len() as u64;
        progress.add(upload.offset.saturating_sub(offset));
    }
    Ok(sent)
}
