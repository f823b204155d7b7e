//! The wish that a live run ends, kept until it has: a daemon that dies between the
//! answer to `cancel` and the end of the attempt leaves the wish to the next one.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Notes the wish; what it returns is on disk. Blocking.
pub(crate) fn write(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    File::create(path(folder))?.sync_all()?;
    File::open(folder)?.sync_all()
}

/// Whether somebody wished it. Blocking.
pub(crate) fn is_there(folder: &Path) -> bool {
    path(folder).exists()
}

/// Forgets the wish, if there is one. Blocking.
pub(crate) fn remove(folder: &Path) -> io::Result<()> {
    match std::fs::remove_file(path(folder)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn path(folder: &Path) -> PathBuf {
    folder.join("cancel")
}
