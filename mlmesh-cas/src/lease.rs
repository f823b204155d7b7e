//! Leases: what keeps a commit while somebody uses it that no run names.
//!
//! Two kinds. A [`SyncGuard`] lives in the daemon's memory and keeps everything
//! that is written or asked for since it began. A [`Lease`] is a locked file that
//! keeps one commit, for other processes too; a crash of its holder frees it,
//! since the kernel drops the lock.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::sync::Arc;

use mlmesh_model::{CommitId, ObjectId};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{StoreError, io_error};
use crate::place::{self, Locked};
use crate::store::{ObjectStore, lock};

/// Keeps one commit and its objects until it is dropped.
#[derive(Debug)]
pub struct Lease {
    _locked: Locked,
    _name: place::Temporary,
}

/// Keeps what is put into and asked of the store while a sync is under way.
#[derive(Debug)]
pub struct SyncGuard {
    store: Arc<ObjectStore>,
    number: u64,
}

impl ObjectStore {
    /// Keeps `commit`, which must be there, through prunes of any process.
    pub fn lease(&self, commit: CommitId) -> Result<Lease, StoreError> {
        let folder = self.folder("leases");
        let io = |source| io_error("lease a commit in", &folder, source);
        // Shared with other leases; a prune holds it alone while it looks at them.
        let gate = self.gate(FlockOperation::LockShared)?;
        let (mut file, name) = place::create_temporary(&folder).map_err(io)?;
        file.write_all(commit.to_string().as_bytes()).map_err(io)?;
        let locked =
            Locked::new(file, FlockOperation::LockExclusive).map_err(|errno| io(errno.into()))?;
        let there = self.has_commit(commit)?;
        drop(gate);
        if !there {
            return Err(StoreError::Missing(ObjectId(commit.0)));
        }
        Ok(Lease {
            _locked: locked,
            _name: name,
        })
    }

    /// Begins a sync: until the guard is dropped, no prune removes what is put or
    /// found by a have-check from now on.
    pub fn begin_sync(self: &Arc<Self>) -> SyncGuard {
        let number = lock(&self.touched).begin_sync();
        SyncGuard {
            store: Arc::clone(self),
            number,
        }
    }

    pub(crate) fn gate(&self, operation: FlockOperation) -> Result<Locked, StoreError> {
        let path = self.folder("leases").join("gate");
        let open = || -> io::Result<Locked> {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)?;
            Ok(Locked::new(file, operation)?)
        };
        open().map_err(|source| io_error("lock", &path, source))
    }

    /// Commits under a lease; removes the files of holders that are gone.
    pub(crate) fn leased(&self) -> Result<Vec<CommitId>, StoreError> {
        let folder = self.folder("leases");
        let io = |source| io_error("read leases in", &folder, source);
        let mut commits = Vec::new();
        for entry in fs::read_dir(&folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if path.ends_with("gate") {
                continue;
            }
            let Ok(mut file) = File::open(&path) else {
                continue;
            };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    let _ = fs::remove_file(&path);
                }
                Err(Errno::WOULDBLOCK) => {
                    let mut text = String::new();
                    let _ = (&mut file).take(80).read_to_string(&mut text);
                    commits.extend(text.parse::<CommitId>().ok());
                }
                Err(errno) => return Err(io(errno.into())),
            }
        }
        Ok(commits)
    }
}

impl Drop for SyncGuard {
    fn drop(&mut self) {
        lock(&self.store.touched).end_sync(self.number);
    }
}
