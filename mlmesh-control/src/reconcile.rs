//! Brings the scheduler's view to what the store says.
//!
//! That is needed after a restart, and after a write whose outcome is not known:
//! a connection that broke around a commit, or a claim of a killed daemon that the
//! database carried out later. The store is right; a run that it has queued is
//! queued, and an attempt that it has leased to this node is taken up again.

use std::sync::Arc;
use std::time::Duration;

use mlmesh_model::{AttemptNumber, AttemptRef, Phase, Run, RunKind};
use mlmesh_sched::Event;

use crate::persist::persist;
use crate::private_file::{CANCEL, run_folder};
use crate::reactor::{Inner, State, job};
use crate::{attempt, gpus, private_file};

/// Before a run is looked at again whose lease was lost.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// After a submission of unknown outcome: takes up queued runs that are on disk
/// although nobody was told.
pub(crate) async fn all(inner: Arc<Inner>) {
    let store = &inner.ports.store;
    match persist(&inner.cancel, "read open runs", || store.open_runs()).await {
        Ok(runs) => queued(&inner, runs),
        Err(error) => tracing::warn!(%error, "open runs could not be read"),
    }
}

/// Hands queued runs to the scheduler that it does not know. Those that it knew and
/// that have ended since are found gone when they are claimed.
pub(crate) fn queued(inner: &Arc<Inner>, runs: Vec<Run>) {
    inner.with_state(|state| {
        let mut jobs = Vec::new();
        for run in runs {
            let is_parent = matches!(run.kind, RunKind::Parent { .. });
            if is_parent || run.phase != Phase::Queued || state.runs.contains_key(&run.id) {
                continue;
            }
            jobs.push(job(&run, inner.ports.clock.now()));
            state.runs.insert(run.id, Arc::new(run));
        }
        inner.apply(state, Event::Submitted(jobs));
    });
}

/// Takes the attempt of a live run up again.
pub(crate) async fn live(inner: &Arc<Inner>, run: Run) {
    let held = Held::of(inner, &run).await;
    inner.with_state(|state| reattach(inner, state, run, held));
}

/// A claim or a record was not taken: forgets what was believed of the run, and
/// goes by what the store says of it.
pub(crate) async fn lease_lost(inner: &Arc<Inner>, run: &Run) {
    let id = run.id;
    tokio::select! {
        () = inner.cancel.cancelled() => return,
        () = tokio::time::sleep(LOOK_AGAIN_AFTER) => {}
    }
    let store = &inner.ports.store;
    let found = persist(&inner.cancel, "look at a run", || {
        store.run(&run.tenant, id)
    })
    .await;
    let found = found.unwrap_or_else(|error| {
        tracing::error!(run = %id, %error, "a run could not be looked at");
        None
    });
    let held = match &found {
        Some(run) => Held::of(inner, run).await,
        None => Held::default(),
    };
    let here = Some(&inner.config.node);
    inner.with_state(|state| {
        inner.apply(state, Event::LeaseLost(id));
        match found {
            Some(run) if run.phase == Phase::Queued => {
                let job = job(&run, inner.ports.clock.now());
                state.runs.insert(id, Arc::new(run));
                inner.apply(state, Event::Submitted(vec![job]));
            }
            Some(run) if run.phase.is_live() && run.placement.node.as_ref() == here => {
                reattach(inner, state, run, held);
            }
            Some(_) | None => {}
        }
    });
}

fn reattach(inner: &Arc<Inner>, state: &mut State, run: Run, held: Held) {
    let (id, lease, phase) = (run.id, lease(&run), run.phase);
    let job = Box::new(job(&run, inner.ports.clock.now()));
    let run = Arc::new(run);
    state.runs.insert(id, Arc::clone(&run));
    let stop = state.stop_channel(id);
    let gpus = held.gpus;
    inner.apply(state, Event::Reattached { job, phase, gpus });
    if held.cancelled {
        inner.apply(state, Event::Cancel(id));
    }
    let task = attempt::resume(Arc::clone(inner), run, lease, stop);
    inner.tasks.spawn(task);
}

/// What an earlier daemon noted of a live run.
#[derive(Default)]
struct Held {
    gpus: Vec<String>,
    cancelled: bool,
}

impl Held {
    async fn of(inner: &Inner, run: &Run) -> Self {
        let gpus = match run.plan.as_ref().map_or(0, |plan| plan.resources.gpus) {
            0 => Vec::new(),
            _ => gpus::held(inner, lease(run)).await,
        };
        let folder = run_folder(&inner.config.data_dir, run.id);
        let looked =
            tokio::task::spawn_blocking(move || private_file::is_there(&folder, CANCEL)).await;
        Self {
            gpus,
            cancelled: looked.unwrap_or(false),
        }
    }
}

/// The lease on a live run.
fn lease(run: &Run) -> AttemptRef {
    AttemptRef {
        run: run.id,
        number: AttemptNumber(run.attempts),
        token: run.token,
    }
}
