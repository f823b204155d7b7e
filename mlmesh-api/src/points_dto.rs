//! Points of a run's metrics, thinned for a chart.

use mlmesh_model::{MetricValue, RunId, Series};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::wire;

/// Version of [`PointsDto`].
pub const POINTS_SCHEMA: &str = "mlmesh.points/1";
/// Buckets of a metric unless asked otherwise, and at most.
pub const BUCKETS_DEFAULT: u32 = 500;
/// Most buckets of a metric.
pub const BUCKETS_MAX: u32 = 10_000;

/// Answer of `GET /v1/runs/{run}/points`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PointsDto {
    /// [`POINTS_SCHEMA`].
    pub schema: String,
    /// The run.
    #[schemars(schema_with = "wire::run_id")]
    pub run: RunId,
    /// `step` or `time`: along what points were put into buckets.
    pub x: String,
    /// The metrics, by name.
    pub metrics: Vec<SeriesDto>,
}

/// The points of one metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SeriesDto {
    /// Its name.
    pub name: String,
    /// How many points were logged.
    pub total: u64,
    /// How many of them are not-a-number or infinite.
    pub non_finite: u64,
    /// How many were left out, since they have no time.
    pub without_time: u64,
    /// Whether these are all points; else of each bucket the first, the smallest, the
    /// largest and the last one.
    pub exact: bool,
    /// In the order of x; a step that was logged twice is there twice, as it was logged.
    pub points: Vec<PointDto>,
}

/// One point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PointDto {
    /// Its step.
    pub step: i64,
    /// Seconds since 1970-01-01 00:00 UTC, where the job said so.
    pub time: Option<f64>,
    /// Its value.
    #[schemars(schema_with = "wire::metric_value")]
    pub value: MetricValue,
}

impl From<Series> for SeriesDto {
    fn from(series: Series) -> Self {
        Self {
            name: series.name,
            total: series.total,
            non_finite: series.non_finite,
            without_time: series.without_time,
            exact: series.is_exact,
            points: series
                .points
                .into_iter()
                .map(|point| PointDto {
                    step: point.step,
                    time: point.time.filter(|time| time.is_finite()),
                    value: MetricValue(point.value),
                })
                .collect(),
        }
    }
}
