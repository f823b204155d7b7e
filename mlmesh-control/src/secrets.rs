//! Values of secrets between submission and the end of a run: a file of mode 0600
//! in the run's folder, and nowhere else.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use mlmesh_model::{RunId, SecretText};

/// Largest file that is read back.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Values by name.
pub(crate) type Values = BTreeMap<String, SecretText>;

/// The folder of a run.
pub(crate) fn run_folder(data_dir: &Path, run: RunId) -> PathBuf {
    data_dir.join("data/experiments").join(run.to_string())
}

/// Writes the values; what it returns is on disk. Blocking.
pub(crate) fn write(folder: &Path, values: &Values) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let partial = folder.join(".secrets.json.partial");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&partial)?;
    file.write_all(&serde_json::to_vec(values)?)?;
    file.sync_data()?;
    std::fs::rename(&partial, path(folder))?;
    File::open(folder)?.sync_all()
}

/// Reads the values back; `None` when there are none. Blocking.
pub(crate) fn read(folder: &Path) -> io::Result<Option<Values>> {
    let file = match File::open(path(folder)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let limited = io::Read::take(file, FILE_BYTES_MAX);
    Ok(Some(serde_json::from_reader(limited)?))
}

/// Whether there are values. Blocking.
pub(crate) fn is_there(folder: &Path) -> bool {
    path(folder).exists()
}

/// Removes the values, if there are any. Blocking.
pub(crate) fn remove(folder: &Path) -> io::Result<()> {
    match std::fs::remove_file(path(folder)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn path(folder: &Path) -> PathBuf {
    folder.join("secrets.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn values_come_back_under_mode_0600_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let folder = run_folder(dir.path(), RunId::from_random(5));
        let values = Values::from([("KEY".into(), SecretText("s3cret".into()))]);
        write(&folder, &values).unwrap();
        let mode = path(&folder).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(read(&folder).unwrap(), Some(values));
        remove(&folder).unwrap();
        remove(&folder).unwrap();
        assert_eq!(read(&folder).unwrap(), None);
    }
}
