//! JSON Schema of a submission: the body of `POST /v1/explain` and `POST /v1/runs`.
//!
//! The body is the model's `Submission`, whose recipe part is large and has an editor
//! schema of its own; here stands the form in which the parsed recipe travels.

use serde_json::{Value, json};

/// The schema.
pub fn submission_schema() -> Value {
    let digest = json!({"type": "string", "pattern": "^(sha256:)?[0-9a-f]{64}$"});
    json!({
        "type": "object",
        "required": ["workload", "commit", "recipe_path"],
        "properties": {
            "workload": {
                "type": "object",
                "required": ["experiment"],
                "properties": {"experiment": experiment()},
                "additionalProperties": false,
            },
            "commit": digest,
            "recipe_path": {"type": "string"},
            "git": nullable(json!({
                "required": ["head"],
                "properties": {
                    "head": {"type": "string", "pattern": "^[0-9A-Fa-f]{40}([0-9A-Fa-f]{24})?$"},
                    "branch": {"type": ["string", "null"]},
                    "dirty": {"type": ["boolean", "null"]},
                },
            })),
            "lock": nullable(json!({
                "required": ["path", "sha256", "requirements", "unhashed"],
                "properties": {
                    "path": {"type": "string"},
                    "sha256": digest,
                    "requirements": whole(u64::from(u32::MAX)),
                    "unhashed": texts(),
                },
            })),
            "current": nullable(json!({
                "required": ["prefix", "python", "frozen"],
                "properties": {
                    "prefix": {"type": "string"},
                    "python": {"type": "string"},
                    "frozen": texts(),
                },
            })),
            "policy": {"enum": ["strict", "relaxed"]},
            "executor": {"enum": ["process", null]},
            "priority": {"type": "integer", "minimum": i32::MIN, "maximum": i32::MAX},
            "expected_plan": {"type": ["string", "null"], "pattern": "^(sha256:)?[0-9a-f]{64}$"},
            "secret_values": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    })
}

fn experiment() -> Value {
    let name = json!({"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"});
    json!({
        "type": "object",
        "required": ["name", "command"],
        "additionalProperties": false,
        "properties": {
            "name": name,
            "command": texts(),
            "params": {"type": "object", "additionalProperties": param()},
            "seed": one_of_words_or(&["absent", "none"], "value", whole(u64::MAX)),
            "sweep": sweep(),
            "environment": environment(),
            "datasets": {"type": "array", "items": {
                "type": "object",
                "required": ["name", "mount"],
                "properties": {
                    "name": name,
                    "version": {"type": ["string", "null"]},
                    "checksum": {"type": ["string", "null"], "pattern": "^(sha256:)?[0-9a-f]{64}$"},
                    "mount": {"type": "string"},
                },
            }},
            "outputs": texts(),
            "resources": {
                "type": "object",
                "required": ["cpu_milli"],
                "properties": {
                    "cpu_milli": whole(u64::MAX),
                    "memory_bytes": {"type": ["integer", "null"], "minimum": 0, "maximum": u64::MAX},
                    "gpus": whole(u64::from(u32::MAX)),
                    "time_s": {"type": ["integer", "null"], "minimum": 0, "maximum": u64::MAX},
                },
            },
            "env": {"type": "object", "additionalProperties": {"type": "string"}},
            "secrets": texts(),
            "network": {"anyOf": [
                {"type": "null"},
                one_of_words_or(&["none", "open"], "hosts", texts()),
            ]},
            "retries": whole(u64::from(u32::MAX)),
            "retry_on": {"type": "array", "items": {"enum": ["exit"]}},
            "tolerance": {"type": "object", "additionalProperties": {"anyOf": [
                {
                    "type": "object",
                    "properties": {"abs": {"type": ["string", "null"]}, "rel": {"type": ["string", "null"]}},
                },
                {
                    "type": "array",
                    "description": "the same two, in this order",
                    "items": {"type": ["string", "null"]},
                    "maxItems": 2,
                },
            ]}},
            "sandbox": {"type": "boolean"},
            "api": {"type": "boolean"},
            "limits": {"enum": ["recorded", "required"]},
            "after": texts(),
            "on_finish": nullable(json!({
                "properties": {
                    "command": texts(),
                    "webhook": {"type": ["string", "null"]},
                    "secret": {"type": ["string", "null"]},
                    "when": {"type": "array", "items": {
                        "enum": ["completed", "failed", "cancelled", "interrupted"],
                    }},
                },
                "additionalProperties": false,
            })),
        },
    })
}

fn sweep() -> Value {
    let axes = json!({"type": "array", "items": {
        "type": "object",
        "required": ["param", "values"],
        "properties": {"param": {"type": "string"}, "values": {"type": "array", "items": param()}},
    }});
    let span = |bound: Value| {
        json!({
            "type": "object",
            "required": ["low", "high"],
            "properties": {"low": bound.clone(), "high": bound},
        })
    };
    let text = json!({"type": "string"});
    let integer = json!({"type": "integer", "minimum": i64::MIN, "maximum": i64::MAX});
    let range = json!({"oneOf": [
        tagged("choice", json!({"type": "array", "items": param()})),
        tagged("uniform", span(text.clone())),
        tagged("log_uniform", span(text)),
        tagged("int", span(integer)),
    ]});
    let random = json!({
        "type": "object",
        "required": ["count", "seed", "axes"],
        "properties": {
            "count": whole(u64::from(u32::MAX)),
            "seed": whole(u64::MAX),
            "axes": {"type": "array", "items": {
                "type": "object",
                "required": ["param", "range"],
                "properties": {"param": {"type": "string"}, "range": range},
            }},
        },
    });
    json!({"anyOf": [
        {"type": "null"},
        tagged("grid", axes.clone()),
        tagged("zip", axes),
        tagged("random", random),
    ]})
}

fn environment() -> Value {
    let locked = json!({
        "type": "object",
        "required": ["python", "lock"],
        "properties": {"python": {"type": "string"}, "lock": {"type": "string"}},
    });
    json!({"anyOf": [{"type": "null"}, one_of_words_or(&["current"], "locked", locked)]})
}

/// A parameter: text, a truth value, or an integer below 2^53.
fn param() -> Value {
    json!({"anyOf": [
        {"type": "string"},
        {"type": "boolean"},
        {"type": "integer", "exclusiveMinimum": -(1_i64 << 53), "exclusiveMaximum": 1_i64 << 53},
    ]})
}

fn texts() -> Value {
    json!({"type": "array", "items": {"type": "string"}})
}

fn whole(maximum: u64) -> Value {
    json!({"type": "integer", "minimum": 0, "maximum": maximum})
}

fn nullable(mut object: Value) -> Value {
    object["type"] = json!(["object", "null"]);
    object
}

fn tagged(name: &str, content: Value) -> Value {
    json!({
        "type": "object",
        "required": [name],
        "properties": {name: content},
        "additionalProperties": false,
    })
}

fn one_of_words_or(words: &[&str], name: &str, content: Value) -> Value {
    json!({"oneOf": [{"enum": words}, tagged(name, content)]})
}
