//! JSON Schemas of the model's scalars, which travel as text or numbers. The model
//! knows nothing of schemas; each function here is named in a `schema_with`.

use mlmesh_model::{CAUSES, Labels, PHASES};
use schemars::{Schema, SchemaGenerator, json_schema};

/// A phase by its name.
pub fn phase(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": PHASES.map(|phase| phase.as_str())})
}

/// A cause by its name, or null.
pub fn cause_or_null(_: &mut SchemaGenerator) -> Schema {
    let mut names: Vec<Option<&str>> = CAUSES.iter().map(|cause| Some(cause.as_str())).collect();
    names.push(None);
    json_schema!({"type": ["string", "null"], "enum": names})
}

/// A run's id.
pub fn run_id(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "pattern": "^[a-z2-7]{12}$"})
}

/// A run's id, or null.
pub fn run_id_or_null(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": ["string", "null"], "pattern": "^[a-z2-7]{12}$"})
}

/// Names of tags: no blank, no `=`.
const TAG_NAME: &str = r"^[^\s=\u0000-\u001f\u007f-\u009f]{1,100}$";

/// Tags with their values.
pub fn tags_to_set(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": Labels::TAGS_MAX,
        "propertyNames": {"pattern": TAG_NAME},
        "additionalProperties": {"type": "string", "maxLength": Labels::VALUE_CHARS_MAX},
    })
}

/// Names of tags.
pub fn tags_to_remove(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": Labels::TAGS_MAX,
        "items": {"type": "string", "pattern": TAG_NAME},
    })
}

/// A note, or null.
pub fn note_or_null(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": ["string", "null"], "maxLength": Labels::NOTE_CHARS_MAX})
}

/// Run ids.
pub fn run_ids(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "items": {"type": "string", "pattern": "^[a-z2-7]{12}$"}})
}

/// 64 hex digits.
pub fn digest(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "pattern": "^[0-9a-f]{64}$"})
}

/// Digests of 64 hex digits.
pub fn digests(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "items": {"type": "string", "pattern": "^[0-9a-f]{64}$"}})
}

/// 64 hex digits, or null.
pub fn digest_or_null(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": ["string", "null"], "pattern": "^[0-9a-f]{64}$"})
}

/// A name of up to 64 characters.
pub fn name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"})
}

/// A rung of the trust ladder.
pub fn trust_level(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["L0", "L1", "L2", "L3", "L4"]})
}

/// A metric's value: a number, or the name of one that JSON has not.
pub fn metric_value(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"anyOf": [{"type": "number"}, {"enum": ["nan", "inf", "-inf"]}]})
}

/// Parameters by name.
pub fn params(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": {"type": ["string", "integer", "boolean"]},
    })
}

/// A plan as it is hashed; its own `plan_version` says its shape.
pub fn plan_or_null(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": ["object", "null"], "description": "canonical JSON of this is what plan_sha256 hashes"})
}

/// An object with a `schema` of its own, or null.
pub fn object_or_null(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": ["object", "null"]})
}

/// Whatever helps; depends on the code.
pub fn details(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"description": "depends on the code; null where there is nothing to add"})
}
