//! Hashing files in parallel, in bounded memory: a few threads, each with one
//! buffer of [`BUFFER_BYTES`], take files from one list.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use mlmesh_model::Digest;
use rustix::fs::{FileType, OFlags, fstat};
use sha2::{Digest as _, Sha256};

use crate::compare::Found;
use crate::secrets::{self, SCAN_OVERLAP_BYTES};
use crate::snapshot::SnapshotError;
use crate::stat_cache::FileStat;
use crate::walk::open_beneath;

/// What hashing a file has told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hashed {
    pub(crate) digest: Digest,
    /// The stat under which the content had this digest.
    pub(crate) stat: FileStat,
    pub(crate) holds_private_key: bool,
}

pub(crate) const BUFFER_BYTES: usize = 256 << 10;
/// More threads than this only move the wait to the disk.
const THREADS_MAX: usize = 16;
/// Fewer files than this are not worth a second thread, unless they are large.
const FILES_PER_THREAD_MIN: usize = 64;
const BYTES_PER_THREAD_MIN: u64 = 8 << 20;
/// A file that changes under the reader is read again this many times.
const READS_MAX: usize = 4;

/// Hashes the files `found[index]` for each of `pending`, in that order.
pub(crate) fn hash_all(
    root: BorrowedFd<'_>,
    found: &[Found<'_>],
    pending: &[usize],
    threads: usize,
) -> Result<Vec<Hashed>, SnapshotError> {
    let bytes: u64 = pending
        .iter()
        .map(|index| found[*index].stat.size)
        .fold(0, u64::saturating_add);
    let useful = (pending.len() / FILES_PER_THREAD_MIN)
        .max(usize::try_from(bytes / BYTES_PER_THREAD_MIN).unwrap_or(usize::MAX))
        .clamp(1, pending.len().max(1));
    let threads = thread_count(threads).min(useful);
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(usize, Hashed)>, SnapshotError> {
        let mut buffer = vec![0_u8; BUFFER_BYTES];
        let mut done = Vec::with_capacity(pending.len() / threads + 1);
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some(index) = pending.get(place) else {
                return Ok(done);
            };
            match hash_file(root, &found[*index], &mut buffer) {
                Ok(hashed) => done.push((place, hashed)),
                Err(error) => {
                    next.store(pending.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
    };
    let parts = if threads == 1 {
        vec![work()]
    } else {
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .map(|worker| {
                    worker
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        })
    };
    let mut all = Vec::with_capacity(pending.len());
    for part in parts {
        all.extend(part?);
    }
    all.sort_unstable_by_key(|(place, _)| *place);
    Ok(all.into_iter().map(|(_, hashed)| hashed).collect())
}

fn thread_count(asked: usize) -> usize {
    let threads = match asked {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        _ => asked,
    };
    threads.clamp(1, THREADS_MAX)
}

/// Hashes one file. Its stat afterwards must be the one before, so that the
/// digest belongs to the stat under which the cache remembers it.
fn hash_file(
    root: BorrowedFd<'_>,
    found: &Found<'_>,
    buffer: &mut [u8],
) -> Result<Hashed, SnapshotError> {
    let error = |source: io::Error| SnapshotError::read(&found.path, source);
    let mut stat = found.stat;
    for _ in 0..READS_MAX {
        let file = open_beneath(root, &found.path, OFlags::empty())
            .map_err(|errno| error(errno.into()))?;
        let mut file = File::from(file);
        let searched = secrets::content_is_searched(&found.path, stat.size);
        let (digest, holds_private_key) =
            hash_content(&mut file, stat.size, searched, buffer).map_err(error)?;
        let after = FileStat::of(&fstat(&file).map_err(|errno| error(errno.into()))?);
        if FileType::from_raw_mode(after.mode) != FileType::RegularFile {
            break;
        }
        if after == stat {
            return Ok(Hashed {
                digest,
                stat,
                holds_private_key,
            });
        }
        stat = after;
    }
    Err(SnapshotError::Changing {
        path: found.path.to_string(),
    })
}

/// Digest of the first `size` bytes, and whether they hold a private key when
/// they are `searched`. A shorter or longer file shows in its stat.
fn hash_content(
    file: &mut File,
    size: u64,
    searched: bool,
    buffer: &mut [u8],
) -> io::Result<(Digest, bool)> {
    let mut hasher = Sha256::new();
    let mut left = size;
    let mut holds_private_key = false;
    // While searching, the end of one piece stands before the next.
    let mut kept = 0;
    while left > 0 {
        let room = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len() - kept);
        let read = file.read(&mut buffer[kept..kept + room])?;
        if read == 0 {
            break;
        }
        let filled = kept + read;
        hasher.update(&buffer[kept..filled]);
        left -= read as u64;
        if searched {
            holds_private_key |= secrets::holds_private_key(&buffer[..filled]);
            kept = filled.min(SCAN_OVERLAP_BYTES);
            buffer.copy_within(filled - kept..filled, 0);
        }
    }
    Ok((
        Digest::from_bytes(hasher.finalize().into()),
        holds_private_key,
    ))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_file_that_changed_since_the_walk_is_hashed_as_it_is_now() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("grown"), b"longer than it was").unwrap();
        let root = File::open(folder.path()).unwrap();
        let now = FileStat::of(&fstat(File::open(folder.path().join("grown")).unwrap()).unwrap());
        let seen = FileStat {
            size: 6,
            mtime_ns: now.mtime_ns - 1,
            ..now
        };
        let found = Found {
            path: "grown".into(),
            stat: seen,
            demanded: false,
            digest: Digest::from_bytes([0; 32]),
            holds_private_key: false,
        };
        let hashed = hash_all(root.as_fd(), &[found], &[0], 1).unwrap()[0];
        assert_eq!(
            (hashed.stat, hashed.digest),
            (now, Digest::of(b"longer than it was"))
        );
    }
}
