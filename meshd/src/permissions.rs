//! The permissions file on disk. Whatever is wrong with it, nobody may do more than
//! before: a start is refused, a reload keeps what held.
//!
//! ```text
//!   permissions.yaml ─► owner, mode ─► parsed whole ─► roles
//!                                            └─► permissions.last: there was one
//! ```

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use mlmesh_model::Roles;
use mlmesh_recipe::{RecipeErrors, parse_permissions};

use crate::data_dir::write_whole;

/// A copy of the file that is in force. While it is there a file has to be.
const LAST: &str = "permissions.last";
const NAME: &str = "permissions.yaml";
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Why a permissions file is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PermissionsError {
    #[error(
        "`{path}` is not there, and a permissions file was in force\nhint: put it back (`{last}` has what it said); to go back to the built-in table remove that copy, too",
        path = path.display(), last = last.display()
    )]
    Vanished { path: PathBuf, last: PathBuf },
    #[error("read `{path}`: {source}\nhint: the daemon's user must be able to read it", path = path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "`{path}` has mode {mode:04o} and belongs to user {owner}; a permissions file is the daemon's user's own, and nobody else writes it\nhint: `chmod go-w` and `chown` take it back",
        path = path.display()
    )]
    Open {
        path: PathBuf,
        mode: u32,
        owner: u32,
    },
    #[error("{0}")]
    Form(#[from] RecipeErrors),
    #[error("keep a copy of the permissions file: {0}")]
    Keep(std::io::Error),
}

/// Where the roles come from.
#[derive(Debug, Clone)]
pub(crate) struct PermissionsFile {
    path: PathBuf,
    last: PathBuf,
    /// A setting names it, so that it has to be there.
    named: bool,
}

impl PermissionsFile {
    /// The file of a data directory, or the one that a setting names.
    pub(crate) fn of(data_dir: &Path, setting: &str) -> Self {
        let path = match setting {
            "" => data_dir.join(NAME),
            named => data_dir.join(named),
        };
        Self {
            path,
            last: data_dir.join(LAST),
            named: !setting.is_empty(),
        }
    }

    /// The roles that it makes, and its path; the built-in ones, and none, where there
    /// is no file and never was one. Blocking.
    pub(crate) fn load(&self) -> Result<(Roles, Option<PathBuf>), PermissionsError> {
        let failed = |source| PermissionsError::Read {
            path: self.path.clone(),
            source,
        };
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let was_there = self.last.symlink_metadata().is_ok();
                if self.named || was_there {
                    return Err(PermissionsError::Vanished {
                        path: self.path.clone(),
                        last: self.last.clone(),
                    });
                }
                return Ok((Roles::built_in(), None));
            }
            Err(error) => return Err(failed(error)),
        };
        let facts = file.metadata().map_err(failed)?;
        let mode = facts.permissions().mode() & 0o7777;
        let is_own = [0, rustix::process::geteuid().as_raw()].contains(&facts.uid());
        if !facts.is_file() || mode & 0o022 != 0 || !is_own {
            return Err(PermissionsError::Open {
                path: self.path.clone(),
                mode,
                owner: facts.uid(),
            });
        }
        let mut text = String::new();
        (&mut file)
            .take(FILE_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(failed)?;
        let roles = parse_permissions(&self.path.display().to_string(), &text)?;
        write_whole(&self.last, text.as_bytes(), 0o600).map_err(PermissionsError::Keep)?;
        Ok((roles, Some(self.path.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlmesh_model::{BuiltIn, Permission};

    const NARROW: &str = "version: 1\nroles:\n  member: [state.read]\n";

    #[test]
    fn whatever_is_wrong_with_the_file_gives_no_roles() {
        let folder = tempfile::tempdir().unwrap();
        let file = PermissionsFile::of(folder.path(), "");
        let path = folder.path().join(NAME);
        let member = BuiltIn::Member.name();
        assert_eq!(file.load().unwrap().0, Roles::built_in());
        let write = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        write(NARROW, 0o644);
        let (roles, from) = file.load().unwrap();
        assert!(!roles.of(&member).has(Permission::RunsQueue));
        assert_eq!(from.as_deref(), Some(&*path));
        // Broken, cut off, writable by others, a folder, gone.
        for text in ["", "version: 1\nroles:\n  member: [\"*\"]\n", &NARROW[..30]] {
            write(text, 0o600);
            assert!(file.load().is_err(), "{text:?}");
        }
        for mode in [0o620, 0o602, 0o666] {
            write(NARROW, mode);
            let refused = file.load();
            assert!(
                matches!(refused, Err(PermissionsError::Open { .. })),
                "{mode:o}"
            );
        }
        std::fs::remove_file(&path).unwrap();
        let gone = file.load();
        assert!(
            matches!(gone, Err(PermissionsError::Vanished { .. })),
            "{gone:?}"
        );
        std::fs::create_dir(&path).unwrap();
        assert!(file.load().is_err());
        std::fs::remove_dir(&path).unwrap();
        // Somebody says that there shall be none any more.
        std::fs::remove_file(folder.path().join(LAST)).unwrap();
        assert_eq!(file.load().unwrap().0, Roles::built_in());
        let named = PermissionsFile::of(folder.path(), "/nowhere/p.yaml");
        assert!(matches!(
            named.load(),
            Err(PermissionsError::Vanished { .. })
        ));
    }
}
