//! Finding out what a store holds when it is opened.
//!
//! For each pack: a good index is believed; else the journal's whole batches, and
//! behind them whatever records prove themselves by their digest. Bytes that
//! nothing explains are left where they are, in a pack that is then sealed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FlockOperation;

use crate::damage;
use crate::error::{StoreError, io_error};
use crate::format::{self, IndexEntry, MAGIC_BYTES};
use crate::pack::{self, OpenPack, PackFile, SealedPack, pack_path, prefix};
use crate::place::{self, Locked};
use crate::store::Table;

/// Something that opening a store has put right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovery {
    /// A pack had no good index; it was made anew.
    IndexRebuilt {
        /// The pack.
        pack: PathBuf,
        /// Objects in it.
        objects: usize,
    },
    /// The end of a pack was written and not acknowledged before a crash.
    TailSealed {
        /// The pack.
        pack: PathBuf,
        /// Bytes at its end that belong to no object.
        bytes: u64,
    },
}

pub(crate) struct Loaded {
    pub(crate) open: Option<OpenPack>,
    pub(crate) table: Table,
    pub(crate) recovered: Vec<Recovery>,
}

/// Loads the store for its one writer; repairs what a crash has left.
pub(crate) fn load_for_writing(root: &Path) -> Result<Loaded, StoreError> {
    let folder = root.join("packs");
    let io = |source| io_error("recover packs in", &folder, source);
    remove_strays(&folder).map_err(io)?;
    let mut loaded = Loaded {
        open: None,
        table: Table::default(),
        recovered: Vec::new(),
    };
    let numbers = pack_numbers(&folder).map_err(io)?;
    for number in numbers.iter().copied() {
        loaded.table.next_pack = number;
        let pack = PackFile::open(&folder, number).map_err(io)?;
        if let Some(entries) = read_index(&folder, number).map_err(io)? {
            // A crash may have come between the index and the journal's removal.
            remove_if_there(&pack_path(&folder, number, "log")).map_err(io)?;
            loaded
                .table
                .sealed
                .insert(0, Arc::new(SealedPack::new(pack, &entries)));
        } else {
            let newest = numbers.last() == Some(&number);
            recover_pack(&folder, pack, newest, &mut loaded).map_err(io)?;
        }
    }
    load_names(root, &mut loaded.table)?;
    loaded.table.broken = damage::read(root);
    Ok(loaded)
}

/// Loads the store as far as it is acknowledged; changes nothing.
pub(crate) fn load_for_reading(root: &Path) -> Result<Table, StoreError> {
    let folder = root.join("packs");
    let io = |source| io_error("read packs in", &folder, source);
    let mut table = Table::default();
    for number in pack_numbers(&folder).map_err(io)? {
        // The writer may remove a pack between these steps.
        let Ok(pack) = PackFile::open(&folder, number) else {
            continue;
        };
        let entries = match read_index(&folder, number).map_err(io)? {
            Some(entries) => entries,
            None => {
                let journal = read_if_there(&pack_path(&folder, number, "log")).map_err(io)?;
                let (mut entries, _) = format::parse_journal(&journal.unwrap_or_default());
                entries.sort_unstable_by_key(|(id, _)| *id);
                entries
            }
        };
        table
            .sealed
            .insert(0, Arc::new(SealedPack::new(pack, &entries)));
    }
    table.broken = damage::read(root);
    Ok(table)
}

/// A pack without a good index: goes on as the open pack when it is the newest
/// and whole, and is sealed otherwise.
fn recover_pack(
    folder: &Path,
    pack: PackFile,
    newest: bool,
    loaded: &mut Loaded,
) -> io::Result<()> {
    let number = pack.number;
    let path = pack_path(folder, number, "pack");
    let journal = read_if_there(&pack_path(folder, number, "log"))?;
    let had_index = pack_path(folder, number, "idx").exists();
    let (mut entries, journal_end) = format::parse_journal(journal.as_deref().unwrap_or_default());
    let acknowledged = entries
        .iter()
        .map(|(_, location)| location.end())
        .max()
        .unwrap_or(MAGIC_BYTES as u64);
    let tail = pack.scan(acknowledged)?;
    let whole = tail
        .last()
        .map_or(acknowledged, |(_, location)| location.end());
    let unexplained = pack.file.metadata()?.len().saturating_sub(whole);
    let journal_is_whole = journal
        .as_ref()
        .is_some_and(|bytes| bytes.len() == journal_end && journal_end > 0);

    let clean = tail.is_empty() && unexplained == 0;
    if newest && clean && journal_is_whole {
        let open = OpenPack::reopen(
            folder,
            number,
            acknowledged,
            journal_end as u64,
            entries.len(),
        )?;
        loaded.table.open = Some((open.pack.clone(), entries.into_iter().collect()));
        loaded.open = Some(open);
        return Ok(());
    }
    entries.extend(tail);
    if entries.is_empty() {
        // Created and never acknowledged.
        return remove_pack(folder, number);
    }
    let objects = entries.len();
    if had_index || journal.is_none() {
        loaded.recovered.push(Recovery::IndexRebuilt {
            pack: path.clone(),
            objects,
        });
    }
    if unexplained > 0 {
        loaded.recovered.push(Recovery::TailSealed {
            pack: path,
            bytes: unexplained,
        });
    }
    // What is adopted from the tail may still be on its way to the disk.
    pack.file.sync_data()?;
    dedup(&mut entries);
    let sealed = pack::seal(folder, pack, &mut entries)?;
    loaded.table.sealed.insert(0, Arc::new(sealed));
    Ok(())
}

fn dedup(entries: &mut Vec<IndexEntry>) {
    entries.sort_by_key(|(id, location)| (*id, location.offset));
    entries.dedup_by_key(|(id, _)| *id);
}

/// The pack goes before its index: an index without a pack is easily told.
pub(crate) fn remove_pack(folder: &Path, number: u32) -> io::Result<()> {
    for ending in ["pack", "log", "idx"] {
        remove_if_there(&pack_path(folder, number, ending))?;
    }
    place::sync_folder(folder)
}

/// Temporary files, and indexes and journals whose pack is gone.
fn remove_strays(folder: &Path) -> io::Result<()> {
    for file in fs::read_dir(folder)? {
        let path = file?.path();
        let stray = match path.extension().and_then(|ending| ending.to_str()) {
            Some("tmp") => true,
            Some("idx" | "log") => !path.with_extension("pack").exists(),
            _ => false,
        };
        if stray {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn pack_numbers(folder: &Path) -> io::Result<BTreeSet<u32>> {
    let mut numbers = BTreeSet::new();
    for file in fs::read_dir(folder)? {
        let name = file?.file_name();
        let number: Option<u32> = name
            .to_str()
            .and_then(|name| name.strip_suffix(".pack")?.parse().ok());
        numbers.extend(number);
    }
    Ok(numbers)
}

fn read_index(folder: &Path, number: u32) -> io::Result<Option<Vec<IndexEntry>>> {
    let bytes = read_if_there(&pack_path(folder, number, "idx"))?;
    Ok(bytes.and_then(|bytes| format::parse_index(&bytes)))
}

fn load_names(root: &Path, table: &mut Table) -> Result<(), StoreError> {
    for (name, set) in [("loose", &mut table.loose), ("commits", &mut table.commits)] {
        let folder = root.join(name);
        let digests =
            place::list_fanned(&folder).map_err(|source| io_error("list", &folder, source))?;
        set.extend(
            digests
                .into_iter()
                .map(|digest| prefix(mlmesh_model::ObjectId(digest))),
        );
    }
    Ok(())
}

fn read_if_there(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

const FORMAT: &str = "mlmesh-objects 1\n";

/// Takes the lock that only one process has.
pub(crate) fn lock_for_writing(root: &Path) -> Result<Locked, StoreError> {
    let path = root.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| io_error("open", &path, source))?;
    match Locked::new(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(lock) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::InUse {
            path: root.to_owned(),
        }),
        Err(errno) => Err(io_error("lock", &path, errno.into())),
    }
}

/// Refuses a store of another version; writes the version of a new one.
pub(crate) fn check_format(root: &Path, create: bool) -> Result<(), StoreError> {
    let path = root.join("format");
    match fs::read(&path) {
        Ok(bytes) if bytes == FORMAT.as_bytes() => Ok(()),
        Ok(bytes) => {
            let found = String::from_utf8_lossy(&bytes)
                .lines()
                .next()
                .unwrap_or_default()
                .chars()
                .take(80)
                .collect();
            Err(StoreError::Format {
                path: root.to_owned(),
                found,
            })
        }
        Err(error) if create && error.kind() == io::ErrorKind::NotFound => {
            let temporary = root.join("format.tmp");
            place::write_synced(&temporary, FORMAT.as_bytes())
                .and_then(|()| fs::rename(&temporary, &path))
                .map_err(|source| io_error("create", &path, source))
        }
        Err(source) => Err(io_error("read", &path, source)),
    }
}
