//! What is known of each file: from the stat cache, else by hashing it.
//!
//! ```text
//! walk ──▶ see ──▶ all as it was: the commit id of the cache
//!           └────▶ learn: hash what the cache does not prove ──▶ tree, new cache
//! ```
//!
//! Cache and walk go in the same order, so that one pass compares them and an
//! unchanged folder needs neither a listing nor a hash. What the cache says is
//! believed under its own rules only; it never decides what belongs to a snapshot.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::io;
use std::iter::Peekable;
use std::os::fd::BorrowedFd;

use mlmesh_model::{CommitId, Digest, ObjectId};
use rustix::fs::FileType;

use crate::hash;
use crate::snapshot::SnapshotError;
use crate::stat_cache::{CacheEntry, CacheReplacement, Entries, FileStat, StatCache};
use crate::tree::{Mode, Tree, TreeEntry, TreeError};
use crate::walk::{self, Seen};

/// A walk beside a stat cache.
#[derive(Debug)]
pub(crate) struct Comparison<'c> {
    cache: &'c StatCache<'c>,
    entries: Peekable<Entries<'c>>,
    /// Everything seen so far is what the cache says, in its order.
    is_same: bool,
    /// In the order of the walk.
    pub(crate) found: Vec<Found<'c>>,
    /// Indices of what has to be hashed.
    pending: Vec<usize>,
    /// Index and last known digest of what has to be hashed again.
    before: Vec<(usize, Digest)>,
}

/// A file or link of the snapshot.
#[derive(Debug)]
pub(crate) struct Found<'c> {
    pub(crate) path: Cow<'c, str>,
    pub(crate) stat: FileStat,
    /// A `!path` of a `.mlignore` lets it in whatever it holds.
    pub(crate) demanded: bool,
    /// Of the content under `stat`, once it is not pending any more.
    pub(crate) digest: Digest,
    pub(crate) holds_private_key: bool,
}

impl<'c> Comparison<'c> {
    /// Nothing is seen yet.
    pub(crate) fn new(cache: &'c StatCache<'c>) -> Self {
        Self {
            cache,
            entries: cache.entries().peekable(),
            is_same: true,
            found: Vec::with_capacity(cache.count),
            pending: Vec::new(),
            before: Vec::new(),
        }
    }

    /// Takes what the walk sees next.
    pub(crate) fn see(&mut self, seen: &Seen<'_>) {
        let entry = self.entry(seen.path);
        let mut found = Found {
            path: match entry {
                Some(entry) => Cow::Borrowed(entry.path),
                None => Cow::Owned(seen.path.to_owned()),
            },
            stat: seen.stat,
            demanded: seen.demanded,
            digest: Digest::from_bytes([0; 32]),
            holds_private_key: false,
        };
        if let Some(target) = seen.target {
            found.digest = Digest::of(target.as_bytes());
            self.is_same &=
                entry.is_some_and(|entry| entry.stat == found.stat && entry.digest == found.digest);
        } else if let Some(entry) = entry.filter(|entry| self.cache.proves(entry, &seen.stat)) {
            found.digest = entry.digest;
            found.holds_private_key = entry.holds_private_key;
        } else {
            self.is_same = false;
            let index = self.found.len();
            self.pending.push(index);
            self.before.extend(entry.map(|entry| (index, entry.digest)));
        }
        self.found.push(found);
    }

    /// The commit of the cache, when the walk that has ended saw just that.
    pub(crate) fn same_commit(&mut self) -> Option<CommitId> {
        let is_same =
            self.is_same && self.found.len() == self.cache.count && self.entries.peek().is_none();
        self.cache.commit.filter(|_| is_same)
    }

    /// Hashes what is pending; tells how many files and bytes that were.
    pub(crate) fn learn(
        &mut self,
        root: BorrowedFd<'_>,
        threads: usize,
    ) -> Result<(u64, u64), SnapshotError> {
        let hashed = hash::hash_all(root, &self.found, &self.pending, threads)?;
        let bytes_hashed = hashed.iter().map(|hashed| hashed.stat.size).sum();
        for (index, hashed) in self.pending.iter().zip(hashed) {
            let found = &mut self.found[*index];
            found.stat = hashed.stat;
            found.digest = hashed.digest;
            found.holds_private_key = hashed.holds_private_key;
        }
        Ok((self.pending.len() as u64, bytes_hashed))
    }

    /// The tree of what was found and learned, and for each changed file its index
    /// in the tree and the object it was before.
    pub(crate) fn tree(&self) -> Result<(Tree, Vec<(usize, ObjectId)>), TreeError> {
        let entries = self.found.iter();
        let entries = entries.map(|found| tree_entry(&found.path, &found.stat, found.digest));
        let tree = Tree::from_entries(entries.collect())?;
        let changed = self.before.iter();
        let changed = changed.filter(|(index, before)| self.found[*index].digest != *before);
        let mut previous: Vec<_> = changed
            .filter_map(|(index, before)| {
                Some((tree.index(&self.found[*index].path)?, ObjectId(*before)))
            })
            .collect();
        previous.sort_unstable_by_key(|(index, _)| *index);
        Ok((tree, previous))
    }

    /// Makes what was learned the next cache, unless it says nothing new.
    pub(crate) fn save(
        &self,
        replacement: CacheReplacement,
        commit: Option<CommitId>,
    ) -> io::Result<()> {
        if self.pending.is_empty() && commit.is_none() {
            return Ok(());
        }
        let entries = self.found.iter().map(|found| CacheEntry {
            path: &found.path,
            stat: found.stat,
            holds_private_key: found.holds_private_key,
            digest: found.digest,
        });
        replacement.commit(commit, &entries.collect::<Vec<_>>())
    }

    /// The entry of the cache for the next path. Both go in the order of the walk.
    fn entry(&mut self, path: &str) -> Option<CacheEntry<'c>> {
        let next = self.entries.next_if(|entry| entry.path == path);
        if next.is_some() {
            return next;
        }
        self.is_same = false;
        let is_before = |entry: &CacheEntry<'_>| walk::order(entry.path, path) == Ordering::Less;
        while self.entries.next_if(is_before).is_some() {}
        self.entries.next_if(|entry| entry.path == path)
    }
}

/// The tree that a cache remembers.
pub(crate) fn remembered_tree(cache: &StatCache<'_>) -> Tree {
    let entries = cache.entries();
    let entries = entries.map(|entry| tree_entry(entry.path, &entry.stat, entry.digest));
    Tree::sorted(entries.collect())
}

fn tree_entry(path: &str, stat: &FileStat, digest: Digest) -> TreeEntry {
    const OWNER_MAY_EXECUTE: u32 = 0o100;
    let mode = match FileType::from_raw_mode(stat.mode) {
        FileType::Symlink => Mode::Symlink,
        _ if stat.mode & OWNER_MAY_EXECUTE != 0 => Mode::Executable,
        _ => Mode::File,
    };
    TreeEntry {
        path: path.to_owned(),
        mode,
        size: stat.size,
        object: ObjectId(digest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stat_cache::encode;

    const HASHED_AFTER_NS: i64 = 100;

    fn stat(mtime_ns: i64) -> FileStat {
        FileStat {
            size: 3,
            mtime_ns,
            ctime_ns: mtime_ns,
            inode: 7,
            mode: 0o100_644,
        }
    }

    /// What a walk over `files` makes of the cache of `b` and `a/b`.
    fn commit_after(files: &[(&str, i64)], commit: Option<CommitId>) -> Option<CommitId> {
        let entries = ["b", "a/b"].map(|path| CacheEntry {
            path,
            stat: stat(5),
            holds_private_key: false,
            digest: Digest::of(path.as_bytes()),
        });
        let bytes = encode(HASHED_AFTER_NS, commit, &entries);
        let cache = StatCache::parse(&bytes);
        let mut comparison = Comparison::new(&cache);
        for (path, mtime_ns) in files {
            comparison.see(&Seen {
                path,
                stat: stat(*mtime_ns),
                target: None,
                demanded: false,
            });
        }
        assert_eq!(comparison.found.len(), files.len());
        comparison.same_commit()
    }

    #[test]
    fn the_commit_counts_only_when_everything_is_as_it_was() {
        let commit = Some(CommitId(Digest::of(b"commit")));
        let same = [("b", 5), ("a/b", 5)];
        assert_eq!(commit_after(&same, commit), commit);
        assert_eq!(commit_after(&same, None), None);
        for other in [
            &[][..],
            &[("b", 5)],
            &[("a/b", 5)],
            &[("b", 5), ("a/b", 6)],
            &[("a", 5), ("b", 5), ("a/b", 5)],
            &[("b", 5), ("a/b", 5), ("a/c", 5)],
            &[("b", 5), ("c", 5), ("a/b", 5)],
            &[("a/b", 5), ("b", 5)],
            &[("b", 5), ("a/c", 5)],
        ] {
            assert_eq!(commit_after(other, commit), None, "{other:?}");
        }
    }
}
