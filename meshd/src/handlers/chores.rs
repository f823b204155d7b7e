//! The daemon's own chores: removing what nothing refers to, and going down.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use mlmesh_api::{PRUNE_SCHEMA, PruneDto, PruneRequestDto, STOP_SCHEMA, StopDto, StopRequestDto};
use mlmesh_cas::PruneOptions;
use mlmesh_control::Caller;
use mlmesh_exec::HeldEnvironments;
use mlmesh_model::{
    DepsDigest, Digest, Micros, ObjectId, Phase, PinTarget, References, RunId, RunKind, RunQuery,
    Tenant,
};

use super::{note, objects_error};
use crate::daemon::Daemon;
use crate::http::body::{blocking, read_json};
use crate::http::query::NUMBER_MAX;
use crate::limits::{JSON_BYTES_MAX, PAGE_ROWS_MAX, PRUNE_GRACE};
use crate::reply::{ApiError, ApiResult, ok};

pub(crate) async fn stop(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    let (asked, _) = read_json::<StopRequestDto>(&headers, body, JSON_BYTES_MAX).await?;
    let audit = note(&caller, &*daemon.clock, "daemon.stop", "daemon".to_owned());
    if let Err(error) = daemon.store.record(None, Some(audit)).await {
        // A store that fails must not keep the daemon from going down.
        tracing::warn!(%error, "the stop could not be recorded");
    }
    daemon.stopping.begin(asked.stop_jobs);
    Ok(ok(&StopDto {
        schema: STOP_SCHEMA.to_owned(),
        pid: std::process::id(),
        stop_jobs: asked.stop_jobs,
    }))
}

pub(crate) async fn prune(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    let (asked, _) = read_json::<PruneRequestDto>(&headers, body, JSON_BYTES_MAX).await?;
    for (name, seconds) in [
        ("ended_before_s", asked.ended_before_s),
        ("grace_s", asked.grace_s),
    ] {
        if let Some(large) = seconds.filter(|seconds| *seconds > NUMBER_MAX) {
            return Err(ApiError::bad_request(
                format!("`{name}` is {large}, which is more than {NUMBER_MAX}"),
                "it is a number of seconds",
            ));
        }
    }
    let before = asked.ended_before_s.map(|seconds| {
        let back = i64::try_from(seconds)
            .unwrap_or(i64::MAX)
            .saturating_mul(1_000_000);
        daemon.clock.now().plus_us(back.saturating_neg())
    });
    if asked.dry_run {
        let runs = match before {
            Some(before) => ended_before(&daemon, &caller.tenant, before).await?,
            None => Vec::new(),
        };
        let held = hold_environments(&daemon).await?;
        let references = daemon.store.references().await?;
        return Ok(ok(&PruneDto {
            schema: PRUNE_SCHEMA.to_owned(),
            dry_run: true,
            environments: held.spare(&needed(&references, &runs)),
            runs,
            objects: None,
            bytes: None,
        }));
    }
    let runs = match before {
        Some(before) => {
            let audit = note(
                &caller,
                &*daemon.clock,
                "run.prune",
                "ended runs".to_owned(),
            );
            daemon
                .store
                .prune_runs(&caller.tenant, before, audit)
                .await?
        }
        None => Vec::new(),
    };
    let folders: Vec<_> = runs
        .iter()
        .flat_map(|run| {
            let tracking = daemon.root.join("data/tracking").join(run.to_string());
            [daemon.run_folder(*run), tracking]
        })
        .collect();
    let held = hold_environments(&daemon).await?;
    let references = daemon.store.references().await?;
    let needed = needed(&references, &[]);
    let environments = blocking(move || held.remove_spare(&needed))
        .await?
        .map_err(|error| ApiError::io("the environments", &error))?;
    let roots: HashSet<ObjectId> = references
        .commits
        .into_iter()
        .map(|commit| ObjectId(commit.0))
        .chain(references.outputs)
        .chain(references.datasets.iter().copied().map(ObjectId))
        .collect();
    let datasets: HashSet<Digest> = references.datasets.into_iter().collect();
    let grace = asked.grace_s.map_or(PRUNE_GRACE, Duration::from_secs);
    let objects = Arc::clone(&daemon.objects);
    let snapshots = Arc::clone(&daemon.snapshots);
    let pruned = blocking(move || {
        if let Err(error) = snapshots.remove_places(&datasets) {
            tracing::warn!(%error, "copies of removed datasets stay");
        }
        for folder in folders {
            match std::fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(%error, folder = %folder.display(), "folder of a pruned run stays");
                }
                _ => {}
            }
        }
        let grace = grace.min(mlmesh_cas::GRACE_MAX);
        objects.prune(&roots, &PruneOptions { grace, ..PruneOptions::default() })
    })
    .await?
    .map_err(objects_error)?;
    daemon.control.commits_changed();
    Ok(ok(&PruneDto {
        schema: PRUNE_SCHEMA.to_owned(),
        dry_run: false,
        runs,
        environments,
        objects: Some(pruned.objects),
        bytes: Some(pruned.bytes),
    }))
}

async fn hold_environments(daemon: &Daemon) -> ApiResult<HeldEnvironments> {
    let root = daemon.root.clone();
    blocking(move || HeldEnvironments::hold(&root))
        .await?
        .map_err(|error| ApiError::io("the environments", &error))
}

/// Environments of all runs but these.
fn needed(references: &References, without: &[RunId]) -> HashSet<DepsDigest> {
    let environments = references.environments.iter();
    let kept = environments.filter(|(run, _)| !without.contains(run));
    kept.map(|(_, environment)| *environment).collect()
}

async fn ended_before(daemon: &Daemon, tenant: &Tenant, before: Micros) -> ApiResult<Vec<RunId>> {
    let kept = pinned(daemon, tenant).await?;
    let mut found = Vec::new();
    let mut cursor = None;
    loop {
        let page = daemon
            .store
            .runs(RunQuery {
                tenant: tenant.clone(),
                phases: vec![
                    Phase::Completed,
                    Phase::Failed,
                    Phase::Cancelled,
                    Phase::Interrupted,
                ],
                parent: None,
                owner: None,
                cursor,
                limit: PAGE_ROWS_MAX,
            })
            .await?;
        let ended = page
            .iter()
            .filter(|run| run.ended_at.is_some_and(|ended| ended < before))
            .filter(|run| !kept.contains(&run.id));
        found.extend(ended.map(|run| run.id));
        match page.last() {
            Some(last) if page.len() as u32 >= PAGE_ROWS_MAX => cursor = Some(last.seq),
            _ => return Ok(found),
        }
    }
}

/// Runs that are pinned, and sweeps with a pinned point.
async fn pinned(daemon: &Daemon, tenant: &Tenant) -> ApiResult<HashSet<RunId>> {
    let pins = daemon.store.pins(tenant).await?.into_iter();
    let ids: Vec<RunId> = pins
        .filter_map(|pin| match pin.target {
            PinTarget::Run(id) => Some(id),
            PinTarget::Commit(_) => None,
        })
        .collect();
    let runs = daemon.store.runs_by_id(tenant, ids).await?;
    Ok(runs
        .iter()
        .map(|run| match run.kind {
            RunKind::Child { parent, .. } => parent,
            RunKind::Single | RunKind::Parent { .. } => run.id,
        })
        .collect())
}
