//! The loop around the scheduler: events in, effects carried out.
//!
//! One lock covers the scheduler and what belongs to its runs. Effects are carried
//! out under it, in order, and only spawn: nothing waits while the lock is held.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mlmesh_model::{Cause, HostFacts, Labels, Micros, Run, RunId, RunKind, Tenant};
use mlmesh_sched::{Again, Effect, Event, Job, Scheduler, Verdict, delay_ms_max};
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{ControlConfig, Ports};
use crate::secret_store::SecretStore;
use crate::tending::Standings;
use crate::world::Caches;
use crate::{attempt, ledger};

/// Attempts whose checkout and environment are made at the same time.
const PREPARES_MAX: usize = 16;

/// Everything that tasks of control share.
pub(crate) struct Inner {
    pub(crate) config: ControlConfig,
    /// What every manifest says of the machine.
    pub(crate) host: Arc<HostFacts>,
    pub(crate) ports: Ports,
    pub(crate) caches: Caches,
    pub(crate) standings: Standings,
    pub(crate) secrets: SecretStore,
    pub(crate) prepares: Semaphore,
    pub(crate) tasks: TaskTracker,
    pub(crate) cancel: CancellationToken,
    state: Mutex<State>,
    /// Open and live runs after each step.
    seen: watch::Sender<Seen>,
    wake: Notify,
    key_freed: Notify,
}

/// How many runs have not ended, and of how many something is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Seen {
    pub(crate) open: usize,
    pub(crate) busy: usize,
}

pub(crate) struct State {
    pub(crate) scheduler: Scheduler,
    /// Runs that have not ended.
    pub(crate) runs: HashMap<RunId, Arc<Run>>,
    /// Ends the attempt of a live run, by the cause that is sent.
    stops: HashMap<RunId, watch::Sender<Option<Cause>>>,
    /// Runs whose secrets are on disk before they are themselves.
    pub(crate) submitting: HashSet<RunId>,
    /// Told when the run has ended.
    pub(crate) waiters: HashMap<RunId, Vec<oneshot::Sender<()>>>,
    /// Idempotency keys of requests that are being carried out.
    keys: HashSet<(Tenant, String)>,
}

/// A queued run that has to end, and why.
pub(crate) type QueuedEnd = (Arc<Run>, Cause);

impl Inner {
    /// What people have written on an open run since it was read.
    pub(crate) fn labelled(&self, id: RunId, labels: &Labels) {
        if let Some(run) = self.state().runs.get_mut(&id) {
            Arc::make_mut(run).labels = labels.clone();
        }
    }

    /// What stands on a run now.
    pub(crate) fn labels_of(&self, run: &Run) -> Labels {
        let state = self.state();
        let newest = state.runs.get(&run.id).map_or(run, |newest| newest);
        newest.labels.clone()
    }

    pub(crate) fn new(
        config: ControlConfig,
        host: HostFacts,
        ports: Ports,
        scheduler: Scheduler,
    ) -> Arc<Self> {
        Arc::new(Self {
            host: Arc::new(host),
            secrets: SecretStore::in_folder(config.data_dir.clone()),
            config,
            ports,
            caches: Caches::default(),
            standings: Standings::default(),
            prepares: Semaphore::new(PREPARES_MAX),
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
            state: Mutex::new(State {
                scheduler,
                runs: HashMap::new(),
                stops: HashMap::new(),
                submitting: HashSet::new(),
                waiters: HashMap::new(),
                keys: HashSet::new(),
            }),
            seen: watch::Sender::new(Seen::default()),
            wake: Notify::new(),
            key_freed: Notify::new(),
        })
    }

    /// The scheduler's time: monotonic, so that a step of the calendar clock
    /// neither delays nor hurries a retry.
    pub(crate) fn now(&self) -> Micros {
        let us = self.ports.clock.monotonic_us();
        Micros(i64::try_from(us).unwrap_or(i64::MAX))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn seen(&self) -> watch::Receiver<Seen> {
        self.seen.subscribe()
    }

    /// Steps the scheduler and carries out what it says; returns the verdict, when
    /// the event is an attempt's end.
    pub(crate) fn step(self: &Arc<Self>, event: Event) -> Option<Verdict> {
        self.with_state(|state| self.apply(state, event))
    }

    /// Holds the state for several steps that nobody must see apart.
    pub(crate) fn with_state<T>(self: &Arc<Self>, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let wake_before = state.scheduler.wake_at();
        let result = work(&mut state);
        self.seen.send_replace(Seen {
            open: state.scheduler.open(),
            busy: state.scheduler.busy(),
        });
        if state.scheduler.wake_at() != wake_before {
            self.wake.notify_one();
        }
        result
    }

    /// One step, within [`Inner::with_state`].
    pub(crate) fn apply(self: &Arc<Self>, state: &mut State, event: Event) -> Option<Verdict> {
        let mut ends = Vec::new();
        let verdict = self.apply_to(state, event, &mut ends);
        self.end_queued(ends);
        verdict
    }

    /// Several steps; what has to end in the queue ends together.
    pub(crate) fn apply_each(
        self: &Arc<Self>,
        state: &mut State,
        events: impl IntoIterator<Item = Event>,
    ) {
        let mut ends = Vec::new();
        for event in events {
            self.apply_to(state, event, &mut ends);
        }
        self.end_queued(ends);
    }

    fn end_queued(self: &Arc<Self>, ends: Vec<QueuedEnd>) {
        if !ends.is_empty() {
            let inner = Arc::clone(self);
            self.tasks
                .spawn(async move { ledger::end_queued(&inner, ends).await });
        }
    }

    /// One step whose caller ends the queued runs that have to end.
    pub(crate) fn apply_to(
        self: &Arc<Self>,
        state: &mut State,
        event: Event,
        ends: &mut Vec<QueuedEnd>,
    ) -> Option<Verdict> {
        let over = match &event {
            Event::Recorded(run) | Event::LeaseLost(run) => Some(*run),
            _ => None,
        };
        let mut effects = Vec::new();
        state.scheduler.step(self.now(), event, &mut effects);
        if let Some(run) = over
            && state.scheduler.phase(run).is_none()
        {
            state.forget(run);
        }
        let mut verdict = None;
        for effect in effects {
            verdict = self.carry_out(state, effect, ends).or(verdict);
        }
        verdict
    }

    fn carry_out(
        self: &Arc<Self>,
        state: &mut State,
        effect: Effect,
        ends: &mut Vec<QueuedEnd>,
    ) -> Option<Verdict> {
        let inner = Arc::clone(self);
        match effect {
            Effect::Start { run, gpus } => {
                let Some(record) = state.runs.get(&run).cloned() else {
                    tracing::error!(%run, "a run that is to start has no record in memory");
                    return None;
                };
                let stop = state.stop_channel(run);
                self.tasks
                    .spawn(async move { attempt::run(inner, record, gpus, stop).await });
            }
            Effect::Stop { run, cause } => {
                if let Some(stop) = state.stops.get(&run) {
                    stop.send_replace(Some(cause));
                }
            }
            Effect::EndQueued { run, cause } => {
                ends.extend(state.runs.get(&run).map(|run| (Arc::clone(run), cause)));
            }
            Effect::LookUp(run) => {
                self.tasks
                    .spawn(async move { ledger::look_up(inner, run).await });
            }
            Effect::Record { verdict, .. } => return Some(verdict),
        }
        None
    }

    /// Whether the values of secrets in this run's folder are needed: by the run, or
    /// by a point of the sweep.
    pub(crate) fn needs_secrets(&self, id: RunId) -> bool {
        let state = self.state();
        state.runs.contains_key(&id)
            || state.submitting.contains(&id)
            || state.scheduler.open_points(id) > 0
    }

    /// Wakes the scheduler when a delay is over. Ends with the daemon.
    pub(crate) async fn keep_time(self: Arc<Self>) {
        /// Longest sleep, so that a wrong wake time heals.
        const SLEEP_MAX: Duration = Duration::from_secs(60);
        loop {
            let wake_at = self.state().scheduler.wake_at();
            let sleep = wake_at.map_or(SLEEP_MAX, |at| {
                let us = at.since(self.now()).max(0).unsigned_abs();
                Duration::from_micros(us).min(SLEEP_MAX)
            });
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = self.wake.notified() => {}
                () = tokio::time::sleep(sleep) => {
                    self.step(Event::Tick);
                }
            }
        }
    }
}

/// Requests with one idempotency key are carried out one after the other, so that
/// the second one finds the answer of the first.
pub(crate) struct KeyHeld {
    inner: Arc<Inner>,
    key: (Tenant, String),
}

impl KeyHeld {
    pub(crate) async fn take(inner: &Arc<Inner>, tenant: &Tenant, key: &str) -> Self {
        let key = (tenant.clone(), key.to_owned());
        loop {
            let freed = inner.key_freed.notified();
            if inner.state().keys.insert(key.clone()) {
                let inner = Arc::clone(inner);
                return Self { inner, key };
            }
            freed.await;
        }
    }
}

impl Drop for KeyHeld {
    fn drop(&mut self) {
        self.inner.state().keys.remove(&self.key);
        self.inner.key_freed.notify_waiters();
    }
}

impl State {
    /// A channel that ends the attempt of this run.
    pub(crate) fn stop_channel(&mut self, run: RunId) -> watch::Receiver<Option<Cause>> {
        let (sender, receiver) = watch::channel(None);
        self.stops.insert(run, sender);
        receiver
    }

    fn forget(&mut self, run: RunId) {
        self.runs.remove(&run);
        self.stops.remove(&run);
        for waiter in self.waiters.remove(&run).unwrap_or_default() {
            // Whoever waited may have gone.
            let _ = waiter.send(());
        }
    }
}

/// A run as the scheduler sees it, at this calendar time. A run that waits for its
/// next try waits on, also under another daemon, but never longer than it can have
/// been told to: the calendar may have been moved.
pub(crate) fn job(run: &Run, now: Micros) -> Job {
    let delay_us = run.not_before.map_or(0, |until| until.since(now));
    let resources = run.plan.as_ref().map(|plan| plan.resources);
    Job {
        run: run.id,
        sweep: sweep_of(run),
        tenant: run.tenant.clone(),
        owner: run.owner.clone(),
        priority: run.placement.priority,
        resources: resources.unwrap_or_default(),
        after: run.placement.after.clone(),
        again: Again::of(&run.placement),
        waited_us: now.since(run.queued_at).max(0),
        delay_us: delay_us.clamp(0, (delay_ms_max(run.attempts) * 1_000) as i64),
    }
}

/// The sweep that a run is a point of.
pub(crate) fn sweep_of(run: &Run) -> Option<RunId> {
    match run.kind {
        RunKind::Child { parent, .. } => Some(parent),
        RunKind::Single | RunKind::Parent { .. } => None,
    }
}
