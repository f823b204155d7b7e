//! A connection: the one file by which somebody who cannot read the data directory
//! reaches a daemon. It holds a key, so that it is its holder's alone.

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use mlmesh_model::Digest;
use serde::{Deserialize, Serialize};

use crate::transport::provider;
use crate::{ClientError, DaemonFileError, Endpoint, log_dto::hex_of};

/// Schema name of [`ConnectionFile`].
pub const CONNECTION_SCHEMA: &str = "mlmesh.connection/1";

/// What every key begins with, so that a leaked one is found by a search.
const KEY_PREFIX: &str = "mlmesh_";
const KEY_BYTES: usize = 32;
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// A key as its holder has it. It prints as nothing.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretKey(String);

impl SecretKey {
    /// 256 random bits.
    pub fn draw() -> Result<Self, ClientError> {
        let mut bytes = [0_u8; KEY_BYTES];
        let filled = provider().secure_random.fill(&mut bytes);
        filled.map_err(|_| ClientError::Answer {
            route: "the system's random source".to_owned(),
            reason: "it gives no bytes".to_owned(),
        })?;
        Ok(Self(format!("{KEY_PREFIX}{}", hex_of(&bytes))))
    }

    /// What the daemon is told of it.
    pub fn sha256(&self) -> Digest {
        Digest::of(self.0.as_bytes())
    }
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretKey(hidden)")
    }
}

/// Where a daemon answers, how it is known, and with which key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionFile {
    /// [`CONNECTION_SCHEMA`].
    pub schema: String,
    /// Such as `https://127.0.0.1:9101`.
    pub url: String,
    /// The certificate that the daemon's own is checked against, as PEM.
    pub ca_pem: String,
    /// Whose key it is.
    pub user: String,
    /// Public name of the key.
    pub key_name: String,
    /// The key.
    pub key: SecretKey,
}

impl ConnectionFile {
    /// Name of the file in the user's configuration folder.
    pub const NAME: &'static str = "connection.json";

    /// Reads a file that nobody but the caller may read or write.
    pub fn read(path: &Path) -> Result<Self, DaemonFileError> {
        let failed = |source| DaemonFileError::Read {
            path: path.to_owned(),
            source,
        };
        let mut file = std::fs::File::open(path).map_err(failed)?;
        let facts = file.metadata().map_err(failed)?;
        let mode = facts.permissions().mode() & 0o7777;
        if mode & 0o177 != 0 || !facts.is_file() {
            return Err(DaemonFileError::Mode {
                path: path.to_owned(),
                mode,
            });
        }
        let caller = rustix::process::geteuid().as_raw();
        if facts.uid() != caller {
            return Err(DaemonFileError::Owner {
                path: path.to_owned(),
                owner: facts.uid(),
                caller,
            });
        }
        let mut text = String::new();
        (&mut file)
            .take(FILE_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(failed)?;
        // The parser's own words could quote the key.
        let form = |reason: String| DaemonFileError::Form {
            path: path.to_owned(),
            reason,
        };
        let connection: Self = serde_json::from_str(&text).map_err(|error| {
            form(format!(
                "it is not the JSON that `ml key add` wrote (line {}, column {})",
                error.line(),
                error.column()
            ))
        })?;
        if connection.schema != CONNECTION_SCHEMA {
            return Err(form(format!("its schema is not `{CONNECTION_SCHEMA}`")));
        }
        if !connection.url.starts_with("https://") {
            return Err(form("its url is not `https://…`".to_owned()));
        }
        Ok(connection)
    }

    /// Writes a new file that nobody else may read; one that is there is not touched.
    pub fn write_new(&self, path: &Path) -> Result<(), DaemonFileError> {
        let write = || -> std::io::Result<()> {
            let mut file = std::fs::File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)?;
            let mut text = serde_json::to_vec_pretty(self)?;
            text.push(b'\n');
            file.write_all(&text)?;
            file.sync_all()
        };
        write().map_err(|source| DaemonFileError::Write {
            path: path.to_owned(),
            source,
        })
    }

    /// The daemon that it leads to.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            url: self.url.clone(),
            ca_pem: self.ca_pem.clone(),
            key: self.key.0.clone(),
        }
    }

    /// The same with another key.
    #[must_use]
    pub fn with_key(&self, key: SecretKey) -> Self {
        Self {
            key,
            ..self.clone()
        }
    }
}

/// Where a new file lies until it takes the place of another one.
pub fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> ConnectionFile {
        ConnectionFile {
            schema: CONNECTION_SCHEMA.to_owned(),
            url: "https://127.0.0.1:9101".to_owned(),
            ca_pem: "PEM".to_owned(),
            user: "bob".to_owned(),
            key_name: "bob-1".to_owned(),
            key: SecretKey::draw().unwrap(),
        }
    }

    #[test]
    fn a_connection_is_its_holders_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.json");
        let written = connection();
        written.write_new(&path).unwrap();
        assert_eq!(ConnectionFile::read(&path).unwrap(), written);
        assert!(written.write_new(&path).is_err(), "it was there");
        for mode in [0o640, 0o604, 0o660, 0o700] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let refused = ConnectionFile::read(&path).unwrap_err();
            assert!(matches!(refused, DaemonFileError::Mode { .. }), "{mode:o}");
        }
        if rustix::process::geteuid().is_root() {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            std::os::unix::fs::chown(&path, Some(12_345), None).unwrap();
            let refused = ConnectionFile::read(&path).unwrap_err();
            assert!(
                matches!(refused, DaemonFileError::Owner { .. }),
                "{refused}"
            );
        }
    }

    #[test]
    fn a_key_is_never_quoted() {
        let written = connection();
        let key = serde_json::to_value(&written.key).unwrap();
        let key = key.as_str().unwrap().to_owned();
        assert_eq!(key.len(), KEY_PREFIX.len() + 2 * KEY_BYTES);
        assert!(!format!("{written:?} {:?}", written.endpoint()).contains(&key));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.json");
        let text = serde_json::to_string(&written).unwrap();
        std::fs::write(&path, text.replace("\"user\":", "\"key\":")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let refused = ConnectionFile::read(&path).unwrap_err().to_string();
        assert!(!refused.contains(&key), "{refused}");
    }
}
