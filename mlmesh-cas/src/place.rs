//! Putting files into place so that a crash leaves the old one, the new one or
//! none, and never half of one: write under another name, sync, rename, sync the
//! folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use mlmesh_model::Digest;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::fault;

/// Names of the crash points of one kind of file.
pub(crate) struct Points {
    pub(crate) write: &'static str,
    pub(crate) fsync: &'static str,
    pub(crate) rename: &'static str,
    pub(crate) fsync_folder: &'static str,
}

pub(crate) const LOOSE: Points = Points {
    write: "cas.loose.write",
    fsync: "cas.loose.fsync",
    rename: "cas.loose.rename",
    fsync_folder: "cas.loose.fsync_folder",
};

pub(crate) const COMMIT: Points = Points {
    write: "cas.commit.write",
    fsync: "cas.commit.fsync",
    rename: "cas.commit.rename",
    fsync_folder: "cas.commit.fsync_folder",
};

/// `root/ab/cdef…` for a digest, so that no folder grows too large.
pub(crate) fn fanned(root: &Path, digest: Digest) -> PathBuf {
    let text = digest.to_string();
    let (folder, name) = text.split_at(2);
    root.join(folder).join(name)
}

/// The digests whose files lie fanned out below `root`.
pub(crate) fn list_fanned(root: &Path) -> io::Result<Vec<Digest>> {
    let mut digests = Vec::new();
    for folder in fs::read_dir(root)? {
        let folder = folder?;
        let name = folder.file_name();
        let Some(first) = name.to_str().filter(|name| name.len() == 2) else {
            continue;
        };
        for file in fs::read_dir(folder.path())? {
            let name = file?.file_name();
            let digest: Option<Digest> = name
                .to_str()
                .and_then(|rest| format!("{first}{rest}").parse().ok());
            digests.extend(digest);
        }
    }
    Ok(digests)
}

/// Syncs the written file `temporary` and gives it the name `path`.
pub(crate) fn place(file: &File, temporary: &Path, path: &Path, points: &Points) -> io::Result<()> {
    fault::point(points.write);
    file.sync_all()?;
    fault::point(points.fsync);
    let folder = path.parent().unwrap_or(Path::new("."));
    if !folder.exists() {
        create_folder(folder)?;
        sync_folder(folder.parent().unwrap_or(Path::new(".")))?;
    }
    fs::rename(temporary, path)?;
    fault::point(points.rename);
    sync_folder(folder)?;
    fault::point(points.fsync_folder);
    Ok(())
}

/// A new file in `folder` that nobody else has.
pub(crate) fn create_temporary(folder: &Path) -> io::Result<(File, Temporary)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let name = format!(
            "{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = folder.join(name);
        match OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
        {
            Ok(file) => return Ok((file, Temporary(path))),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// A temporary file's name; the file goes with it unless it was renamed.
#[derive(Debug)]
pub(crate) struct Temporary(pub(crate) PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A file under an advisory lock of its own. The lock is given up explicitly: a
/// child between fork and exec still has the descriptor and would hold it on.
#[derive(Debug)]
pub(crate) struct Locked(pub(crate) File);

impl Locked {
    pub(crate) fn new(file: File, operation: FlockOperation) -> Result<Self, Errno> {
        flock(&file, operation)?;
        Ok(Self(file))
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

pub(crate) fn create_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
