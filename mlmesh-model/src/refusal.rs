//! A refusal that teaches: which rule, what was seen, what would be allowed.

use serde::{Deserialize, Serialize};

/// One reason why something is not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Stable snake_case word, listed in docs/errors.md.
    pub code: String,
    /// The rule, the value seen, the value allowed; a lowercase fragment.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

impl Refusal {
    /// Puts the three parts together.
    pub fn new(code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
            hint: hint.into(),
        }
    }
}
