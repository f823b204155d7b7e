//! Snapshots: from a folder on disk to a tree and its commit id.
//!
//! ```text
//! folder ── walk ──▶ files + stat ── stat cache ──▶ unchanged: known digest
//!                                        └────────▶ the rest ── hash pool ──▶ digest
//!                                   tree ◀── sorted ──┘   cache ◀── replaced
//! ```
//!
//! A project honours ignore rules and refuses what looks like a secret; a
//! dataset is the same form without either. Nothing here talks to a store.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use mlmesh_model::{CommitId, Digest, ObjectId};
use rustix::fs::{CWD, Mode as Permissions, OFlags, fstat, openat};

use crate::hash::{self, Hashed};
use crate::stat_cache::{self, CacheEntry, CacheReplacement, FileStat, StatCache};
use crate::tree::{Mode, Tree, TreeEntry, TreeError};
use crate::walk::{self, Found, FoundKind};

/// How a snapshot is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where digests of unchanged files are remembered, if anywhere.
    pub stat_cache: Option<PathBuf>,
    /// Threads that hash; 0 means as many as the machine has.
    pub threads: usize,
    /// What is left out.
    pub rules: Rules,
    /// Relative paths that stay out besides, such as datasets inside a project.
    pub exclude: Vec<String>,
}

/// What a snapshot leaves out and refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// `.mlignore` and `.gitignore` are honoured, secrets refused.
    Project,
    /// Everything belongs to it but `.git`, `__pycache__` and virtual environments.
    Dataset,
}

/// What a folder held when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The folder.
    pub root: PathBuf,
    /// Its listing.
    pub tree: Tree,
    /// The identity of the listing.
    pub commit: CommitId,
    /// Files whose contents were read this time.
    pub files_hashed: u64,
    /// Bytes that were read for it.
    pub bytes_hashed: u64,
    /// For each changed file: its index in the tree, and the object it was
    /// before. The base of a transfer in chunks.
    pub previous: Vec<(usize, ObjectId)>,
    /// What a person may want to know, such as a pattern that was left out.
    pub warnings: Vec<String>,
}

/// The checksum of a dataset, which is one file or a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checksum {
    /// The digest of the file itself.
    File {
        /// Digest of the content.
        object: ObjectId,
        /// Bytes of the content.
        size: u64,
    },
    /// The commit id of the folder, taken without ignore rules.
    Folder(Snapshot),
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file or folder could not be read.
    #[error("read `{}`", path.escape_debug())]
    Read {
        /// Relative to the root.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// The root could not be opened.
    #[error("open `{}`", path.display())]
    Root {
        /// The root as given.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Files that look like secrets.
    #[error(
        "files that look like secrets are never part of a commit: {}\nhint: move them out of the project, \
         leave them out with a line in `.gitignore`, or let one through with a line `!path` in `.mlignore`",
        quoted(paths)
    )]
    Secrets {
        /// Sorted, relative to the root.
        paths: Vec<String>,
    },
    /// A name that is not UTF-8.
    #[error("the name `{path}` is not UTF-8, names in a commit must be\nhint: rename the file")]
    NotUtf8 {
        /// With other bytes escaped.
        path: String,
    },
    /// A path longer than a tree may hold.
    #[error("the path `{}…` is longer than 4096 bytes", path.chars().take(80).collect::<String>().escape_debug())]
    PathTooLong {
        /// Relative to the root.
        path: String,
    },
    /// Neither file, folder nor link.
    #[error(
        "`{}` is {kind}, only files, folders and symbolic links are part of a commit\n\
         hint: remove it or leave it out with a line in `.mlignore`", path.escape_debug()
    )]
    SpecialFile {
        /// Relative to the root.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// A link to a place that a checkout does not have.
    #[error(
        "the link `{}` leads to `{}`, a link must be relative and stay inside the tree, with `..` only in front\n\
         hint: copy the file, declare it as a dataset, or leave the link out with a line in `.mlignore`",
        path.escape_debug(), target.escape_debug()
    )]
    LinkLeaves {
        /// Relative to the root.
        path: String,
        /// What the link says.
        target: String,
    },
    /// A line of a `.mlignore` that is not a pattern.
    #[error("{path}:{line}: {message}\nhint: patterns are those of gitignore(5)")]
    Pattern {
        /// The ignore file, relative to the root.
        path: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        message: String,
    },
    /// A file that somebody keeps writing.
    #[error("`{}` changes while it is read\nhint: wait until it is written, or leave it out", path.escape_debug())]
    Changing {
        /// Relative to the root.
        path: String,
    },
    /// What was found is no tree.
    #[error("the folder cannot be listed")]
    Tree(#[from] TreeError),
}

/// Looks at the folder `root`.
pub fn snapshot(root: &Path, options: &Options) -> Result<Snapshot, SnapshotError> {
    let root_error = |source: rustix::io::Errno| SnapshotError::Root {
        path: root.to_owned(),
        source: source.into(),
    };
    let descriptor = open_root(root, OFlags::DIRECTORY).map_err(root_error)?;
    let device = fstat(&descriptor).map_err(root_error)?.st_dev;
    let mut warnings = Vec::new();
    let (cache_bytes, replacement) = open_cache(options, device, &mut warnings);
    let mut walk = walk::walk(descriptor.as_fd(), options)?;
    warnings.append(&mut walk.warnings);
    let looked = look(
        descriptor.as_fd(),
        &walk.found,
        &cache_bytes,
        replacement,
        options.threads,
        &mut warnings,
    )?;

    if options.rules == Rules::Project {
        refuse_secrets(&walk, &looked.facts)?;
    }
    let (files_hashed, bytes_hashed, previous) =
        (looked.files_hashed, looked.bytes_hashed, looked.previous);
    let entries = walk
        .found
        .into_iter()
        .zip(looked.facts)
        .map(|(found, hashed)| entry(found, &hashed));
    let tree = Tree::from_entries(entries.collect())?;
    let commit = tree.commit_id();
    Ok(Snapshot {
        root: root.to_owned(),
        tree,
        commit,
        files_hashed,
        bytes_hashed,
        previous,
        warnings,
    })
}

/// Computes the checksum of a dataset: a file's own digest, a folder's commit id.
pub fn checksum(path: &Path, options: &Options) -> Result<Checksum, SnapshotError> {
    let error = |source: io::Error| SnapshotError::Root {
        path: path.to_owned(),
        source,
    };
    let metadata = fs::metadata(path).map_err(error)?;
    if metadata.is_dir() {
        return snapshot(path, options).map(Checksum::Folder);
    }
    let real = fs::canonicalize(path).map_err(error)?;
    let (Some(folder), Some(name)) = (
        real.parent(),
        real.file_name().and_then(|name| name.to_str()),
    ) else {
        return Err(SnapshotError::NotUtf8 {
            path: real.display().to_string(),
        });
    };
    if !metadata.is_file() {
        return Err(SnapshotError::SpecialFile {
            path: name.to_owned(),
            kind: "not a file or a folder",
        });
    }
    let descriptor = open_root(folder, OFlags::DIRECTORY).map_err(|errno| error(errno.into()))?;
    let file = walk::open_beneath(&descriptor, name, OFlags::empty())
        .map_err(|errno| error(errno.into()))?;
    let stat = fstat(&file).map_err(|errno| error(errno.into()))?;
    let found = [Found {
        path: name.to_owned(),
        stat: FileStat::of(&stat),
        kind: FoundKind::File,
        demanded: true,
    }];
    let (cache_bytes, replacement) = open_cache(options, stat.st_dev, &mut Vec::new());
    let looked = look(
        descriptor.as_fd(),
        &found,
        &cache_bytes,
        replacement,
        1,
        &mut Vec::new(),
    )?;
    let hashed = looked.facts[0];
    Ok(Checksum::File {
        object: ObjectId(hashed.digest),
        size: hashed.stat.size,
    })
}

impl Options {
    /// A project's source tree, with its stat cache at `stat_cache`.
    pub fn project(stat_cache: Option<PathBuf>) -> Self {
        Self {
            stat_cache,
            threads: 0,
            rules: Rules::Project,
            exclude: Vec::new(),
        }
    }

    /// A dataset, which has no ignore rules.
    pub fn dataset(stat_cache: Option<PathBuf>) -> Self {
        Self {
            rules: Rules::Dataset,
            ..Self::project(stat_cache)
        }
    }
}

impl Snapshot {
    /// Where `entry` lies on disk.
    pub fn path_of(&self, entry: &TreeEntry) -> PathBuf {
        self.root.join(&entry.path)
    }
}

impl Checksum {
    /// The digest under which the dataset is registered.
    pub const fn digest(&self) -> Digest {
        match self {
            Self::File { object, .. } => object.0,
            Self::Folder(snapshot) => snapshot.commit.0,
        }
    }

    /// Bytes of all contents.
    pub fn content_bytes(&self) -> u64 {
        match self {
            Self::File { size, .. } => *size,
            Self::Folder(snapshot) => snapshot.tree.content_bytes(),
        }
    }
}

impl SnapshotError {
    pub(crate) fn read(path: &str, source: io::Error) -> Self {
        Self::Read {
            path: path.to_owned(),
            source,
        }
    }
}

/// What is known of each found file after cache and hashing, in the same order.
struct Looked {
    facts: Vec<Hashed>,
    files_hashed: u64,
    bytes_hashed: u64,
    previous: Vec<(usize, ObjectId)>,
}

fn look(
    root: BorrowedFd<'_>,
    found: &[Found],
    cache_bytes: &[u8],
    replacement: Option<CacheReplacement>,
    threads: usize,
    warnings: &mut Vec<String>,
) -> Result<Looked, SnapshotError> {
    let cache = StatCache::parse(cache_bytes);
    let mut facts = Vec::with_capacity(found.len());
    let mut pending = Vec::new();
    let mut previous = Vec::new();
    let mut cached = cache.entries.iter().peekable();
    for (index, file) in found.iter().enumerate() {
        if let FoundKind::Symlink { target } = &file.kind {
            let digest = Digest::of(target.as_bytes());
            facts.push(Hashed {
                digest,
                stat: file.stat,
                holds_private_key: false,
            });
            continue;
        }
        // Both lists are sorted by path.
        while cached
            .next_if(|entry| entry.path < file.path.as_str())
            .is_some()
        {}
        let known = cached.next_if(|entry| entry.path == file.path);
        if let Some(entry) = known {
            let fact = Hashed {
                digest: entry.digest,
                stat: entry.stat,
                holds_private_key: entry.holds_private_key,
            };
            facts.push(fact);
            if cache.proves(entry, &file.stat) {
                continue;
            }
            previous.push((index, ObjectId(entry.digest)));
        } else {
            let digest = Digest::from_bytes([0; 32]);
            facts.push(Hashed {
                digest,
                stat: file.stat,
                holds_private_key: false,
            });
        }
        pending.push(index);
    }
    let hashed = hash::hash_all(root, found, &pending, threads)?;
    let bytes_hashed = hashed.iter().map(|hashed| hashed.stat.size).sum();
    for (index, hashed) in pending.iter().zip(hashed) {
        facts[*index] = hashed;
    }
    previous.retain(|(index, before)| facts[*index].digest != before.0);
    let files = found
        .iter()
        .filter(|file| file.kind == FoundKind::File)
        .count();
    if !pending.is_empty() || files != cache.entries.len() {
        save_cache(replacement, found, &facts, warnings);
    }
    Ok(Looked {
        facts,
        files_hashed: pending.len() as u64,
        bytes_hashed,
        previous,
    })
}

/// A cache that cannot be written makes the next snapshot slower, no more.
fn open_cache(
    options: &Options,
    device: u64,
    warnings: &mut Vec<String>,
) -> (Vec<u8>, Option<CacheReplacement>) {
    let Some(path) = &options.stat_cache else {
        return (Vec::new(), None);
    };
    let replacement = CacheReplacement::begin(path, device)
        .map_err(|error| warnings.push(format!("stat cache `{}`: {error}", path.display())))
        .ok();
    (stat_cache::read(path), replacement)
}

fn save_cache(
    replacement: Option<CacheReplacement>,
    found: &[Found],
    facts: &[Hashed],
    warnings: &mut Vec<String>,
) {
    let Some(replacement) = replacement else {
        return;
    };
    let files = found
        .iter()
        .zip(facts)
        .filter(|(found, _)| found.kind == FoundKind::File);
    let entries: Vec<_> = files
        .map(|(found, hashed)| CacheEntry {
            path: &found.path,
            stat: hashed.stat,
            holds_private_key: hashed.holds_private_key,
            digest: hashed.digest,
        })
        .collect();
    if let Err(error) = replacement.commit(&entries) {
        warnings.push(format!("stat cache: {error}"));
    }
}

fn refuse_secrets(walk: &walk::Walk, facts: &[Hashed]) -> Result<(), SnapshotError> {
    let mut paths = walk.secrets.clone();
    for (found, hashed) in walk.found.iter().zip(facts) {
        if hashed.holds_private_key && !found.demanded {
            paths.push(found.path.clone());
        }
    }
    if paths.is_empty() {
        return Ok(());
    }
    paths.sort_unstable();
    Err(SnapshotError::Secrets { paths })
}

fn entry(found: Found, hashed: &Hashed) -> TreeEntry {
    const OWNER_MAY_EXECUTE: u32 = 0o100;
    let mode = match found.kind {
        FoundKind::Symlink { .. } => Mode::Symlink,
        FoundKind::File if hashed.stat.mode & OWNER_MAY_EXECUTE != 0 => Mode::Executable,
        FoundKind::File => Mode::File,
    };
    TreeEntry {
        path: found.path,
        mode,
        size: hashed.stat.size,
        object: ObjectId(hashed.digest),
    }
}

fn open_root(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    openat(
        CWD,
        path,
        flags | OFlags::RDONLY | OFlags::CLOEXEC,
        Permissions::empty(),
    )
}

/// The paths for a person: the first ten, and how many there are besides.
fn quoted(paths: &[String]) -> String {
    const SHOWN_MAX: usize = 10;
    let shown: Vec<_> = paths
        .iter()
        .take(SHOWN_MAX)
        .map(|path| format!("`{}`", path.escape_debug()))
        .collect();
    let mut text = shown.join(", ");
    if paths.len() > SHOWN_MAX {
        text.push_str(&format!(" and {} more", paths.len() - SHOWN_MAX));
    }
    text
}
