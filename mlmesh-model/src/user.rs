//! Users and their keys, as the store has them. Of a key there is only its hash.

use serde::{Deserialize, Serialize};

use crate::{Digest, Micros, Name, Owner, RunId, Tenant};

/// Somebody whose keys are accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Whose.
    pub tenant: Tenant,
    /// The name under which runs, data and secrets belong to them.
    pub name: Owner,
    /// What they may do, by the name of a role.
    pub role: Name,
    /// When they were added.
    pub created_at: Micros,
    /// When they were removed. The name stays taken: what belongs to it must not become
    /// somebody else's.
    pub removed_at: Option<Micros>,
}

/// What happens to a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserChange {
    /// Somebody new; with `again` also somebody who was removed before.
    Add {
        /// The user.
        user: User,
        /// Whether a removed user of that name is taken up again.
        again: bool,
    },
    /// Another role.
    Role {
        /// Whose tenant.
        tenant: Tenant,
        /// Who.
        name: Owner,
        /// The role.
        role: Name,
    },
    /// Removes the user and revokes every key of theirs.
    Remove {
        /// Whose tenant.
        tenant: Tenant,
        /// Who.
        name: Owner,
    },
}

/// What happens to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyChange {
    /// A new one. The same once more changes nothing.
    Add(ApiKey),
    /// Another secret under the same name; the one before is not accepted any more.
    Rotate {
        /// Whose tenant.
        tenant: Tenant,
        /// Name of the key.
        name: String,
        /// Hash of the new secret.
        sha256: Digest,
    },
    /// Not accepted any more.
    Revoke {
        /// Whose tenant.
        tenant: Tenant,
        /// Name of the key.
        name: String,
    },
}

/// An API key as it is stored: never the key, only its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    /// Public name, shown in the audit.
    pub name: String,
    /// Whose.
    pub tenant: Tenant,
    /// Who holds it.
    pub owner: Owner,
    /// SHA-256 of the key, which carries 256 random bits.
    pub sha256: Digest,
    /// What it is for.
    pub class: KeyClass,
    /// For an attempt token: the run it is bound to.
    pub run: Option<RunId>,
    /// When it was made.
    pub created_at: Micros,
    /// When it was revoked.
    pub revoked_at: Option<Micros>,
}

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyClass {
    /// A person at a keyboard.
    Interactive,
    /// Bulk work; `owner.key` is one.
    Bulk,
    /// One attempt: run-scoped, dies with it.
    Attempt,
}
