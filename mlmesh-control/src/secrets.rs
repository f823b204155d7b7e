//! Values of a run's secrets. Those that a caller sent lie in the run's folder, between
//! submission and the end of the run, and nowhere else; those of the store are read
//! when an attempt starts. The caller's value wins.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use mlmesh_model::{Run, SecretText};

use crate::error::ControlError;
use crate::private_file::{self, SECRETS, run_folder};
use crate::reactor::{Inner, sweep_of};
use crate::secret_store;

/// Values by name.
pub(crate) type Values = BTreeMap<String, SecretText>;

/// Everything that a run may be given now; its plan names what it gets.
pub(crate) async fn of_run(inner: &Arc<Inner>, run: &Run) -> Result<Values, ControlError> {
    // Points of a sweep share what came with it.
    let holder = sweep_of(run).unwrap_or(run.id);
    let folder = run_folder(&inner.config.data_dir, holder);
    let (tenant, owner) = (run.tenant.clone(), run.owner.clone());
    secret_store::blocking(inner, move |store| {
        let mut values = store.values(&tenant, &owner)?;
        let sent = read(&folder).map_err(|source| ControlError::Io {
            action: "read what the caller sent".into(),
            source,
        })?;
        values.extend(sent);
        Ok(values)
    })
    .await
}

/// Writes the values; what it returns is on disk. Blocking.
pub(crate) fn keep(folder: &Path, values: &Values) -> io::Result<()> {
    private_file::write(folder, SECRETS, &serde_json::to_vec(values)?)
}

/// Reads the values back; none when there is no file. Blocking.
fn read(folder: &Path) -> io::Result<Values> {
    match private_file::read(folder, SECRETS)? {
        // The parser's own words could quote a value.
        Some(bytes) => serde_json::from_slice(&bytes)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the file is damaged")),
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
