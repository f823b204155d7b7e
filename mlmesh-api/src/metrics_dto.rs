//! Metric points that a job posts with the token of its attempt.

use mlmesh_model::MetricPoint;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Schema name of [`PostedMetricsDto`].
pub const POSTED_METRICS_SCHEMA: &str = "mlmesh.posted_metrics/1";

/// Points to add, all or none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostMetricsDto {
    /// The points, as lines of `metrics.jsonl` have them.
    #[schemars(schema_with = "points")]
    pub points: Vec<MetricPoint>,
}

/// How many points were added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PostedMetricsDto {
    /// [`POSTED_METRICS_SCHEMA`].
    pub schema: String,
    /// All that were sent.
    pub points: u64,
}

fn points(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "array", "items": {
        "type": "object",
        "required": ["name", "value"],
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 256},
            "value": {"anyOf": [{"type": "number"}, {"enum": ["nan", "inf", "-inf"]}]},
            "step": {"type": ["integer", "null"], "minimum": i64::MIN, "maximum": i64::MAX},
            "time": {"type": ["number", "null"]},
        },
    }})
}
