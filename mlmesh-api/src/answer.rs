//! The body of every error, in the API and in `ml --json` alike.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::wire;

/// An error as it goes out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{message}")]
pub struct ErrorBody {
    /// Stable snake_case word, listed in docs/errors.md.
    pub code: String,
    /// The rule, the value seen, the value allowed.
    pub message: String,
    /// What to do about it; empty where there is nothing to do.
    pub hint: String,
    /// Depends on the code.
    #[schemars(schema_with = "wire::details")]
    pub details: serde_json::Value,
}

impl ErrorBody {
    /// An error without details.
    pub fn new(code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
            hint: hint.into(),
            details: serde_json::Value::Null,
        }
    }

    /// The same error with details.
    pub fn with_details(mut self, details: serde_json::Value) -> Self {
        self.details = details;
        self
    }
}
