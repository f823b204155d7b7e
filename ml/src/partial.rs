//! A file that appears under its name when it is whole and on disk, and not before.
//!
//! It is written beside its place under a name of its own, locked while somebody writes.
//! What a killed writer left has no lock any more: the next one in that folder removes it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// How the name of such a file ends; it begins with a dot.
const SUFFIX: &str = ".ml-export.part";

/// A file on its way; it goes away unless it is moved to its place.
#[derive(Debug)]
pub(crate) struct Partial {
    file: File,
    path: PathBuf,
    place: PathBuf,
    folder: PathBuf,
}

impl Partial {
    /// Begins a file that is to stand at `place`, which has a name. Waits while somebody
    /// else writes the same one.
    pub(crate) fn create(place: &Path) -> io::Result<Self> {
        let folder = match place.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        remove_left(folder)?;
        let mut name = std::ffi::OsString::from(".");
        name.push(place.file_name().unwrap_or_default());
        name.push(SUFFIX);
        let path = folder.join(name);
        loop {
            let file = open(&path, true)?;
            lock(&file)?;
            // Meanwhile it may have become the file of another writer, or gone away.
            if is_at(&file, &path) {
                file.set_len(0)?;
                return Ok(Self {
                    file,
                    path,
                    place: place.to_owned(),
                    folder: folder.to_owned(),
                });
            }
        }
    }

    /// Where its bytes go.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Moves it to its place, once it is on disk.
    pub(crate) fn finish(self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, &self.place)?;
        File::open(&self.folder)?.sync_all()
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if is_at(&self.file, &self.path) {
            drop(fs::remove_file(&self.path));
        }
    }
}

/// Removes what writers left here that were killed.
fn remove_left(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !(name.starts_with('.') && name.ends_with(SUFFIX)) {
            continue;
        }
        // One that cannot be opened is somebody else's.
        let Ok(file) = open(&entry.path(), false) else {
            continue;
        };
        if file.try_lock().is_ok() && is_at(&file, &entry.path()) {
            drop(fs::remove_file(entry.path()));
        }
    }
    Ok(())
}

/// Through no link: the folder may be anybody's.
fn open(path: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(create)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
        .open(path)
}

/// A file system without locks has none to wait for.
fn lock(file: &File) -> io::Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => file.lock(),
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(there)) = (file.metadata(), fs::symlink_metadata(path)) else {
        return false;
    };
    (open.dev(), open.ino()) == (there.dev(), there.ino())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_is_there_when_it_is_finished_and_what_was_left_goes() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("x.zip");
        let names = || {
            let entries = fs::read_dir(folder.path()).unwrap();
            let mut names: Vec<_> = entries.map(|it| it.unwrap().file_name()).collect();
            names.sort();
            names
        };
        // One that was killed, one that writes, and one that only looks alike.
        let left = folder.path().join(".y.zip.ml-export.part");
        fs::write(&left, "half").unwrap();
        fs::write(folder.path().join(".y.part"), "mine").unwrap();
        let busy = Partial::create(&folder.path().join("z.zip")).unwrap();
        assert!(!left.exists());
        fs::write(folder.path().join(".x.zip.ml-export.part"), "half").unwrap();
        let partial = Partial::create(&place).unwrap();
        partial.file().write_all(b"whole").unwrap();
        assert!(!place.exists());
        partial.finish().unwrap();
        assert_eq!(fs::read(&place).unwrap(), b"whole");
        assert_eq!(names(), [".y.part", ".z.zip.ml-export.part", "x.zip"]);
        drop(busy);
        assert_eq!(names(), [".y.part", "x.zip"]);
    }

    #[test]
    fn of_two_that_write_the_same_file_one_waits_for_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("x.zip");
        let first = Partial::create(&place).unwrap();
        first.file().write_all(b"first").unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| {
                let second = Partial::create(&place).unwrap();
                assert_eq!(fs::read(&place).unwrap(), b"first");
                second.file().write_all(b"second").unwrap();
                second.finish().unwrap();
            });
            first.finish().unwrap();
            second.join().unwrap();
        });
        assert_eq!(fs::read(&place).unwrap(), b"second");
    }

    #[test]
    fn a_link_in_the_way_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let victim = folder.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        let link = folder.path().join(".x.zip.ml-export.part");
        std::os::unix::fs::symlink(&victim, &link).unwrap();
        assert!(Partial::create(&folder.path().join("x.zip")).is_err());
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
    }
}
