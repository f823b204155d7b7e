//! Who calls: API keys are compared by their SHA-256, in constant time, against the
//! keys that the store knows. A key itself is only ever in its holder's file.

use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use mlmesh_api::{Timestamp, read_key};
use mlmesh_control::run_of_token;
use mlmesh_model::{
    ApiKey, AuditNote, Clock, Digest, KeyClass, Micros, Owner, Store, StoreError, Tenant,
};
use subtle::ConstantTimeEq;

use crate::data_dir::write_whole;

/// Public name of the key in `owner.key`.
pub(crate) const OWNER_KEY_NAME: &str = "owner";
/// What every key begins with, so that a leaked one is found by a search.
const KEY_PREFIX: &str = "mlmesh_";
const KEY_BYTES: usize = 32;

/// The keys that are accepted now.
#[derive(Debug)]
pub(crate) struct KeyRing {
    keys: ArcSwap<Vec<ApiKey>>,
}

impl KeyRing {
    /// Tokens of attempts are left out: they end while this lives, and are asked for at
    /// the store.
    pub(crate) fn new(mut keys: Vec<ApiKey>) -> Self {
        keys.retain(|key| key.class != KeyClass::Attempt);
        Self {
            keys: ArcSwap::from_pointee(keys),
        }
    }

    /// The key that was shown, if it is one of ours. Takes the same time whichever it
    /// is: every known key is compared, whole.
    pub(crate) fn find(&self, shown: &str) -> Option<ApiKey> {
        let sha256 = Digest::of(shown.as_bytes());
        let keys = self.keys.load();
        let mut found = None;
        for key in keys.iter() {
            if bool::from(key.sha256.as_bytes().ct_eq(sha256.as_bytes())) {
                found = Some(key);
            }
        }
        found.filter(|key| key.revoked_at.is_none()).cloned()
    }
}

/// The token of a live attempt that was shown, if it is one.
pub(crate) async fn find_token(
    store: &dyn Store,
    shown: &str,
) -> Result<Option<ApiKey>, StoreError> {
    let Some(run) = run_of_token(shown) else {
        return Ok(None);
    };
    let sha256 = Digest::of(shown.as_bytes());
    let key = store.attempt_key(run).await?;
    Ok(key.filter(|key| bool::from(key.sha256.as_bytes().ct_eq(sha256.as_bytes()))))
}

/// Why the owner's key cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OwnerKeyError {
    #[error(
        "{0}\nhint: take it back with `chmod 600`, or remove it: the next start makes a new one"
    )]
    File(#[from] mlmesh_api::DaemonFileError),
    #[error("write `owner.key`: {0}")]
    Write(std::io::Error),
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
    #[error("record the owner's key: {0}")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Owner(#[from] mlmesh_model::ParseIdError),
}

/// Makes `owner.key` where there is none, and sees to it that the store knows its hash
/// (a store may have been exchanged below the key).
pub(crate) async fn open_keys(
    data_dir: &Path,
    owner: &Owner,
    store: &Arc<dyn Store>,
    clock: &Arc<dyn Clock>,
) -> Result<KeyRing, OwnerKeyError> {
    let path = data_dir.join("owner.key");
    let key = if path.exists() {
        read_key(&path)?
    } else {
        let key = new_key().map_err(OwnerKeyError::Random)?;
        write_whole(&path, format!("{key}\n").as_bytes(), 0o600).map_err(OwnerKeyError::Write)?;
        key
    };
    let sha256 = Digest::of(key.as_bytes());
    let known = store.keys().await?;
    let known_already = known
        .iter()
        .any(|known| known.name == OWNER_KEY_NAME && known.sha256 == sha256);
    if !known_already {
        let now = clock.now();
        store
            .put_key(owner_key(owner, sha256, now), key_note(owner, now))
            .await?;
        tracing::info!(time = %Timestamp(now), "recorded the owner's key");
        return Ok(KeyRing::new(store.keys().await?));
    }
    Ok(KeyRing::new(known))
}

fn owner_key(owner: &Owner, sha256: Digest, now: Micros) -> ApiKey {
    ApiKey {
        name: OWNER_KEY_NAME.to_owned(),
        tenant: Tenant::default(),
        owner: owner.clone(),
        sha256,
        class: KeyClass::Bulk,
        run: None,
        created_at: now,
        revoked_at: None,
    }
}

fn key_note(owner: &Owner, now: Micros) -> AuditNote {
    AuditNote {
        time: now,
        tenant: Tenant::default(),
        owner: owner.clone(),
        key: "local".to_owned(),
        remote: "local".to_owned(),
        action: "key.put".to_owned(),
        subject: OWNER_KEY_NAME.to_owned(),
        details_sha256: None,
    }
}

/// 256 random bits as text.
fn new_key() -> Result<String, getrandom::Error> {
    let mut bytes = [0_u8; KEY_BYTES];
    getrandom::fill(&mut bytes)?;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{KEY_PREFIX}{hex}"))
}

/// The user whom this process belongs to, by name where the system knows one.
pub(crate) fn local_owner() -> Result<Owner, mlmesh_model::ParseIdError> {
    let uid = rustix::process::getuid().as_raw();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    });
    match name.and_then(|name| name.parse().ok()) {
        Some(owner) => Ok(owner),
        None => format!("uid-{uid}").parse(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_unrevoked_key_is_found() {
        let owner: Owner = "ann".parse().unwrap();
        let text = new_key().unwrap();
        assert_eq!(text.len(), KEY_PREFIX.len() + 2 * KEY_BYTES);
        let key = owner_key(&owner, Digest::of(text.as_bytes()), Micros(1));
        let revoked = ApiKey {
            sha256: Digest::of(b"old"),
            revoked_at: Some(Micros(2)),
            ..key.clone()
        };
        let ring = KeyRing::new(vec![revoked, key]);
        assert_eq!(ring.find(&text).map(|key| key.owner), Some(owner));
        for wrong in ["", "old", &text[..text.len() - 1], &format!("{text} ")] {
            assert!(ring.find(wrong).is_none(), "{wrong}");
        }
    }
}
