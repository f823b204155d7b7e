//! Runs once more what completed, and says what came of it.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use mlmesh_api::{
    ACCEPTED_SCHEMA, AcceptedDto, REPRODUCTIONS_SCHEMA, ReproductionDto, ReproductionsDto,
};
use mlmesh_control::Caller;
use mlmesh_model::Permission;

use super::run_name;
use super::runs::idempotency_key;
use crate::daemon::Daemon;
use crate::http::query::PathParts;
use crate::reply::{ApiResult, ok};

pub(crate) async fn queue(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let key = idempotency_key(&headers, &caller)?;
    // What is made of its code and its data will be the caller's.
    let closed = Permission::OutputsReadOthers;
    let original = run_name::reached(&daemon, &caller, path.first(), closed, "to reproduce");
    let id = original.await?.id;
    let accepted = daemon.control.reproduce(&caller, id, key).await?;
    Ok(ok(&AcceptedDto {
        schema: ACCEPTED_SCHEMA.to_owned(),
        id: accepted.id,
        fresh: accepted.fresh,
        plan_sha256: accepted.plan_sha256,
        children: None,
    }))
}

pub(crate) async fn list(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
) -> ApiResult<Response> {
    let run = run_name::run_id(&daemon, &caller, path.first()).await?;
    let found = daemon.store.repetitions(&caller.tenant, run).await?;
    Ok(ok(&ReproductionsDto {
        schema: REPRODUCTIONS_SCHEMA.to_owned(),
        run,
        reproductions: found.iter().map(ReproductionDto::from).collect(),
    }))
}
