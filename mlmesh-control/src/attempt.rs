//! One attempt from its claim to its record: lease → start → watch → collect → record.
//!
//! The task owns nothing that cannot be found again: when the daemon dies, the
//! supervisor goes on, and [`resume`] takes the attempt up where it stands.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mlmesh_model::{
    ApiAccess, AttemptNumber, AttemptRef, Cause, Claim, Collected, Ended, ExecError, Isolation,
    Phase, Plan, Reattached, ResolvedEnvironment, Run, StartError, StartSpec, Started, StoreError,
};
use mlmesh_proof::final_trust;
use mlmesh_sched::{Again, Event, Outcome, Verdict, node_faults, retries_used};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::ledger::{Ledger, VISIBLE_AFTER};
use crate::persist::persist;
use crate::reactor::{Inner, sweep_of};
use crate::tending::{News, Tending};
use crate::{crash, data, gpus, reconcile, reproduce, secrets, token};

/// Metric summaries of a live attempt are written at most this often.
const METRICS_EVERY: Duration = Duration::from_secs(2);

/// Failed calls of the executor in a row after which an attempt counts as lost.
const EXECUTOR_FAILURES_MAX: u32 = 8;

/// Delay after a failed call of the executor; grows with each.
const EXECUTOR_RETRY: Duration = Duration::from_millis(100);

/// How long a start may go on after somebody asked for its end, beyond the grace.
const START_ABANDONED_AFTER: Duration = Duration::from_secs(2);

/// Asks for the end of an attempt.
pub(crate) type Stop = watch::Receiver<Option<Cause>>;

/// Claims the run and sees the attempt through.
pub(crate) async fn run(inner: Arc<Inner>, run: Arc<Run>, gpus: Vec<String>, stop: Stop) {
    let api = inner.config.api.as_ref().filter(|_| run.placement.api);
    let api = api.map(|address| ApiAccess {
        url: address.url.clone(),
        ca: address.ca.clone(),
        token: token::draw(&inner.ports, run.id),
    });
    let claim = Claim {
        token_sha256: api.as_ref().map(|api| token::sha256(&api.token)),
        run: run.id,
        node: inner.config.node.clone(),
        boot_id: inner.config.boot_id.clone(),
        time: inner.ports.clock.now(),
    };
    let store = &inner.ports.store;
    let claimed = persist(&inner.cancel, "claim a run", || store.claim(claim.clone())).await;
    let attempt = match claimed {
        Ok(attempt) => attempt,
        // The daemon goes down; the next one finds the run where the store has it.
        Err(StoreError::Unavailable(_)) => return,
        Err(error) => {
            tracing::warn!(run = %run.id, %error, "a run could not be claimed");
            return reconcile::lease_lost(&inner, &run).await;
        }
    };
    crash::point(crash::AFTER_CLAIM);
    tracing::debug!(target: crate::PATH, step = "lease", run = %run.id, token = attempt.token.0);
    let lease = AttemptRef {
        run: run.id,
        number: attempt.number,
        token: attempt.token,
    };
    let ledger = Ledger::new(
        Arc::clone(&inner),
        run,
        lease,
        Some(attempt),
        Phase::Starting,
    );
    let mut task = Task {
        inner,
        ledger,
        stop,
        said: None,
    };
    let begun = task.start(gpus, api).await;
    task.go_on(begun).await;
}

/// Takes an attempt up that an earlier daemon left.
pub(crate) async fn resume(inner: Arc<Inner>, run: Arc<Run>, lease: AttemptRef, stop: Stop) {
    let phase = run.phase;
    let ledger = Ledger::new(Arc::clone(&inner), run, lease, None, phase);
    let task = Task {
        inner,
        ledger,
        stop,
        said: None,
    };
    let begun = task.reattach().await;
    task.go_on(begun).await;
}

struct Task {
    inner: Arc<Inner>,
    ledger: Ledger,
    stop: Stop,
    /// Why a service was ended, for people.
    said: Option<String>,
}

/// What became of a start.
enum Begun {
    Running(Started),
    Ended(Ended, Option<ResolvedEnvironment>),
    Refused(StartError),
    NeverStarted,
    /// The daemon goes down; the attempt is left as it is.
    Left,
}

impl Task {
    async fn start(&mut self, gpus: Vec<String>, api: Option<ApiAccess>) -> Begun {
        let spec = match self.spec(gpus, api).await {
            Ok(spec) => spec,
            Err(error) => return Begun::Refused(error),
        };
        let executor = Arc::clone(&self.inner.ports.executor);
        let inner = Arc::clone(&self.inner);
        let starting = async {
            let _permit = inner.prepares.acquire().await;
            executor.start(spec).await
        };
        tokio::pin!(starting);
        let mut abandon_at = None;
        loop {
            tokio::select! {
                started = &mut starting => return match started {
                    Ok(started) => Begun::Running(started),
                    Err(error) => Begun::Refused(error),
                },
                cause = asked(&mut self.stop), if abandon_at.is_none() => {
                    let grace = Duration::from_millis(self.inner.config.grace_ms);
                    abandon_at = Some(Instant::now() + grace + START_ABANDONED_AFTER);
                    self.tell(cause).await;
                }
                () = until(abandon_at) => break,
                () = self.inner.cancel.cancelled() => return Begun::Left,
            }
        }
        self.reattach().await
    }

    async fn spec(
        &self,
        gpus: Vec<String>,
        api: Option<ApiAccess>,
    ) -> Result<StartSpec, StartError> {
        let run = &self.ledger.run;
        let failed = |message: String| StartError {
            cause: Cause::PrepareFailed,
            message,
        };
        let plan = run
            .plan
            .clone()
            .ok_or_else(|| failed("the run has no plan".into()))?;
        if !gpus.is_empty() {
            gpus::note(&self.inner, self.ledger.lease, &gpus)
                .await
                .map_err(|error| failed(format!("note the gpus: {error}")))?;
        }
        Ok(StartSpec {
            attempt: self.ledger.lease,
            tenant: run.tenant.clone(),
            sweep: sweep_of(run),
            datasets: data::of_plan(&self.inner, run, &plan).await?,
            secrets: self.secrets(&plan).await?,
            plan,
            placement: run.placement.clone(),
            api,
            gpus,
            grace_ms: self.inner.config.grace_ms,
        })
    }

    async fn secrets(&self, plan: &Plan) -> Result<secrets::Values, StartError> {
        if plan.secrets.is_empty() {
            return Ok(secrets::Values::new());
        }
        let failed = |message: String| StartError {
            cause: Cause::PrepareFailed,
            message,
        };
        let values = secrets::of_run(&self.inner, &self.ledger.run)
            .await
            .map_err(|error| failed(format!("read the secrets: {error}")))?;
        let wanted = |name: &String| {
            values
                .get(name)
                .map(|value| (name.clone(), value.clone()))
                .ok_or_else(|| failed(format!("secret `{name}` has no value any more")))
        };
        plan.secrets.iter().map(wanted).collect()
    }

    /// Asks the executor what became of the attempt until it answers.
    async fn reattach(&self) -> Begun {
        let lease = self.ledger.lease;
        for failures in 1..=EXECUTOR_FAILURES_MAX {
            match self.inner.ports.executor.reattach(lease).await {
                Ok(Reattached::Running(started)) => return Begun::Running(started),
                Ok(Reattached::Ended(ended, environment)) => {
                    return Begun::Ended(ended, environment);
                }
                // The store says that it ran: its record is gone.
                Ok(Reattached::NeverStarted) if self.ledger.phase != Phase::Starting => break,
                Ok(Reattached::NeverStarted) if self.is_of_earlier_boot().await => {
                    let ended = Ended {
                        cause: Some(Cause::Reboot),
                        ..self.lost("the machine was restarted after it was claimed")
                    };
                    return Begun::Ended(ended, None);
                }
                Ok(Reattached::NeverStarted) => return Begun::NeverStarted,
                Err(error) => {
                    tracing::warn!(run = %lease.run, %error, "an attempt could not be found again");
                }
            }
            tokio::select! {
                () = self.inner.cancel.cancelled() => return Begun::Left,
                () = tokio::time::sleep(EXECUTOR_RETRY * failures) => {}
            }
        }
        Begun::Ended(self.lost("no record of the attempt was found"), None)
    }

    /// Whether the machine was restarted since the claim. What an attempt writes
    /// about itself does not outlive that: its command may have run.
    async fn is_of_earlier_boot(&self) -> bool {
        let attempts = self.ledger.attempts().await;
        let newest = attempts
            .iter()
            .find(|attempt| attempt.number == self.ledger.lease.number);
        newest.is_some_and(|attempt| attempt.boot_id != self.inner.config.boot_id)
    }

    async fn go_on(mut self, begun: Begun) {
        match begun {
            Begun::Left => {}
            Begun::NeverStarted => {
                let verdict = self.inner.step(Event::NeverStarted(self.ledger.lease.run));
                self.close(verdict).await;
            }
            Begun::Refused(error) => {
                let cause = error.cause;
                self.ledger.update.message = Some(error.message);
                self.judge(Some(cause)).await;
            }
            Begun::Running(started) => {
                crash::point(crash::AFTER_START);
                self.started(&started);
                let Some(ended) = self.watch(&started.ports).await else {
                    return;
                };
                self.ended(ended).await;
            }
            Begun::Ended(ended, environment) => {
                self.ledger.extras.environment = environment;
                if ended.started_at.is_some() {
                    // A command starts only after its datasets were verified.
                    self.ledger.extras.datasets_verified = self.dataset_names();
                }
                self.ledger.moved(Phase::Running);
                self.inner.step(Event::Started(self.ledger.lease.run));
                self.ended(ended).await;
            }
        }
    }

    fn started(&mut self, started: &Started) {
        let run = self.ledger.lease.run;
        tracing::debug!(target: crate::PATH, step = "start", %run);
        self.ledger.update.started_at = Some(started.time);
        self.ledger.update.isolation = Some(started.isolation.clone());
        self.ledger
            .extras
            .environment
            .clone_from(&started.environment);
        self.ledger
            .extras
            .datasets_verified
            .clone_from(&started.datasets_verified);
        self.ledger.moved(Phase::Running);
        self.inner.step(Event::Started(run));
    }

    /// Waits for the end; writes the move to `running` and metrics meanwhile. `None`
    /// when there is nothing more to do here.
    async fn watch(&mut self, ports: &BTreeMap<String, u16>) -> Option<Ended> {
        let lease = self.ledger.lease;
        let mut tending = Tending::of(&self.inner, &self.ledger.run, lease.number, ports);
        tracing::debug!(target: crate::PATH, step = "watch", run = %lease.run);
        let executor = Arc::clone(&self.inner.ports.executor);
        let cancel = self.inner.cancel.clone();
        let mut waiting = executor.wait(lease);
        let mut failures = 0;
        let mut visible_at = self
            .ledger
            .is_behind()
            .then(|| Instant::now() + VISIBLE_AFTER);
        let mut metrics_at = Instant::now() + METRICS_EVERY;
        let mut written = Default::default();
        loop {
            tokio::select! {
                biased;
                ended = &mut waiting => match ended {
                    Ok(ended) => return Some(ended),
                    Err(ExecError::NoAttempt(_)) => return Some(self.lost("its supervisor is gone")),
                    Err(error) => {
                        failures += 1;
                        tracing::warn!(run = %lease.run, %error, "waiting for an attempt failed");
                        if failures >= EXECUTOR_FAILURES_MAX {
                            return Some(self.lost("the executor could not watch it"));
                        }
                        tokio::time::sleep(EXECUTOR_RETRY * failures).await;
                        waiting = executor.wait(lease);
                    }
                },
                cause = asked(&mut self.stop) => {
                    let drains = tending.drain(cause);
                    match drains {
                        true => self.moved_on(Phase::Draining),
                        false => self.tell(cause).await,
                    }
                    visible_at = Some(Instant::now());
                }
                news = tending.news() => {
                    self.hear(news).await;
                    visible_at = Some(Instant::now());
                }
                () = until(visible_at) => {
                    if self.ledger.flush().await.is_err() {
                        reconcile::lease_lost(&self.inner, &self.ledger.run).await;
                        return None;
                    }
                    visible_at = self.ledger.is_behind().then(|| Instant::now() + METRICS_EVERY);
                }
                () = tokio::time::sleep_until(metrics_at) => {
                    self.push_metrics(&mut written).await;
                    metrics_at = Instant::now() + METRICS_EVERY;
                }
                () = cancel.cancelled() => return None,
            }
        }
    }

    /// What has come of a service.
    async fn hear(&mut self, news: News) {
        match news {
            News::Ready => self.moved_on(Phase::Ready),
            News::NotReady(why) => {
                self.said = Some(why);
                self.tell(Cause::NotReady).await;
            }
            News::Over(cause) => {
                self.moved_on(Phase::Draining);
                self.tell(cause).await;
            }
        }
    }

    /// A service has moved on its way.
    fn moved_on(&mut self, to: Phase) {
        let run = self.ledger.lease.run;
        self.ledger.moved(to);
        self.inner.step(match to {
            Phase::Ready => Event::Ready(run),
            _ => Event::Draining(run),
        });
    }

    /// Writes the metric summaries if they changed. What fails is tried next time.
    async fn push_metrics(
        &self,
        written: &mut std::collections::BTreeMap<String, mlmesh_model::MetricSummary>,
    ) {
        let lease = self.ledger.lease;
        let ports = &self.inner.ports;
        let metrics = match ports.executor.metrics(lease).await {
            Ok(metrics) if metrics != *written => metrics,
            Ok(_) => return,
            Err(error) => {
                return tracing::debug!(run = %lease.run, %error, "metrics could not be read");
            }
        };
        let stored = ports
            .store
            .set_metrics(lease.run, lease.token, metrics.clone());
        match stored.await {
            Ok(()) => *written = metrics,
            Err(error) => {
                tracing::debug!(run = %lease.run, %error, "metrics could not be written");
            }
        }
    }

    /// Collects what the attempt left, and closes it.
    async fn ended(mut self, ended: Ended) {
        let run = self.ledger.lease.run;
        crash::point(crash::AFTER_EXIT);
        self.ledger.moved(Phase::Finishing);
        self.inner.step(Event::Exited(run));
        let update = &mut self.ledger.update;
        update.started_at = ended.started_at.or(update.started_at);
        update.ended_at = Some(ended.ended_at);
        update.exit = ended.exit;
        update.message = Some(ended.message.clone());
        update.isolation = Some(ended.isolation.clone());
        update.logged.clone_from(&ended.logged);
        self.ledger.extras.log_bytes_dropped = ended.log_bytes_dropped;
        if let Some(said) = self.said.take() {
            self.explain(&said);
        }
        let Some(cause) = self.collect(&ended).await else {
            return;
        };
        self.look_at_data().await;
        crash::point(crash::AFTER_COLLECT);
        self.trust(&ended.isolation);
        self.judge(cause).await;
    }

    /// Collects outputs and metrics; returns why the attempt failed, if it did.
    /// `None` when the lease is gone.
    async fn collect(&mut self, ended: &Ended) -> Option<Option<Cause>> {
        let lease = self.ledger.lease;
        let plan = match self.ledger.run.plan.clone() {
            Some(plan) if ended.started_at.is_some() => plan,
            Some(_) | None => return Some(ended.cause),
        };
        let executor = Arc::clone(&self.inner.ports.executor);
        let mut collecting = executor.collect(lease, Arc::clone(&plan));
        let mut visible_at = Some(Instant::now() + VISIBLE_AFTER);
        let mut failures = 0;
        let collected = loop {
            tokio::select! {
                biased;
                collected = &mut collecting => match collected {
                    Ok(collected) => break Ok(collected),
                    Err(error) => {
                        // What fills a disk may go away; the outputs would not come back.
                        failures = if error.is_disk_full() { 1 } else { failures + 1 };
                        tracing::warn!(run = %lease.run, %error, "outputs could not be collected");
                        if self.inner.cancel.is_cancelled() && error.is_disk_full() {
                            return None;
                        }
                        if failures >= EXECUTOR_FAILURES_MAX {
                            break Err(error);
                        }
                        tokio::time::sleep(EXECUTOR_RETRY * failures).await;
                        collecting = executor.collect(lease, Arc::clone(&plan));
                    }
                },
                () = until(visible_at) => {
                    visible_at = None;
                    if self.ledger.is_behind() && self.ledger.flush().await.is_err() {
                        reconcile::lease_lost(&self.inner, &self.ledger.run).await;
                        return None;
                    }
                }
            }
        };
        Some(match collected {
            Ok(collected) => self.collected(ended.cause, collected),
            Err(error) => {
                let first = ended.cause.unwrap_or(Cause::CollectFailed);
                self.explain(&format!("the outputs could not be collected: {error}"));
                Some(first)
            }
        })
    }

    fn collected(&mut self, cause: Option<Cause>, collected: Collected) -> Option<Cause> {
        self.ledger.update.outputs = collected.outputs;
        self.ledger.update.metrics = Some(collected.metrics);
        self.ledger.extras.output_files = collected.files;
        if cause.is_some() || collected.missing.is_empty() {
            return cause;
        }
        let missing: Vec<String> = collected
            .missing
            .iter()
            .map(|glob| format!("`{glob}`"))
            .collect();
        self.explain(&format!(
            "declared outputs matched nothing: {}",
            missing.join(", ")
        ));
        Some(Cause::OutputMissing)
    }

    /// Adds to what a person reads about the end.
    fn explain(&mut self, what: &str) {
        let message = self.ledger.update.message.get_or_insert_default();
        if !message.is_empty() {
            message.push_str("; ");
        }
        message.push_str(what);
    }

    /// A dataset that changed while the job could read it was not what its digest says.
    async fn look_at_data(&mut self) {
        if self.ledger.extras.datasets_verified.is_empty() {
            return;
        }
        for (name, why) in data::changed(&self.inner, &self.ledger.run).await {
            self.ledger
                .extras
                .datasets_verified
                .retain(|verified| *verified != name);
            self.explain(&why);
        }
    }

    fn trust(&mut self, isolation: &Isolation) {
        if let Some(plan) = &self.ledger.run.plan {
            let verified = &self.ledger.extras.datasets_verified;
            let predicted = self.ledger.run.trust.as_ref();
            self.ledger.update.trust = Some(final_trust(plan, isolation, verified, predicted));
        }
    }

    async fn judge(self, cause: Option<Cause>) {
        let placement = &self.ledger.run.placement;
        let again = Again::of(placement);
        let counts = again.retries > 0 || cause == Some(Cause::NodeFault);
        let mut earlier = Vec::new();
        if counts && self.ledger.lease.number > AttemptNumber(1) {
            earlier = self.ledger.attempts().await;
            earlier.retain(|attempt| attempt.number < self.ledger.lease.number);
        }
        let verdict = self.inner.step(Event::Finished {
            run: self.ledger.lease.run,
            outcome: Outcome {
                cause,
                retries_used: retries_used(&earlier, again),
                node_faults: node_faults(&earlier),
            },
        });
        self.close(verdict).await;
    }

    async fn close(self, verdict: Option<Verdict>) {
        let Self { inner, ledger, .. } = self;
        let run = Arc::clone(&ledger.run);
        let Some(verdict) = verdict else {
            tracing::error!(run = %run.id, "the scheduler does not hold an attempt that has ended");
            return reconcile::lease_lost(&inner, &run).await;
        };
        match ledger.close(verdict).await {
            Ok(lease) => {
                inner.step(Event::Recorded(run.id));
                reproduce::judge_later(&inner, &run);
                if let Err(error) = inner.ports.executor.discard(lease).await {
                    tracing::warn!(run = %run.id, %error, "the working directory was not removed");
                }
            }
            Err(_) => reconcile::lease_lost(&inner, &run).await,
        }
    }

    /// Passes the wish for an end on to the executor.
    async fn tell(&self, cause: Cause) {
        let lease = self.ledger.lease;
        let grace_ms = self.inner.config.grace_ms;
        if let Err(error) = self.inner.ports.executor.stop(lease, cause, grace_ms).await {
            tracing::debug!(run = %lease.run, %error, "nothing to stop yet");
        }
    }

    fn lost(&self, message: &str) -> Ended {
        Ended {
            started_at: self.ledger.update.started_at.or(self.ledger.run.started_at),
            ended_at: self.inner.ports.clock.now(),
            exit: None,
            cause: Some(Cause::Lost),
            message: message.to_owned(),
            isolation: self.ledger.update.isolation.clone().unwrap_or_default(),
            log_bytes_dropped: 0,
            logged: None,
        }
    }

    fn dataset_names(&self) -> Vec<String> {
        let plan = self.ledger.run.plan.as_ref();
        plan.map(|plan| {
            let names = plan.datasets.iter();
            names.map(|dataset| dataset.name.to_string()).collect()
        })
        .unwrap_or_default()
    }
}

/// Resolves when somebody asks for an end, once for each wish.
async fn asked(stop: &mut Stop) -> Cause {
    loop {
        if stop.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        if let Some(cause) = *stop.borrow_and_update() {
            return cause;
        }
    }
}

/// Resolves at `at`; never without one.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
