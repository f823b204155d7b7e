//! Points of a run's metrics, thinned for a chart.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use mlmesh_api::{BUCKETS_DEFAULT, BUCKETS_MAX, POINTS_SCHEMA, PointsDto, SeriesDto};
use mlmesh_control::Caller;
use mlmesh_model::{Along, AttemptNumber, AttemptRef, PointsAsk, RunKind};

use super::run_name;
use crate::daemon::Daemon;
use crate::http::body::clipped;
use crate::http::query::{PathParts, Query};
use crate::reply::{ApiError, ApiResult, ok};

/// Buckets of all metrics together: what an answer may grow to.
const BUCKETS_ALL_MAX: u32 = 100_000;

pub(crate) async fn show(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
    RawQuery(query): RawQuery,
) -> ApiResult<Response> {
    let query = Query::parse(query.as_deref(), &["metric", "buckets", "x"])?;
    let along = match query.one("x")? {
        None | Some("step") => Along::Step,
        Some("time") => Along::Time,
        Some(other) => {
            return Err(ApiError::bad_parameter(
                format!("`x` is `{}`", clipped(other)),
                "`x` is `step` or `time`",
            ));
        }
    };
    let names: Vec<String> = query.all("metric").map(ToOwned::to_owned).collect();
    let run = run_name::run(&daemon, &caller, path.first()).await?;
    if let RunKind::Parent { .. } = run.kind {
        return Err(ApiError::not_found(
            format!("`{}` is a sweep and has no points of its own", run.id),
            "each point of a sweep has its own; `ml list --parent` names them",
        ));
    }
    let asked = query.parsed::<u32>("buckets", "a whole number")?;
    let metrics = match names.len() {
        0 => u32::try_from(run.metrics.len()).unwrap_or(u32::MAX),
        given => u32::try_from(given).unwrap_or(u32::MAX),
    };
    let most = (BUCKETS_ALL_MAX / metrics.max(1)).clamp(1, BUCKETS_MAX);
    let buckets = asked.unwrap_or(BUCKETS_DEFAULT).clamp(1, most);
    let lease = AttemptRef {
        run: run.id,
        number: AttemptNumber(run.attempts),
        token: run.token,
    };
    let ask = PointsAsk {
        names,
        buckets: buckets as usize,
        along,
    };
    let series = daemon.executor.points(lease, ask).await?;
    Ok(ok(&PointsDto {
        schema: POINTS_SCHEMA.to_owned(),
        run: run.id,
        x: match along {
            Along::Step => "step".to_owned(),
            Along::Time => "time".to_owned(),
        },
        metrics: series.into_iter().map(SeriesDto::from).collect(),
    }))
}
