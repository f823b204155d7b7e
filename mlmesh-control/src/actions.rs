//! What people do to runs that are there: cancel and retry, many at once, each
//! request once.
//!
//! ```text
//!   key held ─► answered before? ──yes──► the same answer; live ones told again
//!                   │ no
//!                   └► runs are taken from the scheduler ─► one transaction:
//!                      moves, audit rows, key and answer ─► live ones told ─► answer
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use mlmesh_model::{
    AnsweredKey, Asked, AuditNote, Cause, Digest, FencingToken, Permission, Phase, Refusal, Run,
    RunId, RunKind, StoreError, UnleasedMove,
};
use mlmesh_proof::MANIFEST_FILE;
use mlmesh_sched::Event;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::admit::{joined, points};
use crate::config::Caller;
use crate::error::ControlError;
use crate::ledger::end_together;
use crate::private_file::{CANCEL, run_folder};
use crate::reactor::{Inner, KeyHeld, QueuedEnd, State, job};
use crate::{private_file, reconcile, secrets};

/// What a cancel or a retry did to one run or sweep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// The run or sweep that was named.
    pub id: RunId,
    /// Runs that ended, were told to end, or are queued again; in their order.
    pub runs: Vec<RunId>,
    /// Those of them that were live, each with its lease: they were told to end.
    pub live: Vec<(RunId, FencingToken)>,
}

/// The form in which answers are kept with idempotency keys.
#[derive(Serialize, Deserialize)]
struct KeptAnswer {
    v: u8,
    changed: Vec<Changed>,
}

pub(crate) async fn cancel(
    inner: &Arc<Inner>,
    caller: &Caller,
    ids: &[RunId],
    key: Option<String>,
) -> Result<Vec<Result<Changed, ControlError>>, ControlError> {
    let request = Request::new(inner, caller, key, &("run.cancel", ids)).await;
    let store = &inner.ports.store;
    let found = store.runs_by_id(&caller.tenant, ids.to_vec()).await?;
    let found: HashMap<RunId, Run> = found.into_iter().map(|run| (run.id, run)).collect();
    let mut outcomes: Vec<Result<Changed, ControlError>> = Vec::with_capacity(ids.len());
    if let Some(earlier) = request.answered(inner, caller).await? {
        let mut earlier: HashMap<RunId, Changed> = earlier
            .into_iter()
            .map(|changed| (changed.id, changed))
            .collect();
        tell_again(inner, earlier.values()).await?;
        for id in ids {
            outcomes.push(match earlier.remove(id) {
                Some(changed) => Ok(changed),
                None => Err(not_cancelled(caller, *id, found.get(id))),
            });
        }
        return Ok(outcomes);
    }
    let mut taken = Taken::default();
    inner.with_state(|state| {
        let named = ids.iter().filter_map(|id| found.get(id));
        let is_sweep = |run: &Run| matches!(run.kind, RunKind::Parent { .. });
        let points = match named.clone().any(is_sweep) {
            true => open_points(state),
            false => HashMap::new(),
        };
        for id in ids {
            let may = |run: &&Run| caller.reaches(&run.owner, Permission::RunsCancelOthers);
            let changed = found.get(id).filter(may).and_then(|run| {
                let open = match is_sweep(run) {
                    true => points.get(id).map_or(&[][..], Vec::as_slice),
                    false => std::slice::from_ref(id),
                };
                taken.take(inner, state, *id, open)
            });
            outcomes.push(changed.ok_or_else(|| not_cancelled(caller, *id, found.get(id))));
        }
    });
    if taken.changed.is_empty() {
        return Ok(outcomes);
    }
    taken.carry_out(inner, caller, request).await?;
    Ok(outcomes)
}

/// Points of sweeps that have not ended, in their order.
fn open_points(state: &State) -> HashMap<RunId, Vec<RunId>> {
    let mut points: HashMap<RunId, Vec<(u32, RunId)>> = HashMap::new();
    for run in state.runs.values() {
        if let RunKind::Child { parent, index } = run.kind {
            points.entry(parent).or_default().push((index, run.id));
        }
    }
    let sorted = points.into_iter().map(|(sweep, mut points)| {
        points.sort_unstable();
        (sweep, points.into_iter().map(|(_, id)| id).collect())
    });
    sorted.collect()
}

/// Why nothing of what was named could be cancelled.
fn not_cancelled(caller: &Caller, id: RunId, run: Option<&Run>) -> ControlError {
    match run {
        None => ControlError::NoRun(id),
        Some(run) => match cancellable(caller, run) {
            Err(denied) => denied,
            Ok(()) => ControlError::Phase {
                action: "cancel",
                run: id,
                phase: run.phase,
                allowed: "only a run that has not ended can be cancelled",
            },
        },
    }
}

fn cancellable(caller: &Caller, run: &Run) -> Result<(), ControlError> {
    let what = || format!("to cancel run `{}`", run.id);
    let reached = caller.reach(&run.owner, Permission::RunsCancelOthers, what);
    reached.map_err(|denied| Box::new(denied).into())
}

/// What a cancel has to do.
#[derive(Default)]
struct Taken {
    changed: Vec<Changed>,
    /// Taken out of the queue; their ends are to be written.
    ends: Vec<QueuedEnd>,
    /// Whose way back into the queue is just being written; they end after it.
    later: Vec<oneshot::Receiver<()>>,
}

impl Taken {
    /// Takes the open runs of one name.
    fn take(
        &mut self,
        inner: &Arc<Inner>,
        state: &mut State,
        id: RunId,
        open: &[RunId],
    ) -> Option<Changed> {
        let mut changed = Changed {
            id,
            runs: Vec::new(),
            live: Vec::new(),
        };
        for run in open {
            match state.scheduler.phase(*run) {
                Some(Phase::Queued) => {
                    let before = self.ends.len();
                    inner.apply_to(state, Event::Cancel(*run), &mut self.ends);
                    if self.ends.len() == before {
                        let (sender, ended) = oneshot::channel();
                        state.waiters.entry(*run).or_default().push(sender);
                        self.later.push(ended);
                    }
                }
                Some(phase) if phase.is_live() => {
                    let token = state
                        .runs
                        .get(run)
                        .map_or(FencingToken(0), |run| lease(run));
                    changed.live.push((*run, token));
                }
                Some(_) | None => continue,
            }
            changed.runs.push(*run);
        }
        if changed.runs.is_empty() {
            return None;
        }
        self.changed.push(changed.clone());
        Some(changed)
    }

    async fn carry_out(
        self,
        inner: &Arc<Inner>,
        caller: &Caller,
        request: Request,
    ) -> Result<(), ControlError> {
        let live: Vec<(RunId, FencingToken)> = self
            .changed
            .iter()
            .flat_map(|changed| changed.live.clone())
            .collect();
        let notes = self.changed.iter().map(|changed| changed.id);
        let asked = Asked {
            audit: notes
                .map(|id| note(inner, caller, "run.cancel", id.to_string()))
                .collect(),
            key: request.kept(&self.changed),
            tells_live: !(live.is_empty() && self.later.is_empty()),
        };
        let runs = self.ends.into_iter().map(|(run, _)| run).collect();
        // Live ones are told when the request is on disk, or the store is away: a
        // store that fails must not keep a job running.
        let tell = || tell(inner, &live);
        end_together(inner, runs, Cause::Cancelled, Some(asked), &tell).await?;
        note_wishes(inner, &live).await?;
        for ended in self.later {
            // An end that is not written when the daemon goes down was not acknowledged.
            ended.await.map_err(|_| ControlError::ShuttingDown)?;
        }
        Ok(())
    }
}

/// The lease of the attempt that is live, or that is about to be claimed.
fn lease(run: &Run) -> FencingToken {
    match run.phase {
        Phase::Queued => FencingToken(run.token.0 + 1),
        _ => run.token,
    }
}

fn tell(inner: &Arc<Inner>, live: &[(RunId, FencingToken)]) {
    inner.with_state(|state| {
        inner.apply_each(state, live.iter().map(|(run, _)| Event::Cancel(*run)));
    });
}

/// The first answer may have been cut off before live runs were told.
async fn tell_again(
    inner: &Arc<Inner>,
    changed: impl Iterator<Item = &Changed>,
) -> Result<(), ControlError> {
    let mut live: Vec<(RunId, FencingToken)> = Vec::new();
    {
        let state = inner.state();
        for (run, token) in changed.flat_map(|changed| &changed.live) {
            let is_same = state.runs.get(run).is_some_and(|run| lease(run) == *token);
            let phase = state.scheduler.phase(*run);
            if is_same && phase.is_some_and(Phase::is_live) {
                live.push((*run, *token));
            }
        }
    }
    tell(inner, &live);
    note_wishes(inner, &live).await
}

/// Keeps the wish for the end of live runs until they have ended, whoever is the
/// daemon then.
async fn note_wishes(
    inner: &Arc<Inner>,
    live: &[(RunId, FencingToken)],
) -> Result<(), ControlError> {
    if live.is_empty() {
        return Ok(());
    }
    let runs: Vec<RunId> = live.iter().map(|(run, _)| *run).collect();
    let note = |folder: &std::path::Path| private_file::write(folder, CANCEL, &[]);
    in_folders(inner, "note that runs were cancelled", runs, note).await
}

/// Does something in the folder of each run.
async fn in_folders(
    inner: &Inner,
    action: &str,
    runs: Vec<RunId>,
    work: fn(&std::path::Path) -> std::io::Result<()>,
) -> Result<(), ControlError> {
    let data_dir = inner.config.data_dir.clone();
    let done = tokio::task::spawn_blocking(move || {
        runs.into_iter()
            .try_for_each(|run| work(&run_folder(&data_dir, run)))
    });
    done.await
        .map_err(joined)?
        .map_err(|source| ControlError::Io {
            action: action.to_owned(),
            source,
        })
}

pub(crate) async fn retry(
    inner: &Arc<Inner>,
    caller: &Caller,
    id: RunId,
    failed_only: bool,
    key: Option<String>,
) -> Result<Changed, ControlError> {
    let request = Request::new(inner, caller, key, &("run.retry", id, failed_only)).await;
    let store = &inner.ports.store;
    let run = store.run(&caller.tenant, id).await?;
    let run = run.ok_or(ControlError::NoRun(id))?;
    caller
        .reach(&run.owner, Permission::RunsRetryOthers, || {
            format!("to retry run `{id}`")
        })
        .map_err(Box::new)?;
    if let Some(mut earlier) = request.answered(inner, caller).await?
        && let Some(changed) = earlier.pop()
    {
        return Ok(changed);
    }
    let phase = run.phase;
    let mut targets = match run.kind {
        RunKind::Parent { .. } => points(inner, &run).await?,
        RunKind::Single | RunKind::Child { .. } => vec![run],
    };
    targets.retain(|run| match run.phase {
        _ if run.is_imported() => false,
        Phase::Failed | Phase::Interrupted => true,
        Phase::Cancelled => !failed_only,
        Phase::Queued
        | Phase::Starting
        | Phase::Running
        | Phase::Ready
        | Phase::Draining
        | Phase::Finishing
        | Phase::Completed => false,
    });
    let refused = ControlError::Phase {
        action: "retry",
        run: id,
        phase,
        allowed: "only failed, cancelled and interrupted runs of this daemon can be retried",
    };
    let Some(first) = targets.first() else {
        return Err(refused);
    };
    if let Some(original) = first.placement.reproduces {
        return Err(ControlError::Refused(vec![Refusal::new(
            "reproduction_not_retried",
            format!("run `{id}` repeats `{original}` and was judged when it ended"),
            format!("`ml reproduce {original}` makes a new one"),
        )]));
    }
    secrets_are_there(inner, first).await?;
    let changed = Changed {
        id,
        runs: targets.iter().map(|run| run.id).collect(),
        live: Vec::new(),
    };
    let asked = Asked {
        audit: vec![note(inner, caller, "run.retry", id.to_string())],
        key: request.kept(std::slice::from_ref(&changed)),
        tells_live: false,
    };
    match put_back(inner, &targets, asked).await? {
        true => Ok(changed),
        // Somebody else retried them meanwhile.
        false => Err(refused),
    }
}

/// Queues ended runs again; false when none could be.
async fn put_back(inner: &Arc<Inner>, targets: &[Run], asked: Asked) -> Result<bool, ControlError> {
    let runs = targets.iter().map(|run| run.id).collect();
    in_folders(inner, "forget how runs ended", runs, forget_end).await?;
    let change = UnleasedMove {
        runs: targets.iter().map(|run| (run.id, run.phase)).collect(),
        to: Phase::Queued,
        time: inner.ports.clock.now(),
        cause: None,
        message: String::new(),
        asked: Some(asked),
    };
    let moved = match inner.ports.store.move_unleased(change).await {
        Ok(moved) => moved.runs,
        Err(error) => {
            if matches!(error, StoreError::Unavailable(_)) {
                inner.tasks.spawn(reconcile::all(Arc::clone(inner)));
            }
            return Err(error.into());
        }
    };
    let now = inner.ports.clock.now();
    let some = !moved.is_empty();
    inner.with_state(|state| {
        let jobs = moved.iter().map(|run| job(run, now)).collect();
        let records = moved.into_iter().map(|run| (run.id, Arc::new(run)));
        state.runs.extend(records);
        inner.apply(state, Event::Submitted(jobs));
    });
    Ok(some)
}

/// Removes the wish that the run ends, and the manifest of the end that it had.
fn forget_end(folder: &std::path::Path) -> std::io::Result<()> {
    private_file::remove(folder, CANCEL)?;
    match std::fs::remove_file(folder.join(MANIFEST_FILE)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
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

/// One request. While it lives no other one with its key is carried out.
struct Request {
    key: Option<(String, Digest)>,
    _held: Option<KeyHeld>,
}

impl Request {
    async fn new(
        inner: &Arc<Inner>,
        caller: &Caller,
        key: Option<String>,
        what: &impl Serialize,
    ) -> Self {
        let Some(key) = key else {
            let (key, _held) = (None, None);
            return Self { key, _held };
        };
        // Ids and words have a JSON form.
        let digest = Digest::of(&serde_json::to_vec(what).unwrap_or_default());
        Self {
            _held: Some(KeyHeld::take(inner, &caller.tenant, &key).await),
            key: Some((key, digest)),
        }
    }

    /// What this request was answered before.
    async fn answered(
        &self,
        inner: &Inner,
        caller: &Caller,
    ) -> Result<Option<Vec<Changed>>, ControlError> {
        let Some((key, digest)) = &self.key else {
            return Ok(None);
        };
        let store = &inner.ports.store;
        let Some(text) = store.answered(&caller.tenant, key, *digest).await? else {
            return Ok(None);
        };
        let kept: KeptAnswer = serde_json::from_str(&text)
            .map_err(|error| StoreError::Damaged(format!("a kept answer: {error}")))?;
        Ok(Some(kept.changed))
    }

    /// The key and the answer, to be kept together.
    fn kept(&self, changed: &[Changed]) -> Option<AnsweredKey> {
        let (key, request_sha256) = self.key.clone()?;
        let kept = KeptAnswer {
            v: 1,
            changed: changed.to_vec(),
        };
        Some(AnsweredKey {
            key,
            request_sha256,
            answer: serde_json::to_string(&kept).unwrap_or_default(),
        })
    }
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
