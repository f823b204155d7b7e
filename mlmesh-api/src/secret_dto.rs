//! Stored secrets as they are told of: names, owners, times. A value goes one way only.

use mlmesh_model::SecretText;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// Schema name of [`SecretDto`].
pub const SECRET_SCHEMA: &str = "mlmesh.secret/1";
/// Schema name of [`SecretsDto`].
pub const SECRETS_SCHEMA: &str = "mlmesh.secrets/1";

/// A stored secret, without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretDto {
    /// [`SECRET_SCHEMA`].
    pub schema: String,
    /// Its name, which is the variable's.
    pub name: String,
    /// Whose runs it is for.
    pub owner: String,
    /// When it was set.
    pub set_at: Timestamp,
}

/// The caller's stored secrets, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretsDto {
    /// [`SECRETS_SCHEMA`].
    pub schema: String,
    /// The secrets.
    pub secrets: Vec<SecretDto>,
}

/// A value to store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetSecretDto {
    /// The value, not empty and without a NUL.
    #[schemars(with = "String", regex(pattern = r"^[^\u0000]+$"))]
    pub value: SecretText,
}
