//! What several tests need: folders with files in them.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use mlmesh_cas::{Mode, ObjectStore, Options, Tree, TreeEntry, snapshot};
use mlmesh_model::{Digest, ObjectId};

/// Writes `files` below `root`: a content, `-> target` for a link, or content
/// after `+x ` for a program.
pub(crate) fn write_files(root: &Path, files: &[(&str, &str)]) {
    for (path, content) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if let Some(target) = content.strip_prefix("-> ") {
            symlink(target, &path).unwrap();
        } else if let Some(content) = content.strip_prefix("+x ") {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        } else {
            fs::write(&path, content).unwrap();
        }
    }
}

/// `count` files of `bytes` bytes each, 100 a folder, all different.
pub(crate) fn write_many(root: &Path, count: usize, bytes: usize) {
    for index in 0..count {
        let path = root.join(format!("folder-{:03}/file-{index:05}.txt", index / 100));
        if index % 100 == 0 {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        let mut content = format!("file {index}\n").into_bytes();
        content.resize(bytes, b'x');
        fs::write(path, content).unwrap();
    }
}

/// The id that `content` has.
pub(crate) fn id(content: &[u8]) -> ObjectId {
    ObjectId(Digest::of(content))
}

/// Content that does not repeat, from a seed.
pub(crate) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2) | 1;
    let mut content = Vec::with_capacity(bytes + 8);
    while content.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend_from_slice(&state.to_le_bytes());
    }
    content.truncate(bytes);
    content
}

/// Small objects `start..end`, all different.
pub(crate) fn small(range: std::ops::Range<u64>) -> Vec<(ObjectId, Vec<u8>)> {
    range
        .map(|seed| {
            let content = noise(seed, 100 + seed as usize % 50);
            (id(&content), content)
        })
        .collect()
}

/// A tree with one file for each object, named by its number.
pub(crate) fn tree_of(objects: &[(ObjectId, Vec<u8>)]) -> Tree {
    let entries = objects
        .iter()
        .enumerate()
        .map(|(index, (object, content))| TreeEntry {
            path: format!("files/{index}"),
            mode: Mode::File,
            size: content.len() as u64,
            object: *object,
        });
    Tree::from_entries(entries.collect()).unwrap()
}

/// Stores what a snapshot of `root` lists, and its listing.
pub(crate) fn store_folder(store: &ObjectStore, root: &Path) -> Tree {
    let seen = snapshot(root, &Options::project(None)).unwrap();
    for entry in &seen.tree().entries {
        let path = seen.path_of(entry);
        if entry.mode == Mode::Symlink {
            let target = fs::read_link(path)
                .unwrap()
                .into_os_string()
                .into_encoded_bytes();
            store.put_batch([(entry.object, target)]).unwrap();
        } else {
            store
                .put_stream(fs::File::open(path).unwrap(), Some(entry.object))
                .unwrap();
        }
    }
    assert_eq!(store.put_tree(seen.tree()).unwrap(), seen.commit);
    seen.tree().clone()
}

/// Bytes of all files below `folder`.
pub(crate) fn disk_bytes(folder: &Path) -> u64 {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                disk_bytes(&entry.path())
            } else {
                metadata.len()
            }
        })
        .sum()
}

/// Every file below `folder`.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.append(&mut files(&path));
        } else {
            all.push(path);
        }
    }
    all.sort();
    all
}
