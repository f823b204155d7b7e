//! What is written of a run while and after it is tried.
//!
//! Moves are gathered and written together: an attempt that is over within
//! [`VISIBLE_AFTER`] costs two transactions, its claim and its end. A longer one is
//! seen to move within that time.

use std::sync::Arc;
use std::time::Duration;

use mlmesh_model::{
    Advance, Attempt, AttemptRef, AuditNote, Cause, Phase, Placement, Run, RunId, RunUpdate,
    StoreError, UnleasedMove,
};
use mlmesh_proof::{Extras, MANIFEST_FILE, manifest, write_manifest};
use mlmesh_sched::{Event, Verdict};

use crate::persist::persist;
use crate::private_file::run_folder;
use crate::reactor::{Inner, sweep_of};
use crate::{crash, reconcile, secrets};

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
                (Phase::Queued, Some(now.plus_us(delay_us)))
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

    fn advance(&self, to: Vec<Phase>, not_before: Option<mlmesh_model::Micros>) -> Advance {
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
            ..run.clone()
        }
    }

    async fn write_manifest(&self, ended: &Run) -> Option<mlmesh_model::Digest> {
        let attempts = self.attempts().await;
        let manifest = manifest(ended, &attempts, &self.extras);
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
    let folder = run_folder(&inner.config.data_dir, holder);
    let removed = tokio::task::spawn_blocking(move || secrets::forget(&folder)).await;
    if !matches!(removed, Ok(Ok(()))) {
        tracing::error!(run = %run.id, "values of secrets could not be removed");
    }
}

/// Records the end of a run that was never leased, or not since it was queued.
pub(crate) async fn end_queued(
    inner: Arc<Inner>,
    run: Arc<Run>,
    cause: Cause,
    audit: Option<AuditNote>,
) {
    let id = run.id;
    let time = inner.ports.clock.now();
    let message = match cause {
        Cause::DependencyFailed => "a run that it waits for did not complete".to_owned(),
        _ => String::new(),
    };
    let ended = Run {
        phase: cause.end_phase(),
        cause: Some(cause),
        message: message.clone(),
        ended_at: Some(time),
        ..(*run).clone()
    };
    let extras = Extras {
        daemon_version: env!("CARGO_PKG_VERSION").into(),
        ..Extras::default()
    };
    let attempts = match run.attempts {
        0 => Vec::new(),
        _ => inner.ports.store.attempts(id).await.unwrap_or_default(),
    };
    persist_manifest(&inner, id, manifest(&ended, &attempts, &extras)).await;
    drop_secrets(&inner, &run).await;
    let change = UnleasedMove {
        run: id,
        from: Phase::Queued,
        to: cause.end_phase(),
        time,
        cause: Some(cause),
        message,
        audit,
    };
    let store = &inner.ports.store;
    let moved = persist(&inner.cancel, "record the end of a queued run", || {
        store.move_unleased(change.clone())
    })
    .await;
    match moved {
        Ok(_) => {
            inner.step(Event::Recorded(id));
        }
        Err(StoreError::Unavailable(_)) => {}
        Err(error) => {
            tracing::warn!(run = %id, %error, "the end of a queued run was not taken");
            reconcile::lease_lost(&inner, &run).await;
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
