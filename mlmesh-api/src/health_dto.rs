//! What `/health/live` and `/health/ready` say.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Schema name of [`HealthDto`].
pub const HEALTH_SCHEMA: &str = "mlmesh.health/1";

/// Whether the daemon can do its work, part by part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HealthDto {
    /// [`HEALTH_SCHEMA`].
    pub schema: String,
    /// Whether every part that is needed holds. The HTTP status is 200 or 503.
    pub ok: bool,
    /// Version of the daemon.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Each part by name: `store`, `objects`, `disk`, `executor`.
    pub checks: BTreeMap<String, CheckDto>,
}

/// One part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CheckDto {
    /// Whether it holds.
    pub ok: bool,
    /// What was found.
    pub detail: String,
}
