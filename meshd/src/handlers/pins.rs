//! Pins: marks that keep runs and commits from prune.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use mlmesh_api::{PINS_SCHEMA, PinDto, PinRequestDto, PinsDto};
use mlmesh_control::Caller;
use mlmesh_model::{CommitId, ObjectId, Permission, Pin, PinTarget};

use super::possession::is_own;
use super::{note, objects_error, run_name};
use crate::daemon::Daemon;
use crate::http::body::{blocking, clipped, read_json};
use crate::http::query::PathParts;
use crate::limits::JSON_BYTES_MAX;
use crate::reply::{ApiError, ApiResult, ok};

pub(crate) async fn list(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
) -> ApiResult<Response> {
    let pins = daemon.store.pins(&caller.tenant).await?;
    Ok(ok(&PinsDto {
        schema: PINS_SCHEMA.to_owned(),
        pins: pins.iter().map(PinDto::from).collect(),
    }))
}

pub(crate) async fn add(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    let (asked, _) = read_json::<PinRequestDto>(&headers, body, JSON_BYTES_MAX).await?;
    let target = target(&daemon, &caller, &asked.target).await?;
    if let PinTarget::Run(id) = target
        && let Some(run) = daemon.store.run(&caller.tenant, id).await?
    {
        caller.reach(&run.owner, Permission::PinsWriteOthers, || {
            format!("to pin run `{id}`")
        })?;
    }
    if let PinTarget::Commit(commit) = target {
        let others = Permission::PinsWriteOthers;
        if !caller.may(others) && !is_own(&daemon, &caller, ObjectId(commit.0)).await? {
            let what = format!("to pin commit `{commit}`, which you have not stored,");
            return Err(caller.denied(others, what).into());
        }
        // Asked for, it survives a prune that is going on until the pin is on disk.
        let objects = Arc::clone(&daemon.objects);
        let there = blocking(move || objects.has_commit(commit)).await?;
        if !there.map_err(objects_error)? {
            return Err(no_commit(commit));
        }
    }
    let pin = Pin {
        tenant: caller.tenant.clone(),
        owner: caller.owner.clone(),
        target,
        time: daemon.clock.now(),
    };
    let audit = note(&caller, &*daemon.clock, "pin.add", named(target));
    daemon.store.pin(pin.clone(), audit).await?;
    // One that was there before keeps its owner and its time.
    let pins = daemon.store.pins(&caller.tenant).await?;
    let kept = pins.into_iter().find(|pin| pin.target == target);
    Ok(ok(&PinDto::from(&kept.unwrap_or(pin))))
}

pub(crate) async fn remove(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
) -> ApiResult<Response> {
    let target = target(&daemon, &caller, path.first()).await?;
    let pins = daemon.store.pins(&caller.tenant).await?;
    let Some(pin) = pins.into_iter().find(|pin| pin.target == target) else {
        return Err(ApiError::not_found(
            format!("`{}` is not pinned", named(target)),
            "`ml pin` without a name lists what is",
        ));
    };
    caller.reach(&pin.owner, Permission::PinsWriteOthers, || {
        format!("to take away the pin of `{}`", named(target))
    })?;
    let audit = note(&caller, &*daemon.clock, "pin.remove", named(target));
    daemon.store.unpin(&caller.tenant, target, audit).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// What a name means: 64 hex digits are a commit, everything else is a run.
async fn target(daemon: &Daemon, caller: &Caller, name: &str) -> ApiResult<PinTarget> {
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    if let Ok(commit) = hex.parse::<CommitId>() {
        return Ok(PinTarget::Commit(commit));
    }
    if name.len() > hex.len() {
        return Err(ApiError::not_found(
            format!("no commit `{}`", clipped(name)),
            "a commit is named by 64 hex digits; `ml info` shows a run's",
        ));
    }
    let id = run_name::run_id(daemon, caller, name).await?;
    Ok(PinTarget::Run(id))
}

fn named(target: PinTarget) -> String {
    match target {
        PinTarget::Run(id) => id.to_string(),
        PinTarget::Commit(commit) => commit.to_string(),
    }
}

fn no_commit(commit: CommitId) -> ApiError {
    ApiError::not_found(
        format!("no commit `{commit}`"),
        "`ml sync` sends the project and prints its commit",
    )
}
