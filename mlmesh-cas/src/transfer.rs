//! The client's half of a sync: which missing object travels in which way.
//!
//! ```text
//! snapshot ─▶ missing_objects (daemon) ─▶ SyncPlan ─┬─ frames   small, many in one body
//!                                                   ├─ chunked  a large file that was there before
//!                                                   └─ pieces   any other large file
//! then the listing, which the daemon takes when all objects are there
//! ```

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};

use mlmesh_model::ObjectId;

use crate::chunks::CHUNKED_BYTES_MIN;
use crate::frame::{FrameError, FrameWriter};
use crate::snapshot::Snapshot;
use crate::tree::{Mode, TreeEntry};

/// How the missing objects of a snapshot travel. Numbers are indices into the
/// entries of its tree; each object stands once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SyncPlan {
    /// One body each, see [`Snapshot::write_frame`].
    pub frames: Vec<Vec<usize>>,
    /// Large files and what they were before, for `chunk_manifest`.
    pub chunked: Vec<(usize, ObjectId)>,
    /// Large files that are new, for `ObjectStore::upload` in pieces.
    pub pieces: Vec<usize>,
}

/// A frame is closed when its contents reach this size.
pub const FRAME_BODY_BYTES: u64 = 8 << 20;
/// A frame is closed when it has this many records.
pub const FRAME_RECORDS: usize = 16 << 10;

impl Snapshot {
    /// Plans how `missing` gets to the daemon.
    pub fn plan_sync(&self, missing: &[ObjectId]) -> SyncPlan {
        let mut missing: HashSet<ObjectId> = missing.iter().copied().collect();
        let previous: HashMap<usize, ObjectId> = self.previous.iter().copied().collect();
        let mut plan = SyncPlan::default();
        let (mut frame, mut frame_bytes) = (Vec::new(), 0);
        for (index, entry) in self.tree().entries.iter().enumerate() {
            if !missing.remove(&entry.object) {
                continue;
            }
            match previous.get(&index) {
                Some(before) if entry.size >= CHUNKED_BYTES_MIN => {
                    plan.chunked.push((index, *before))
                }
                _ if entry.size >= FRAME_BODY_BYTES => plan.pieces.push(index),
                _ => {
                    frame_bytes += entry.size;
                    frame.push(index);
                    if frame_bytes >= FRAME_BODY_BYTES || frame.len() >= FRAME_RECORDS {
                        plan.frames.push(std::mem::take(&mut frame));
                        frame_bytes = 0;
                    }
                }
            }
        }
        if !frame.is_empty() {
            plan.frames.push(frame);
        }
        plan
    }

    /// Writes one body of a plan, read from disk as it goes. A file that changed
    /// since the snapshot is refused here or by the receiver, by its digest.
    pub fn write_frame<W: Write>(&self, indices: &[usize], output: W) -> Result<W, FrameError> {
        let mut frame = FrameWriter::new(output)?;
        for entry in indices
            .iter()
            .filter_map(|index| self.tree().entries.get(*index))
        {
            if entry.mode == Mode::Symlink {
                let target =
                    fs::read_link(self.path_of(entry)).map_err(|error| named(entry, error))?;
                frame.record(entry.object, target.as_os_str().as_encoded_bytes())?;
            } else {
                let file = File::open(self.path_of(entry)).map_err(|error| named(entry, error))?;
                frame.stream(entry.object, entry.size, file)?;
            }
        }
        frame.finish()
    }
}

fn named(entry: &TreeEntry, error: io::Error) -> FrameError {
    FrameError::Io(io::Error::new(
        error.kind(),
        format!("read `{}`: {error}", entry.path.escape_debug()),
    ))
}
