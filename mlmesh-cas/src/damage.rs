//! Marks of damage: which objects and listings count as absent until they come again.
//!
//! `damaged` in the store's folder has one id a line, so that what was found once is
//! not served again after a restart. It is replaced as a whole and goes with the last
//! mark. An object is on disk before its mark goes: a crash in between leaves a mark
//! too many, which the next sync takes away by sending the object once more.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

use mlmesh_model::ObjectId;

use crate::place;
use crate::store::{ObjectStore, Table};

const FILE: &str = "damaged";

impl ObjectStore {
    /// Marks one more.
    pub(crate) fn mark_damaged(&self, id: ObjectId) {
        let mut table = self.table_write();
        if table.broken.insert(id) {
            self.keep_marks(&table.broken);
        }
    }

    /// These have come again, and are on disk.
    pub(crate) fn mend(&self, table: &mut Table, ids: impl IntoIterator<Item = ObjectId>) {
        if table.broken.is_empty() {
            return;
        }
        let before = table.broken.len();
        for id in ids {
            table.broken.remove(&id);
        }
        if table.broken.len() != before {
            self.keep_marks(&table.broken);
        }
    }

    /// Whoever has read everything knows all marks.
    pub(crate) fn replace_marks(&self, broken: HashSet<ObjectId>) {
        let mut table = self.table_write();
        if table.broken != broken {
            self.keep_marks(&broken);
            table.broken = broken;
        }
    }

    /// A mark that cannot be written holds until the daemon ends, and the next scrub
    /// finds the damage again; what is being read or written must not fail for it.
    fn keep_marks(&self, broken: &HashSet<ObjectId>) {
        if self.is_reader() {
            return;
        }
        let _ = write(&self.root, broken);
    }
}

fn write(root: &Path, broken: &HashSet<ObjectId>) -> io::Result<()> {
    let path = root.join(FILE);
    if broken.is_empty() {
        fs::remove_file(&path)?;
        return place::sync_folder(root);
    }
    let mut lines: Vec<String> = broken.iter().map(|id| format!("{id}\n")).collect();
    lines.sort_unstable();
    let temporary = path.with_extension("tmp");
    place::write_synced(&temporary, lines.concat().as_bytes())?;
    fs::rename(&temporary, &path)?;
    place::sync_folder(root)
}

/// The marks of the store in `root`; a line that is no id is none.
pub(crate) fn read(root: &Path) -> HashSet<ObjectId> {
    let text = fs::read_to_string(root.join(FILE)).unwrap_or_default();
    let ids = text.lines().filter_map(|line| line.parse().ok());
    ids.map(ObjectId).collect()
}
