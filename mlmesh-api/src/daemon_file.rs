//! `meshd.json` and `owner.key`: how a client finds a daemon and what it shows it.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Schema name of [`DaemonFile`].
pub const DAEMON_SCHEMA: &str = "mlmesh.daemon/1";

/// `DIR/meshd.json`, there while a daemon is ready (or was, when it was killed).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonFile {
    /// `mlmesh.daemon/1`.
    pub schema: String,
    /// The daemon's process.
    pub pid: u32,
    /// Where it answers.
    pub urls: DaemonUrls,
    /// Absolute path of the certificate that its own is checked against.
    pub ca: PathBuf,
}

/// Where a daemon answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonUrls {
    /// The API, such as `https://127.0.0.1:9101`.
    pub api: String,
}

/// What is wrong with the files of a data directory.
#[derive(Debug, thiserror::Error)]
pub enum DaemonFileError {
    /// There is none.
    #[error("no daemon has been started on `{0}`")]
    Absent(PathBuf),
    /// It cannot be read.
    #[error("read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not what it has to be.
    #[error("`{path}` is not of the documented form: {reason}")]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It cannot be written.
    #[error("write `{path}`")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Somebody else could change the key, or has given it away.
    #[error(
        "`{path}` belongs to user {owner}, and you are user {caller}; a connection is its holder's own file"
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who asks.
        caller: u32,
    },
    /// Others may read the key.
    #[error("`{path}` has mode {mode:04o}; a key may have no wider mode than 0600")]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
}

/// Largest `meshd.json`, key or certificate that is read.
const SMALL_FILE_BYTES_MAX: u64 = 64 * 1024;

impl DaemonFile {
    /// Name of the file in a data directory.
    pub const NAME: &'static str = "meshd.json";

    /// Reads the file of a data directory. It may be stale: only a call tells.
    pub fn read(data_dir: &Path) -> Result<Self, DaemonFileError> {
        let path = data_dir.join(Self::NAME);
        let text = match read_small(&path) {
            Err(DaemonFileError::Read { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                return Err(DaemonFileError::Absent(data_dir.to_owned()));
            }
            other => other?,
        };
        let file: Self = serde_json::from_str(&text).map_err(|error| DaemonFileError::Form {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        if file.schema == DAEMON_SCHEMA {
            Ok(file)
        } else {
            Err(DaemonFileError::Form {
                path,
                reason: format!("schema is `{}`, not `{DAEMON_SCHEMA}`", file.schema),
            })
        }
    }
}

/// Reads a key, which nobody but its owner may be able to read.
pub fn read_key(path: &Path) -> Result<String, DaemonFileError> {
    let metadata = std::fs::metadata(path).map_err(|source| DaemonFileError::Read {
        path: path.to_owned(),
        source,
    })?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o177 != 0 {
        return Err(DaemonFileError::Mode {
            path: path.to_owned(),
            mode,
        });
    }
    let key = read_small(path)?.trim().to_owned();
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(DaemonFileError::Form {
            path: path.to_owned(),
            reason: "a key is one line of visible ASCII".to_owned(),
        });
    }
    Ok(key)
}

pub(crate) fn read_small(path: &Path) -> Result<String, DaemonFileError> {
    let read = || -> std::io::Result<String> {
        let mut text = String::new();
        std::fs::File::open(path)?
            .take(SMALL_FILE_BYTES_MAX)
            .read_to_string(&mut text)?;
        Ok(text)
    };
    read().map_err(|source| DaemonFileError::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("owner.key");
        std::fs::write(&path, "mlmesh_0123\n").unwrap();
        for (mode, good) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read_key(&path).is_ok(), good, "{mode:o}");
        }
    }

    #[test]
    fn an_absent_file_and_a_wrong_one_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let read = || DaemonFile::read(directory.path());
        assert!(matches!(read(), Err(DaemonFileError::Absent(_))));
        std::fs::write(directory.path().join("meshd.json"), "{").unwrap();
        assert!(matches!(read(), Err(DaemonFileError::Form { .. })));
    }
}
