//! Files of control that are nobody else's: mode 0600, replaced whole, on disk when
//! a write returns. All calls block.
//!
//! ```text
//!   data/experiments/<run>/secrets.json   values that the caller sent, until the run ends
//!                          cancel         the wish that a live run ends, until it has
//! ```
//!
//! The wish is kept for the daemon that comes after one that dies between the
//! answer to `cancel` and the end of the attempt.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use mlmesh_model::RunId;

/// Largest file that is read back.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Values of secrets that came with a submission, by name.
pub(crate) const SECRETS: &str = "secrets.json";
/// That somebody wished the end of a live run. Empty.
pub(crate) const CANCEL: &str = "cancel";

/// The folder of a run.
pub(crate) fn run_folder(data_dir: &Path, run: RunId) -> PathBuf {
    data_dir.join("data/experiments").join(run.to_string())
}

/// Writes a file of the folder, which is made when it is missing.
pub(crate) fn write(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let partial = folder.join(format!(".{name}.partial"));
    // One that a killed daemon left may have any mode.
    remove(folder, &format!(".{name}.partial"))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&partial)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    std::fs::rename(&partial, folder.join(name))?;
    File::open(folder)?.sync_all()
}

/// Reads a file back; `None` when there is none.
pub(crate) fn read(folder: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(folder.join(name)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Whether the file is there.
pub(crate) fn is_there(folder: &Path, name: &str) -> bool {
    folder.join(name).exists()
}

/// Removes the file, if there is one.
pub(crate) fn remove(folder: &Path, name: &str) -> io::Result<()> {
    match std::fs::remove_file(folder.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_private_replaced_whole_and_removed_twice() {
        let dir = tempfile::tempdir().unwrap();
        let folder = run_folder(dir.path(), RunId::from_random(5));
        let open = folder.join(".secrets.json.partial");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(&open, "left by a killed daemon").unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
        for text in [&b"one"[..], b"two"] {
            write(&folder, SECRETS, text).unwrap();
            assert_eq!(read(&folder, SECRETS).unwrap().as_deref(), Some(text));
        }
        let mode = folder
            .join(SECRETS)
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!open.exists() && !is_there(&folder, CANCEL));
        remove(&folder, SECRETS).unwrap();
        remove(&folder, SECRETS).unwrap();
        assert_eq!(read(&folder, SECRETS).unwrap(), None);
    }
}
