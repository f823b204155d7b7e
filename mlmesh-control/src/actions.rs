//! What people do to runs that are there: cancel and retry.

use std::sync::Arc;

use mlmesh_model::{AuditNote, Phase, Refusal, Run, RunId, RunKind, StoreError, UnleasedMove};
use mlmesh_sched::Event;
use serde::Serialize;
use tokio::sync::oneshot;

use crate::admit::{joined, points};
use crate::config::Caller;
use crate::error::ControlError;
use crate::private_file::{CANCEL, run_folder};
use crate::reactor::{Inner, job, sweep_of};
use crate::{private_file, secrets};

/// What a cancel did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Cancelled {
    /// Queued runs that have ended.
    pub queued: u32,
    /// Live runs that were told to end.
    pub live: u32,
}

/// What a retry did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Retried {
    /// Runs that are queued again, in order.
    pub runs: Vec<RunId>,
}

pub(crate) async fn cancel(
    inner: &Arc<Inner>,
    caller: &Caller,
    id: RunId,
) -> Result<Cancelled, ControlError> {
    let run = owned(inner, caller, id).await?;
    let targets: Vec<RunId> = match run.kind {
        RunKind::Parent { .. } => {
            let state = inner.state();
            let open = state.runs.values();
            open.filter(|point| sweep_of(point) == Some(id))
                .map(|point| point.id)
                .collect()
        }
        RunKind::Single | RunKind::Child { .. } => vec![id],
    };
    let note = note(inner, caller, "run.cancel", id.to_string());
    let mut done = Cancelled::default();
    let mut ends = Vec::new();
    let mut live = Vec::new();
    let mut audit = Some(note);
    for target in targets {
        let (sender, ended) = oneshot::channel();
        let phase = inner.with_state(|state| {
            let phase = state.scheduler.phase(target);
            if phase == Some(Phase::Queued) {
                state.waiters.entry(target).or_default().push(sender);
                if let Some(audit) = audit.take() {
                    state.audits.insert(target, audit);
                }
            }
            inner.apply(state, Event::Cancel(target));
            phase
        });
        match phase {
            Some(Phase::Queued) => {
                done.queued += 1;
                ends.push(ended);
            }
            Some(phase) if phase.is_live() => {
                done.live += 1;
                live.push(target);
            }
            Some(_) | None => {}
        }
    }
    if done == Cancelled::default() {
        return Err(ControlError::Phase {
            action: "cancel",
            run: id,
            phase: run.phase,
            allowed: "only a run that has not ended can be cancelled",
        });
    }
    note_wishes(inner, live).await?;
    if let Some(audit) = audit {
        inner.ports.store.record(None, Some(audit)).await?;
    }
    for ended in ends {
        // An end that is not written when the daemon goes down was not acknowledged.
        ended.await.map_err(|_| ControlError::ShuttingDown)?;
    }
    Ok(done)
}

/// Keeps the wish for the end of live runs until they have ended, whoever is the
/// daemon then.
async fn note_wishes(inner: &Arc<Inner>, live: Vec<RunId>) -> Result<(), ControlError> {
    let data_dir = inner.config.data_dir.clone();
    let written = tokio::task::spawn_blocking(move || {
        live.into_iter()
            .try_for_each(|run| private_file::write(&run_folder(&data_dir, run), CANCEL, &[]))
    });
    written
        .await
        .map_err(joined)?
        .map_err(|source| ControlError::Io {
            action: "note that a run was cancelled".into(),
            source,
        })
}

pub(crate) async fn retry(
    inner: &Arc<Inner>,
    caller: &Caller,
    id: RunId,
    failed_only: bool,
) -> Result<Retried, ControlError> {
    if inner.cancel.is_cancelled() {
        return Err(ControlError::ShuttingDown);
    }
    let run = owned(inner, caller, id).await?;
    let (phase, is_sweep) = (run.phase, matches!(run.kind, RunKind::Parent { .. }));
    let mut targets = match is_sweep {
        true => points(inner, &run).await?,
        false => vec![run],
    };
    targets.retain(|run| match run.phase {
        Phase::Failed | Phase::Interrupted => true,
        Phase::Cancelled => !failed_only,
        Phase::Queued | Phase::Starting | Phase::Running | Phase::Finishing | Phase::Completed => {
            false
        }
    });
    if targets.is_empty() {
        return Err(ControlError::Phase {
            action: "retry",
            run: id,
            phase,
            allowed: "only failed, cancelled and interrupted runs can be retried",
        });
    }
    secrets_are_there(inner, &targets[0]).await?;
    let note = note(inner, caller, "run.retry", id.to_string());
    let writer = Arc::clone(inner);
    // A task of its own, so that a caller who goes away leaves nothing half done.
    inner
        .tasks
        .spawn(async move { put_back(&writer, targets, note).await })
        .await
        .map_err(joined)?
}

async fn put_back(
    inner: &Arc<Inner>,
    targets: Vec<Run>,
    note: AuditNote,
) -> Result<Retried, ControlError> {
    let mut runs = Vec::new();
    let mut audit = Some(note);
    for target in targets {
        forget_wish(inner, target.id).await?;
        let change = UnleasedMove {
            run: target.id,
            from: target.phase,
            to: Phase::Queued,
            time: inner.ports.clock.now(),
            cause: None,
            message: String::new(),
            audit: audit.clone(),
        };
        match inner.ports.store.move_unleased(change).await {
            Ok(run) => {
                audit = None;
                runs.push(run.id);
                let job = job(&run, 0);
                inner.with_state(|state| {
                    state.runs.insert(run.id, Arc::new(run));
                    inner.apply(state, Event::Submitted(vec![job]));
                });
            }
            // Somebody else retried it meanwhile.
            Err(StoreError::MoveNotAllowed { .. } | StoreError::NotQueued(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Retried { runs })
}

async fn forget_wish(inner: &Inner, run: RunId) -> Result<(), ControlError> {
    let folder = run_folder(&inner.config.data_dir, run);
    let removed = tokio::task::spawn_blocking(move || private_file::remove(&folder, CANCEL));
    removed
        .await
        .map_err(joined)?
        .map_err(|source| ControlError::Io {
            action: format!("forget that run `{run}` was cancelled"),
            source,
        })
}

/// What a caller sent is kept until a run ends, so a run that needs it cannot be tried
/// again unless the store has the values.
async fn secrets_are_there(inner: &Arc<Inner>, run: &Run) -> Result<(), ControlError> {
    let Some(plan) = run.plan.clone().filter(|plan| !plan.secrets.is_empty()) else {
        return Ok(());
    };
    let values = secrets::of_run(inner, run).await?;
    let missing = plan
        .secrets
        .iter()
        .filter(|name| !values.contains_key(*name));
    let refusals: Vec<Refusal> = missing
        .map(|name| {
            Refusal::new(
                "secret_without_value",
                format!("the value of secret `{name}` was removed when the run ended"),
                format!("`ml secret set {name}` stores one; or queue the recipe again, with it in your environment"),
            )
        })
        .collect();
    match refusals.is_empty() {
        true => Ok(()),
        false => Err(ControlError::Refused(refusals)),
    }
}

/// The run, if the caller may change it.
async fn owned(inner: &Inner, caller: &Caller, id: RunId) -> Result<Run, ControlError> {
    let run = inner
        .ports
        .store
        .run(&caller.tenant, id)
        .await?
        .ok_or(ControlError::NoRun(id))?;
    if run.owner != caller.owner && !caller.daemon_owner {
        return Err(ControlError::NotOwner(id));
    }
    Ok(run)
}

/// The audit row of something that a caller did.
pub(crate) fn note(inner: &Inner, caller: &Caller, action: &str, subject: String) -> AuditNote {
    AuditNote {
        time: inner.ports.clock.now(),
        tenant: caller.tenant.clone(),
        owner: caller.owner.clone(),
        key: caller.key.clone(),
        remote: caller.remote.clone(),
        action: action.to_owned(),
        subject,
        details_sha256: None,
    }
}
