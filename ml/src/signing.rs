//! The key that signs a user's exports: one file in the user's configuration folder,
//! made when it is first needed. It is never sent anywhere and never printed.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use mlmesh_proof::export::SigningKey;

use crate::config::user_folder;
use crate::error::{Exit, Failure, Outcome};
use crate::output::Output;

const FILE_NAME: &str = "signing.key";
const FILE_BYTES_MAX: u64 = 4096;

/// The user's key.
pub(crate) fn key(output: &Output) -> Outcome<SigningKey> {
    let path = path()?;
    let failed = |error: std::io::Error| Failure::io("read the signing key", &path, &error);
    let mut file = match File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return make(output),
        other => other.map_err(failed)?,
    };
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o177 != 0 || !metadata.is_file() {
        return Err(Failure {
            exit: Exit::Refused,
            ..Failure::failed(
                "key_mode",
                format!(
                    "`{}` has mode {mode:04o}; a key is a file of no wider mode than 0600",
                    path.display()
                ),
                format!("`chmod 600 {}`", path.display()),
            )
        });
    }
    let mut text = String::new();
    (&mut file)
        .take(FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(failed)?;
    SigningKey::from_pem(&text).map_err(|error| {
        Failure::failed(
            "key_form",
            format!("`{}`: {error}", path.display()),
            "restore it from a copy, or move it away: the next export makes a new one, and \
             earlier exports still verify",
        )
    })
}

fn path() -> Outcome<PathBuf> {
    let folder = user_folder().ok_or_else(|| {
        Failure::usage(
            "no folder for the signing key: neither MLMESH_CONFIG_DIR nor HOME is set",
            "set MLMESH_CONFIG_DIR",
        )
    })?;
    Ok(folder.join(FILE_NAME))
}

/// Makes the key, whole or not at all. Of two that do it at once one wins.
fn make(output: &Output) -> Outcome<SigningKey> {
    let path = path()?;
    let failed = |error: std::io::Error| Failure::io("write the signing key", &path, &error);
    let made = SigningKey::generate()
        .map_err(|error| Failure::failed("key_form", error.to_string(), "try again"))?;
    let folder = path.parent().unwrap_or(&path);
    fs::create_dir_all(folder).map_err(failed)?;
    let partial = folder.join(format!(".{FILE_NAME}.{}", std::process::id()));
    drop(fs::remove_file(&partial));
    let written = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&partial)
        .and_then(|mut file| {
            file.write_all(made.to_pem().as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::hard_link(&partial, &path));
    drop(fs::remove_file(&partial));
    match written {
        Ok(()) => {
            output.say(format_args!(
                "made a signing key, {}: {}",
                path.display(),
                made.fingerprint()
            ));
            Ok(made)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => key(output),
        Err(error) => Err(failed(error)),
    }
}
