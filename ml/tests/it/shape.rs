//! The shape of JSON: keys and kinds of values, with the few values that scripts
//! compare. What differs from call to call does not matter.

use serde_json::{Map, Value};

/// Values of these keys are kept.
const KEPT: &[&str] = &[
    "schema",
    "phase",
    "cause",
    "kind",
    "code",
    "type",
    "stream",
    "exit_code",
    "signal",
    "ok",
    "name",
    "version",
    "attempts",
    "children",
    "index",
    "repro_policy",
    "executor",
    "health",
    "check",
    "level",
    "admitted",
    "fresh",
    "already_running",
    "was_running",
    "change",
    "dry_run",
    "complete",
    "directory",
    "files",
    "last",
    "min",
    "max",
    "steps",
    "path",
    "mode",
    "text",
    "argv",
    "points_total",
    "valid",
    "key",
];
/// Depends on the machine, and is tested where it is made.
const OPAQUE: &[&str] = &[
    "manifest",
    "isolation",
    "findings",
    "checks",
    "git",
    "details",
];

/// Replaces what is not kept by its kind.
pub(crate) fn shape(value: &Value) -> Value {
    shape_of("", value)
}

fn shape_of(key: &str, value: &Value) -> Value {
    match value {
        Value::Object(_) if OPAQUE.contains(&key) => Value::from("<object>"),
        Value::Object(fields) => {
            let fields = fields.iter();
            Value::Object(
                fields
                    .map(|(key, value)| (key.clone(), shape_of(key, value)))
                    .collect::<Map<_, _>>(),
            )
        }
        Value::Array(items) if OPAQUE.contains(&key) || items.is_empty() => {
            Value::from(if items.is_empty() {
                "<empty list>"
            } else {
                "<list>"
            })
        }
        Value::Array(items) => Value::Array(items.iter().map(|item| shape_of(key, item)).collect()),
        kept if KEPT.contains(&key) => kept.clone(),
        Value::String(_) => Value::from("<text>"),
        Value::Number(_) => Value::from("<number>"),
        Value::Bool(_) | Value::Null => value.clone(),
    }
}
