//! Users, keys and roles on the wire. A key itself never travels: whoever makes one
//! sends its SHA-256.

use mlmesh_model::{ApiKey, Digest, KeyClass, Permissions, User};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Timestamp, wire};

/// Schema name of [`UserDto`].
pub const USER_SCHEMA: &str = "mlmesh.user/1";
/// Schema name of [`UsersDto`].
pub const USERS_SCHEMA: &str = "mlmesh.users/1";
/// Schema name of [`RemovedUserDto`].
pub const REMOVED_USER_SCHEMA: &str = "mlmesh.user_removed/1";
/// Schema name of [`ApiKeyDto`].
pub const API_KEY_SCHEMA: &str = "mlmesh.api_key/1";
/// Schema name of [`ApiKeysDto`].
pub const API_KEYS_SCHEMA: &str = "mlmesh.api_keys/1";
/// Schema name of [`WhoDto`].
pub const WHO_SCHEMA: &str = "mlmesh.who/1";
/// Schema name of [`RolesDto`].
pub const ROLES_SCHEMA: &str = "mlmesh.roles/1";

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UserDto {
    /// [`USER_SCHEMA`].
    pub schema: String,
    /// The name under which runs, data and secrets belong to them.
    pub name: String,
    /// Their role.
    pub role: String,
    /// When they were added.
    pub created_at: Timestamp,
    /// When they were removed, if they were.
    pub removed_at: Option<Timestamp>,
}

impl From<&User> for UserDto {
    fn from(user: &User) -> Self {
        Self {
            schema: USER_SCHEMA.to_owned(),
            name: user.name.to_string(),
            role: user.role.to_string(),
            created_at: user.created_at.into(),
            removed_at: user.removed_at.map(Timestamp::from),
        }
    }
}

/// All users, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UsersDto {
    /// [`USERS_SCHEMA`].
    pub schema: String,
    /// The users.
    pub users: Vec<UserDto>,
}

/// Somebody new.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AddUserDto {
    /// Their name.
    #[schemars(schema_with = "wire::name")]
    pub name: String,
    /// Their role.
    #[schemars(schema_with = "wire::name")]
    pub role: String,
    /// Whether a removed user of that name is taken up again, with what is theirs.
    #[serde(default)]
    pub again: bool,
}

/// Another role for a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeRoleDto {
    /// The role.
    #[schemars(schema_with = "wire::name")]
    pub role: String,
}

/// What becomes of a removed user's runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveUserDto {
    /// Whether their open runs are cancelled; else these go on.
    #[serde(default)]
    pub cancel_runs: bool,
}

/// A user who was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RemovedUserDto {
    /// [`REMOVED_USER_SCHEMA`].
    pub schema: String,
    /// Who.
    pub name: String,
    /// Keys that were revoked with them.
    pub keys_revoked: u64,
    /// Open runs that were told to end.
    pub runs_cancelled: u64,
    /// Open runs that go on.
    pub runs_left: u64,
}

/// A key, as it is told of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApiKeyDto {
    /// [`API_KEY_SCHEMA`].
    pub schema: String,
    /// Its public name, which the audit trail has.
    pub name: String,
    /// Whose.
    pub user: String,
    /// `interactive` or `bulk`.
    pub class: KeyClassDto,
    /// When it was made, or rotated.
    pub created_at: Timestamp,
}

impl From<&ApiKey> for ApiKeyDto {
    fn from(key: &ApiKey) -> Self {
        Self {
            schema: API_KEY_SCHEMA.to_owned(),
            name: key.name.clone(),
            user: key.owner.to_string(),
            class: match key.class {
                KeyClass::Interactive => KeyClassDto::Interactive,
                KeyClass::Bulk | KeyClass::Attempt => KeyClassDto::Bulk,
            },
            created_at: key.created_at.into(),
        }
    }
}

/// What a user's key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyClassDto {
    /// A person at a keyboard.
    Interactive,
    /// Scripts.
    Bulk,
}

impl From<KeyClassDto> for KeyClass {
    fn from(class: KeyClassDto) -> Self {
        match class {
            KeyClassDto::Interactive => Self::Interactive,
            KeyClassDto::Bulk => Self::Bulk,
        }
    }
}

/// Keys by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApiKeysDto {
    /// [`API_KEYS_SCHEMA`].
    pub schema: String,
    /// Keys that are accepted.
    pub keys: Vec<ApiKeyDto>,
}

/// A key that its maker has drawn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AddKeyDto {
    /// Its public name.
    #[schemars(schema_with = "wire::name")]
    pub name: String,
    /// Whose.
    #[schemars(schema_with = "wire::name")]
    pub user: String,
    /// What it is for.
    pub class: KeyClassDto,
    /// SHA-256 of the key, which carries 256 random bits.
    #[schemars(schema_with = "wire::digest")]
    pub sha256: Digest,
}

/// Another secret under the name of a key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateKeyDto {
    /// SHA-256 of the new one. Absent for the daemon's own `owner`, which the daemon
    /// draws itself and writes into `owner.key`.
    #[serde(default)]
    #[schemars(schema_with = "wire::digest_or_null")]
    pub sha256: Option<Digest>,
}

/// Who the caller is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WhoDto {
    /// [`WHO_SCHEMA`].
    pub schema: String,
    /// The user.
    pub name: String,
    /// Their role.
    pub role: String,
    /// The key that was shown.
    pub key: String,
    /// What the role may do.
    pub permissions: Vec<String>,
}

/// Roles and what each may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RolesDto {
    /// [`ROLES_SCHEMA`].
    pub schema: String,
    /// The file that is in force; null where the built-in table is.
    pub file: Option<String>,
    /// The roles, by name.
    pub roles: Vec<RoleDto>,
}

/// A role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RoleDto {
    /// Its name.
    pub name: String,
    /// What it may do.
    pub permissions: Vec<String>,
}

/// Permissions by their names.
pub fn permission_names(permissions: Permissions) -> Vec<String> {
    let names = permissions.iter().map(|one| one.as_str().to_owned());
    names.collect()
}
