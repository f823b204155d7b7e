//! Datasets that were copied in: the content store has them, jobs read a copy of it.
//!
//! ```text
//!   objects ─ lay out ─► PLACES/new-… ─ rename ─► PLACES/CHECKSUM (read-only) ◄─ jobs
//! ```
//!
//! A place is looked at before each start like any dataset. One that somebody changed
//! is laid out anew, for what counts is in the store; all of them may vanish.

use std::collections::HashSet;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use mlmesh_model::{CommitId, Dataset, Digest, ObjectId, Snapshots as _, SnapshotsError};

use crate::error::StoreError;
use crate::node::{NodeSnapshots, from_snapshot, io_error};
use crate::snapshot::{Checksum, checksum};
use crate::tree::{Change, Tree};

/// What the content store has of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Files and links.
    pub files: u64,
    /// Bytes of all contents.
    pub bytes: u64,
}

/// Places in the making begin with this; an earlier daemon may have left some.
const TEMPORARY: &str = "new-";

impl NodeSnapshots {
    /// What the store has of the data with this checksum; `None` when that is not all.
    pub fn copied(&self, sum: Digest, directory: bool) -> Result<Option<Copied>, SnapshotsError> {
        if !directory {
            let size = self.store().size(ObjectId(sum))?;
            return Ok(size.map(|bytes| Copied { files: 1, bytes }));
        }
        if !self.store().has_commit(CommitId(sum))? {
            return Ok(None);
        }
        let tree = self.store().tree(CommitId(sum))?;
        let sizes = tree.entries.iter().map(|entry| entry.size);
        Ok(Some(Copied {
            files: tree.entries.len() as u64,
            bytes: sizes.fold(0, u64::saturating_add),
        }))
    }

    /// Every path of a dataset that is not as registered. Reads all of a copied one,
    /// of another one what its stat cache does not prove.
    pub fn dataset_changes(
        &self,
        dataset: &Dataset,
    ) -> Result<Vec<(String, Change)>, SnapshotsError> {
        if dataset.copied {
            return self.damaged_paths(dataset);
        }
        let path = Path::new(&dataset.path);
        let whole = |change| Ok(vec![(dataset.path.clone(), change)]);
        let now = match checksum(path, &self.options(path)) {
            Ok(now) if now.digest() == dataset.checksum => return Ok(Vec::new()),
            Ok(now) => now,
            Err(error) => match from_snapshot(path, error) {
                SnapshotsError::Changed { .. } => return whole(Change::Removed),
                error => return Err(error),
            },
        };
        let listing = fs::read(self.listing_path(dataset.checksum)).unwrap_or_default();
        match (now, Tree::parse(&listing)) {
            (Checksum::Folder(seen), Ok(before)) => {
                let changes = before.changes_to(seen.tree()).into_iter();
                Ok(changes
                    .map(|(path, change)| (path.to_owned(), change))
                    .collect())
            }
            _ => whole(Change::Changed),
        }
    }

    /// Removes the places of all other datasets, and what is left of unfinished ones.
    pub fn remove_places(&self, keep: &HashSet<Digest>) -> io::Result<()> {
        for (path, checksum) in self.places()? {
            if checksum.is_some_and(|checksum| !keep.contains(&checksum)) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Removes what an earlier daemon has not finished. Not for a store that others use.
    pub fn remove_unfinished_places(&self) -> io::Result<()> {
        for (path, checksum) in self.places()? {
            if checksum.is_none() {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// What lies among the places, with the dataset that a finished one belongs to.
    fn places(&self) -> io::Result<Vec<(PathBuf, Option<Digest>)>> {
        let found = match fs::read_dir(self.places_root()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            found => found?,
        };
        let mut places = Vec::new();
        for entry in found {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_str().unwrap_or_default();
            let checksum: Option<Digest> = name.parse().ok();
            if checksum.is_some() || name.starts_with(TEMPORARY) {
                places.push((entry.path(), checksum));
            }
        }
        Ok(places)
    }

    /// Where jobs read the dataset; laid out when it is not there as it should be.
    pub(crate) fn lay_out(&self, dataset: &Dataset) -> Result<PathBuf, SnapshotsError> {
        let place = self.place_of(dataset.checksum);
        if place.symlink_metadata().is_ok() {
            if self.is_whole(&place, dataset)? {
                return Ok(place);
            }
            remove(&place).map_err(|error| io_error("remove", &place, error))?;
        }
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let temporary = self.places_root().join(format!(
            "{TEMPORARY}{}-{}-{}",
            dataset.checksum,
            std::process::id(),
            COUNTER.fetch_add(1, Ordering::Relaxed)
        ));
        let made = self.write_place(dataset, &temporary, &place);
        if made.is_err() {
            let _ = remove(&temporary);
        }
        made?;
        match self.is_whole(&place, dataset)? {
            true => Ok(place),
            false => Err(SnapshotsError::Changed {
                path: place.display().to_string(),
                detail: "it is changed while it is laid out".to_owned(),
            }),
        }
    }

    fn write_place(
        &self,
        dataset: &Dataset,
        temporary: &Path,
        place: &Path,
    ) -> Result<(), SnapshotsError> {
        let failed = |error| io_error("lay out the dataset in", temporary, error);
        fs::create_dir_all(self.places_root()).map_err(failed)?;
        if dataset.directory {
            let commit = CommitId(dataset.checksum);
            self.store()
                .checkout(commit, temporary)
                .map_err(|error| self.named(dataset, error))?;
        } else {
            let reader = self.store().reader(ObjectId(dataset.checksum));
            let mut reader = reader.map_err(|error| self.named(dataset, error))?;
            let mut file = File::create(temporary).map_err(failed)?;
            io::copy(&mut reader, &mut file).map_err(|error| match error.kind() {
                io::ErrorKind::InvalidData => {
                    self.named(dataset, StoreError::Corrupt(ObjectId(dataset.checksum)))
                }
                _ => failed(error),
            })?;
        }
        protect(temporary).map_err(failed)?;
        match fs::rename(temporary, place) {
            // Another start was first.
            Err(_) if place.symlink_metadata().is_ok() => remove(temporary).map_err(failed),
            renamed => renamed.map_err(failed),
        }
    }

    /// Whether the copy at `place` is what was registered.
    fn is_whole(&self, place: &Path, dataset: &Dataset) -> Result<bool, SnapshotsError> {
        match checksum(place, &self.options(place)) {
            Ok(now) => Ok(now.digest() == dataset.checksum),
            Err(error) => match from_snapshot(place, error) {
                SnapshotsError::Changed { .. } => Ok(false),
                error => Err(error),
            },
        }
    }

    /// Looks at a copied dataset: at its place, if it has one, and with `full` at every
    /// byte in the store.
    pub(crate) fn verify_copied(
        &self,
        dataset: &Dataset,
        full: bool,
    ) -> Result<(), SnapshotsError> {
        if full && let Some((path, _)) = self.damaged_paths(dataset)?.into_iter().next() {
            return Err(SnapshotsError::Changed {
                path,
                detail: "it is damaged in the content store".to_owned(),
            });
        }
        let place = self.place_of(dataset.checksum);
        if place.symlink_metadata().is_ok() && !self.is_whole(&place, dataset)? {
            return Err(SnapshotsError::Changed {
                path: place.display().to_string(),
                detail: "the copy that jobs read is not what was registered; the next start \
                         lays it out anew"
                    .to_owned(),
            });
        }
        match self.copied(dataset.checksum, dataset.directory)? {
            Some(_) => Ok(()),
            None => Err(SnapshotsError::Missing(dataset.checksum.to_string())),
        }
    }

    fn damaged_paths(&self, dataset: &Dataset) -> Result<Vec<(String, Change)>, SnapshotsError> {
        let of = |object, path: &str| match self.check_object(object) {
            Ok(_) => Ok(None),
            Err(SnapshotsError::Missing(_)) => Ok(Some((path.to_owned(), Change::Removed))),
            Err(SnapshotsError::Changed { .. }) => {
                // So that sending it again mends it.
                self.store().mark_damaged(object);
                Ok(Some((path.to_owned(), Change::Changed)))
            }
            Err(error) => Err(error),
        };
        if !dataset.directory {
            let found = of(ObjectId(dataset.checksum), &dataset.path)?;
            return Ok(found.into_iter().collect());
        }
        let tree = self.store().tree(CommitId(dataset.checksum))?;
        let entries = tree.entries.iter();
        let found = entries.filter_map(|entry| of(entry.object, &entry.path).transpose());
        found.collect()
    }

    /// Names the path of an object that is damaged or gone.
    fn named(&self, dataset: &Dataset, error: StoreError) -> SnapshotsError {
        let (StoreError::Corrupt(object) | StoreError::Missing(object)) = &error else {
            return error.into();
        };
        let tree = self.store().tree(CommitId(dataset.checksum)).ok();
        let path = tree.as_ref().and_then(|tree| {
            let entry = tree.entries.iter().find(|entry| entry.object == *object)?;
            Some(entry.path.clone())
        });
        SnapshotsError::Changed {
            path: path.unwrap_or_else(|| dataset.path.clone()),
            detail: error.to_string(),
        }
    }
}

/// Takes the right to write away, from files before their folders.
fn protect(path: &Path) -> io::Result<()> {
    for path in beneath(path)?.iter().rev() {
        let mode = fs::metadata(path)?.permissions().mode();
        fs::set_permissions(path, Permissions::from_mode(mode & 0o555))?;
    }
    Ok(())
}

/// Removes a place, which cannot be written.
fn remove(path: &Path) -> io::Result<()> {
    if !path.symlink_metadata()?.is_dir() {
        return fs::remove_file(path);
    }
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        fs::set_permissions(&folder, Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    fs::remove_dir_all(path)
}

/// A path and everything below it but links, folders first.
fn beneath(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![path.to_owned()];
    let mut next = 0;
    while next < found.len() {
        let path = found[next].clone();
        next += 1;
        if !path.is_dir() {
            continue;
        }
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if !entry.file_type()?.is_symlink() {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}
