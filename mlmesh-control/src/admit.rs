//! From a submission to runs on disk: admit → plan → queue.

use std::sync::Arc;
use std::task::Poll;

use mlmesh_model::{
    AuditNote, Digest, NewRun, PlanDigest, Refusal, Run, RunId, RunKind, RunQuery, StoreError,
    Submission, Submit, Trust, TrustLevel,
};
use mlmesh_sched::{Event, PlannedRun, Preflight, preflight};

use crate::config::Caller;
use crate::error::{Accepted, ControlError};
use crate::private_file::run_folder;
use crate::reactor::{Inner, job};
use crate::world::world;
use crate::{reconcile, secrets, services};

/// Children that are read at once when an earlier answer is given again.
const CHILDREN_PAGE: u32 = 1_000;

/// Judges the submission; writes nothing.
pub(crate) async fn explain(
    inner: &Arc<Inner>,
    caller: &Caller,
    submission: Arc<Submission>,
) -> Result<Preflight, ControlError> {
    let world = world(inner, caller, &submission).await?;
    let experiment = submission.workload.job();
    if experiment.sweep.is_none() {
        return Ok(preflight(&submission, &world));
    }
    // Thousands of plans are milliseconds that other callers should not wait for.
    tokio::task::spawn_blocking(move || preflight(&submission, &world))
        .await
        .map_err(joined)
}

/// Judges, writes, and hands over to the scheduler.
pub(crate) async fn submit(
    inner: &Arc<Inner>,
    caller: &Caller,
    submission: Arc<Submission>,
    idempotency_key: Option<String>,
) -> Result<Accepted, ControlError> {
    if inner.cancel.is_cancelled() {
        return Err(ControlError::ShuttingDown);
    }
    tracing::debug!(target: crate::PATH, step = "admit", owner = %caller.owner);
    let _held = match submission.workload.service() {
        Some(service) => {
            let name = service.job.name.as_str();
            Some(services::hold(inner, &caller.tenant, name).await)
        }
        None => None,
    };
    let mut preflight = explain(inner, caller, Arc::clone(&submission)).await?;
    let request_sha256 = request_digest(&submission);
    let is_there = |refusal: &Refusal| refusal.code == "service_exists";
    if let Some(key) = &idempotency_key
        && preflight.refusals.iter().any(is_there)
        && is_known(inner, caller, key, request_sha256).await?
    {
        // What is there may be what this request has started: the store says whether.
        preflight.refusals.retain(|refusal| !is_there(refusal));
    }
    let planned = admitted(&preflight)?;
    tracing::debug!(target: crate::PATH, step = "plan", plan = %planned);
    let runs = records(inner, caller, &submission, preflight, planned);
    let id = runs[0].id;
    let submit = Submit {
        idempotency_key,
        request_sha256,
        audit: AuditNote {
            time: inner.ports.clock.now(),
            tenant: caller.tenant.clone(),
            owner: caller.owner.clone(),
            key: caller.key.clone(),
            remote: caller.remote.clone(),
            action: "run.submit".into(),
            subject: id.to_string(),
            details_sha256: Some(request_sha256),
        },
        runs,
    };
    // A service is started again when its caller is gone: it has stored secrets alone.
    let values = match submission.workload.service() {
        Some(_) => secrets::Values::new(),
        None => submission.secret_values.clone(),
    };
    enqueue(inner, submit, values).await
}

/// Whether some earlier request came with this key.
async fn is_known(
    inner: &Inner,
    caller: &Caller,
    key: &str,
    request_sha256: Digest,
) -> Result<bool, ControlError> {
    let store = &inner.ports.store;
    match store.answered(&caller.tenant, key, request_sha256).await {
        Ok(answer) => Ok(answer.is_some()),
        Err(StoreError::IdempotencyMismatch(_)) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Writes runs and hands them over to the scheduler, whatever becomes of the caller.
pub(crate) async fn enqueue(
    inner: &Arc<Inner>,
    submit: Submit,
    secrets: secrets::Values,
) -> Result<Accepted, ControlError> {
    // Where the store writes at once, this is all over when it has been polled once.
    let mut writing = Box::pin(write(Arc::clone(inner), submit, secrets));
    if let Poll::Ready(accepted) = futures_util::poll!(&mut writing) {
        return accepted;
    }
    // Else a task of its own: a caller that goes away in the middle must not leave a
    // run on disk that the scheduler has not heard of.
    inner.tasks.spawn(writing).await.map_err(joined)?
}

/// The digest of what may be enqueued; everything that speaks against it.
fn admitted(preflight: &Preflight) -> Result<PlanDigest, ControlError> {
    let mut refusals = preflight.refusals.clone();
    if let Some(wait) = preflight
        .waits
        .iter()
        .find(|wait| wait.code == "commit_not_synced")
    {
        refusals.push(wait.clone());
    }
    match preflight.plan_sha256 {
        Some(digest) if refusals.is_empty() => Ok(digest),
        None if refusals.is_empty() => Err(ControlError::Refused(vec![Refusal::new(
            "plan_incomplete",
            "the submission makes no plan",
            "`ml explain` shows what is missing",
        )])),
        Some(_) | None => Err(ControlError::Refused(refusals)),
    }
}

/// Values of secrets are left out: a digest of a short value can be guessed.
fn request_digest(submission: &Submission) -> Digest {
    // A submission came as JSON or could have: its keys are text.
    let digest = |submission| Digest::of(&serde_json::to_vec(submission).unwrap_or_default());
    if submission.secret_values.is_empty() {
        return digest(submission);
    }
    let mut without = submission.clone();
    without.secret_values.clear();
    digest(&without)
}

/// The runs of a submission, a sweep's parent first.
fn records(
    inner: &Inner,
    caller: &Caller,
    submission: &Submission,
    preflight: Preflight,
    plan_sha256: PlanDigest,
) -> Vec<Run> {
    let experiment = submission.workload.job();
    let draw = || RunId::from_random((inner.ports.random)());
    let base = NewRun {
        id: draw(),
        tenant: caller.tenant.clone(),
        owner: caller.owner.clone(),
        name: experiment.name.clone(),
        kind: RunKind::Single,
        commit: submission.commit,
        plan: None,
        plan_sha256,
        placement: preflight.placement,
        git: submission.git.clone(),
        trust: Some(preflight.trust),
        queued_at: inner.ports.clock.now(),
    };
    let planned = |id: RunId, kind: RunKind, planned: PlannedRun| {
        Run::from(NewRun {
            id,
            kind,
            plan: Some(planned.plan),
            plan_sha256: planned.plan_sha256,
            ..base.clone()
        })
    };
    if let Some(service) = submission.workload.service() {
        let replicas = preflight.runs.into_iter().flat_map(|run| {
            let copies = usize::try_from(service.replicas).unwrap_or(1);
            std::iter::repeat_n(run, copies)
        });
        let replicas = replicas.zip(std::iter::once(base.id).chain(std::iter::repeat_with(draw)));
        return replicas
            .map(|(run, id)| {
                let mut run = planned(id, RunKind::Single, run);
                run.labels.tags.clone_from(&service.labels);
                run
            })
            .collect();
    }
    if !preflight.sweep {
        let only = preflight.runs.into_iter();
        return only
            .map(|run| planned(base.id, RunKind::Single, run))
            .collect();
    }
    let children = u32::try_from(preflight.runs.len()).unwrap_or(u32::MAX);
    let parent = Run::from(NewRun {
        kind: RunKind::Parent { children },
        ..base.clone()
    });
    let points = preflight.runs.into_iter().map(|run| {
        let (parent, index) = (base.id, run.index);
        planned(draw(), RunKind::Child { parent, index }, run)
    });
    std::iter::once(parent).chain(points).collect()
}

async fn write(
    inner: Arc<Inner>,
    submit: Submit,
    values: secrets::Values,
) -> Result<Accepted, ControlError> {
    let id = submit.runs[0].id;
    let folder = run_folder(&inner.config.data_dir, id);
    let has_secrets = !values.is_empty();
    if has_secrets {
        inner.state().submitting.insert(id);
        let folder = folder.clone();
        tokio::task::spawn_blocking(move || secrets::keep(&folder, &values))
            .await
            .map_err(joined)?
            .map_err(|source| ControlError::Io {
                action: format!("write the secrets of run `{id}`"),
                source,
            })?;
    }
    let runs: Vec<Arc<Run>> = submit.runs.iter().cloned().map(Arc::new).collect();
    let tenant = runs[0].tenant.clone();
    let submitted = inner.ports.store.submit(submit).await;
    let accepted = match submitted {
        Ok(submitted) if submitted.fresh => Ok(accept(&inner, &runs)),
        Ok(submitted) => replay(&inner, &tenant, submitted.id).await,
        Err(error) => {
            if matches!(error, StoreError::Unavailable(_)) {
                inner.tasks.spawn(reconcile::all(Arc::clone(&inner)));
            }
            Err(error.into())
        }
    };
    if has_secrets {
        inner.state().submitting.remove(&id);
        let is_ours = matches!(&accepted, Ok(accepted) if accepted.fresh);
        if !is_ours {
            let gone = tokio::task::spawn_blocking(move || secrets::forget(&folder)).await;
            if !matches!(gone, Ok(Ok(()))) {
                tracing::error!(%id, "values of secrets of a refused submission could not be removed");
            }
        }
    }
    accepted
}

/// Tells the scheduler of runs that are on disk.
fn accept(inner: &Arc<Inner>, runs: &[Arc<Run>]) -> Accepted {
    let first = &runs[0];
    tracing::debug!(target: crate::PATH, step = "queue", run = %first.id);
    let points: Vec<&Arc<Run>> = runs
        .iter()
        .filter(|run| !matches!(run.kind, RunKind::Parent { .. }))
        .collect();
    let now = inner.ports.clock.now();
    let jobs = points.iter().map(|run| job(run, now)).collect();
    let children = match first.kind {
        RunKind::Parent { .. } => points.iter().map(|run| run.id).collect(),
        RunKind::Single if first.is_service() => points.iter().map(|run| run.id).collect(),
        RunKind::Single | RunKind::Child { .. } => Vec::new(),
    };
    inner.with_state(|state| {
        let records = points.iter().map(|run| (run.id, Arc::clone(run)));
        state.runs.extend(records);
        inner.apply(state, Event::Submitted(jobs));
    });
    Accepted {
        id: first.id,
        plan_sha256: first.plan_sha256,
        children,
        trust: trust_of(first),
        fresh: true,
    }
}

/// Answers again what was answered to an earlier request with the same key.
async fn replay(
    inner: &Arc<Inner>,
    tenant: &mlmesh_model::Tenant,
    id: RunId,
) -> Result<Accepted, ControlError> {
    let store = &inner.ports.store;
    let run = store
        .run(tenant, id)
        .await?
        .ok_or(ControlError::NoRun(id))?;
    let mut accepted = Accepted {
        id,
        plan_sha256: run.plan_sha256,
        children: Vec::new(),
        trust: trust_of(&run),
        fresh: false,
    };
    // The first answer may never have been given: its write was cut off.
    if matches!(run.kind, RunKind::Parent { .. }) {
        let points = points(inner, &run).await?;
        accepted
            .children
            .extend(points.iter().map(|point| point.id));
        reconcile::queued(inner, points);
    } else {
        let service = run.is_service().then(|| run.name.clone());
        reconcile::queued(inner, vec![run]);
        let open = services::open(inner, tenant).into_iter();
        let replicas = open.filter(|replica| Some(&replica.run.name) == service.as_ref());
        accepted
            .children
            .extend(replicas.map(|replica| replica.run.id));
    }
    Ok(accepted)
}

/// All points of a sweep, in order.
pub(crate) async fn points(inner: &Inner, parent: &Run) -> Result<Vec<Run>, ControlError> {
    let mut points: Vec<Run> = Vec::new();
    loop {
        let query = RunQuery {
            tenant: parent.tenant.clone(),
            phases: Vec::new(),
            parent: Some(parent.id),
            owner: None,
            cursor: points.last().map(|point| point.seq),
            limit: CHILDREN_PAGE,
        };
        let page = inner.ports.store.runs(query).await?;
        if page.is_empty() {
            return Ok(points);
        }
        points.extend(page);
    }
}

fn trust_of(run: &Run) -> Trust {
    run.trust.clone().unwrap_or(Trust {
        level: TrustLevel::L0,
        reasons: Vec::new(),
        reproduced: None,
    })
}

/// A task that panicked, or was dropped with the runtime.
pub(crate) fn joined(error: tokio::task::JoinError) -> ControlError {
    ControlError::Io {
        action: "finish a task".into(),
        source: std::io::Error::other(error),
    }
}
