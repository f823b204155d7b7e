//! The daemon's job path as its front ends see it.

use std::sync::Arc;
use std::time::Duration;

use mlmesh_model::{Digest, Labels, PlanModel, Run, RunId, Tenant};
use mlmesh_sched::{Capacity, Event, Load, Preflight, Scheduler};

use crate::actions::{self, Changed};
use crate::config::{Caller, ControlConfig, Ports};
use crate::error::{Accepted, ControlError};
use crate::reactor::{Inner, Seen};
use crate::secret_store::{self, SecretStore, StoredSecret};
use crate::services::{self, ModelsSaid, Replica};
use crate::{admit, machine, reconcile, reproduce, secrets, weights};

/// How long a drain waits for records that are being written.
const DRAIN_MAX: Duration = Duration::from_secs(20);

/// Accepts, starts, watches and records runs.
pub struct Control {
    inner: Arc<Inner>,
}

impl Control {
    /// Reads what has not ended, takes the live attempts up again, and is ready.
    pub async fn start(config: ControlConfig, ports: Ports) -> Result<Arc<Self>, ControlError> {
        let accelerators = Arc::clone(&ports.accelerators);
        let (config, host, capacity) = tokio::task::spawn_blocking(move || {
            let host = machine::host_facts(&config, &*accelerators);
            let given = config.capacity.clone();
            let capacity = given.unwrap_or_else(|| machine::capacity(&*accelerators));
            (config, host, capacity)
        })
        .await
        .map_err(admit::joined)?;
        let open = ports.store.open_runs().await?;
        let inner = Inner::new(config, host, ports, Scheduler::new(capacity));
        secret_store::blocking(&inner, SecretStore::check).await?;
        take_up(&inner, open).await;
        reproduce::judge_what_is_left(&inner);
        let keeper = Arc::clone(&inner);
        inner.tasks.spawn(keeper.keep_time());
        Ok(Arc::new(Self { inner }))
    }

    /// What the submission would do now. Writes nothing.
    pub async fn explain(
        &self,
        caller: &Caller,
        submission: mlmesh_model::Submission,
    ) -> Result<Preflight, ControlError> {
        admit::explain(&self.inner, caller, Arc::new(submission)).await
    }

    /// Accepts the submission, or says why not. What it returns is on disk.
    pub async fn submit(
        &self,
        caller: &Caller,
        submission: mlmesh_model::Submission,
        idempotency_key: Option<String>,
    ) -> Result<Accepted, ControlError> {
        admit::submit(&self.inner, caller, Arc::new(submission), idempotency_key).await
    }

    /// Takes note of what stands on a run now, so that its manifest says it.
    pub fn labelled(&self, run: RunId, labels: &Labels) {
        self.inner.labelled(run, labels);
    }

    /// Ends runs, of a sweep every point that has not ended: an outcome for each name,
    /// in their order. Returns when the ends of queued ones are on disk and live ones
    /// have been told. A repeated key is answered as the first time.
    pub async fn cancel(
        &self,
        caller: &Caller,
        runs: Vec<RunId>,
        idempotency_key: Option<String>,
    ) -> Result<Vec<Result<Changed, ControlError>>, ControlError> {
        let (inner, caller) = (Arc::clone(&self.inner), caller.clone());
        self.whole(async move { actions::cancel(&inner, &caller, &runs, idempotency_key).await })
            .await
    }

    /// Puts an ended run back into the queue; of a sweep every point that has not
    /// completed, with `failed_only` none that was cancelled. A repeated key is
    /// answered as the first time.
    pub async fn retry(
        &self,
        caller: &Caller,
        run: RunId,
        failed_only: bool,
        idempotency_key: Option<String>,
    ) -> Result<Changed, ControlError> {
        let (inner, caller) = (Arc::clone(&self.inner), caller.clone());
        let retry =
            async move { actions::retry(&inner, &caller, run, failed_only, idempotency_key).await };
        self.whole(retry).await
    }

    /// Queues a run with the plan of a completed one, to be judged when it has ended:
    /// executed anew, nothing is used again. A repeated key is answered as the first time.
    pub async fn reproduce(
        &self,
        caller: &Caller,
        run: RunId,
        idempotency_key: Option<String>,
    ) -> Result<Accepted, ControlError> {
        reproduce::reproduce(&self.inner, caller, run, idempotency_key).await
    }

    /// Replicas of services that have not ended, by name.
    pub fn services(&self, tenant: &Tenant) -> Vec<Replica> {
        services::open(&self.inner, tenant)
    }

    /// What the engines of ready replicas say of their models.
    pub async fn models(&self, tenant: &Tenant) -> Vec<(Replica, ModelsSaid)> {
        services::models(&self.inner, tenant).await
    }

    /// Has every ready replica of a service load a model of its repository, or unload it.
    pub async fn change_model(
        &self,
        caller: &Caller,
        service: &str,
        model: &str,
        load: bool,
    ) -> Result<Vec<RunId>, ControlError> {
        services::change_model(&self.inner, caller, service, model, load).await
    }

    /// Which run put a file of this digest out, and under which path.
    pub async fn maker(
        &self,
        caller: &Caller,
        sha256: Digest,
    ) -> Result<Option<PlanModel>, ControlError> {
        weights::maker(&self.inner, caller, sha256).await
    }

    /// Ends every replica of a service, each after it was drained.
    pub async fn stop_service(
        &self,
        caller: &Caller,
        name: String,
        idempotency_key: Option<String>,
    ) -> Result<Vec<RunId>, ControlError> {
        let (inner, caller) = (Arc::clone(&self.inner), caller.clone());
        let stop = async move { services::stop(&inner, &caller, &name, idempotency_key).await };
        self.whole(stop).await
    }

    /// Brings a service to so many replicas. Returns those that are to be there then,
    /// and those that were told to end.
    pub async fn scale_service(
        &self,
        caller: &Caller,
        name: String,
        replicas: u32,
        idempotency_key: Option<String>,
    ) -> Result<(Vec<RunId>, Vec<RunId>), ControlError> {
        let (inner, caller) = (Arc::clone(&self.inner), caller.clone());
        let scale =
            async move { services::scale(&inner, &caller, &name, replicas, idempotency_key).await };
        self.whole(scale).await
    }

    /// A task of its own, so that a caller who goes away leaves nothing half done.
    async fn whole<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, ControlError>> + Send + 'static,
    ) -> Result<T, ControlError> {
        if self.inner.cancel.is_cancelled() {
            return Err(ControlError::ShuttingDown);
        }
        let task = self.inner.tasks.spawn(work);
        task.await.map_err(admit::joined)?
    }

    /// What the caller has stored, by name. Values are never told.
    pub async fn secrets(&self, caller: &Caller) -> Result<Vec<StoredSecret>, ControlError> {
        secret_store::list(&self.inner, caller).await
    }

    /// Stores a value for the caller's runs. What it returns is on disk.
    pub async fn set_secret(
        &self,
        caller: &Caller,
        name: String,
        value: mlmesh_model::SecretText,
    ) -> Result<StoredSecret, ControlError> {
        secret_store::set(&self.inner, caller, name, value).await
    }

    /// The stored value that signs for a hook of this run.
    pub async fn secret_of(
        &self,
        run: &mlmesh_model::Run,
        name: &str,
    ) -> Option<mlmesh_model::SecretText> {
        let (tenant, owner) = (run.tenant.clone(), run.owner.clone());
        let read = secret_store::blocking(&self.inner, move |store| store.values(&tenant, &owner));
        read.await.ok()?.remove(name)
    }

    /// Forgets a stored value; false when there was none.
    pub async fn remove_secret(&self, caller: &Caller, name: String) -> Result<bool, ControlError> {
        secret_store::remove(&self.inner, caller, name).await
    }

    /// Starts nothing more and ends what is live, cause `shutdown`. Queued runs stay
    /// queued. Returns when every end is on disk.
    pub async fn stop_jobs(&self) {
        self.inner.step(Event::StopLive);
        self.wait(|seen| seen.busy == 0).await;
    }

    /// Starts nothing more, finishes what is being written, and lets attempts run:
    /// the next daemon takes them up.
    pub async fn shutdown(&self) {
        self.inner.step(Event::Drain);
        self.inner.cancel.cancel();
        self.inner.tasks.close();
        if tokio::time::timeout(DRAIN_MAX, self.inner.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("some records were not written before the drain ended");
        }
    }

    /// Returns when no run is open.
    pub async fn wait_idle(&self) {
        self.wait(|seen| seen.open == 0).await;
    }

    /// What is going on.
    pub fn load(&self) -> Load {
        self.inner.state().scheduler.load()
    }

    /// What attempts may use.
    pub fn capacity(&self) -> Capacity {
        let state = self.inner.state();
        state.scheduler.account().capacity().clone()
    }

    /// Number of attempts that hold resources.
    pub fn live(&self) -> usize {
        self.inner.state().scheduler.live()
    }

    /// Queued runs in the order in which they would start, at most `limit`.
    pub fn upcoming(&self, limit: usize) -> Vec<RunId> {
        let scheduler = self.inner.state().scheduler.clone();
        scheduler.upcoming(self.inner.now(), limit)
    }

    /// Forgets which commits are complete; called after objects were pruned.
    pub fn commits_changed(&self) {
        self.inner.caches.forget_commits();
    }

    async fn wait(&self, until: impl FnMut(&Seen) -> bool) {
        // The sender lives in `inner`, which lives in `self`.
        let _ = self.inner.seen().wait_for(until).await;
    }
}

/// Hands the runs that an earlier daemon left to the scheduler.
async fn take_up(inner: &Arc<Inner>, open: Vec<Run>) {
    let (live, queued): (Vec<Run>, Vec<Run>) =
        open.into_iter().partition(|run| run.phase.is_live());
    // What is live holds resources before anything else is given some.
    for run in live {
        reconcile::live(inner, run).await;
    }
    reconcile::queued(inner, queued);
    let cleaner = Arc::clone(inner);
    inner
        .tasks
        .spawn_blocking(move || secrets_left_behind(&cleaner));
}

/// Removes values of secrets whose run has ended between two lines of an earlier
/// daemon.
fn secrets_left_behind(inner: &Inner) {
    let experiments = inner.config.data_dir.join("data/experiments");
    let Ok(entries) = std::fs::read_dir(experiments) else {
        return;
    };
    for entry in entries.flatten() {
        if inner.cancel.is_cancelled() {
            return;
        }
        let name = entry.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<RunId>().ok()) else {
            continue;
        };
        let folder = entry.path();
        if !secrets::is_there(&folder) || inner.needs_secrets(id) {
            continue;
        }
        if let Err(error) = secrets::forget(&folder) {
            tracing::error!(%id, %error, "values of secrets could not be removed");
        }
    }
}
