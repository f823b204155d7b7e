//! Snapshots: from a folder on disk to a tree and its commit id.
//!
//! ```text
//! folder ── walk ──▶ files + stat ── stat cache ──▶ all unchanged: known commit id
//!                                        ├────────▶ unchanged: known digest
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
use std::sync::OnceLock;

use mlmesh_model::{CommitId, Digest, ObjectId};
use rustix::fs::{CWD, Mode as Permissions, OFlags, fstat, openat};

use crate::compare::{self, Comparison, Found};
use crate::stat_cache::{self, CacheReplacement, FileStat, StatCache};
use crate::tree::{Tree, TreeEntry, TreeError};
use crate::walk::{self, Seen, Walk};

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
    listing: Listing,
    /// The identity of the listing.
    pub commit: CommitId,
    /// Files and links in it.
    pub files: u64,
    /// Bytes of all contents together.
    pub content_bytes: u64,
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

/// A tree, which of an unchanged folder is made when somebody asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listing {
    tree: OnceLock<Tree>,
    /// The stat cache that holds it while there is no tree.
    cache: Vec<u8>,
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
    let cache_bytes = options.stat_cache.as_deref().map(stat_cache::read);
    let cache_bytes = cache_bytes.unwrap_or_default();
    let cache = StatCache::parse(&cache_bytes);
    let mut comparison = Comparison::new(&cache);
    let mut walk = walk::walk(descriptor.as_fd(), options, |seen| comparison.see(&seen))?;
    let known = match comparison.same_commit() {
        Some(commit) => {
            refuse_secrets(options.rules, &walk, &comparison.found)?;
            Known::of(commit)
        }
        None => learn(
            descriptor.as_fd(),
            device,
            options,
            &mut comparison,
            &mut walk,
        )?,
    };
    let files = comparison.found.len() as u64;
    let sizes = comparison.found.iter().map(|found| found.stat.size);
    let content_bytes = sizes.fold(0, u64::saturating_add);
    let cache = match known.tree.get() {
        Some(_) => Vec::new(),
        None => cache_bytes,
    };
    Ok(Snapshot {
        root: root.to_owned(),
        commit: known.commit,
        files,
        content_bytes,
        files_hashed: known.files_hashed,
        bytes_hashed: known.bytes_hashed,
        previous: known.previous,
        warnings: walk.warnings,
        listing: Listing {
            tree: known.tree,
            cache,
        },
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
    let cache_bytes = options.stat_cache.as_deref().map(stat_cache::read);
    let cache_bytes = cache_bytes.unwrap_or_default();
    let cache = StatCache::parse(&cache_bytes);
    let mut comparison = Comparison::new(&cache);
    comparison.see(&Seen {
        path: name,
        stat: FileStat::of(&stat),
        target: None,
        demanded: true,
    });
    let replacement = begin_cache(options, stat.st_dev, &mut Vec::new());
    comparison.learn(descriptor.as_fd(), 1)?;
    save_cache(replacement, &comparison, None, &mut Vec::new());
    let found = &comparison.found[0];
    Ok(Checksum::File {
        object: ObjectId(found.digest),
        size: found.stat.size,
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
    /// The listing.
    pub fn tree(&self) -> &Tree {
        let Listing { tree, cache } = &self.listing;
        tree.get_or_init(|| compare::remembered_tree(&StatCache::parse(cache)))
    }

    /// A snapshot of what somebody else listed below `root`, such as one file of it.
    pub fn of_tree(root: &Path, tree: Tree) -> Self {
        Self {
            root: root.to_owned(),
            commit: tree.commit_id(),
            files: tree.entries.len() as u64,
            content_bytes: tree.content_bytes(),
            files_hashed: 0,
            bytes_hashed: 0,
            previous: Vec::new(),
            warnings: Vec::new(),
            listing: Listing {
                tree: OnceLock::from(tree),
                cache: Vec::new(),
            },
        }
    }

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
            Self::Folder(snapshot) => snapshot.content_bytes,
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

/// What is known of the folder as a whole.
struct Known {
    commit: CommitId,
    tree: OnceLock<Tree>,
    files_hashed: u64,
    bytes_hashed: u64,
    previous: Vec<(usize, ObjectId)>,
}

impl Known {
    /// The commit of a cache that was met again.
    const fn of(commit: CommitId) -> Self {
        Self {
            commit,
            tree: OnceLock::new(),
            files_hashed: 0,
            bytes_hashed: 0,
            previous: Vec::new(),
        }
    }
}

/// Hashes what the cache does not prove, lists the folder and replaces the cache.
/// What was hashed is kept also when the folder is refused.
fn learn(
    root: BorrowedFd<'_>,
    device: u64,
    options: &Options,
    comparison: &mut Comparison<'_>,
    walk: &mut Walk,
) -> Result<Known, SnapshotError> {
    let replacement = begin_cache(options, device, &mut walk.warnings);
    let (files_hashed, bytes_hashed) = comparison.learn(root, options.threads)?;
    let listed = refuse_secrets(options.rules, walk, &comparison.found)
        .and_then(|()| Ok(comparison.tree()?))
        .map(|(tree, previous)| Known {
            commit: tree.commit_id(),
            tree: OnceLock::from(tree),
            files_hashed,
            bytes_hashed,
            previous,
        });
    let commit = listed.as_ref().ok().map(|known| known.commit);
    save_cache(replacement, comparison, commit, &mut walk.warnings);
    listed
}

/// A cache that cannot be written makes the next snapshot slower, no more.
fn begin_cache(
    options: &Options,
    device: u64,
    warnings: &mut Vec<String>,
) -> Option<CacheReplacement> {
    let path = options.stat_cache.as_ref()?;
    CacheReplacement::begin(path, device)
        .map_err(|error| warnings.push(format!("stat cache `{}`: {error}", path.display())))
        .ok()
}

fn save_cache(
    replacement: Option<CacheReplacement>,
    comparison: &Comparison<'_>,
    commit: Option<CommitId>,
    warnings: &mut Vec<String>,
) {
    let saved = replacement.map(|replacement| comparison.save(replacement, commit));
    if let Some(Err(error)) = saved {
        warnings.push(format!("stat cache: {error}"));
    }
}

fn refuse_secrets(rules: Rules, walk: &Walk, found: &[Found<'_>]) -> Result<(), SnapshotError> {
    if rules != Rules::Project {
        return Ok(());
    }
    let mut paths = walk.secrets.clone();
    let found = found.iter();
    let found = found.filter(|found| found.holds_private_key && !found.demanded);
    paths.extend(found.map(|found| found.path.to_string()));
    if paths.is_empty() {
        return Ok(());
    }
    paths.sort_unstable();
    Err(SnapshotError::Secrets { paths })
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
