//! Runs once more what completed, says what came of it, and keeps what is signed about it.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use mlmesh_api::{
    ACCEPTED_SCHEMA, AcceptedDto, AttestDto, REPRODUCTIONS_SCHEMA, ReproductionDto,
    ReproductionsDto, error_code,
};
use mlmesh_control::Caller;
use mlmesh_model::{Permission, Repetition, RunId, SignedStatement};
use mlmesh_proof::export::{REPRODUCTION_BYTES_MAX, ReproductionClaim, SignedReproduction};

use super::runs::idempotency_key;
use super::{note, run_name};
use crate::daemon::Daemon;
use crate::http::body::read_json;
use crate::http::query::PathParts;
use crate::reply::{ApiError, ApiResult, ok};

/// Bytes of a statement in JSON.
pub(crate) const STATEMENT_BYTES_MAX: u64 = 2 * REPRODUCTION_BYTES_MAX;

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

/// Keeps the first statement about a repetition that holds and says what was judged.
pub(crate) async fn attest(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    let (asked, _) = read_json::<AttestDto>(&headers, body, STATEMENT_BYTES_MAX).await?;
    let run = run_name::run_id(&daemon, &caller, path.first()).await?;
    let signed = SignedReproduction::open(asked.envelope.as_bytes())
        .map_err(|error| refused(&error.to_string()))?;
    let found = repetition(&daemon, &caller, run).await?;
    reached(&daemon, &caller, &found).await?;
    let judged = found.judgement.as_ref().and_then(ReproductionClaim::of);
    let judged = judged.ok_or_else(|| refused("what was judged of this run makes no other L4"))?;
    if judged != signed.claim {
        return Err(refused(differs(&judged, &signed.claim)));
    }
    let signer = signed.signer.to_string();
    let subject = format!("{run} by {signer}");
    let statement = SignedStatement {
        envelope: asked.envelope,
        signer,
    };
    let audit = note(&caller, &*daemon.clock, "run.attest", subject);
    let store = &daemon.store;
    store.attest(&caller.tenant, run, statement, audit).await?;
    let kept = repetition(&daemon, &caller, run).await?;
    Ok(ok(&ReproductionDto::from(&kept)))
}

/// Who owns one of the two runs may sign, and whoever may write on runs of others.
async fn reached(daemon: &Daemon, caller: &Caller, about: &Repetition) -> ApiResult<()> {
    let ids = vec![about.original, about.run];
    let runs = daemon.store.runs_by_id(&caller.tenant, ids).await?;
    if runs.iter().any(|run| run.owner == caller.owner) {
        return Ok(());
    }
    // The original is there as long as its repetitions are noted.
    let owner = runs.iter().find(|run| run.id == about.original);
    let owner = owner.map_or(&caller.owner, |run| &run.owner);
    let what = || format!("to sign for run `{}`", about.original);
    Ok(caller.reach(owner, Permission::RunsLabelOthers, what)?)
}

async fn repetition(daemon: &Daemon, caller: &Caller, run: RunId) -> ApiResult<Repetition> {
    let found = daemon.store.repetitions(&caller.tenant, run).await?;
    let mut own = found.into_iter().filter(|it| it.run == run);
    own.next().ok_or_else(|| {
        ApiError::not_found(
            format!("run `{run}` repeats no other one"),
            "`ml reproduce` makes one that does",
        )
    })
}

fn differs(judged: &ReproductionClaim, said: &ReproductionClaim) -> &'static str {
    let manifests = |it: &ReproductionClaim| (it.original_manifest_sha256, it.manifest_sha256);
    if (judged.original, judged.repetition) != (said.original, said.repetition) {
        return "it is about other runs";
    }
    if manifests(judged) != manifests(said) {
        return "it is about other manifests";
    }
    "it says something else than was judged"
}

fn refused(why: &str) -> ApiError {
    ApiError::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        error_code::BAD_STATEMENT,
        format!("the statement is not kept: {why}"),
        "`ml export` of the run that is L4 signs one that holds",
    )
}
