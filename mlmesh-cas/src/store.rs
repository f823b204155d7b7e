//! The object store: blobs named by their SHA-256.
//!
//! ```text
//! objects/
//!   format              "mlmesh-objects 1\n"
//!   lock                flock: one process writes, any number read
//!   packs/              objects below LOOSE_BYTES_MIN, see `format` and `pack`
//!   loose/ab/cdef…      each larger object as it is, so that a checkout can reflink
//!   commits/ab/cdef…    listings of trees; one is there only if its objects are
//!   chunks/ab/cdef…     chunk lists of large objects; a cache
//!   partial/ab/cdef…    uploads that are not whole yet
//!   damaged             ids of what was found damaged, see `damage`
//!   leases/             commits that other processes use, see `lease`
//!   tmp/                files on their way to a name
//! ```
//!
//! What `put_*` has returned is on disk and survives a crash; what a crash cut
//! short is not there. Every content is checked against its digest when it comes
//! in and when it goes out. One store belongs to one tenant: a have-check must
//! not tell one what another has. The lookup of an object asks memory (8 to 16
//! bytes for each object) and confirms a hit by one read.
//!
//! Locks are taken in the order `maintenance`, `writer`, `table`, `touched`.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use mlmesh_model::{Digest, ObjectId};
use sha2::{Digest as _, Sha256};

use crate::error::{StoreError, io_error};
use crate::format::{IndexEntry, Location};
use crate::pack::{self, OpenIndex, OpenPack, PackFile, SealedPack, prefix};
use crate::place::{self, Locked};
use crate::reader::ObjectReader;
use crate::recover::{self, Recovery};
use crate::touched::Touched;

/// Objects of this size and above are files of their own.
pub const LOOSE_BYTES_MIN: u64 = 128 << 10;

/// A content-addressed store below one folder.
#[derive(Debug)]
pub struct ObjectStore {
    pub(crate) root: PathBuf,
    access: Access,
    writer: Mutex<Option<OpenPack>>,
    table: RwLock<Table>,
    pub(crate) touched: Mutex<Touched>,
    /// Held by a prune or a scrub, which change or read everything.
    pub(crate) maintenance: Mutex<()>,
    recovered: Vec<Recovery>,
}

#[derive(Debug)]
enum Access {
    /// Holds the lock for as long as it lives.
    Writer {
        _lock: Locked,
    },
    Reader,
}

/// What lookups ask.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// The pack that is written to.
    pub(crate) open: Option<(PackFile, OpenIndex)>,
    /// Newest first: a repaired copy stands before the broken one.
    pub(crate) sealed: Vec<Arc<SealedPack>>,
    /// Prefixes of the ids of loose objects and of commits.
    pub(crate) loose: HashSet<u64>,
    pub(crate) commits: HashSet<u64>,
    /// Objects that were found broken and count as absent until they come again.
    pub(crate) broken: HashSet<ObjectId>,
    pub(crate) next_pack: u32,
}

/// Where an object was found.
#[derive(Debug, Clone)]
pub(crate) enum Found {
    Packed(PackFile, Location),
    /// A file of its own.
    Loose(PathBuf),
}

/// What a put has added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Added {
    /// Objects that were not there before.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

const FOLDERS: [&str; 7] = [
    "packs", "loose", "commits", "chunks", "partial", "leases", "tmp",
];
const COPY_BUFFER_BYTES: usize = 256 << 10;

impl ObjectStore {
    /// Opens the store in `root` for reading and writing, and creates it.
    /// Finishes or forgets what a crash has cut short.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let io = |action| move |source| io_error(action, root, source);
        fs::create_dir_all(root).map_err(io("create"))?;
        let lock = recover::lock_for_writing(root)?;
        recover::check_format(root, true)?;
        for folder in FOLDERS {
            place::create_folder(&root.join(folder)).map_err(io("create a folder in"))?;
        }
        place::sync_folder(root).map_err(io("sync"))?;
        let tmp = root.join("tmp");
        for leftover in fs::read_dir(&tmp).map_err(io("list tmp of"))?.flatten() {
            let _ = fs::remove_file(leftover.path());
        }
        let loaded = recover::load_for_writing(root)?;
        Ok(Self {
            root: root.to_owned(),
            access: Access::Writer { _lock: lock },
            writer: Mutex::new(loaded.open),
            table: RwLock::new(loaded.table),
            touched: Mutex::new(Touched::default()),
            maintenance: Mutex::new(()),
            recovered: loaded.recovered,
        })
    }

    /// Opens an existing store for reading, beside a process that writes.
    pub fn open_read_only(root: &Path) -> Result<Self, StoreError> {
        recover::check_format(root, false)?;
        Ok(Self {
            root: root.to_owned(),
            access: Access::Reader,
            writer: Mutex::new(None),
            table: RwLock::new(recover::load_for_reading(root)?),
            touched: Mutex::new(Touched::default()),
            maintenance: Mutex::new(()),
            recovered: Vec::new(),
        })
    }

    /// What opening had to repair.
    pub fn recovered(&self) -> &[Recovery] {
        &self.recovered
    }

    /// Which of `ids` are there. What this answers with yes stays through a prune
    /// that runs now, and for the grace time of later ones.
    pub fn has(&self, ids: &[ObjectId]) -> Result<Vec<bool>, StoreError> {
        self.look_up(ids, |found| Ok(found.is_some()))
    }

    /// Sizes of those of `ids` that are there, under the same promise.
    pub fn sizes(&self, ids: &[ObjectId]) -> Result<Vec<Option<u64>>, StoreError> {
        let size = |found: Found| {
            found
                .size()
                .map_err(|source| io_error("look at an object of", &self.root, source))
        };
        self.look_up(ids, |found| found.map(size).transpose())
    }

    /// Looks all of `ids` up under one lock; a reader that misses one reads again
    /// what the writer has done.
    fn look_up<T>(
        &self,
        ids: &[ObjectId],
        answer: impl Fn(Option<Found>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let mut refreshed = !self.is_reader();
        loop {
            let table = self.table_read();
            self.touch(ids);
            let mut answers = Vec::with_capacity(ids.len());
            for id in ids {
                let found = self.find_in(&table, *id)?;
                if found.is_none() && !refreshed {
                    break;
                }
                answers.push(answer(found)?);
            }
            drop(table);
            if answers.len() == ids.len() {
                return Ok(answers);
            }
            self.refresh()?;
            refreshed = true;
        }
    }

    /// Stores objects; returns when they are on disk. One wrong object refuses
    /// the batch, of which earlier parts may then be stored.
    pub fn put_batch<Content: AsRef<[u8]>>(
        &self,
        objects: impl IntoIterator<Item = (ObjectId, Content)>,
    ) -> Result<Added, StoreError> {
        let _operation = self.operation();
        let mut writer = self.writer()?;
        let mut added = Added::default();
        let mut staged = HashSet::new();
        let result = objects.into_iter().try_for_each(|(id, content)| {
            let content = content.as_ref();
            let actual = Digest::of(content);
            if actual != id.0 {
                return Err(StoreError::Digest {
                    expected: id,
                    actual,
                });
            }
            if staged.contains(&id) || self.has_one(id)? {
                return Ok(());
            }
            added.objects += 1;
            added.bytes += content.len() as u64;
            if content.len() as u64 >= LOOSE_BYTES_MIN {
                return self.put_loose(id, content);
            }
            self.stage(&mut writer, id, content)?;
            staged.insert(id);
            Ok(())
        });
        let result = result.and_then(|()| self.commit_staged(&mut writer));
        if let (Err(_), Some(open)) = (&result, writer.as_mut()) {
            open.abandon();
        }
        result.map(|()| added)
    }

    /// Stores what `reader` gives, in bounded memory. With `expected`, content of
    /// another digest is refused.
    pub fn put_stream(
        &self,
        mut reader: impl Read,
        expected: Option<ObjectId>,
    ) -> Result<ObjectId, StoreError> {
        self.require_writer()?;
        let _operation = self.operation();
        let source_error =
            |source| io_error("read the content of an object for", &self.root, source);
        let mut head = Vec::new();
        (&mut reader)
            .take(LOOSE_BYTES_MIN)
            .read_to_end(&mut head)
            .map_err(source_error)?;
        if (head.len() as u64) < LOOSE_BYTES_MIN {
            let id = expected.unwrap_or_else(|| ObjectId(Digest::of(&head)));
            self.put_batch([(id, head)])?;
            return Ok(id);
        }
        let (mut file, temporary) = self.temporary()?;
        let mut hasher = Sha256::new();
        let mut buffer = head;
        buffer.reserve(COPY_BUFFER_BYTES.saturating_sub(buffer.len()));
        while !buffer.is_empty() {
            hasher.update(&buffer);
            file.write_all(&buffer)
                .map_err(|source| io_error("write", &temporary.0, source))?;
            buffer.clear();
            (&mut reader)
                .take(COPY_BUFFER_BYTES as u64)
                .read_to_end(&mut buffer)
                .map_err(source_error)?;
        }
        let actual = Digest::from_bytes(hasher.finalize().into());
        match expected {
            Some(expected) if expected.0 != actual => Err(StoreError::Digest { expected, actual }),
            _ => self
                .adopt_loose(&file, &temporary.0, ObjectId(actual))
                .map(|()| ObjectId(actual)),
        }
    }

    /// Opens an object for reading. A small one has been checked when this
    /// returns; a large one is checked as it is read, and its last read fails when
    /// it is damaged.
    pub fn reader(&self, id: ObjectId) -> Result<ObjectReader, StoreError> {
        self.touch(&[id]);
        match self.find(id)?.ok_or(StoreError::Missing(id))? {
            Found::Packed(pack, location) => self
                .read_packed(id, &pack, location)
                .map(ObjectReader::checked),
            Found::Loose(path) => {
                let file = File::open(&path).map_err(|source| io_error("open", &path, source))?;
                ObjectReader::unchecked(id, file).map_err(|source| io_error("open", &path, source))
            }
        }
    }

    /// Reads a whole object of at most `bytes_max` bytes.
    pub fn read(&self, id: ObjectId, bytes_max: u64) -> Result<Vec<u8>, StoreError> {
        let mut reader = self.reader(id)?;
        let size = reader.size();
        if size > bytes_max {
            return Err(StoreError::TooLarge {
                id,
                size,
                bytes_max,
            });
        }
        let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        match reader.read_to_end(&mut content) {
            Ok(_) => Ok(content),
            Err(source) => Err(self.read_error(id, source)),
        }
    }

    /// Size of an object that is there.
    pub fn size(&self, id: ObjectId) -> Result<Option<u64>, StoreError> {
        Ok(self.sizes(&[id])?.pop().flatten())
    }

    /// Objects in packs and objects in files of their own.
    pub fn counts(&self) -> (u64, u64) {
        let table = self.table_read();
        let open = table.open.as_ref().map_or(0, |(_, index)| index.len());
        let sealed: usize = table.sealed.iter().map(|pack| pack.prefixes.len()).sum();
        ((open + sealed) as u64, table.loose.len() as u64)
    }
}

/// What the other files of this crate use.
impl ObjectStore {
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn require_writer(&self) -> Result<(), StoreError> {
        if self.is_reader() {
            Err(StoreError::ReadOnly)
        } else {
            Ok(())
        }
    }

    pub(crate) const fn is_reader(&self) -> bool {
        matches!(self.access, Access::Reader)
    }

    /// Until the guard goes, a prune spares what is touched from now on.
    pub(crate) fn operation(&self) -> Operation<'_> {
        Operation {
            touched: &self.touched,
            number: lock(&self.touched).begin_sync(),
        }
    }

    pub(crate) fn writer(&self) -> Result<MutexGuard<'_, Option<OpenPack>>, StoreError> {
        self.require_writer()?;
        Ok(lock(&self.writer))
    }

    pub(crate) fn table_read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn table_write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Protects `ids` from prunes. Comes before the lookup whose answer it protects.
    pub(crate) fn touch(&self, ids: &[ObjectId]) {
        lock(&self.touched).touch(ids.iter().map(|id| prefix(*id)));
    }

    pub(crate) fn temporary(&self) -> Result<(File, place::Temporary), StoreError> {
        let folder = self.folder("tmp");
        place::create_temporary(&folder)
            .map_err(|source| io_error("create a file in", &folder, source))
    }

    pub(crate) fn find(&self, id: ObjectId) -> Result<Option<Found>, StoreError> {
        let found = self.find_in(&self.table_read(), id)?;
        if found.is_some() || !self.is_reader() {
            return Ok(found);
        }
        self.refresh()?;
        self.find_in(&self.table_read(), id)
    }

    pub(crate) fn find_in(&self, table: &Table, id: ObjectId) -> Result<Option<Found>, StoreError> {
        if !table.broken.is_empty() && table.broken.contains(&id) {
            return Ok(None);
        }
        self.locate(table, id)
    }

    /// Where `id` stands, marked as damaged or not.
    pub(crate) fn locate(&self, table: &Table, id: ObjectId) -> Result<Option<Found>, StoreError> {
        if let Some((pack, index)) = &table.open
            && let Some(location) = index.get(&id)
        {
            return Ok(Some(Found::Packed(pack.clone(), *location)));
        }
        for sealed in &table.sealed {
            let found = sealed
                .find(id)
                .map_err(|source| io_error("read a pack of", &self.root, source))?;
            if let Some(location) = found {
                return Ok(Some(Found::Packed(sealed.pack.clone(), location)));
            }
        }
        // A reader's sets may be old; the file system is not.
        if self.is_reader() || table.loose.contains(&prefix(id)) {
            let path = place::fanned(&self.folder("loose"), id.0);
            if path.exists() {
                return Ok(Some(Found::Loose(path)));
            }
        }
        Ok(None)
    }

    pub(crate) fn read_packed(
        &self,
        id: ObjectId,
        pack: &PackFile,
        location: Location,
    ) -> Result<Vec<u8>, StoreError> {
        let content = pack
            .read(id, location)
            .map_err(|source| io_error("read a pack of", &self.root, source))?;
        content.ok_or_else(|| self.corrupt(id))
    }

    /// Tells damage from trouble with reading, and remembers the damage.
    pub(crate) fn read_error(&self, id: ObjectId, source: io::Error) -> StoreError {
        match source.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => self.corrupt(id),
            _ => io_error("read an object of", &self.root, source),
        }
    }

    /// From now on the object counts as absent, so that a sync brings it again.
    pub(crate) fn corrupt(&self, id: ObjectId) -> StoreError {
        self.mark_damaged(id);
        StoreError::Corrupt(id)
    }

    /// Gives the written and verified file `temporary` its place as object `id`.
    pub(crate) fn adopt_loose(
        &self,
        file: &File,
        temporary: &Path,
        id: ObjectId,
    ) -> Result<(), StoreError> {
        if self.has_one(id)? {
            return Ok(());
        }
        let path = place::fanned(&self.folder("loose"), id.0);
        place::place(file, temporary, &path, &place::LOOSE)
            .map_err(|source| io_error("store", &path, source))?;
        let mut table = self.table_write();
        self.mend(&mut table, [id]);
        table.loose.insert(prefix(id));
        Ok(())
    }

    /// Seals the open pack, if there is one, so that a prune can look at it.
    pub(crate) fn seal_open(&self, writer: &mut Option<OpenPack>) -> Result<(), StoreError> {
        self.commit_staged(writer)?;
        let Some(open) = writer.take() else {
            return Ok(());
        };
        let mut entries: Vec<IndexEntry> = match &self.table_read().open {
            Some((_, index)) => index
                .iter()
                .map(|(id, location)| (*id, *location))
                .collect(),
            None => Vec::new(),
        };
        let folder = self.folder("packs");
        let sealed = pack::seal(&folder, open.pack.clone(), &mut entries);
        match sealed {
            Ok(sealed) => {
                let mut table = self.table_write();
                table.open = None;
                table.sealed.insert(0, Arc::new(sealed));
                Ok(())
            }
            Err(source) => {
                *writer = Some(open);
                Err(io_error("seal a pack in", &folder, source))
            }
        }
    }

    fn has_one(&self, id: ObjectId) -> Result<bool, StoreError> {
        let table = self.table_read();
        self.touch(&[id]);
        Ok(self.find_in(&table, id)?.is_some())
    }

    fn put_loose(&self, id: ObjectId, content: &[u8]) -> Result<(), StoreError> {
        let (mut file, temporary) = self.temporary()?;
        file.write_all(content)
            .map_err(|source| io_error("write", &temporary.0, source))?;
        self.adopt_loose(&file, &temporary.0, id)
    }

    fn stage(
        &self,
        writer: &mut Option<OpenPack>,
        id: ObjectId,
        content: &[u8],
    ) -> Result<(), StoreError> {
        if writer.as_ref().is_some_and(OpenPack::is_full) {
            self.seal_open(writer)?;
        }
        let folder = self.folder("packs");
        let io = |source| io_error("write a pack in", &folder, source);
        let open = match writer {
            Some(open) => open,
            None => {
                let number = self.take_pack_number();
                let open = OpenPack::create(&folder, number).map_err(io)?;
                self.table_write().open = Some((open.pack.clone(), HashMap::new()));
                writer.insert(open)
            }
        };
        open.stage(id, content).map_err(io)
    }

    fn commit_staged(&self, writer: &mut Option<OpenPack>) -> Result<(), StoreError> {
        let Some(open) = writer else { return Ok(()) };
        let entries = open
            .commit()
            .map_err(|source| io_error("write a pack in", &self.folder("packs"), source))?;
        let mut table = self.table_write();
        self.mend(&mut table, entries.iter().map(|(id, _)| *id));
        if let Some((_, index)) = &mut table.open {
            index.extend(entries);
        }
        Ok(())
    }

    pub(crate) fn take_pack_number(&self) -> u32 {
        let mut table = self.table_write();
        table.next_pack += 1;
        table.next_pack
    }

    /// Reads again what another process has written.
    fn refresh(&self) -> Result<(), StoreError> {
        let fresh = recover::load_for_reading(&self.root)?;
        *self.table_write() = fresh;
        Ok(())
    }
}

/// One call that must not lose to a prune what it has begun with.
pub(crate) struct Operation<'a> {
    touched: &'a Mutex<Touched>,
    number: u64,
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        lock(self.touched).end_sync(self.number);
    }
}

impl Found {
    pub(crate) fn size(&self) -> io::Result<u64> {
        match self {
            Self::Packed(_, location) => Ok(u64::from(location.length)),
            Self::Loose(path) => Ok(fs::metadata(path)?.len()),
        }
    }
}

/// A panic while a lock was held leaves only data that its next user overwrites.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
