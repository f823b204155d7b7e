//! Values of secrets that a caller sent, between submission and the end of a run: a
//! file in the run's folder, and nowhere else.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use mlmesh_model::SecretText;

use crate::private_file::{self, SECRETS};

/// Values by name.
pub(crate) type Values = BTreeMap<String, SecretText>;

/// Writes the values; what it returns is on disk. Blocking.
pub(crate) fn keep(folder: &Path, values: &Values) -> io::Result<()> {
    private_file::write(folder, SECRETS, &serde_json::to_vec(values)?)
}

/// Reads the values back; none when there is no file. Blocking.
pub(crate) fn read(folder: &Path) -> io::Result<Values> {
    match private_file::read(folder, SECRETS)? {
        Some(bytes) => Ok(serde_json::from_slice(&bytes)?),
        None => Ok(Values::new()),
    }
}

/// Whether there are values. Blocking.
pub(crate) fn is_there(folder: &Path) -> bool {
    private_file::is_there(folder, SECRETS)
}

/// Removes the values, if there are any. Blocking.
pub(crate) fn forget(folder: &Path) -> io::Result<()> {
    private_file::remove(folder, SECRETS)
}
