//! The port `Snapshots` of a node: its store, its registered datasets, its caches.
//!
//! Datasets lie where they are. What registering has seen of a folder is kept as
//! a listing, so that a later difference can be named; the stat cache beside it
//! only saves time and may vanish.

use std::fs::{self, File};
use std::io::{self, BufRead, Read as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mlmesh_model::{CommitId, Dataset, Digest, ListedFile, ObjectId, Snapshots, SnapshotsError};
use rustix::fs::{CWD, FileType, Mode as Permissions, OFlags, fstat, openat};

use crate::error::StoreError;
use crate::place;
use crate::snapshot::{Checksum, Options, SnapshotError, checksum};
use crate::store::{LOOSE_BYTES_MIN, ObjectStore};
use crate::tree::{Change, Mode, Tree, TreeEntry, check_path};
use crate::walk::open_beneath;

/// What a node knows of trees, outputs and datasets.
#[derive(Debug, Clone)]
pub struct NodeSnapshots {
    store: Arc<ObjectStore>,
    /// Listings of registered datasets.
    listings: PathBuf,
    /// Stat caches of datasets; deletable at any time.
    cache: PathBuf,
}

/// Small outputs are stored together up to this size.
const BATCH_BYTES: usize = 8 << 20;

impl NodeSnapshots {
    /// `listings` and `cache` are folders, created when they are needed.
    pub const fn new(store: Arc<ObjectStore>, listings: PathBuf, cache: PathBuf) -> Self {
        Self {
            store,
            listings,
            cache,
        }
    }

    /// The store itself.
    pub const fn store(&self) -> &Arc<ObjectStore> {
        &self.store
    }

    /// Reads the dataset at `path` and remembers what is in it.
    pub fn register_dataset(&self, path: &Path) -> Result<Checksum, SnapshotsError> {
        let sum =
            checksum(path, &self.options(path)).map_err(|error| from_snapshot(path, error))?;
        if let Checksum::Folder(seen) = &sum {
            let listing = self.listing_path(seen.commit.0);
            let keep = || -> io::Result<()> {
                fs::create_dir_all(&self.listings)?;
                let temporary = listing.with_extension("tmp");
                place::write_synced(&temporary, &seen.tree().canonical_bytes())?;
                fs::rename(&temporary, &listing)?;
                place::sync_folder(&self.listings)
            };
            keep().map_err(|source| io_error("keep the listing", &listing, source))?;
        }
        Ok(sum)
    }

    /// Names up to three paths that differ, for a person.
    fn difference(&self, registered: Digest, now: &Checksum) -> (Option<String>, String) {
        let Checksum::Folder(seen) = now else {
            return (None, String::new());
        };
        let listing = fs::read(self.listing_path(registered)).unwrap_or_default();
        let Ok(before) = Tree::parse(&listing) else {
            return (None, String::new());
        };
        let all = before.changes_to(seen.tree());
        let words: Vec<_> = all
            .iter()
            .take(3)
            .map(|(path, change)| {
                let word = match change {
                    Change::Added => "added",
                    Change::Removed => "removed",
                    Change::Changed => "changed",
                };
                format!("`{}` {word}", path.escape_debug())
            })
            .collect();
        let more = if all.len() > words.len() {
            format!(" and {} more", all.len() - words.len())
        } else {
            String::new()
        };
        (
            all.first().map(|(path, _)| (*path).to_owned()),
            format!("; {}{more}", words.join(", ")),
        )
    }

    /// Where copies of copied-in datasets lie; deletable while no job reads them.
    pub(crate) fn places_root(&self) -> PathBuf {
        self.cache.with_file_name("datasets")
    }

    pub(crate) fn place_of(&self, checksum: Digest) -> PathBuf {
        self.places_root().join(checksum.to_string())
    }

    pub(crate) fn options(&self, dataset: &Path) -> Options {
        let name = Digest::of(dataset.as_os_str().as_encoded_bytes()).to_string();
        Options::dataset(Some(self.cache.join(format!("{name}.stat"))))
    }

    pub(crate) fn listing_path(&self, digest: Digest) -> PathBuf {
        self.listings.join(format!("{digest}.tree"))
    }
}

impl Snapshots for NodeSnapshots {
    fn has_commit(&self, commit: CommitId) -> Result<bool, SnapshotsError> {
        Ok(self.store.has_commit(commit)?)
    }

    fn checkout(&self, commit: CommitId, destination: &Path) -> Result<(), SnapshotsError> {
        self.store.checkout(commit, destination)?;
        Ok(())
    }

    fn read_file(
        &self,
        commit: CommitId,
        path: &str,
        bytes_max: u64,
    ) -> Result<Vec<u8>, SnapshotsError> {
        let tree = self.store.tree(commit)?;
        let entry = tree.entry(path).filter(|entry| entry.mode != Mode::Symlink);
        let entry = entry.ok_or_else(|| SnapshotsError::Missing(format!("{commit}:{path}")))?;
        Ok(self.store.read(entry.object, bytes_max)?)
    }

    fn store_outputs(&self, root: &Path, files: &[String]) -> Result<ObjectId, SnapshotsError> {
        let error = |path: &str, source| io_error("store the output", &root.join(path), source);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat(CWD, root, flags, Permissions::empty())
            .map_err(|errno| error("", errno.into()))?;
        let mut entries = Vec::with_capacity(files.len());
        let (mut batch, mut batch_bytes) = (Vec::new(), 0);
        for path in files {
            let output = open_output(folder.as_fd(), path).map_err(|source| error(path, source))?;
            let mut head = Vec::new();
            let mut file = output.file;
            (&mut file)
                .take(LOOSE_BYTES_MIN)
                .read_to_end(&mut head)
                .map_err(|source| error(path, source))?;
            let (object, size) = if (head.len() as u64) < LOOSE_BYTES_MIN {
                let object = ObjectId(Digest::of(&head));
                let size = head.len() as u64;
                batch_bytes += head.len();
                batch.push((object, head));
                (object, size)
            } else {
                let object = self
                    .store
                    .put_stream(io::Cursor::new(head).chain(file), None)?;
                (object, self.store.size(object)?.unwrap_or(0))
            };
            if batch_bytes >= BATCH_BYTES {
                self.store.put_batch(batch.drain(..))?;
                batch_bytes = 0;
            }
            entries.push(TreeEntry {
                path: path.clone(),
                mode: output.mode,
                size,
                object,
            });
        }
        self.store.put_batch(batch)?;
        let tree = Tree::from_entries(entries).map_err(StoreError::from)?;
        Ok(ObjectId(self.store.put_tree(&tree)?.0))
    }

    fn listing(&self, listing: ObjectId) -> Result<Vec<ListedFile>, SnapshotsError> {
        let tree = self.store.tree(CommitId(listing.0))?;
        let entries = tree.entries.into_iter().map(|entry| ListedFile {
            path: entry.path,
            mode: entry.mode.word().to_owned(),
            size: entry.size,
            sha256: entry.object.0,
        });
        Ok(entries.collect())
    }

    fn check_object(&self, object: ObjectId) -> Result<u64, SnapshotsError> {
        let mut reader = self.store.reader(object)?;
        match io::copy(&mut reader, &mut io::sink()) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(StoreError::Corrupt(object).into())
            }
            Err(source) => Err(SnapshotsError::Io {
                action: format!("read object {object}"),
                source,
            }),
            Ok(bytes) => Ok(bytes),
        }
    }

    fn first_difference(
        &self,
        one: ObjectId,
        other: ObjectId,
    ) -> Result<Option<u64>, SnapshotsError> {
        let mut one = io::BufReader::new(self.store.reader(one)?);
        let mut other = io::BufReader::new(self.store.reader(other)?);
        difference_of(&mut one, &mut other)
            .map_err(|source| io_error("compare objects in", Path::new("objects"), source))
    }

    fn place_dataset(&self, dataset: &Dataset) -> Result<PathBuf, SnapshotsError> {
        if dataset.copied {
            return self.lay_out(dataset);
        }
        self.verify_dataset(dataset, false)?;
        Ok(PathBuf::from(&dataset.path))
    }

    fn verify_dataset(&self, dataset: &Dataset, full: bool) -> Result<(), SnapshotsError> {
        if dataset.copied {
            return self.verify_copied(dataset, full);
        }
        let path = Path::new(&dataset.path);
        let options = self.options(path);
        if full && let Some(cache) = &options.stat_cache {
            match fs::remove_file(cache) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("remove the stat cache", cache, error));
                }
                _ => {}
            }
        }
        let now = checksum(path, &options).map_err(|error| from_snapshot(path, error))?;
        if now.digest() == dataset.checksum {
            return Ok(());
        }
        let (inside, words) = self.difference(dataset.checksum, &now);
        let path = inside.map_or_else(
            || dataset.path.clone(),
            |inside| format!("{}/{inside}", dataset.path),
        );
        let detail = format!(
            "registered as `{}`, now `{}`{words}",
            dataset.checksum,
            now.digest()
        );
        Err(SnapshotsError::Changed { path, detail })
    }
}

impl From<StoreError> for SnapshotsError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Missing(id) => Self::Missing(id.to_string()),
            StoreError::Corrupt(id) => Self::Changed {
                path: format!("object {id}"),
                detail: "it is damaged in the store".to_owned(),
            },
            StoreError::Tree(error) => Self::Refused(error.to_string()),
            StoreError::Io {
                action,
                path,
                source,
            } => io_error(action, &path, source),
            other => Self::Io {
                action: "object store".to_owned(),
                source: io::Error::other(other),
            },
        }
    }
}

/// Where two streams differ first; the end of the shorter one counts.
fn difference_of(one: &mut impl BufRead, other: &mut impl BufRead) -> io::Result<Option<u64>> {
    let mut at = 0;
    loop {
        let (left, right) = (one.fill_buf()?, other.fill_buf()?);
        if left.is_empty() && right.is_empty() {
            return Ok(None);
        }
        let same = left.iter().zip(right).take_while(|(a, b)| a == b).count();
        at += same as u64;
        if same < left.len().min(right.len()) || same == 0 {
            return Ok(Some(at));
        }
        one.consume(same);
        other.consume(same);
    }
}

struct Output {
    file: File,
    mode: Mode,
}

/// Opens a regular file below the folder; no part of its path may be a link.
fn open_output(folder: std::os::fd::BorrowedFd<'_>, path: &str) -> io::Result<Output> {
    check_path(path).map_err(|rule| io::Error::new(io::ErrorKind::InvalidInput, rule))?;
    let file = open_beneath(folder, path, OFlags::empty())?;
    let stat = fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "an output must be a regular file",
        ));
    }
    let mode = if stat.st_mode & 0o100 == 0 {
        Mode::File
    } else {
        Mode::Executable
    };
    Ok(Output {
        file: File::from(file),
        mode,
    })
}

pub(crate) fn from_snapshot(path: &Path, error: SnapshotError) -> SnapshotsError {
    match error {
        SnapshotError::Root { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            SnapshotsError::Changed {
                path: path.display().to_string(),
                detail: "it is not there".to_owned(),
            }
        }
        SnapshotError::Root { path, source } => io_error("read the dataset", &path, source),
        SnapshotError::Read {
            path: inside,
            source,
        } => io_error("read the dataset", &path.join(inside), source),
        other => io_error("read the dataset", path, io::Error::other(other)),
    }
}

pub(crate) fn io_error(action: &str, path: &Path, source: io::Error) -> SnapshotsError {
    SnapshotsError::Io {
        action: format!("{action} `{}`", path.display()),
        source,
    }
}
