//! What is wrong with a run or a commit: everything that is recorded of it and every
//! byte that it refers to is read.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use mlmesh_api::{BrokenRuleDto, VALIDATION_SCHEMA, ValidationDto};
use mlmesh_control::Caller;
use mlmesh_model::{CommitId, ObjectId, Permission, PlanDigest, Run, RunKind, RunQuery};
use mlmesh_proof::{Defect, Evidence, validate_commit, validate_run};

use super::possession::is_own;
use super::runs::manifest_file;
use super::{run_name, snapshots_error};
use crate::daemon::Daemon;
use crate::http::body::{blocking, clipped};
use crate::http::query::PathParts;
use crate::limits::{DEFECTS_MAX, PAGE_ROWS_MAX};
use crate::reply::{ApiError, ApiResult, ok};

pub(crate) async fn run(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
) -> ApiResult<Response> {
    let closed = Permission::RunsValidateOthers;
    let run = run_name::reached(&daemon, &caller, path.first(), closed, "to check").await?;
    let attempts = daemon.store.attempts(run.id).await?;
    let points = points(&daemon, &run).await?;
    let manifest = manifest_file(&daemon, &run).await?;
    let snapshots = Arc::clone(&daemon.snapshots);
    let subject = run.id.to_string();
    let found = blocking(move || {
        let evidence = Evidence {
            run: &run,
            attempts: &attempts,
            manifest: manifest.as_deref(),
            points: &points,
        };
        validate_run(&evidence, &*snapshots).map_err(snapshots_error)
    });
    Ok(ok(&answer(subject, &found.await??)))
}

pub(crate) async fn commit(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
) -> ApiResult<Response> {
    let name = path.first();
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    let commit: CommitId = hex.parse().map_err(|_| {
        ApiError::not_found(
            format!("no commit `{}`", clipped(name)),
            "a commit is named by 64 hex digits; `ml info` shows a run's",
        )
    })?;
    let others = Permission::RunsValidateOthers;
    if !caller.may(others) && !is_own(&daemon, &caller, ObjectId(commit.0)).await? {
        let what = format!("to check commit `{commit}`, which you have not stored,");
        return Err(caller.denied(others, what).into());
    }
    let snapshots = Arc::clone(&daemon.snapshots);
    let found = blocking(move || validate_commit(commit, &*snapshots)).await?;
    Ok(ok(&answer(
        commit.to_string(),
        &found.map_err(snapshots_error)?,
    )))
}

/// Digests of a sweep's points, in order.
async fn points(daemon: &Daemon, run: &Run) -> ApiResult<Vec<PlanDigest>> {
    let mut digests = Vec::new();
    let RunKind::Parent { .. } = run.kind else {
        return Ok(digests);
    };
    let mut cursor = None;
    loop {
        let page = daemon
            .store
            .runs(RunQuery {
                tenant: run.tenant.clone(),
                phases: Vec::new(),
                parent: Some(run.id),
                owner: None,
                cursor,
                limit: PAGE_ROWS_MAX,
            })
            .await?;
        digests.extend(page.iter().map(|point| point.plan_sha256));
        match page.last() {
            Some(last) if page.len() as u32 >= PAGE_ROWS_MAX => cursor = Some(last.seq),
            _ => return Ok(digests),
        }
    }
}

fn answer(subject: String, defects: &[Defect]) -> ValidationDto {
    let shown = defects
        .iter()
        .take(DEFECTS_MAX)
        .map(|defect| BrokenRuleDto {
            code: defect.code.to_owned(),
            at: defect.at.clone(),
            rule: defect.rule.clone(),
            seen: defect.seen.clone(),
            allowed: defect.allowed.clone(),
        });
    ValidationDto {
        schema: VALIDATION_SCHEMA.to_owned(),
        subject,
        defects_total: defects.len() as u64,
        defects: shown.collect(),
    }
}
