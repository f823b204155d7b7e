//! How people name runs: an id, a prefix of one that fits no other, or `@last`, which is
//! the caller's own newest; and whether the caller may reach what is behind a name.

use axum::http::StatusCode;
use mlmesh_api::error_code;
use mlmesh_control::Caller;
use mlmesh_model::{Permission, Run, RunId, RunQuery};

use crate::daemon::Daemon;
use crate::http::body::clipped;
use crate::reply::{ApiError, ApiResult};

/// Runs that an ambiguous prefix lists.
const LISTED_MAX: u32 = 5;

/// The run that `name` means.
pub(crate) async fn run(daemon: &Daemon, caller: &Caller, name: &str) -> ApiResult<Run> {
    let id = run_id(daemon, caller, name).await?;
    daemon
        .store
        .run(&caller.tenant, id)
        .await?
        .ok_or_else(|| unknown(name))
}

/// The run that `name` means, when it is the caller's own or their role reaches others'.
pub(crate) async fn reached(
    daemon: &Daemon,
    caller: &Caller,
    name: &str,
    others: Permission,
    what: &str,
) -> ApiResult<Run> {
    let run = run(daemon, caller, name).await?;
    caller.reach(&run.owner, others, || format!("{what} run `{}`", run.id))?;
    Ok(run)
}

/// The id of the run that `name` means. A whole id is not looked up.
pub(crate) async fn run_id(daemon: &Daemon, caller: &Caller, name: &str) -> ApiResult<RunId> {
    let tenant = &caller.tenant;
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    if name == "@last" {
        let query = RunQuery {
            tenant: tenant.clone(),
            phases: Vec::new(),
            parent: None,
            owner: Some(caller.owner.clone()),
            cursor: None,
            limit: 1,
        };
        let newest = daemon.store.runs(query).await?;
        return newest.first().map(|run| run.id).ok_or_else(|| {
            ApiError::not_found(
                "there is no run of yours yet",
                "`ml queue RECIPE` makes one",
            )
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
