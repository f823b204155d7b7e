//! Commits in the store: listings of trees whose objects are all there.
//!
//! A listing is a file of its own under `commits/`, named by its digest. It is
//! written after its objects and removed before them, so that its presence alone
//! says that the commit is complete.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read as _, Write as _};

use mlmesh_model::{CommitId, Digest, ObjectId};

use crate::error::{StoreError, io_error};
use crate::links::link_stays_inside;
use crate::pack::prefix;
use crate::place;
use crate::store::ObjectStore;
use crate::tree::{LINK_BYTES_MAX, Mode, TREE_BYTES_MAX, Tree, TreeEntry};

impl ObjectStore {
    /// Stores the listing of `tree`, whose objects must be there with the sizes
    /// that it says, and whose links must stay inside it.
    pub fn put_tree(&self, tree: &Tree) -> Result<CommitId, StoreError> {
        tree.check()?;
        let listing = tree.canonical_bytes();
        let commit = CommitId(Digest::of(&listing));
        self.put_checked(commit, tree, &listing)?;
        Ok(commit)
    }

    /// Stores a listing that came as bytes; its digest must be `commit`.
    pub fn put_listing(&self, commit: CommitId, listing: &[u8]) -> Result<Tree, StoreError> {
        let actual = Digest::of(listing);
        if actual != commit.0 {
            return Err(StoreError::Digest {
                expected: ObjectId(commit.0),
                actual,
            });
        }
        let tree = Tree::parse(listing)?;
        self.put_checked(commit, &tree, listing)?;
        Ok(tree)
    }

    fn put_checked(&self, commit: CommitId, tree: &Tree, listing: &[u8]) -> Result<(), StoreError> {
        self.require_writer()?;
        let _operation = self.operation();
        if self.has_commit(commit)? {
            return Ok(());
        }
        self.check_objects(tree)?;
        for entry in tree
            .entries
            .iter()
            .filter(|entry| entry.mode == Mode::Symlink)
        {
            self.link_target(entry)?;
        }
        let (mut file, temporary) = self.temporary()?;
        let path = place::fanned(&self.folder("commits"), commit.0);
        file.write_all(listing)
            .and_then(|()| place::place(&file, &temporary.0, &path, &place::COMMIT))
            .map_err(|source| io_error("store", &path, source))?;
        let mut table = self.table_write();
        self.mend(&mut table, [ObjectId(commit.0)]);
        table.commits.insert(prefix(ObjectId(commit.0)));
        Ok(())
    }

    /// Whether the commit is there with all its objects. It then stays for the
    /// grace time of a prune, also if no run refers to it yet.
    pub fn has_commit(&self, commit: CommitId) -> Result<bool, StoreError> {
        let listing = ObjectId(commit.0);
        let path = place::fanned(&self.folder("commits"), commit.0);
        let table = self.table_read();
        self.touch(&[listing]);
        let known = self.is_reader() || table.commits.contains(&prefix(listing));
        let there = known && !table.broken.contains(&listing) && path.exists();
        // Damage that was found takes the promise of a listing away.
        let damaged = !table.broken.is_empty();
        drop(table);
        if !there || !damaged {
            return Ok(there);
        }
        match self.tree(commit).and_then(|tree| self.check_objects(&tree)) {
            Ok(()) => Ok(true),
            Err(StoreError::Incomplete { .. } | StoreError::Corrupt(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads the listing of a commit, bytes and tree checked.
    pub fn tree(&self, commit: CommitId) -> Result<Tree, StoreError> {
        Ok(Tree::parse(&self.listing(commit)?)?)
    }

    /// The canonical bytes of a commit's listing.
    pub fn listing(&self, commit: CommitId) -> Result<Vec<u8>, StoreError> {
        let id = ObjectId(commit.0);
        let path = place::fanned(&self.folder("commits"), commit.0);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::Missing(id));
            }
            Err(source) => return Err(io_error("open", &path, source)),
        };
        let mut listing = Vec::new();
        file.take(TREE_BYTES_MAX + 1)
            .read_to_end(&mut listing)
            .map_err(|source| io_error("read", &path, source))?;
        if Digest::of(&listing) != commit.0 {
            return Err(self.corrupt(id));
        }
        Ok(listing)
    }

    /// Objects of `tree` that are not in the store, each once.
    pub fn missing_objects(&self, tree: &Tree) -> Result<Vec<ObjectId>, StoreError> {
        let mut seen = HashSet::new();
        let unique: Vec<_> = tree
            .entries
            .iter()
            .map(|entry| entry.object)
            .filter(|object| seen.insert(*object))
            .collect();
        let there = self.has(&unique)?;
        Ok(unique
            .into_iter()
            .zip(there)
            .filter_map(|(id, there)| (!there).then_some(id))
            .collect())
    }

    /// The target of a link, which leads to a place inside the tree.
    pub(crate) fn link_target(&self, entry: &TreeEntry) -> Result<String, StoreError> {
        let target = self.read(entry.object, LINK_BYTES_MAX)?;
        let refused = |rule: &str| StoreError::Entry {
            path: entry.path.clone(),
            rule: rule.to_owned(),
        };
        let target =
            String::from_utf8(target).map_err(|_| refused("the target of a link must be UTF-8"))?;
        if !link_stays_inside(&entry.path, &target) {
            return Err(refused(
                "a link must be relative and stay inside the tree, with `..` only in front",
            ));
        }
        Ok(target)
    }

    /// Checks that each object of `tree` is there and as long as it says.
    fn check_objects(&self, tree: &Tree) -> Result<(), StoreError> {
        let objects: Vec<_> = tree.entries.iter().map(|entry| entry.object).collect();
        let mut missing = Vec::new();
        let mut seen = HashSet::new();
        for (entry, size) in tree.entries.iter().zip(self.sizes(&objects)?) {
            match size {
                None if seen.insert(entry.object) => missing.push(entry.object),
                Some(size) if size != entry.size => {
                    let rule = format!(
                        "the listing says {} bytes, the object has {size}",
                        entry.size
                    );
                    return Err(StoreError::Entry {
                        path: entry.path.clone(),
                        rule,
                    });
                }
                None | Some(_) => {}
            }
        }
        if missing.is_empty() {
            Ok(())
        } else {
            Err(StoreError::Incomplete { missing })
        }
    }
}
