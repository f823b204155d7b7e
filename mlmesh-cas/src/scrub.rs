//! Scrub: reading everything that the store holds and naming what is damaged.
//!
//! Damaged objects count as absent from then on, so that the next sync brings
//! them again; the new copy stands before the old one in every later lookup, and
//! then the old one is no damage any more.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use mlmesh_model::{CommitId, ObjectId};

use crate::chunks;
use crate::error::{StoreError, io_error};
use crate::format::{self, IndexEntry, MAGIC_BYTES, PACK_MAGIC};
use crate::pack::{PackFile, pack_path, prefix};
use crate::place;
use crate::reader::ObjectReader;
use crate::store::{Found, ObjectStore, lock};
use crate::tree::Tree;

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Defect {
    /// An object is not what its id says.
    Object {
        /// The object.
        id: ObjectId,
        /// The file that holds it.
        file: PathBuf,
    },
    /// The listing of a tree is not what its id says.
    Listing {
        /// The commit.
        commit: CommitId,
        /// The file that holds it.
        file: PathBuf,
    },
    /// An index, a journal, a pack's first bytes or a chunk list. Opening the
    /// store makes them anew.
    Index {
        /// The file.
        file: PathBuf,
    },
    /// A listing names an object that is not there.
    Missing {
        /// The commit.
        commit: CommitId,
        /// The object.
        id: ObjectId,
    },
}

/// How far a scrub has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScrubProgress {
    /// Objects and listings that were read.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// About how many bytes there are.
    pub bytes_total: u64,
}

const COPY_BUFFER_BYTES: usize = 256 << 10;

impl ObjectStore {
    /// Reads everything and returns what is damaged; `progress` is called for each
    /// object, within large ones too, and may stop it.
    pub fn scrub(
        &self,
        progress: &mut dyn FnMut(ScrubProgress) -> ControlFlow<()>,
    ) -> Result<Vec<Defect>, StoreError> {
        let _one_at_a_time = lock(&self.maintenance);
        let mut scrub = Scrub {
            done: ScrubProgress {
                bytes_total: self.bytes_held()?,
                ..ScrubProgress::default()
            },
            progress,
            defects: Vec::new(),
        };
        self.scrub_packs(&mut scrub)?;
        self.scrub_loose(&mut scrub)?;
        self.remember_broken(&mut scrub.defects)?;
        // After that, so that a damaged object counts as missing here.
        self.scrub_commits(&mut scrub)?;
        self.scrub_chunk_lists(&mut scrub)?;
        Ok(scrub.defects)
    }

    /// Bytes of packs, objects and listings.
    fn bytes_held(&self) -> Result<u64, StoreError> {
        let packs = self.folder("packs");
        let mut files: Vec<PathBuf> = fs::read_dir(&packs)
            .map_err(|source| io_error("list", &packs, source))?
            .flatten()
            .map(|file| file.path())
            .filter(|path| path.extension().is_some_and(|ending| ending == "pack"))
            .collect();
        for name in ["loose", "commits"] {
            let folder = self.folder(name);
            let digests =
                place::list_fanned(&folder).map_err(|source| io_error("list", &folder, source))?;
            let paths = digests
                .into_iter()
                .map(|digest| place::fanned(&folder, digest));
            files.extend(paths);
        }
        let sizes = files.iter().filter_map(|path| fs::metadata(path).ok());
        Ok(sizes.map(|metadata| metadata.len()).sum())
    }

    /// What was read whole is not broken, whatever was seen before; what is damaged
    /// is broken unless a later copy in a pack is good.
    fn remember_broken(&self, defects: &mut Vec<Defect>) -> Result<(), StoreError> {
        let mut broken = HashSet::new();
        for defect in &*defects {
            let Defect::Object { id, .. } = defect else {
                continue;
            };
            let later_copy_is_whole = match self.locate(&self.table_read(), *id)? {
                Some(Found::Packed(pack, location)) => pack
                    .read(*id, location)
                    .is_ok_and(|content| content.is_some()),
                Some(Found::Loose(_)) | None => false,
            };
            if !later_copy_is_whole {
                broken.insert(*id);
            }
        }
        defects.retain(|defect| match defect {
            Defect::Object { id, .. } => broken.contains(id),
            Defect::Listing { .. } | Defect::Index { .. } | Defect::Missing { .. } => true,
        });
        self.replace_marks(broken);
        Ok(())
    }

    fn scrub_packs(&self, scrub: &mut Scrub<'_>) -> Result<(), StoreError> {
        let folder = self.folder("packs");
        let io = |source| io_error("read packs in", &folder, source);
        let open = {
            let table = self.table_read();
            table.open.as_ref().map(|(pack, index)| {
                (
                    pack.clone(),
                    index
                        .iter()
                        .map(|(id, location)| (*id, *location))
                        .collect::<Vec<_>>(),
                )
            })
        };
        let sealed = self.table_read().sealed.clone();
        if let Some((pack, entries)) = open {
            let path = pack_path(&folder, pack.number, "log");
            let journal = fs::read(&path).map_err(io)?;
            let (_, whole) = format::parse_journal(&journal);
            // Another thread may have begun a batch behind the ones known here.
            let (known, _) = format::parse_journal(&journal[..whole]);
            let known: HashSet<IndexEntry> = known.into_iter().collect();
            if entries.iter().any(|entry| !known.contains(entry)) && self.pack_is_open(pack.number)
            {
                scrub.defects.push(Defect::Index { file: path });
            }
            scrub.pack(&folder, &pack, entries)?;
        }
        for pack in sealed {
            let path = pack_path(&folder, pack.pack.number, "idx");
            let entries = match format::parse_index(&fs::read(&path).map_err(io)?) {
                Some(entries) => entries,
                None => {
                    scrub.defects.push(Defect::Index { file: path });
                    let headers = pack.locations.iter().zip(&pack.prefixes);
                    let mut entries = Vec::with_capacity(pack.locations.len());
                    for (location, wanted) in headers {
                        match pack.pack.header(*location).map_err(io)? {
                            Some((id, _)) if prefix(id) == *wanted => entries.push((id, *location)),
                            _ => scrub.defects.push(Defect::Index {
                                file: pack_path(&folder, pack.pack.number, "pack"),
                            }),
                        }
                    }
                    entries
                }
            };
            scrub.pack(&folder, &pack.pack, entries)?;
        }
        Ok(())
    }

    fn pack_is_open(&self, number: u32) -> bool {
        self.table_read()
            .open
            .as_ref()
            .is_some_and(|(pack, _)| pack.number == number)
    }

    fn scrub_loose(&self, scrub: &mut Scrub<'_>) -> Result<(), StoreError> {
        let folder = self.folder("loose");
        for digest in
            place::list_fanned(&folder).map_err(|source| io_error("list", &folder, source))?
        {
            let path = place::fanned(&folder, digest);
            let id = ObjectId(digest);
            if !scrub.file(&path, id)? {
                scrub.defects.push(Defect::Object { id, file: path });
            }
        }
        Ok(())
    }

    fn scrub_commits(&self, scrub: &mut Scrub<'_>) -> Result<(), StoreError> {
        let folder = self.folder("commits");
        for digest in
            place::list_fanned(&folder).map_err(|source| io_error("list", &folder, source))?
        {
            let commit = CommitId(digest);
            match self.listing(commit) {
                Ok(listing) => {
                    scrub.count(1, listing.len() as u64)?;
                    let missing = self.missing_objects(&Tree::parse(&listing)?)?;
                    scrub
                        .defects
                        .extend(missing.into_iter().map(|id| Defect::Missing { commit, id }));
                }
                Err(StoreError::Corrupt(_)) => {
                    scrub.defects.push(Defect::Listing {
                        commit,
                        file: place::fanned(&folder, digest),
                    });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn scrub_chunk_lists(&self, scrub: &mut Scrub<'_>) -> Result<(), StoreError> {
        let folder = self.folder("chunks");
        for digest in
            place::list_fanned(&folder).map_err(|source| io_error("list", &folder, source))?
        {
            let path = place::fanned(&folder, digest);
            let bytes = fs::read(&path).map_err(|source| io_error("read", &path, source))?;
            if chunks::ChunkManifest::parse(&bytes)
                .is_none_or(|manifest| manifest.object.0 != digest)
            {
                let _ = fs::remove_file(&path);
                scrub.defects.push(Defect::Index { file: path });
            }
        }
        Ok(())
    }
}

struct Scrub<'a> {
    done: ScrubProgress,
    progress: &'a mut dyn FnMut(ScrubProgress) -> ControlFlow<()>,
    defects: Vec<Defect>,
}

impl Scrub<'_> {
    fn pack(
        &mut self,
        folder: &Path,
        pack: &PackFile,
        mut entries: Vec<IndexEntry>,
    ) -> Result<(), StoreError> {
        use std::os::unix::fs::FileExt as _;

        let file = pack_path(folder, pack.number, "pack");
        let io = |source| io_error("read", &file, source);
        let mut magic = [0_u8; MAGIC_BYTES];
        pack.file.read_exact_at(&mut magic, 0).map_err(io)?;
        if magic != *PACK_MAGIC {
            self.defects.push(Defect::Index { file: file.clone() });
        }
        entries.sort_unstable_by_key(|(_, location)| location.offset);
        for (id, location) in entries {
            let whole = pack.read(id, location).map_err(io)?.is_some();
            self.count(1, u64::from(location.length))?;
            if !whole {
                self.defects.push(Defect::Object {
                    id,
                    file: file.clone(),
                });
            }
        }
        Ok(())
    }

    /// Whether an object in a file of its own is whole.
    fn file(&mut self, path: &Path, id: ObjectId) -> Result<bool, StoreError> {
        let io = |source| io_error("read", path, source);
        let file = File::open(path).map_err(io)?;
        let mut reader = ObjectReader::unchecked(id, file).map_err(io)?;
        let mut buffer = vec![0; COPY_BUFFER_BYTES];
        self.count(1, 0)?;
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(true),
                Ok(read) => self.count(0, read as u64)?,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(false),
                Err(source) => return Err(io(source)),
            }
        }
    }

    fn count(&mut self, objects: u64, bytes: u64) -> Result<(), StoreError> {
        self.done.objects += objects;
        self.done.bytes += bytes;
        match (self.progress)(self.done) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(StoreError::Stopped),
        }
    }
}

/// One line for a person.
impl std::fmt::Display for Defect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Object { id, file } => {
                write!(f, "object `{id}` in `{}` is damaged", file.display())
            }
            Self::Listing { commit, file } => write!(
                f,
                "the listing of commit `{commit}` in `{}` is damaged",
                file.display()
            ),
            Self::Index { file } => {
                write!(f, "`{}` is damaged and will be made anew", file.display())
            }
            Self::Missing { commit, id } => write!(
                f,
                "commit `{commit}` needs object `{id}`, which is not there"
            ),
        }
    }
}
