//! Prune: removing what nothing refers to, beside running syncs.
//!
//! ```text
//! mark     roots, leases, what was touched lately; commits stand for their objects
//! commits  listings that are not marked, in one go under the table's lock
//! loose    one by one, each asked once more under the lock whether it was touched
//! packs    live records copied to a new pack, synced, indexed, swapped in, old gone
//! ```
//!
//! An id is touched before it is looked up, and removed from the table only under
//! the lock and untouched: a have-check either protects it or does not find it.
//! Listings go before their objects, so that a crash in between leaves no listing
//! without them. A crash anywhere leaves at most garbage for the next prune.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mlmesh_model::{CommitId, Digest, ObjectId};
use rustix::fs::FlockOperation;

use crate::error::{StoreError, io_error};
use crate::fault;
use crate::format::{self, IndexEntry, Location, MAGIC_BYTES, PACK_MAGIC, RECORD_HEADER_BYTES};
use crate::pack::{PACK_BYTES_MAX, PACK_OBJECTS_MAX, PackFile, SealedPack, pack_path, prefix};
use crate::place;
use crate::recover;
use crate::store::{ObjectStore, lock};
use crate::touched::GRACE_MAX;

/// How a prune weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PruneOptions {
    /// What was written or asked for within this time stays; at most an hour.
    pub grace: Duration,
    /// A large pack is rewritten when more than this part of it is garbage.
    pub garbage_percent_max: u64,
}

/// What a prune has removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// Listings of trees.
    pub commits: u64,
    /// Objects besides.
    pub objects: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// Packs that were rewritten or removed.
    pub packs: u64,
    /// Packs left as they are since they hold damage; `scrub` names it.
    pub packs_damaged: u64,
}

/// Packs below this size are rewritten for any garbage, and merged.
const SMALL_PACK_BYTES: u64 = 16 << 20;
/// So many small packs are merged to one even without garbage.
const SMALL_PACKS_MAX: usize = 8;
/// A pack whose garbage becomes wanted while it is copied is tried again.
const COPIES_MAX: usize = 3;

impl Default for PruneOptions {
    fn default() -> Self {
        Self {
            grace: GRACE_MAX,
            garbage_percent_max: 20,
        }
    }
}

impl ObjectStore {
    /// Removes every object that no root needs. A root that is a commit needs all
    /// objects of its tree. Refuses when it cannot know what a root needs.
    pub fn prune(
        &self,
        roots: &HashSet<ObjectId>,
        options: &PruneOptions,
    ) -> Result<Pruned, StoreError> {
        self.require_writer()?;
        let _one_at_a_time = lock(&self.maintenance);
        let mut pruned = Pruned::default();
        let gate = self.gate(FlockOperation::LockExclusive)?;
        let since = lock(&self.touched).begin_prune(options.grace);
        let Some(mut keep) = self.mark(roots, since)? else {
            return Ok(pruned);
        };
        self.sweep_commits(&mut keep, since, &mut pruned)?;
        drop(gate);
        self.sweep_loose(&keep, since, &mut pruned)?;
        self.sweep_partial(options.grace)?;
        self.sweep_packs(&mut keep, since, options, &mut pruned)?;
        Ok(pruned)
    }

    /// Prefixes of the ids that stay; `None` when that is everything.
    fn mark(
        &self,
        roots: &HashSet<ObjectId>,
        since: Instant,
    ) -> Result<Option<HashSet<u64>>, StoreError> {
        let Some(mut keep) = lock(&self.touched).protected(since) else {
            return Ok(None);
        };
        let commits: HashSet<Digest> = self.commit_digests()?.into_iter().collect();
        let touched: Vec<_> = commits
            .iter()
            .copied()
            .filter(|commit| keep.contains(&prefix(ObjectId(*commit))))
            .collect();
        let leased = self.leased()?.into_iter().map(|commit| commit.0);
        for root in roots.iter().map(|root| root.0).chain(touched).chain(leased) {
            keep.insert(prefix(ObjectId(root)));
            if commits.contains(&root) {
                self.mark_commit(CommitId(root), &mut keep)?;
            }
        }
        Ok(Some(keep))
    }

    fn mark_commit(&self, commit: CommitId, keep: &mut HashSet<u64>) -> Result<(), StoreError> {
        let tree = self.tree(commit)?;
        keep.extend(tree.entries.iter().map(|entry| prefix(entry.object)));
        keep.insert(prefix(ObjectId(commit.0)));
        Ok(())
    }

    fn sweep_commits(
        &self,
        keep: &mut HashSet<u64>,
        since: Instant,
        pruned: &mut Pruned,
    ) -> Result<(), StoreError> {
        let folder = self.folder("commits");
        let mut wanted = Vec::new();
        let mut table = self.table_write();
        for digest in self.commit_digests()? {
            let commit = prefix(ObjectId(digest));
            if lock(&self.touched).protects(commit, since) {
                // Touched after the marking: its objects are to stay, too.
                wanted.push(CommitId(digest));
            } else if !keep.contains(&commit) {
                pruned.bytes += remove(&place::fanned(&folder, digest))?;
                pruned.commits += 1;
                table.commits.remove(&commit);
                fault::point("cas.prune.commit");
            }
        }
        drop(table);
        sync_fanned(&folder)?;
        // From here on no listing can be found that is not marked. Those that can
        // are complete, so their trees may be read without the lock.
        wanted
            .into_iter()
            .try_for_each(|commit| self.mark_commit(commit, keep))
    }

    fn sweep_loose(
        &self,
        keep: &HashSet<u64>,
        since: Instant,
        pruned: &mut Pruned,
    ) -> Result<(), StoreError> {
        let folder = self.folder("loose");
        let digests =
            place::list_fanned(&folder).map_err(|source| io_error("list", &folder, source))?;
        for digest in digests {
            let id = prefix(ObjectId(digest));
            if keep.contains(&id) {
                continue;
            }
            let mut table = self.table_write();
            if lock(&self.touched).protects(id, since) {
                continue;
            }
            table.loose.remove(&id);
            pruned.bytes += remove(&place::fanned(&folder, digest))?;
            pruned.objects += 1;
            drop(table);
            fault::point("cas.prune.loose");
            let _ = fs::remove_file(place::fanned(&self.folder("chunks"), digest));
        }
        Ok(())
    }

    /// Uploads that nobody went on with for the grace time.
    fn sweep_partial(&self, grace: Duration) -> Result<(), StoreError> {
        let folder = self.folder("partial");
        let io = |source| io_error("remove old uploads in", &folder, source);
        let (file, _name) = self.temporary()?;
        let now = file
            .metadata()
            .and_then(|metadata| metadata.modified())
            .map_err(io)?;
        for digest in place::list_fanned(&folder).map_err(io)? {
            let path = place::fanned(&folder, digest);
            let modified = fs::metadata(&path).and_then(|metadata| metadata.modified());
            let age = modified
                .ok()
                .and_then(|modified| now.duration_since(modified).ok());
            if age.is_some_and(|age| age > grace.max(Duration::from_secs(60))) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    fn sweep_packs(
        &self,
        keep: &mut HashSet<u64>,
        since: Instant,
        options: &PruneOptions,
        pruned: &mut Pruned,
    ) -> Result<(), StoreError> {
        let mut writer = self.writer()?;
        let open_has_garbage = match &self.table_read().open {
            Some((_, index)) => index.keys().any(|id| !keep.contains(&prefix(*id))),
            None => false,
        };
        if open_has_garbage {
            self.seal_open(&mut writer)?;
        }
        drop(writer);
        let packs = self.table_read().sealed.clone();
        for group in groups(&packs, keep, options.garbage_percent_max) {
            for _ in 0..COPIES_MAX {
                match self.rewrite(&group, keep, since, pruned)? {
                    Rewrite::Done => break,
                    Rewrite::Wanted(ids) => keep.extend(ids),
                    Rewrite::Damaged => {
                        pruned.packs_damaged += group.len() as u64;
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Copies what is kept of `victims` to a new pack and lets that take their place.
    fn rewrite(
        &self,
        victims: &[Arc<SealedPack>],
        keep: &HashSet<u64>,
        since: Instant,
        pruned: &mut Pruned,
    ) -> Result<Rewrite, StoreError> {
        let folder = self.folder("packs");
        let io = |source| io_error("rewrite packs in", &folder, source);
        let Some(live) = live_entries(&folder, victims, keep).map_err(io)? else {
            return Ok(Rewrite::Damaged);
        };
        let numbers: HashSet<u32> = victims.iter().map(|victim| victim.pack.number).collect();
        let elsewhere = |id| self.is_whole_outside(id, &numbers);
        let output = if live.is_empty() {
            None
        } else {
            let number = self.take_pack_number();
            match write_pack(&folder, number, &live, elsewhere).map_err(io)? {
                Some(pack) => Some(Arc::new(pack)),
                None => return Ok(Rewrite::Damaged),
            }
        };
        let garbage = || {
            let all = victims
                .iter()
                .flat_map(|pack| pack.prefixes.iter().zip(&pack.locations));
            all.filter(|(id, _)| !keep.contains(id))
        };
        let mut table = self.table_write();
        let wanted: Vec<u64> = {
            let touched = lock(&self.touched);
            garbage()
                .map(|(id, _)| *id)
                .filter(|id| touched.protects(*id, since))
                .collect()
        };
        if wanted.is_empty() {
            table
                .sealed
                .retain(|pack| !numbers.contains(&pack.pack.number));
            if let Some(output) = output {
                table.sealed.push(output);
            }
            drop(table);
            for victim in victims {
                recover::remove_pack(&folder, victim.pack.number).map_err(io)?;
                fault::point("cas.prune.unlink");
            }
            pruned.packs += victims.len() as u64;
            pruned.objects += garbage().count() as u64;
            pruned.bytes += garbage()
                .map(|(_, location)| u64::from(location.length))
                .sum::<u64>();
            return Ok(Rewrite::Done);
        }
        drop(table);
        if let Some(output) = output {
            recover::remove_pack(&folder, output.pack.number).map_err(io)?;
        }
        Ok(Rewrite::Wanted(wanted))
    }

    /// Whether another pack has a good copy, which came after this one was damaged.
    fn is_whole_outside(&self, id: ObjectId, victims: &HashSet<u32>) -> io::Result<bool> {
        let table = self.table_read();
        let mut copies = Vec::new();
        if let Some((pack, index)) = &table.open {
            copies.extend(index.get(&id).map(|location| (pack.clone(), *location)));
        }
        for sealed in table
            .sealed
            .iter()
            .filter(|sealed| !victims.contains(&sealed.pack.number))
        {
            copies.extend(
                sealed
                    .find(id)?
                    .map(|location| (sealed.pack.clone(), location)),
            );
        }
        drop(table);
        for (pack, location) in copies {
            if pack.read(id, location)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn commit_digests(&self) -> Result<Vec<Digest>, StoreError> {
        let folder = self.folder("commits");
        place::list_fanned(&folder).map_err(|source| io_error("list", &folder, source))
    }
}

enum Rewrite {
    Done,
    /// These were garbage and are no longer.
    Wanted(Vec<u64>),
    Damaged,
}

/// Packs worth rewriting, gathered so that each group fits one new pack.
fn groups(
    packs: &[Arc<SealedPack>],
    keep: &HashSet<u64>,
    percent_max: u64,
) -> Vec<Vec<Arc<SealedPack>>> {
    let size = |location: &Location| u64::from(location.length) + RECORD_HEADER_BYTES as u64;
    let weighed = packs.iter().map(|pack| {
        let live = || {
            pack.prefixes
                .iter()
                .zip(&pack.locations)
                .filter(|(id, _)| keep.contains(id))
        };
        let bytes: u64 = live().map(|(_, location)| size(location)).sum();
        let total = pack
            .pack
            .file
            .metadata()
            .map_or(0, |metadata| metadata.len())
            .max(MAGIC_BYTES as u64);
        (pack, bytes, live().count(), total - MAGIC_BYTES as u64)
    });
    let weighed: Vec<_> = weighed.collect();
    let small = weighed
        .iter()
        .filter(|(.., total)| *total < SMALL_PACK_BYTES)
        .count();
    let mut groups: Vec<Vec<Arc<SealedPack>>> = Vec::new();
    let (mut bytes, mut objects) = (u64::MAX, usize::MAX);
    for (pack, live_bytes, live_objects, total) in weighed {
        let garbage = total.saturating_sub(live_bytes);
        let worth = if total < SMALL_PACK_BYTES {
            garbage > 0 || small > SMALL_PACKS_MAX
        } else {
            garbage * 100 > total * percent_max
        };
        if !worth {
            continue;
        }
        let fits = bytes.saturating_add(live_bytes) <= PACK_BYTES_MAX
            && objects.saturating_add(live_objects) <= PACK_OBJECTS_MAX;
        match groups.last_mut() {
            Some(group) if fits => {
                group.push(Arc::clone(pack));
                bytes += live_bytes;
                objects += live_objects;
            }
            _ => {
                groups.push(vec![Arc::clone(pack)]);
                (bytes, objects) = (live_bytes, live_objects);
            }
        }
    }
    groups
}

/// The records to copy; `None` when an index is damaged.
fn live_entries(
    folder: &Path,
    victims: &[Arc<SealedPack>],
    keep: &HashSet<u64>,
) -> io::Result<Option<Vec<(PackFile, IndexEntry)>>> {
    let mut live = Vec::new();
    for pack in victims {
        let index = fs::read(pack_path(folder, pack.pack.number, "idx"))?;
        let Some(entries) = format::parse_index(&index) else {
            return Ok(None);
        };
        let entries = entries
            .into_iter()
            .filter(|(id, _)| keep.contains(&prefix(*id)));
        live.extend(entries.map(|entry| (pack.pack.clone(), entry)));
    }
    live.sort_unstable_by_key(|(pack, (_, location))| (pack.number, location.offset));
    Ok(Some(live))
}

/// Writes, syncs and names a pack and its index, each object once; `None` when a
/// content is damaged of which there is no good copy `elsewhere`.
fn write_pack(
    folder: &Path,
    number: u32,
    live: &[(PackFile, IndexEntry)],
    elsewhere: impl Fn(ObjectId) -> io::Result<bool>,
) -> io::Result<Option<SealedPack>> {
    let temporary = place::Temporary(pack_path(folder, number, "pack.tmp"));
    let mut output = io::BufWriter::with_capacity(1 << 20, create_private(&temporary.0)?);
    output.write_all(PACK_MAGIC)?;
    let mut offset = MAGIC_BYTES as u64;
    let mut entries: Vec<IndexEntry> = Vec::with_capacity(live.len());
    let mut copied = HashSet::with_capacity(live.len());
    let mut damaged = Vec::new();
    let mut header = Vec::with_capacity(RECORD_HEADER_BYTES);
    for (pack, (id, location)) in live {
        if copied.contains(id) {
            continue;
        }
        let Some(content) = pack.read(*id, *location)? else {
            damaged.push(*id);
            continue;
        };
        copied.insert(*id);
        header.clear();
        format::push_record_header(*id, location.length, &mut header);
        output.write_all(&header)?;
        output.write_all(&content)?;
        let place = Location {
            offset: offset as u32,
            length: location.length,
        };
        entries.push((*id, place));
        offset = place.end();
    }
    for id in damaged {
        if !copied.contains(&id) && !elsewhere(id)? {
            return Ok(None);
        }
    }
    output
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?
        .sync_all()?;
    fault::point("cas.prune.copied");
    let index = format::encode_index(&mut entries);
    let index_temporary = pack_path(folder, number, "idx.tmp");
    place::write_synced(&index_temporary, &index)?;
    fs::rename(&temporary.0, pack_path(folder, number, "pack"))?;
    fs::rename(&index_temporary, pack_path(folder, number, "idx"))?;
    place::sync_folder(folder)?;
    fault::point("cas.prune.indexed");
    Ok(Some(SealedPack::new(
        PackFile::open(folder, number)?,
        &entries,
    )))
}

fn create_private(path: &Path) -> io::Result<fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Removes a file and says how long it was.
fn remove(path: &Path) -> Result<u64, StoreError> {
    let remove = || -> io::Result<u64> {
        let bytes = fs::metadata(path)?.len();
        fs::remove_file(path)?;
        Ok(bytes)
    };
    match remove() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        result => result.map_err(|source| io_error("remove", path, source)),
    }
}

fn sync_fanned(root: &Path) -> Result<(), StoreError> {
    let sync = || -> io::Result<()> {
        for folder in fs::read_dir(root)? {
            place::sync_folder(&folder?.path())?;
        }
        Ok(())
    };
    sync().map_err(|source| io_error("sync", root, source))
}
