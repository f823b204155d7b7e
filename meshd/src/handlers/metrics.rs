//! Metric points that a job posts with the token of its attempt. They count as if the
//! job had written them to `metrics.jsonl`.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use mlmesh_api::{POSTED_METRICS_SCHEMA, PostMetricsDto, PostedMetricsDto, error_code};
use mlmesh_model::{AttemptRef, MetricPoint, Posted};

use crate::daemon::Daemon;
use crate::handlers::runs::sent_key;
use crate::http::body::{clipped, read_json};
use crate::limits::METRICS_BYTES_MAX;
use crate::reply::{ApiError, ApiResult, ok};

/// Longest name of a metric; `metrics.jsonl` has the same bound.
const NAME_BYTES_MAX: usize = 256;

/// The attempt whose token was shown; none with another key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown(pub(crate) Option<AttemptRef>);

pub(crate) async fn post(
    State(daemon): State<Arc<Daemon>>,
    Extension(Shown(attempt)): Extension<Shown>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    let (asked, _) = read_json::<PostMetricsDto>(&headers, body, METRICS_BYTES_MAX).await?;
    let attempt = attempt.ok_or_else(|| {
        ApiError::new(
            StatusCode::FORBIDDEN,
            error_code::FORBIDDEN,
            "points are an attempt's own: only its token may add some, and this is another key",
            "a job with `api: true` finds its token in the file that MLMESH_TOKEN_FILE names",
        )
    })?;
    let key = sent_key(&headers)?;
    let lines = lines(&asked.points)?;
    let bytes_max = daemon.attempt_bytes_max;
    match daemon
        .executor
        .post_metrics(attempt, key, lines, bytes_max)
        .await?
    {
        Posted::Kept => Ok(ok(&PostedMetricsDto {
            schema: POSTED_METRICS_SCHEMA.to_owned(),
            points: asked.points.len() as u64,
        })),
        Posted::OverBudget { used } => Err(ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            error_code::BUDGET_EXHAUSTED,
            format!(
                "an attempt may post {bytes_max} bytes; {used} are used, and these points do not fit"
            ),
            "post fewer points; `daemon.attempt_bytes_max` sets the budget",
        )),
        Posted::OtherUnderKey => Err(ApiError::new(
            StatusCode::CONFLICT,
            error_code::IDEMPOTENCY_MISMATCH,
            "other points came under the same idempotency key; these were not taken",
            "give each new request a key of its own",
        )),
        Posted::Ended => Err(ApiError::new(
            StatusCode::CONFLICT,
            error_code::WRONG_PHASE,
            "the attempt has ended; its points are closed",
            "post before the job ends",
        )),
    }
}

/// A line for each point, in the form of `metrics.jsonl`.
fn lines(points: &[MetricPoint]) -> ApiResult<Vec<u8>> {
    let mut lines = Vec::new();
    for point in points {
        if point.name.is_empty() || point.name.len() > NAME_BYTES_MAX {
            return Err(ApiError::bad_request(
                format!(
                    "`{}` is no name of a metric; a name has 1 to {NAME_BYTES_MAX} bytes",
                    clipped(&point.name)
                ),
                "none of the points was taken",
            ));
        }
        serde_json::to_writer(&mut lines, point)
            .map_err(|error| ApiError::internal("the points", &error))?;
        lines.push(b'\n');
    }
    Ok(lines)
}
