//! Who calls: API keys are compared by their SHA-256, in constant time, against the
//! keys that the store knows. A key itself is only ever in its holder's file.
//!
//! ```text
//!   key ─► hash ─► known? ─► its user, not removed ─► role ─► permissions
//!   change ─► store (with its audit row) ─► the ring is read anew ─► whoever waits looks
//! ```
//!
//! A change acts when its answer is given: on the next request, and on calls and event
//! streams that are open.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use mlmesh_api::{Timestamp, read_key};
use mlmesh_control::run_of_token;
use mlmesh_model::{
    ApiKey, AuditNote, BuiltIn, Clock, Digest, KeyClass, Micros, Name, Owner, Permission,
    Permissions, Roles, Store, StoreError, Tenant, User, UserChange,
};
use subtle::ConstantTimeEq;
use tokio::sync::{Mutex, MutexGuard, watch};

use crate::data_dir::write_whole;

/// Public name of the key in `owner.key`.
pub(crate) const OWNER_KEY_NAME: &str = "owner";
/// What every key begins with, so that a leaked one is found by a search.
const KEY_PREFIX: &str = "mlmesh_";
const KEY_BYTES: usize = 32;

/// The keys that are accepted now.
#[derive(Debug)]
pub(crate) struct KeyRing {
    ring: ArcSwap<Ring>,
    /// Counts the changes.
    changed: watch::Sender<u64>,
    /// The permissions file that the roles are from.
    from: ArcSwapOption<PathBuf>,
    /// Held from a change of the store to the reading of it.
    changing: Mutex<()>,
}

#[derive(Debug)]
struct Ring {
    keys: Vec<ApiKey>,
    users: Vec<User>,
    roles: Roles,
}

/// A key that is accepted, and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) key: ApiKey,
    pub(crate) role: Name,
    pub(crate) permissions: Permissions,
}

impl Known {
    /// The token of an attempt.
    pub(crate) fn attempt(key: ApiKey) -> Self {
        Self {
            key,
            role: BuiltIn::Attempt.name(),
            permissions: BuiltIn::Attempt.permissions(),
        }
    }
}

impl KeyRing {
    /// Tokens of attempts are left out: they end while this lives, and are asked for at
    /// the store.
    pub(crate) fn new(keys: Vec<ApiKey>, users: Vec<User>, roles: Roles) -> Self {
        Self {
            ring: ArcSwap::from_pointee(Ring::new(keys, users, roles)),
            changed: watch::Sender::new(0),
            from: ArcSwapOption::empty(),
            changing: Mutex::new(()),
        }
    }

    /// The key that was shown, if it is one of ours and its user is there. Takes the
    /// same time whichever it is: every known key is compared, whole.
    pub(crate) fn find(&self, shown: &str) -> Option<Known> {
        self.ring.load().find(&Digest::of(shown.as_bytes()))
    }

    /// Roles as they are now.
    pub(crate) fn roles(&self) -> Roles {
        self.ring.load().roles.clone()
    }

    /// The permissions file that the roles are from; none for the built-in table.
    pub(crate) fn from(&self) -> Option<Arc<PathBuf>> {
        self.from.load_full()
    }

    pub(crate) fn say_where_from(&self, from: Option<PathBuf>) {
        self.from.store(from.map(Arc::new));
    }

    /// Puts other roles in force, and wakes whoever waits on an old one.
    pub(crate) fn replace_roles(&self, roles: Roles, _held: &MutexGuard<'_, ()>) {
        let ring = self.ring.load();
        self.replace(Ring::new(ring.keys.clone(), ring.users.clone(), roles));
    }

    /// Users as they are now.
    pub(crate) fn users(&self) -> Vec<User> {
        self.ring.load().users.clone()
    }

    /// Keys of users as they are now.
    pub(crate) fn keys(&self) -> Vec<ApiKey> {
        self.ring.load().keys.clone()
    }

    /// Waits until a key is not accepted any more, or lacks a permission that it had.
    pub(crate) async fn lost(&self, sha256: Digest, permission: Option<Permission>) {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            if !self.stands(sha256, permission) || changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Whether a key is accepted and has this permission.
    pub(crate) fn stands(&self, sha256: Digest, permission: Option<Permission>) -> bool {
        let known = self.ring.load().find(&sha256);
        known.is_some_and(|known| permission.is_none_or(|one| known.permissions.has(one)))
    }

    /// Keeps other changes out until the ring has been read anew.
    pub(crate) async fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// Reads keys and users anew, and wakes whoever waits on an old one.
    pub(crate) async fn read_again(
        &self,
        store: &dyn Store,
        _held: &MutexGuard<'_, ()>,
    ) -> Result<(), StoreError> {
        let (keys, users) = (store.keys().await?, store.users().await?);
        self.replace(Ring::new(keys, users, self.roles()));
        Ok(())
    }

    fn replace(&self, ring: Ring) {
        self.ring.store(Arc::new(ring));
        self.changed.send_modify(|count| *count += 1);
    }
}

impl Ring {
    fn new(mut keys: Vec<ApiKey>, users: Vec<User>, roles: Roles) -> Self {
        keys.retain(|key| key.class != KeyClass::Attempt);
        Self { keys, users, roles }
    }

    fn find(&self, sha256: &Digest) -> Option<Known> {
        let mut found = None;
        for key in &self.keys {
            if bool::from(key.sha256.as_bytes().ct_eq(sha256.as_bytes())) {
                found = Some(key);
            }
        }
        let key = found.filter(|key| key.revoked_at.is_none())?;
        let mut users = self.users.iter();
        let user = users.find(|user| user.name == key.owner && user.tenant == key.tenant)?;
        user.removed_at.is_none().then(|| Known {
            key: key.clone(),
            role: user.role.clone(),
            permissions: self.roles.of(&user.role),
        })
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
}

/// Makes `owner.key` where there is none, and sees to it that the store knows its hash
/// (a store may have been exchanged below the key) and that its holder is an admin.
pub(crate) async fn open_keys(
    data_dir: &Path,
    owner: &Owner,
    roles: Roles,
    store: &Arc<dyn Store>,
    clock: &Arc<dyn Clock>,
) -> Result<KeyRing, OwnerKeyError> {
    let path = data_dir.join("owner.key");
    let key = if path.exists() {
        read_key(&path)?
    } else {
        new_owner_key(data_dir)?
    };
    let now = clock.now();
    own_user(&**store, owner, now).await?;
    let sha256 = Digest::of(key.as_bytes());
    let known = store.keys().await?;
    let known_already = known.iter().any(|known| {
        known.name == OWNER_KEY_NAME && known.sha256 == sha256 && known.owner == *owner
    });
    if !known_already {
        store
            .put_key(
                owner_key(owner, sha256, now),
                local_note(owner, now, "key.put", OWNER_KEY_NAME),
            )
            .await?;
        tracing::info!(time = %Timestamp(now), "recorded the owner's key");
    }
    Ok(KeyRing::new(
        store.keys().await?,
        store.users().await?,
        roles,
    ))
}

/// Writes a new `owner.key`.
pub(crate) fn new_owner_key(data_dir: &Path) -> Result<String, OwnerKeyError> {
    let key = new_key().map_err(OwnerKeyError::Random)?;
    let path = data_dir.join("owner.key");
    write_whole(&path, format!("{key}\n").as_bytes(), 0o600).map_err(OwnerKeyError::Write)?;
    Ok(key)
}

/// Whoever the process belongs to could write the database by hand, so nothing is lost
/// by making an admin of them.
async fn own_user(store: &dyn Store, owner: &Owner, now: Micros) -> Result<(), StoreError> {
    let role = BuiltIn::Admin.name();
    let users = store.users().await?;
    let there = users
        .iter()
        .find(|user| user.name == *owner && user.tenant == Tenant::default());
    let change = match there {
        Some(user) if user.removed_at.is_none() && user.role == role => return Ok(()),
        Some(user) if user.removed_at.is_none() => UserChange::Role {
            tenant: user.tenant.clone(),
            name: owner.clone(),
            role,
        },
        Some(_) | None => UserChange::Add {
            user: User {
                tenant: Tenant::default(),
                name: owner.clone(),
                role,
                created_at: now,
                removed_at: None,
            },
            again: true,
        },
    };
    let note = local_note(owner, now, "user.add", owner.as_str());
    store.change_user(change, note).await?;
    Ok(())
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

fn local_note(owner: &Owner, now: Micros, action: &str, subject: &str) -> AuditNote {
    AuditNote {
        time: now,
        tenant: Tenant::default(),
        owner: owner.clone(),
        key: "local".to_owned(),
        remote: "local".to_owned(),
        action: action.to_owned(),
        subject: subject.to_owned(),
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

    fn ann() -> User {
        User {
            tenant: Tenant::default(),
            name: "ann".parse().unwrap(),
            role: BuiltIn::Member.name(),
            created_at: Micros(1),
            removed_at: None,
        }
    }

    #[test]
    fn only_a_whole_unrevoked_key_is_found() {
        let owner = ann().name;
        let text = new_key().unwrap();
        assert_eq!(text.len(), KEY_PREFIX.len() + 2 * KEY_BYTES);
        let key = owner_key(&owner, Digest::of(text.as_bytes()), Micros(1));
        let revoked = ApiKey {
            sha256: Digest::of(b"old"),
            revoked_at: Some(Micros(2)),
            ..key.clone()
        };
        let ring = |user: User| {
            KeyRing::new(
                vec![revoked.clone(), key.clone()],
                vec![user],
                Roles::built_in(),
            )
        };
        let found = ring(ann()).find(&text).unwrap();
        assert_eq!(found.key.owner, owner);
        assert_eq!(found.permissions, BuiltIn::Member.permissions());
        for wrong in ["", "old", &text[..text.len() - 1], &format!("{text} ")] {
            assert!(ring(ann()).find(wrong).is_none(), "{wrong}");
        }
        // A user who was removed, and one who is not there.
        let removed = User {
            removed_at: Some(Micros(3)),
            ..ann()
        };
        let stranger = User {
            name: "bob".parse().unwrap(),
            ..ann()
        };
        for user in [removed, stranger] {
            assert!(ring(user.clone()).find(&text).is_none(), "{user:?}");
        }
        // A role that nobody knows gives nothing.
        let lost = User {
            role: "sysop".parse().unwrap(),
            ..ann()
        };
        let found = ring(lost).find(&text).unwrap();
        assert_eq!(found.permissions, Permissions::NONE);
    }

    #[tokio::test]
    async fn who_waits_on_a_key_hears_that_it_is_lost() {
        let text = new_key().unwrap();
        let key = owner_key(&ann().name, Digest::of(text.as_bytes()), Micros(1));
        let sha256 = key.sha256;
        let keys = vec![key];
        let ring = KeyRing::new(keys.clone(), vec![ann()], Roles::built_in());
        let lost = ring.lost(sha256, Some(Permission::RunsQueue));
        tokio::pin!(lost);
        assert!(futures_util::poll!(&mut lost).is_pending());
        // Something else changes.
        ring.replace(Ring::new(keys.clone(), vec![ann()], Roles::built_in()));
        assert!(futures_util::poll!(&mut lost).is_pending());
        let viewer = User {
            role: BuiltIn::Viewer.name(),
            ..ann()
        };
        ring.replace(Ring::new(keys, vec![viewer], Roles::built_in()));
        lost.await;
        ring.replace(Ring::new(Vec::new(), vec![ann()], Roles::built_in()));
        ring.lost(sha256, None).await;
    }
}
