//! How people name runs: an id, a prefix of one that fits no other, or `@last`.

use axum::http::StatusCode;
use mlmesh_api::error_code;
use mlmesh_model::{Run, RunId, RunQuery, Tenant};

use crate::daemon::Daemon;
use crate::http::body::clipped;
use crate::reply::{ApiError, ApiResult};

/// Runs that an ambiguous prefix lists.
const LISTED_MAX: u32 = 5;

/// The run that `name` means.
pub(crate) async fn run(daemon: &Daemon, tenant: &Tenant, name: &str) -> ApiResult<Run> {
    let id = run_id(daemon, tenant, name).await?;
    daemon
        .store
        .run(tenant, id)
        .await?
        .ok_or_else(|| unknown(name))
}

/// The id of the run that `name` means. A whole id is not looked up.
pub(crate) async fn run_id(daemon: &Daemon, tenant: &Tenant, name: &str) -> ApiResult<RunId> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    if name == "@last" {
        let query = RunQuery {
            tenant: tenant.clone(),
            phases: Vec::new(),
            parent: None,
            owner: None,
            cursor: None,
            limit: 1,
        };
        let newest = daemon.store.runs(query).await?;
        return newest.first().map(|run| run.id).ok_or_else(|| {
            ApiError::not_found("there is no run yet", "`ml queue RECIPE` makes one")
        });
    }
    let is_prefix = !name.is_empty()
        && name.len() < RunId::LEN
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7'));
    if !is_prefix {
        return Err(unknown(name));
    }
    let ids = daemon.store.ids_by_prefix(tenant, name, LISTED_MAX).await?;
    match ids.as_slice() {
        [] => Err(unknown(name)),
        [id] => Ok(*id),
        several => {
            let listed: Vec<String> = several.iter().map(|id| format!("`{id}`")).collect();
            Err(ApiError::new(
                StatusCode::CONFLICT,
                error_code::AMBIGUOUS_ID,
                format!(
                    "`{name}` is the beginning of several runs: {}",
                    listed.join(", ")
                ),
                "write more of the id",
            ))
        }
    }
}

fn unknown(name: &str) -> ApiError {
    ApiError::not_found(
        format!("no run `{}`", clipped(name)),
        "a run is named by its id, the beginning of one, or `@last`; `ml list` shows them",
    )
}
