//! The JSON Schema of recipes, for editors. It comes from the tables that read
//! recipes; rules between keys are the parser's alone.

use serde_json::{Value as Json, json};

use crate::experiment::EXPERIMENT;
use crate::service::SERVICE;

/// JSON Schema (draft 2020-12) of a recipe file.
pub fn schema() -> Json {
    let mut experiment = EXPERIMENT.schema();
    experiment["description"] =
        "a command with pinned inputs, whose outputs and metrics are recorded".into();
    let mut service = SERVICE.schema();
    service["description"] = "a command that answers requests until somebody ends it".into();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mlmesh recipe",
        "type": "object",
        "additionalProperties": false,
        "minProperties": 1,
        "maxProperties": 1,
        "properties": {"experiment": experiment, "service": service},
    })
}
