//! What is written of a run while and after it is tried.
//!
//! Moves are gathered and written together: an attempt that is over within
//! [`VISIBLE_AFTER`] costs two transactions, its claim and its end. A longer one is
//! seen to move within that time.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use mlmesh_model::{
    Advance, Asked, Attempt, AttemptRef, Cause, Micros, Phase, Placement, Run, RunId, RunUpdate,
    StoreError, UnleasedMove,
};
use mlmesh_proof::{Extras, MANIFEST_FILE, manifest, write_manifest};
use mlmesh_sched::{Event, Verdict};

use crate::persist::persist;
use crate::private_file::run_folder;
use crate::reactor::{Inner, QueuedEnd, sweep_of};
use crate::{crash, reconcile, reproduce, secrets};

/// A move is on disk after this time at the latest, the store's own time apart.
pub(crate) const VISIBLE_AFTER: Duration = Duration::from_millis(30);

/// Moves and facts of one attempt.
pub(crate) struct Ledger {
    inner: Arc<Inner>,
    pub(crate) run: Arc<Run>,
    pub(crate) lease: AttemptRef,
    /// The attempt as the store has it; filled in when it ends.
    attempt: Option<Attempt>,
    /// Where the run stands, as far as this attempt knows.
    pub(crate) phase: Phase,
    /// Moves that are not yet on disk.
    pending: Vec<Phase>,
    pub(crate) update: RunUpdate,
    pub(crate) extras: Extras,
}

/// The lease is gone: another one counts, or the run was removed.
#[derive(Debug)]
pub(crate) struct LeaseLost;

impl Ledger {
    pub(crate) fn new(
        inner: Arc<Inner>,
        run: Arc<Run>,
        lease: AttemptRef,
        attempt: Option<Attempt>,
        phase: Phase,
    ) -> Self {
        let extras = Extras {
            daemon_version: env!("CARGO_PKG_VERSION").into(),
            ..Extras::default()
        };
        Self {
            inner,
            run,
            lease,
            attempt,
            phase,
            pending: Vec::new(),
            update: RunUpdate::default(),
            extras,
        }
    }

    /// Notes that the run has moved.
    pub(crate) fn moved(&mut self, to: Phase) {
        if self.phase.may_become(to) {
            self.phase = to;
            self.pending.push(to);
        }
    }

    /// Whether something is not yet on disk.
    pub(crate) fn is_behind(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Writes the moves so far. While the store is away nothing is lost: the next
    /// call writes them.
    pub(crate) async fn flush(&mut self) -> Result<(), LeaseLost> {
        let advance = self.advance(self.pending.clone(), None);
        match self.inner.ports.store.advance(advance).await {
            Ok(_) => {
                self.pending.clear();
                Ok(())
            }
            Err(StoreError::Unavailable(reason)) => {
                tracing::warn!(run = %self.lease.run, reason, "a move could not be written yet");
                Ok(())
            }
            Err(error) => Err(self.lost(&error)),
        }
    }

    /// Writes how the attempt ended and what follows, in one transaction, after
    /// everything that the record refers to is on disk.
    pub(crate) async fn close(mut self, verdict: Verdict) -> Result<AttemptRef, LeaseLost> {
        let now = self.inner.ports.clock.now();
        self.update.ended_at.get_or_insert(now);
        let (last, not_before) = match verdict {
            Verdict::End { phase, cause } => {
                self.update.cause = cause;
                (phase, None)
            }
            Verdict::Requeue { cause, delay_ms } => {
                self.update.cause = cause;
                let delay_us = i64::try_from(delay_ms.saturating_mul(1_000)).unwrap_or(i64::MAX);
                let not_before = (delay_us > 0).then(|| now.plus_us(delay_us));
                (Phase::Queued, not_before)
            }
        };
        if last.is_ended() {
            let ended = self.ended(last);
            self.update.manifest_sha256 = self.write_manifest(&ended).await;
            crash::point(crash::AFTER_MANIFEST);
            drop_secrets(&self.inner, &self.run).await;
        }
        let mut to = self.pending.clone();
        to.push(last);
        let advance = self.advance(to, not_before);
        let store = Arc::clone(&self.inner.ports.store);
        let mut on_its_way = false;
        let written = persist(&self.inner.cancel, "record the end of an attempt", || {
            let inner = Arc::clone(&self.inner);
            let (store, advance, run) = (Arc::clone(&store), advance.clone(), self.lease.run);
            let is_first = !std::mem::replace(&mut on_its_way, true);
            Box::pin(async move {
                let mut written = store.advance(advance);
                // Polled once, the write stands in the store's line before anything
                // that is claimed with the resources given back here.
                match futures_util::poll!(&mut written) {
                    std::task::Poll::Ready(done) => done,
                    std::task::Poll::Pending => {
                        if is_first {
                            inner.step(Event::Recording(run));
                        }
                        written.await
                    }
                }
            })
        })
        .await;
        match written {
            Ok(run) => {
                tracing::debug!(target: crate::PATH, step = "record", run = %self.lease.run, phase = %last);
                if last == Phase::Queued {
                    self.inner.state().runs.insert(run.id, Arc::new(run));
                }
                Ok(self.lease)
            }
            Err(error) => Err(self.lost(&error)),
        }
    }

    fn advance(&self, to: Vec<Phase>, not_before: Option<Micros>) -> Advance {
        Advance {
            run: self.lease.run,
            token: self.lease.token,
            to,
            time: self.inner.ports.clock.now(),
            record: self.update.clone(),
            not_before,
        }
    }

    fn lost(&self, error: &StoreError) -> LeaseLost {
        let lease = self.lease;
        match error {
            StoreError::StaleToken { .. } | StoreError::MoveNotAllowed { .. } => {
                tracing::warn!(run = %lease.run, token = lease.token.0, %error, "a late result was dropped");
            }
            _ => tracing::error!(run = %lease.run, %error, "the store did not take a record"),
        }
        LeaseLost
    }

    /// The run as it will stand in the store.
    fn ended(&self, phase: Phase) -> Run {
        let update = &self.update;
        let run = &*self.run;
        let placement = Placement {
            node: Some(self.inner.config.node.clone()),
            ..run.placement.clone()
        };
        Run {
            phase,
            placement,
            not_before: None,
            cause: update.cause,
            message: update.message.clone().unwrap_or_default(),
            exit: update.exit,
            attempts: self.lease.number.0,
            token: self.lease.token,
            started_at: update.started_at,
            ended_at: update.ended_at,
            trust: update.trust.clone().or_else(|| run.trust.clone()),
            metrics: update.metrics.clone().unwrap_or_default(),
            outputs: update.outputs,
            isolation: update.isolation.clone(),
            labels: self.inner.labels_of(run),
            logged: update.logged.clone(),
            ..run.clone()
        }
    }

    async fn write_manifest(&self, ended: &Run) -> Option<mlmesh_model::Digest> {
        let attempts = self.attempts().await;
        let mut extras = self.extras.clone();
        let host = &self.inner.host;
        // Another boot may be another kernel: nothing is said of what is not known.
        let newest = attempts.last();
        let is_here = newest.is_some_and(|attempt| attempt.boot_id == host.boot_id);
        extras.host = is_here.then(|| Arc::clone(host));
        let manifest = manifest(ended, &attempts, &extras);
        persist_manifest(&self.inner, self.lease.run, manifest).await
    }

    /// All attempts, the newest as it will stand in the store.
    pub(crate) async fn attempts(&self) -> Vec<Attempt> {
        let store = &self.inner.ports.store;
        let mut attempts = match (&self.attempt, self.lease.number.0) {
            (Some(only), 1) => vec![only.clone()],
            _ => persist(&self.inner.cancel, "read the attempts of a run", || {
                store.attempts(self.lease.run)
            })
            .await
            .unwrap_or_default(),
        };
        if let Some(newest) = attempts
            .iter_mut()
            .find(|attempt| attempt.number == self.lease.number)
        {
            newest.started_at = self.update.started_at;
            newest.ended_at = self.update.ended_at;
            newest.exit = self.update.exit;
            newest.cause = self.update.cause;
        }
        attempts
    }
}

/// Writes the manifest, again and again while the disk refuses. `None` when the
/// daemon goes down meanwhile, or the manifest cannot be written at all.
async fn persist_manifest(
    inner: &Inner,
    run: RunId,
    manifest: serde_json::Value,
) -> Option<mlmesh_model::Digest> {
    /// Tries before the run is recorded without its file.
    const TRIES_MAX: u32 = 8;
    let folder = run_folder(&inner.config.data_dir, run);
    let manifest = Arc::new(manifest);
    let mut delay = Duration::from_millis(50);
    for _ in 0..TRIES_MAX {
        let (folder, manifest) = (folder.clone(), Arc::clone(&manifest));
        let written = tokio::task::spawn_blocking(move || write_manifest(&folder, &manifest)).await;
        match written {
            Ok(Ok(digest)) => return Some(digest),
            Ok(Err(error)) => {
                tracing::warn!(%run, %error, file = MANIFEST_FILE, "the manifest could not be written");
            }
            Err(error) => tracing::error!(%run, %error, "writing the manifest panicked"),
        }
        tokio::time::sleep(delay).await;
        delay *= 2;
    }
    None
}

/// Removes the run's secrets, or those of its sweep with the last point.
async fn drop_secrets(inner: &Inner, run: &Run) {
    let has_secrets = run
        .plan
        .as_ref()
        .is_some_and(|plan| !plan.secrets.is_empty());
    if !has_secrets {
        return;
    }
    let holder = match sweep_of(run) {
        Some(sweep) if inner.state().scheduler.open_points(sweep) > 1 => return,
        Some(sweep) => sweep,
        None => run.id,
    };
    remove_secrets(inner, holder).await;
}

async fn remove_secrets(inner: &Inner, holder: RunId) {
    let folder = run_folder(&inner.config.data_dir, holder);
    let removed = tokio::task::spawn_blocking(move || secrets::forget(&folder)).await;
    if !matches!(removed, Ok(Ok(()))) {
        tracing::error!(run = %holder, "values of secrets could not be removed");
    }
}

/// Ends in the queue for which a file is written beside the record. The manifest of
/// such a run is a function of its record alone, and is read from there.
const MANIFESTS_WRITTEN_MAX: usize = 64;

/// Records the ends of runs that are in the queue.
pub(crate) async fn end_queued(inner: &Arc<Inner>, mut ends: Vec<QueuedEnd>) {
    while let Some((_, cause)) = ends.first() {
        let cause = *cause;
        let (now, later): (Vec<_>, Vec<_>) = ends.into_iter().partition(|end| end.1 == cause);
        ends = later;
        let runs = now.into_iter().map(|(run, _)| run).collect();
        if let Err(error) = end_together(inner, runs, cause, None, &|| {}).await {
            tracing::warn!(%error, "ends of queued runs were not taken");
        }
    }
}

/// Records the ends of runs that are in the queue, by one cause, in one transaction,
/// with what a person asked for. Calls `tried` when the store has answered for the
/// first time, whatever it said.
pub(crate) async fn end_together(
    inner: &Arc<Inner>,
    runs: Vec<Arc<Run>>,
    cause: Cause,
    asked: Option<Asked>,
    tried: &(dyn Fn() + Sync),
) -> Result<(), StoreError> {
    let time = inner.ports.clock.now();
    let message = match cause {
        Cause::DependencyFailed => "a run that it waits for did not complete",
        _ => "",
    };
    if runs.len() <= MANIFESTS_WRITTEN_MAX {
        for run in &runs {
            write_queued_end(inner, run, cause, message, time).await;
        }
    }
    let change = UnleasedMove {
        runs: runs.iter().map(|run| (run.id, Phase::Queued)).collect(),
        to: cause.end_phase(),
        time,
        cause: Some(cause),
        message: message.to_owned(),
        asked,
    };
    let store = &inner.ports.store;
    let written = persist(&inner.cancel, "record the ends of queued runs", || {
        let written = store.move_unleased(change.clone());
        Box::pin(async move {
            let written = written.await;
            tried();
            written
        })
    })
    .await;
    let (gone, outcome): (HashSet<RunId>, _) = match written {
        Ok(moved) => {
            for (run, error) in &moved.refused {
                tracing::warn!(%run, %error, "the end of a queued run was not taken");
            }
            let refused = moved.refused.into_iter();
            (refused.map(|(run, _)| run).collect(), Ok(()))
        }
        // The daemon goes down; the next one finds them where the store has them.
        Err(error @ StoreError::Unavailable(_)) => return Err(error),
        Err(error) => (runs.iter().map(|run| run.id).collect(), Err(error)),
    };
    inner.with_state(|state| {
        let ended = runs.iter().filter(|run| !gone.contains(&run.id));
        inner.apply_each(state, ended.map(|run| Event::Recorded(run.id)));
    });
    let lost = runs.iter().filter(|run| gone.contains(&run.id));
    join_all(lost.map(|run| reconcile::lease_lost(inner, run))).await;
    let ended = runs.iter().filter(|run| !gone.contains(&run.id));
    ended.for_each(|run| reproduce::judge_later(inner, run));
    drop_secrets_of(inner, &runs).await;
    outcome
}

async fn write_queued_end(inner: &Inner, run: &Run, cause: Cause, message: &str, time: Micros) {
    let ended = Run {
        phase: cause.end_phase(),
        cause: Some(cause),
        message: message.to_owned(),
        not_before: None,
        ended_at: Some(time),
        ..run.clone()
    };
    let extras = Extras {
        daemon_version: env!("CARGO_PKG_VERSION").into(),
        ..Extras::default()
    };
    let attempts = match run.attempts {
        0 => Vec::new(),
        _ => {
            let attempts = inner.ports.store.attempts(run.id).await;
            attempts.unwrap_or_default()
        }
    };
    persist_manifest(inner, run.id, manifest(&ended, &attempts, &extras)).await;
}

/// Removes the secrets of runs and sweeps of which nothing is open any more.
async fn drop_secrets_of(inner: &Inner, runs: &[Arc<Run>]) {
    let with_secrets = runs.iter().filter(|run| {
        let plan = run.plan.as_ref();
        plan.is_some_and(|plan| !plan.secrets.is_empty())
    });
    let holders: HashSet<RunId> = with_secrets
        .map(|run| sweep_of(run).unwrap_or(run.id))
        .collect();
    for holder in holders {
        if !inner.needs_secrets(holder) {
            remove_secrets(inner, holder).await;
        }
    }
}

/// Answers the scheduler where a run stands that it does not hold.
pub(crate) async fn look_up(inner: Arc<Inner>, run: RunId) {
    let tenants: Vec<_> = {
        let state = inner.state();
        let waiting = state.runs.values();
        waiting
            .filter(|waiting| waiting.placement.after.contains(&run))
            .map(|waiting| waiting.tenant.clone())
            .take(1)
            .collect()
    };
    let Some(tenant) = tenants.first() else {
        return;
    };
    let store = &inner.ports.store;
    let found = persist(&inner.cancel, "look up a run", || store.run(tenant, run)).await;
    match found {
        Ok(found) => {
            let phase = found.map(|run| run.phase);
            inner.step(Event::Seen { run, phase });
        }
        Err(error) => tracing::error!(%run, %error, "a run could not be looked up"),
    }
}
