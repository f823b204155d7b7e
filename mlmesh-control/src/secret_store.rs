//! Values of secrets that the daemon keeps for its owners: one file beside
//! `owner.key`, replaced whole. An owner's value is for that owner's runs only.
//!
//! Nothing of it is kept in memory, and nothing of it is copied into a run's folder:
//! an attempt takes the values as they are when it starts.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use mlmesh_model::{AuditNote, Micros, Owner, Refusal, SecretText, Tenant};
use serde::{Deserialize, Serialize};

use crate::actions::note;
use crate::admit::joined;
use crate::config::Caller;
use crate::error::ControlError;
use crate::private_file::{self, SECRETS};
use crate::reactor::Inner;
use crate::secrets::Values;

/// Version of the file.
const SCHEMA: &str = "mlmesh.secret_store/1";
/// Values that the store keeps, of all owners together.
pub const STORED_SECRETS_MAX: usize = 1_000;
/// Bytes of one value.
pub const SECRET_BYTES_MAX: usize = 32 * 1024;

/// What may be told of a stored value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSecret {
    /// Its name.
    pub name: String,
    /// Whose runs it is for.
    pub owner: Owner,
    /// When it was set.
    pub set_at: Micros,
}

/// The file of a data directory.
#[derive(Debug)]
pub(crate) struct SecretStore {
    folder: PathBuf,
    /// Held from reading to replacing.
    changing: Mutex<()>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    schema: String,
    secrets: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    tenant: Tenant,
    owner: Owner,
    name: String,
    set_at: Micros,
    value: SecretText,
}

impl Entry {
    fn is_of(&self, tenant: &Tenant, owner: &Owner) -> bool {
        self.tenant == *tenant && self.owner == *owner
    }

    fn told(&self) -> StoredSecret {
        StoredSecret {
            name: self.name.clone(),
            owner: self.owner.clone(),
            set_at: self.set_at,
        }
    }
}

impl SecretStore {
    pub(crate) fn in_folder(folder: PathBuf) -> Self {
        Self {
            folder,
            changing: Mutex::new(()),
        }
    }

    /// Looks whether the file can be used. Blocking, like everything below.
    pub(crate) fn check(&self) -> Result<(), ControlError> {
        self.read().map(drop)
    }

    /// The owner's values, by name.
    pub(crate) fn values(&self, tenant: &Tenant, owner: &Owner) -> Result<Values, ControlError> {
        let entries = self.read()?.into_iter();
        Ok(entries
            .filter(|entry| entry.is_of(tenant, owner))
            .map(|entry| (entry.name, entry.value))
            .collect())
    }

    /// Names of the owner's values.
    pub(crate) fn names(
        &self,
        tenant: &Tenant,
        owner: &Owner,
    ) -> Result<BTreeSet<String>, ControlError> {
        Ok(self.values(tenant, owner)?.into_keys().collect())
    }

    fn list(&self, tenant: &Tenant, owner: &Owner) -> Result<Vec<StoredSecret>, ControlError> {
        let entries = self.read()?;
        let own = entries.iter().filter(|entry| entry.is_of(tenant, owner));
        Ok(own.map(Entry::told).collect())
    }

    /// Adds a value, or takes the place of the one of that name.
    fn set(&self, entry: Entry) -> Result<StoredSecret, ControlError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = self.read()?;
        entries.retain(|old| !(old.is_of(&entry.tenant, &entry.owner) && old.name == entry.name));
        if entries.len() >= STORED_SECRETS_MAX {
            return Err(ControlError::Refused(vec![Refusal::new(
                "secret_store_full",
                format!(
                    "the store keeps {} secrets, {STORED_SECRETS_MAX} are allowed",
                    entries.len()
                ),
                "`ml secret remove NAME` makes room",
            )]));
        }
        let told = entry.told();
        entries.push(entry);
        entries.sort_by(|a, b| (&a.tenant, &a.owner, &a.name).cmp(&(&b.tenant, &b.owner, &b.name)));
        self.replace(entries)?;
        Ok(told)
    }

    fn remove(&self, tenant: &Tenant, owner: &Owner, name: &str) -> Result<bool, ControlError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = self.read()?;
        let before = entries.len();
        entries.retain(|entry| !(entry.is_of(tenant, owner) && entry.name == name));
        let removed = entries.len() < before;
        if removed {
            self.replace(entries)?;
        }
        Ok(removed)
    }

    fn read(&self) -> Result<Vec<Entry>, ControlError> {
        let path = self.folder.join(SECRETS);
        let failed = |source: io::Error| ControlError::Io {
            action: format!("read the secret store `{}`", path.display()),
            source,
        };
        let facts = match path.symlink_metadata() {
            Ok(facts) => facts,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mode = facts.permissions().mode() & 0o7777;
        if !facts.is_file() || mode & 0o177 != 0 {
            return Err(ControlError::SecretsOpen { path, mode });
        }
        let Some(bytes) = private_file::read(&self.folder, SECRETS).map_err(failed)? else {
            return Ok(Vec::new());
        };
        // The parser's own words could quote a value.
        let damaged = |_| failed(io::Error::new(io::ErrorKind::InvalidData, "it is damaged"));
        let document: Document = serde_json::from_slice(&bytes).map_err(damaged)?;
        if document.schema == SCHEMA {
            return Ok(document.secrets);
        }
        Err(failed(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("its schema is not `{SCHEMA}`"),
        )))
    }

    fn replace(&self, secrets: Vec<Entry>) -> Result<(), ControlError> {
        let document = Document {
            schema: SCHEMA.to_owned(),
            secrets,
        };
        serde_json::to_vec(&document)
            .map_err(io::Error::from)
            .and_then(|bytes| private_file::write(&self.folder, SECRETS, &bytes))
            .map_err(|source| ControlError::Io {
                action: "write the secret store".into(),
                source,
            })
    }
}

/// What the caller has stored, by name.
pub(crate) async fn list(
    inner: &Arc<Inner>,
    caller: &Caller,
) -> Result<Vec<StoredSecret>, ControlError> {
    let (tenant, owner) = (caller.tenant.clone(), caller.owner.clone());
    blocking(inner, move |store| store.list(&tenant, &owner)).await
}

/// Keeps a value for the caller's runs. The audit row comes first: there is no change
/// without one, and it carries the name alone.
pub(crate) async fn set(
    inner: &Arc<Inner>,
    caller: &Caller,
    name: String,
    value: SecretText,
) -> Result<StoredSecret, ControlError> {
    let audit = note(inner, caller, "secret.set", name.clone());
    let entry = Entry {
        tenant: caller.tenant.clone(),
        owner: caller.owner.clone(),
        name,
        set_at: audit.time,
        value,
    };
    changed(inner, audit, move |store| store.set(entry)).await
}

/// Forgets a value; false when there was none.
pub(crate) async fn remove(
    inner: &Arc<Inner>,
    caller: &Caller,
    name: String,
) -> Result<bool, ControlError> {
    let audit = note(inner, caller, "secret.remove", name.clone());
    let (tenant, owner) = (caller.tenant.clone(), caller.owner.clone());
    changed(inner, audit, move |store| {
        store.remove(&tenant, &owner, &name)
    })
    .await
}

async fn changed<T: Send + 'static>(
    inner: &Arc<Inner>,
    audit: AuditNote,
    work: impl FnOnce(&SecretStore) -> Result<T, ControlError> + Send + 'static,
) -> Result<T, ControlError> {
    inner.ports.store.record(None, Some(audit)).await?;
    blocking(inner, work).await
}

/// Does something with the file off the runtime.
pub(crate) async fn blocking<T: Send + 'static>(
    inner: &Arc<Inner>,
    work: impl FnOnce(&SecretStore) -> Result<T, ControlError> + Send + 'static,
) -> Result<T, ControlError> {
    let inner = Arc::clone(inner);
    tokio::task::spawn_blocking(move || work(&inner.secrets))
        .await
        .map_err(joined)?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(owner: &str, name: &str, value: &str) -> Entry {
        Entry {
            tenant: Tenant::default(),
            owner: owner.parse().unwrap(),
            name: name.into(),
            set_at: Micros(1),
            value: SecretText(value.into()),
        }
    }

    #[test]
    fn each_owner_has_their_own_and_a_wider_mode_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = SecretStore::in_folder(dir.path().to_owned());
        store.check().unwrap();
        for (owner, value) in [("ann", "one"), ("bob", "two"), ("ann", "three")] {
            store.set(entry(owner, "KEY", value)).unwrap();
        }
        let (tenant, ann) = (Tenant::default(), "ann".parse().unwrap());
        let expected = Values::from([("KEY".into(), SecretText("three".into()))]);
        assert_eq!(store.values(&tenant, &ann).unwrap(), expected);
        assert!(
            !store
                .remove(&tenant, &"eve".parse().unwrap(), "KEY")
                .unwrap()
        );
        assert!(store.remove(&tenant, &ann, "KEY").unwrap());
        assert!(store.list(&tenant, &ann).unwrap().is_empty());
        assert_eq!(
            store.list(&tenant, &"bob".parse().unwrap()).unwrap().len(),
            1
        );

        let path = dir.path().join(SECRETS);
        let mode = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        mode(0o640);
        let refused = store.values(&tenant, &ann).unwrap_err();
        assert_eq!(refused.code(), "key_mode");
        assert!(refused.to_string().contains("0640"), "{refused}");
        mode(0o600);
        std::fs::write(&path, "{\"schema\": \"two\"}").unwrap();
        let damaged = store.check().unwrap_err().to_string();
        assert!(!damaged.contains("two"), "{damaged}");
    }

    #[test]
    fn the_store_is_bounded_and_a_new_value_needs_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let store = SecretStore::in_folder(dir.path().to_owned());
        let entries = (0..STORED_SECRETS_MAX).map(|n| entry("ann", &format!("K{n}"), "v"));
        store.replace(entries.collect()).unwrap();
        let full = store.set(entry("ann", "ONE_MORE", "v")).unwrap_err();
        assert_eq!(full.code(), "secret_store_full");
        store.set(entry("ann", "K7", "new")).unwrap();
    }
}
