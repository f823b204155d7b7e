//! Health, metrics, and the document that describes the rest.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use mlmesh_api::{CheckDto, HEALTH_SCHEMA, HealthDto, error_code};
use mlmesh_control::Caller;
use mlmesh_model::PHASES;
use rustix::fs::{Access, access, statvfs};

use crate::daemon::Daemon;
use crate::http::body::blocking;
use crate::limits::STORE_CHECK_TIMEOUT;
use crate::metrics::Exposition;
use crate::openapi;
use crate::reply::{ApiError, ApiResult, ok};

pub(crate) async fn live() -> Response {
    ok(&health(BTreeMap::new()))
}

/// Every part by name; 503 when one that is needed does not hold. The body is then an
/// error whose details are the same object.
pub(crate) async fn ready(State(daemon): State<Arc<Daemon>>) -> ApiResult<Response> {
    let health = health(checks(&daemon).await?);
    if health.ok {
        return Ok(ok(&health));
    }
    let missing: Vec<String> = health
        .checks
        .iter()
        .filter(|(_, check)| !check.ok)
        .map(|(name, check)| format!("{name}: {}", check.detail))
        .collect();
    let mut unavailable = ApiError::unavailable(missing.join("; "));
    if daemon.stopping.token().is_cancelled() {
        unavailable.body.code = error_code::SHUTTING_DOWN.to_owned();
    }
    let details = serde_json::to_value(&health)
        .map_err(|error| ApiError::internal("the state of health", &error))?;
    unavailable.body = unavailable.body.with_details(details);
    Err(unavailable)
}

fn health(checks: BTreeMap<String, CheckDto>) -> HealthDto {
    HealthDto {
        schema: HEALTH_SCHEMA.to_owned(),
        ok: checks.values().all(|check| check.ok),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        checks,
    }
}

async fn checks(daemon: &Daemon) -> ApiResult<BTreeMap<String, CheckDto>> {
    let store = match tokio::time::timeout(STORE_CHECK_TIMEOUT, daemon.store.check()).await {
        Ok(Ok(())) => holds("a row was written and read back".to_owned()),
        Ok(Err(error)) => fails(error.to_string()),
        Err(_) => fails(format!(
            "no answer within {} s",
            STORE_CHECK_TIMEOUT.as_secs()
        )),
    };
    let folder = daemon.root.join("data/objects");
    let reserve = daemon.disk_reserve;
    let (objects, disk) = blocking(move || {
        let objects = match access(&folder, Access::READ_OK | Access::WRITE_OK) {
            Ok(()) => holds("readable and writable".to_owned()),
            Err(errno) => fails(std::io::Error::from(errno).to_string()),
        };
        let disk = match statvfs(&folder) {
            Ok(stat) => {
                let free = stat.f_bavail.saturating_mul(stat.f_frsize);
                let detail = format!("{free} bytes are free, {reserve} are kept in reserve");
                if free >= reserve {
                    holds(detail)
                } else {
                    fails(detail)
                }
            }
            Err(errno) => fails(std::io::Error::from(errno).to_string()),
        };
        (objects, disk)
    })
    .await?;
    let abilities = daemon.executor.abilities();
    let executor = holds(match abilities.sandbox_missing {
        None => "process; the sandbox works".to_owned(),
        Some(reason) => format!("process; no sandbox: {reason}"),
    });
    let daemon_check = match daemon.stopping.token().is_cancelled() {
        true => fails("on its way down".to_owned()),
        false => holds("accepts work".to_owned()),
    };
    let named = [
        ("store", store),
        ("objects", objects),
        ("disk", disk),
        ("executor", executor),
        ("daemon", daemon_check),
    ];
    Ok(named
        .into_iter()
        .map(|(name, check)| (name.to_owned(), check))
        .collect())
}

fn holds(detail: String) -> CheckDto {
    CheckDto { ok: true, detail }
}

fn fails(detail: String) -> CheckDto {
    CheckDto { ok: false, detail }
}

pub(crate) async fn metrics(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
) -> ApiResult<Response> {
    let mut page = Exposition::default();
    page.gauge("mlmesh_up", "Always 1: the daemon answers.", 1);
    daemon.metrics.write(&mut page);
    let counts = daemon.store.counts(&caller.tenant).await?;
    for phase in PHASES {
        page.gauge(
            &format!("mlmesh_runs_{phase}"),
            &format!("Runs that are {phase}; parents of sweeps are not counted."),
            counts.get(&phase).copied().unwrap_or(0),
        );
    }
    let capacity = daemon.control.capacity();
    page.gauge(
        "mlmesh_capacity_cpu_milli",
        "Thousandths of a CPU that attempts may use.",
        capacity.cpu_milli,
    );
    page.gauge(
        "mlmesh_capacity_memory_bytes",
        "Memory that attempts may reserve.",
        capacity.memory_bytes,
    );
    page.gauge(
        "mlmesh_capacity_gpus",
        "GPUs that attempts may use.",
        capacity.gpus.len() as u64,
    );
    page.gauge(
        "mlmesh_attempts_live",
        "Attempts that hold resources.",
        daemon.control.live() as u64,
    );
    let (packed, loose) = daemon.objects.counts();
    page.gauge("mlmesh_objects_packed", "Objects in packs.", packed);
    page.gauge(
        "mlmesh_objects_loose",
        "Objects in files of their own.",
        loose,
    );
    page.counter(
        "mlmesh_log_lines_dropped_total",
        "Lines of the daemon's own logs that were dropped.",
        daemon.logs.dropped(),
    );
    page.gauge(
        "mlmesh_events_last_sequence",
        "Sequence of the newest committed event.",
        daemon.commits.borrow().0,
    );
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    Ok((
        StatusCode::OK,
        [(header::CONTENT_TYPE, kind)],
        page.into_text(),
    )
        .into_response())
}

pub(crate) async fn openapi() -> Response {
    ok(&openapi::document())
}
