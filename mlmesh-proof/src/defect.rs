//! One thing that is wrong with a manifest, a run or a commit.

use serde::Serialize;

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Defect {
    /// Stable word; `docs/errors.md` lists them.
    pub code: &'static str,
    /// JSON pointer (RFC 6901) into the manifest, or what else it is about.
    pub at: String,
    /// The rule.
    pub rule: String,
    /// What is there.
    pub seen: String,
    /// What may be there.
    pub allowed: String,
}
