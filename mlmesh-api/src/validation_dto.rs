//! What is wrong with a run or a commit.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Schema name of [`ValidationDto`].
pub const VALIDATION_SCHEMA: &str = "mlmesh.validation/1";

/// Every broken rule that was found; none means that all is as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ValidationDto {
    /// [`VALIDATION_SCHEMA`].
    pub schema: String,
    /// The run or the commit.
    pub subject: String,
    /// How many rules are broken.
    pub defects_total: u64,
    /// The first thousand of them.
    pub defects: Vec<BrokenRuleDto>,
}

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BrokenRuleDto {
    /// Stable word.
    pub code: String,
    /// JSON pointer into the manifest, or what else it is about.
    pub at: String,
    /// The rule.
    pub rule: String,
    /// What is there.
    pub seen: String,
    /// What may be there.
    pub allowed: String,
}
