//! Checkouts: a commit's tree written below a new folder.
//!
//! Files are reflinks where the file system can, else copies, never links to the
//! store's own files. Folders are opened one by one without following links and
//! every file is created anew, so that nothing is written outside the folder,
//! whatever the tree says and whoever else writes there. Contents are checked.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use mlmesh_model::{CommitId, Digest, ObjectId};
use rustix::fs::{
    CWD, Mode as Permissions, OFlags, fchmod, ioctl_ficlone, mkdirat, openat, symlinkat,
};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::error::{StoreError, io_error};
use crate::store::{Found, ObjectStore};
use crate::tree::{Mode, Tree, TreeEntry};

/// What a checkout has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CheckedOut {
    /// Files and links.
    pub entries: u64,
    /// Bytes of all contents.
    pub bytes: u64,
    /// Files that share their blocks with the store.
    pub reflinked: u64,
}

impl ObjectStore {
    /// Writes the tree of `commit` below `destination`, which is new or empty.
    pub fn checkout(&self, commit: CommitId, destination: &Path) -> Result<CheckedOut, StoreError> {
        if !self.has_commit(commit)? {
            return Err(StoreError::Missing(ObjectId(commit.0)));
        }
        let tree = self.tree(commit)?;
        self.checkout_tree(&tree, destination)
    }

    pub(crate) fn checkout_tree(
        &self,
        tree: &Tree,
        destination: &Path,
    ) -> Result<CheckedOut, StoreError> {
        let root = open_empty(destination).map_err(|source| {
            io_error(
                "check out into the new or empty folder",
                destination,
                source,
            )
        })?;
        let mut checkout = Checkout {
            store: self,
            destination,
            buffer: Vec::new(),
            reflink: true,
            folders: vec![(String::new(), root)],
            done: CheckedOut::default(),
        };
        // Links come last, so that no path of a file could lead through one.
        let (links, files): (Vec<_>, Vec<_>) = tree
            .entries
            .iter()
            .partition(|entry| entry.mode == Mode::Symlink);
        for entry in files.into_iter().chain(links) {
            checkout.entry(entry)?;
            checkout.done.entries += 1;
            // A listing that was changed on disk may say any size.
            checkout.done.bytes = checkout.done.bytes.saturating_add(entry.size);
        }
        Ok(checkout.done)
    }
}

const COPY_BUFFER_BYTES: usize = 256 << 10;

struct Checkout<'a> {
    store: &'a ObjectStore,
    destination: &'a Path,
    /// For large files; most trees have none.
    buffer: Vec<u8>,
    /// Until the file system has said no.
    reflink: bool,
    /// The open folders from the root down to the last entry's, each with its path.
    folders: Vec<(String, OwnedFd)>,
    done: CheckedOut,
}

impl Checkout<'_> {
    fn entry(&mut self, entry: &TreeEntry) -> Result<(), StoreError> {
        let (folder, name) = entry.path.rsplit_once('/').unwrap_or(("", &entry.path));
        self.enter(folder)
            .map_err(|errno| self.error(entry, errno.into()))?;
        if entry.mode == Mode::Symlink {
            let target = self.store.link_target(entry)?;
            return symlinkat(&target, self.here(), name)
                .map_err(|errno| self.error(entry, errno.into()));
        }
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let permissions = Permissions::from_raw_mode(if entry.mode == Mode::Executable {
            0o755
        } else {
            0o644
        });
        let file = openat(self.here(), name, flags, permissions)
            .and_then(|file| fchmod(&file, permissions).map(|()| File::from(file)))
            .map_err(|errno| self.error(entry, errno.into()))?;
        self.content(entry, file)
    }

    fn content(&mut self, entry: &TreeEntry, mut file: File) -> Result<(), StoreError> {
        match self
            .store
            .find(entry.object)?
            .ok_or(StoreError::Missing(entry.object))?
        {
            Found::Packed(pack, location) => {
                let content = self.store.read_packed(entry.object, &pack, location)?;
                file.write_all(&content)
                    .map_err(|source| self.error(entry, source))
            }
            Found::Loose(path) => {
                let mut source =
                    File::open(&path).map_err(|error| io_error("open", &path, error))?;
                let cloned = self.reflink && ioctl_ficlone(&file, &source).is_ok();
                self.reflink = cloned;
                self.buffer.resize(COPY_BUFFER_BYTES, 0);
                let copied = if cloned { None } else { Some(&mut file) };
                let digest = copy(&mut source, copied, &mut self.buffer)
                    .map_err(|error| self.error(entry, error))?;
                self.done.reflinked += u64::from(cloned);
                if digest == entry.object.0 {
                    Ok(())
                } else {
                    Err(self.store.corrupt(entry.object))
                }
            }
        }
    }

    /// Makes `path` the innermost open folder, creating what is new of it.
    fn enter(&mut self, path: &str) -> Result<(), Errno> {
        let is_above = |folder: &str| {
            folder.is_empty()
                || path
                    .strip_prefix(folder)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        while self.folders.len() > 1 && !is_above(&self.folders[self.folders.len() - 1].0) {
            self.folders.pop();
        }
        let depth = self.folders.last().map_or(0, |(folder, _)| folder.len());
        let below = path[depth..].trim_start_matches('/');
        for part in below.split('/').filter(|part| !part.is_empty()) {
            match mkdirat(self.here(), part, Permissions::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
            let folder = openat(self.here(), part, FOLDER_FLAGS, Permissions::empty())?;
            let above = self.folders.last().map_or("", |(path, _)| path);
            let path = if above.is_empty() {
                part.to_owned()
            } else {
                format!("{above}/{part}")
            };
            self.folders.push((path, folder));
        }
        Ok(())
    }

    fn here(&self) -> BorrowedFd<'_> {
        self.folders
            .last()
            .map_or(CWD, |(_, folder)| folder.as_fd())
    }

    fn error(&self, entry: &TreeEntry, source: io::Error) -> StoreError {
        io_error("check out", &self.destination.join(&entry.path), source)
    }
}

const FOLDER_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

fn open_empty(destination: &Path) -> io::Result<OwnedFd> {
    match fs::DirBuilder::new().mode(0o755).create(destination) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if fs::read_dir(destination)?.next().is_some() {
                return Err(io::Error::new(
                    io::ErrorKind::DirectoryNotEmpty,
                    "the folder is not empty",
                ));
            }
        }
        Err(error) => return Err(error),
    }
    Ok(openat(
        CWD,
        destination,
        FOLDER_FLAGS,
        Permissions::empty(),
    )?)
}

/// Reads `source` to its end, writes it to `target` if there is one, and returns
/// its digest.
fn copy(source: &mut File, mut target: Option<&mut File>, buffer: &mut [u8]) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    loop {
        let read = source.read(buffer)?;
        if read == 0 {
            return Ok(Digest::from_bytes(hasher.finalize().into()));
        }
        hasher.update(&buffer[..read]);
        if let Some(target) = &mut target {
            target.write_all(&buffer[..read])?;
        }
    }
}
