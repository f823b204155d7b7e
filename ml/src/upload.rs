//! From a folder to a commit that the daemon has: snapshot, have-check, and only
//! the objects that are missing, many to a body, on one connection.
//!
//! ```text
//!   folder ─ snapshot ─► tree ─ have? ─► missing ─ frames ─► objects ─ listing ─► commit
//! ```
//!
//! A file that changes between snapshot and upload is refused by the daemon, whose
//! objects are named by their content; then the snapshot is taken again.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use mlmesh_api::{Client, ClientError, IdempotencyKey, error_code};
use mlmesh_cas::{
    CHUNKED_BYTES_MIN, FrameError, FrameWriter, Mode, Options, Rules, Snapshot, SnapshotError,
    TreeEntry,
};
use mlmesh_model::{Digest, ObjectId};
use serde_json::json;

use crate::error::{Exit, Failure, Outcome};
use crate::large::{self, Bases};
use crate::output::Output;

/// Bytes of content in one body, except for a file that is larger alone.
const BODY_BYTES: usize = 8 << 20;
/// Objects in one body.
const BODY_OBJECTS: usize = 8192;
/// Ids in one have-check.
const HAVE_IDS: usize = 1 << 16;
/// How often the snapshot is taken again when files change meanwhile.
const ATTEMPTS_MAX: u32 = 5;

/// What a sync did.
#[derive(Debug)]
pub(crate) struct Synced {
    /// The tree that the daemon has now.
    pub(crate) snapshot: Snapshot,
    /// Bytes of bodies that were sent for it.
    pub(crate) bytes_sent: u64,
}

/// Takes a snapshot of a project, with the stat cache of its folder.
pub(crate) fn snapshot(
    output: &Output,
    root: &Path,
    data_dir: &Path,
    exclude: &[String],
) -> Outcome<Snapshot> {
    let options = Options {
        stat_cache: stat_cache(root, data_dir),
        threads: 0,
        rules: Rules::Project,
        exclude: exclude.to_vec(),
    };
    let snapshot = mlmesh_cas::snapshot(root, &options).map_err(snapshot_failure)?;
    for warning in &snapshot.warnings {
        output.warn(warning);
    }
    Ok(snapshot)
}

/// Makes a snapshot complete at the daemon; one taken again where files change
/// while they are sent.
pub(crate) fn sync(
    output: &Output,
    client: &Client,
    data_dir: &Path,
    first: Snapshot,
    take_again: impl Fn() -> Outcome<Snapshot>,
) -> Outcome<Synced> {
    let mut snapshot = first;
    let mut bytes_sent = 0;
    let mut attempt = 1;
    loop {
        let cache = stat_cache(&snapshot.root, data_dir);
        let bases = Bases::of(&snapshot, cache.as_deref());
        match send(output, client, &snapshot, &bases, &mut bytes_sent) {
            Ok(()) => break,
            Err(failure) if attempt < ATTEMPTS_MAX && is_moving(&failure) => attempt += 1,
            Err(failure) => return Err(failure),
        }
        snapshot = take_again()?;
    }
    Ok(Synced {
        snapshot,
        bytes_sent,
    })
}

/// Makes a snapshot complete at the daemon.
fn send(
    output: &Output,
    client: &Client,
    snapshot: &Snapshot,
    bases: &Bases,
    bytes_sent: &mut u64,
) -> Outcome {
    let missing = missing(client, snapshot)?;
    let total = missing.iter().map(|entry| entry.size).sum();
    let mut progress = output.progress("upload", total);
    let mut body = Body::new()?;
    for entry in missing {
        if entry.size >= CHUNKED_BYTES_MIN {
            let alone = large::send(client, snapshot, entry, bases, &mut progress)?;
            if let Some(sent) = alone {
                *bytes_sent += sent;
                continue;
            }
        }
        let content = read(snapshot, entry)?;
        body.add(entry.object, &content)?;
        progress.add(entry.size);
        if body.is_full() {
            *bytes_sent += body.send(client)?;
            body = Body::new()?;
        }
    }
    if body.objects > 0 {
        *bytes_sent += body.send(client)?;
    }
    let listing = snapshot.tree.canonical_bytes();
    client.commit(&listing, &IdempotencyKey::random()?)?;
    *bytes_sent += listing.len() as u64;
    bases.remember(snapshot);
    Ok(())
}

/// One entry for each object that the daemon lacks, in the order of the tree.
fn missing<'a>(client: &Client, snapshot: &'a Snapshot) -> Outcome<Vec<&'a TreeEntry>> {
    let mut seen = HashSet::with_capacity(snapshot.tree.entries.len());
    let entries: Vec<&TreeEntry> = snapshot
        .tree
        .entries
        .iter()
        .filter(|entry| seen.insert(entry.object))
        .collect();
    let mut missing = Vec::new();
    for part in entries.chunks(HAVE_IDS) {
        let ids: Vec<ObjectId> = part.iter().map(|entry| entry.object).collect();
        let there = client.have(&ids)?;
        let lacking = part.iter().zip(there).filter(|(_, there)| !there);
        missing.extend(lacking.map(|(entry, _)| *entry));
    }
    Ok(missing)
}

/// A body of frames under construction.
struct Body {
    frames: FrameWriter<Vec<u8>>,
    objects: usize,
    bytes: usize,
}

impl Body {
    fn new() -> Outcome<Self> {
        Ok(Self {
            frames: FrameWriter::new(Vec::new()).map_err(frame_failure)?,
            objects: 0,
            bytes: 0,
        })
    }

    fn add(&mut self, id: ObjectId, content: &[u8]) -> Outcome {
        self.frames.record(id, content).map_err(frame_failure)?;
        self.objects += 1;
        self.bytes += content.len();
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.bytes >= BODY_BYTES || self.objects >= BODY_OBJECTS
    }

    fn send(self, client: &Client) -> Outcome<u64> {
        let bytes = self.frames.finish().map_err(frame_failure)?;
        client.send_frames(&bytes)?;
        Ok(bytes.len() as u64)
    }
}

/// The content of an entry: of a file its bytes, of a link its target.
fn read(snapshot: &Snapshot, entry: &TreeEntry) -> Outcome<Vec<u8>> {
    let path = snapshot.path_of(entry);
    let content = match entry.mode {
        Mode::Symlink => fs::read_link(&path).map(|target| {
            use std::os::unix::ffi::OsStringExt;
            target.into_os_string().into_vec()
        }),
        Mode::File | Mode::Executable => File::open(&path).and_then(|file| {
            let mut content = Vec::with_capacity(entry.size as usize);
            // One byte more than expected shows a file that has grown.
            file.take(entry.size + 1).read_to_end(&mut content)?;
            Ok(content)
        }),
    };
    match content {
        Ok(content) if content.len() as u64 == entry.size => Ok(content),
        Ok(_) => Err(moving(&path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(moving(&path)),
        Err(error) => Err(Failure::io("read", &path, &error)),
    }
}

pub(crate) fn moving(path: &Path) -> Failure {
    Failure {
        code: "tree_changing".to_owned(),
        ..Failure::failed(
            "",
            format!("`{}` changes while it is sent", path.display()),
            "wait until it is written, or leave it out with a line in `.mlignore`",
        )
    }
}

fn is_moving(failure: &Failure) -> bool {
    failure.code == "tree_changing" || failure.code == error_code::BAD_OBJECT
}

pub(crate) fn frame_failure(error: FrameError) -> Failure {
    Failure {
        code: "local_failure".to_owned(),
        ..Failure::failed("", error.to_string(), "")
    }
}

/// Whether the daemon refused because it lacks parts of the commit.
pub(crate) fn is_incomplete(error: &ClientError) -> bool {
    error.api_code() == error_code::COMMIT_INCOMPLETE
}

/// Where the stat cache of a project lies: with the daemon's caches when they are
/// ours, else with the user's. Nowhere when neither can be written.
fn stat_cache(root: &Path, data_dir: &Path) -> Option<PathBuf> {
    let name = Digest::of(root.as_os_str().as_encoded_bytes()).to_string();
    let ours = data_dir.join("data/cache");
    let user = || {
        crate::config::set("XDG_CACHE_HOME")
            .filter(|folder| folder.is_absolute())
            .or_else(|| crate::config::set("HOME").map(|home| home.join(".cache")))
            .map(|folder| folder.join("mlmesh"))
    };
    let folders = ours.is_dir().then_some(ours).into_iter().chain(user());
    folders
        .map(|folder| folder.join("stat"))
        .find(|folder| fs::create_dir_all(folder).is_ok() && is_writable(folder))
        .map(|folder| folder.join(name))
}

fn is_writable(folder: &Path) -> bool {
    rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok()
}

/// What a snapshot fails at, with the code and the exit code of it.
fn snapshot_failure(error: SnapshotError) -> Failure {
    let details = match &error {
        SnapshotError::Secrets { paths } => json!({"paths": paths}),
        _ => serde_json::Value::Null,
    };
    let text = match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    let (message, hint) = text
        .split_once("\nhint: ")
        .map_or((text.as_str(), ""), |(message, hint)| (message, hint));
    let failure = Failure::failed("", message, hint).with_details(details);
    match error {
        SnapshotError::Secrets { .. } => Failure {
            code: "secrets_in_tree".to_owned(),
            exit: Exit::Refused,
            ..failure
        },
        SnapshotError::NotUtf8 { .. }
        | SnapshotError::PathTooLong { .. }
        | SnapshotError::SpecialFile { .. }
        | SnapshotError::LinkLeaves { .. }
        | SnapshotError::Pattern { .. }
        | SnapshotError::Tree(_) => Failure {
            code: "tree_refused".to_owned(),
            exit: Exit::Refused,
            ..failure
        },
        SnapshotError::Changing { .. } => Failure {
            code: "tree_changing".to_owned(),
            ..failure
        },
        SnapshotError::Read { .. } | SnapshotError::Root { .. } => Failure {
            code: "file_access".to_owned(),
            ..failure
        },
    }
}
