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
use std::fs;
use std::path::{Path, PathBuf};

use mlmesh_api::{Client, IdempotencyKey, error_code};
use mlmesh_cas::{
    Checksum, FrameError, Mode, Options, Rules, Snapshot, SnapshotError, Tree, TreeEntry, checksum,
};
use mlmesh_model::{Digest, ObjectId};
use serde_json::json;

use crate::error::{Exit, Failure, Outcome, split_hint};
use crate::large::{self, Sent};
use crate::output::Output;

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
        exclude: left_out(root, data_dir, exclude),
    };
    let snapshot = mlmesh_cas::snapshot(root, &options).map_err(snapshot_failure)?;
    for warning in &snapshot.warnings {
        output.warn(warning);
    }
    Ok(snapshot)
}

/// Takes a snapshot of data: everything that is there, one file as a tree of its own.
pub(crate) fn data_snapshot(output: &Output, path: &Path, data_dir: &Path) -> Outcome<Snapshot> {
    let cache = stat_cache(path, data_dir).map(|path| path.with_extension("data"));
    let snapshot = match checksum(path, &Options::dataset(cache)).map_err(snapshot_failure)? {
        Checksum::Folder(snapshot) => snapshot,
        Checksum::File { object, size } => {
            let name = path.file_name().and_then(|name| name.to_str());
            let entry = TreeEntry {
                path: name.unwrap_or_default().to_owned(),
                mode: Mode::File,
                size,
                object,
            };
            let tree = Tree::from_entries(vec![entry]);
            let tree = tree.map_err(|error| snapshot_failure(error.into()))?;
            Snapshot::of_tree(path.parent().unwrap_or(Path::new("/")), tree)
        }
    };
    for warning in &snapshot.warnings {
        output.warn(warning);
    }
    Ok(snapshot)
}

/// What is no part of the project: mounts of datasets, and the daemon's own files
/// when its data directory lies inside.
fn left_out(root: &Path, data_dir: &Path, exclude: &[String]) -> Vec<String> {
    let data_dir = fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    let inside = data_dir.strip_prefix(root).ok().and_then(Path::to_str);
    let inside = inside.filter(|path| !path.is_empty()).map(str::to_owned);
    exclude.iter().cloned().chain(inside).collect()
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
    let sent = Sent::beside(stat_cache(&snapshot.root, data_dir).as_deref());
    loop {
        // A commit that is there is complete, so that nothing is sent for it.
        if client.have(&[ObjectId(snapshot.commit.0)])? == [true] {
            if snapshot.files_hashed > 0 || !sent.is_known() {
                sent.remember(&snapshot);
            }
            break;
        }
        sent.add_to(&mut snapshot);
        match send(output, client, &snapshot, &mut bytes_sent) {
            Ok(()) => {
                sent.remember(&snapshot);
                break;
            }
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
fn send(output: &Output, client: &Client, snapshot: &Snapshot, bytes_sent: &mut u64) -> Outcome {
    let missing = missing(client, snapshot)?;
    let plan = snapshot.plan_sync(&missing);
    let size = |index: &usize| snapshot.tree().entries[*index].size;
    let large = plan
        .pieces
        .iter()
        .chain(plan.chunked.iter().map(|(index, _)| index));
    let total = plan.frames.iter().flatten().chain(large).map(size).sum();
    let mut progress = output.progress("upload", total);
    for frame in &plan.frames {
        let body = snapshot
            .write_frame(frame, Vec::new())
            .map_err(|error| frame_failure(&snapshot.root, error))?;
        client.send_frames(&body)?;
        *bytes_sent += body.len() as u64;
        progress.add(frame.iter().map(size).sum());
    }
    for (index, before) in &plan.chunked {
        let entry = &snapshot.tree().entries[*index];
        *bytes_sent += large::send_changed(client, snapshot, entry, *before, &mut progress)?;
    }
    for index in &plan.pieces {
        let entry = &snapshot.tree().entries[*index];
        *bytes_sent += large::send_pieces(client, snapshot, entry, &mut progress)?;
    }
    let listing = snapshot.tree().canonical_bytes();
    client.commit(&listing, &IdempotencyKey::random()?)?;
    *bytes_sent += listing.len() as u64;
    Ok(())
}

/// Objects of the tree that the daemon lacks.
fn missing(client: &Client, snapshot: &Snapshot) -> Outcome<Vec<ObjectId>> {
    let mut seen = HashSet::with_capacity(snapshot.tree().entries.len());
    let objects = snapshot.tree().entries.iter().map(|entry| entry.object);
    let objects: Vec<ObjectId> = objects.filter(|object| seen.insert(*object)).collect();
    let mut missing = Vec::new();
    for part in objects.chunks(HAVE_IDS) {
        let there = client.have(part)?;
        let lacking = part.iter().zip(there).filter(|(_, there)| !there);
        missing.extend(lacking.map(|(object, _)| *object));
    }
    Ok(missing)
}

/// A file that is not any more what it was when it was looked at.
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

/// What stands in the way of a body that is read from files below `path`.
pub(crate) fn frame_failure(path: &Path, error: FrameError) -> Failure {
    match error {
        FrameError::Short { .. } => moving(path),
        FrameError::Io(error) if error.kind() == std::io::ErrorKind::NotFound => moving(path),
        FrameError::Io(error) => Failure::io("read", path, &error),
        error => Failure {
            code: error_code::LOCAL.to_owned(),
            ..Failure::failed("", error.to_string(), "")
        },
    }
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
    let (message, hint) = split_hint(&text);
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
