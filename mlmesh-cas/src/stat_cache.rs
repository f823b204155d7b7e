//! The stat cache: digests of files that have not changed since they were hashed.
//!
//! One file, little-endian, replaced as a whole:
//!
//! ```text
//! "mlstat" 0 2            magic, zero, format byte
//! i64 hashed_after_ns     the file system's clock before anything was hashed
//! [u8; 32] commit id      of exactly these entries; zeros when they made no commit
//! u64 count
//! count times, in the order of the walk, each path once:
//!   u16 path length, u8 flags (1: holds a private key), u32 st_mode,
//!   u64 size, i64 mtime, i64 ctime (both ns), u64 inode, [u8; 32] digest, path
//! [u8; 32] SHA-256 of everything before
//! ```
//!
//! A link has a size, a mode and the digest of its target, and zeros otherwise.
//!
//! **Racy-clean rule.** A file may change after it was hashed within the same
//! tick of the file system's clock and keep its times. So an entry counts only
//! when its mtime and ctime are older than `hashed_after_ns`, which is the mtime
//! of the temporary file that becomes the cache, created before the first file is
//! hashed. The commit id counts when a walk meets every entry, each of them
//! counts, and nothing else is found.
//!
//! A cache that does not read, another version's too, is an empty cache: it costs
//! time, never truth.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use mlmesh_model::{CommitId, Digest};
use rustix::fs::{FileType, Mode as Permissions, OFlags, fstat, open};

/// What a file's change shows in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileStat {
    pub(crate) size: u64,
    pub(crate) mtime_ns: i64,
    pub(crate) ctime_ns: i64,
    pub(crate) inode: u64,
    pub(crate) mode: u32,
}

/// What was learned of a file when it was hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CacheEntry<'a> {
    pub(crate) path: &'a str,
    pub(crate) stat: FileStat,
    pub(crate) holds_private_key: bool,
    pub(crate) digest: Digest,
}

/// A cache file whose checksum is right. Its entries are read as they are asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct StatCache<'a> {
    hashed_after_ns: i64,
    /// The commit that exactly these entries make, if they make one.
    pub(crate) commit: Option<CommitId>,
    /// How many entries there are.
    pub(crate) count: usize,
    entries: &'a [u8],
}

/// The entries of a cache, in the order of the walk.
#[derive(Debug, Clone)]
pub(crate) struct Entries<'a>(Fields<'a>);

const MAGIC: &[u8; 8] = b"mlstat\0\x02";
const NO_COMMIT: [u8; 32] = [0; 32];
const CHECKSUM_BYTES: usize = 32;
const RECORD_BYTES: usize = 2 + 1 + 4 + 8 + 8 + 8 + 8 + 32;
/// A larger file is no cache of ours.
const CACHE_BYTES_MAX: u64 = 1 << 30;
/// Distance that clocks of two file systems, or coarse time stamps, may hide.
const COARSE_CLOCK_NS: i64 = 2_000_000_000;
const HOLDS_PRIVATE_KEY: u8 = 1;

impl FileStat {
    pub(crate) fn of(stat: &rustix::fs::Stat) -> Self {
        let ns = |seconds: i64, ns: i64| seconds.saturating_mul(1_000_000_000).saturating_add(ns);
        Self {
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime_ns: ns(stat.st_mtime, stat.st_mtime_nsec as i64),
            ctime_ns: ns(stat.st_ctime, stat.st_ctime_nsec as i64),
            inode: stat.st_ino,
            mode: stat.st_mode,
        }
    }

    /// A link is what it leads to, and nothing else of it counts.
    pub(crate) fn of_link(target: &str) -> Self {
        Self {
            size: target.len() as u64,
            mtime_ns: 0,
            ctime_ns: 0,
            inode: 0,
            mode: FileType::Symlink.as_raw_mode(),
        }
    }
}

/// Reads the file at `path`; what cannot be read is empty.
pub(crate) fn read(path: &Path) -> Vec<u8> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() <= CACHE_BYTES_MAX => fs::read(path).unwrap_or_default(),
        _ => Vec::new(),
    }
}

impl<'a> StatCache<'a> {
    /// Reads the byte form; anything else is an empty cache.
    pub(crate) fn parse(bytes: &'a [u8]) -> Self {
        parse(bytes).unwrap_or_default()
    }

    /// The entries in the order of the walk; ends where one does not read.
    pub(crate) const fn entries(&self) -> Entries<'a> {
        Entries(Fields(self.entries))
    }

    /// Whether `entry` proves that a file with `stat` now has its digest.
    pub(crate) fn proves(&self, entry: &CacheEntry<'_>, stat: &FileStat) -> bool {
        let coarse = stat.mtime_ns % 1_000_000_000 == 0 && stat.ctime_ns % 1_000_000_000 == 0;
        let limit = self
            .hashed_after_ns
            .saturating_sub(if coarse { COARSE_CLOCK_NS } else { 0 });
        entry.stat == *stat && stat.mtime_ns < limit && stat.ctime_ns < limit
    }
}

fn parse(bytes: &[u8]) -> Option<StatCache<'_>> {
    let body = bytes.len().checked_sub(CHECKSUM_BYTES)?;
    let (body, checksum) = bytes.split_at(body);
    if !body.starts_with(MAGIC) || Digest::of(body).as_bytes() != checksum {
        return None;
    }
    let mut fields = Fields(&body[MAGIC.len()..]);
    let hashed_after_ns = i64::from_le_bytes(fields.take()?);
    let commit = fields.take()?;
    let count = usize::try_from(u64::from_le_bytes(fields.take()?)).ok()?;
    (count <= fields.0.len() / RECORD_BYTES).then_some(StatCache {
        hashed_after_ns,
        commit: (commit != NO_COMMIT).then_some(CommitId(Digest::from_bytes(commit))),
        count,
        entries: fields.0,
    })
}

impl<'a> Iterator for Entries<'a> {
    type Item = CacheEntry<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.entry()
    }
}

#[derive(Debug, Clone)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const BYTES: usize>(&mut self) -> Option<[u8; BYTES]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn entry(&mut self) -> Option<CacheEntry<'a>> {
        let path_bytes = usize::from(u16::from_le_bytes(self.take()?));
        let [flags] = self.take()?;
        let mode = u32::from_le_bytes(self.take()?);
        let size = u64::from_le_bytes(self.take()?);
        let mtime_ns = i64::from_le_bytes(self.take()?);
        let ctime_ns = i64::from_le_bytes(self.take()?);
        let inode = u64::from_le_bytes(self.take()?);
        let digest = Digest::from_bytes(self.take()?);
        let (path, rest) = self.0.split_at_checked(path_bytes)?;
        self.0 = rest;
        Some(CacheEntry {
            path: std::str::from_utf8(path).ok()?,
            stat: FileStat {
                size,
                mtime_ns,
                ctime_ns,
                inode,
                mode,
            },
            holds_private_key: flags & HOLDS_PRIVATE_KEY != 0,
            digest,
        })
    }
}

/// A cache that is going to replace the one at its path. Dropped without
/// [`CacheReplacement::commit`], it leaves nothing behind.
pub(crate) struct CacheReplacement {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
    hashed_after_ns: i64,
}

impl CacheReplacement {
    /// Creates the temporary file and takes the file system's time from it.
    /// `tree_device` is where the files lie: another device has another clock.
    pub(crate) fn begin(path: &Path, tree_device: u64) -> io::Result<Self> {
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder {
            fs::create_dir_all(folder)?;
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(
            ".{}-{:?}.tmp",
            std::process::id(),
            std::thread::current().id()
        ));
        let temporary = path.with_file_name(name);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(open(&temporary, flags, Permissions::from_raw_mode(0o600))?);
        let stat = fstat(&file)?;
        let margin = if stat.st_dev == tree_device {
            0
        } else {
            COARSE_CLOCK_NS
        };
        let hashed_after_ns = FileStat::of(&stat).mtime_ns.saturating_sub(margin);
        Ok(Self {
            path: path.to_owned(),
            temporary,
            file,
            hashed_after_ns,
        })
    }

    /// Writes `entries`, which are in the order of the walk and make `commit`, and
    /// takes the old one's place. A crash leaves the old cache or one whose checksum
    /// tells.
    pub(crate) fn commit(
        mut self,
        commit: Option<CommitId>,
        entries: &[CacheEntry<'_>],
    ) -> io::Result<()> {
        let bytes = encode(self.hashed_after_ns, commit, entries);
        self.file.write_all(&bytes)?;
        fs::rename(&self.temporary, &self.path)
    }
}

impl Drop for CacheReplacement {
    fn drop(&mut self) {
        // After a commit the name is gone already; a leftover is only clutter.
        let _ = fs::remove_file(&self.temporary);
    }
}

pub(crate) fn encode(
    hashed_after_ns: i64,
    commit: Option<CommitId>,
    entries: &[CacheEntry<'_>],
) -> Vec<u8> {
    let paths: usize = entries.iter().map(|entry| entry.path.len()).sum();
    let mut bytes = Vec::with_capacity(128 + paths + entries.len() * RECORD_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&hashed_after_ns.to_le_bytes());
    bytes.extend_from_slice(
        commit
            .as_ref()
            .map_or(&NO_COMMIT, |commit| commit.0.as_bytes()),
    );
    bytes.extend_from_slice(&(entries.len() as u64).to_le_bytes());
    for entry in entries {
        // Paths of a tree have at most 4096 bytes.
        bytes.extend_from_slice(&(entry.path.len() as u16).to_le_bytes());
        bytes.push(if entry.holds_private_key {
            HOLDS_PRIVATE_KEY
        } else {
            0
        });
        bytes.extend_from_slice(&entry.stat.mode.to_le_bytes());
        bytes.extend_from_slice(&entry.stat.size.to_le_bytes());
        bytes.extend_from_slice(&entry.stat.mtime_ns.to_le_bytes());
        bytes.extend_from_slice(&entry.stat.ctime_ns.to_le_bytes());
        bytes.extend_from_slice(&entry.stat.inode.to_le_bytes());
        bytes.extend_from_slice(entry.digest.as_bytes());
        bytes.extend_from_slice(entry.path.as_bytes());
    }
    let checksum = Digest::of(&bytes);
    bytes.extend_from_slice(checksum.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, time_ns: i64) -> CacheEntry<'_> {
        CacheEntry {
            path,
            stat: FileStat {
                size: 3,
                mtime_ns: time_ns,
                ctime_ns: time_ns,
                inode: 7,
                mode: 0o100_644,
            },
            holds_private_key: path == "b",
            digest: Digest::of(path.as_bytes()),
        }
    }

    #[test]
    fn entries_survive_the_byte_form_and_any_flipped_bit_empties_the_cache() {
        let entries = [entry("b", 1), entry("a/b", 2)];
        let commit = Some(CommitId(Digest::of(b"commit")));
        for commit in [None, commit] {
            let bytes = encode(9, commit, &entries);
            let cache = StatCache::parse(&bytes);
            assert_eq!(
                (cache.hashed_after_ns, cache.commit, cache.count),
                (9, commit, 2)
            );
            assert_eq!(cache.entries().collect::<Vec<_>>(), entries);
        }
        let bytes = encode(9, commit, &entries);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                StatCache::parse(&flipped),
                StatCache::default(),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn an_entry_as_young_as_the_hashing_proves_nothing() {
        let second = 1_000_000_000;
        let cache = StatCache {
            hashed_after_ns: 100 * second + 5,
            ..StatCache::default()
        };
        let proves = |stat: FileStat| {
            cache.proves(
                &CacheEntry {
                    stat,
                    ..entry("a", 0)
                },
                &stat,
            )
        };
        let at = |mtime_ns, ctime_ns| FileStat {
            mtime_ns,
            ctime_ns,
            ..entry("a", 0).stat
        };
        assert!(proves(at(100 * second + 4, 100 * second + 4)));
        assert!(!proves(at(100 * second + 5, 100 * second + 4)), "same tick");
        assert!(
            !proves(at(100 * second + 4, 100 * second + 5)),
            "ctime counts too"
        );
        assert!(
            !proves(at(99 * second, 99 * second)),
            "whole seconds may hide a change"
        );
        assert!(proves(at(97 * second, 97 * second)));
        let other = FileStat {
            inode: 8,
            ..at(1, 1)
        };
        assert!(!cache.proves(&entry("a", 1), &other));
    }
}
