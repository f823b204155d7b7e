//! Runs once more what completed, and judges what came of it.
//!
//! ```text
//!   reproduce ─► the original's plan as it stands ─► preflight: could it run now?
//!      ─► a new run whose placement names the original ─► queue … end
//!      ─► judge: both records, both listings ─► one transaction: judgement, trust, audit
//! ```
//!
//! A repetition is an ordinary run in all but its plan's origin; nothing of the original
//! is used again. Its judgement follows its end. One that a dying daemon did not write is
//! made by the next one; the store takes the first.

use std::sync::Arc;
use std::time::Duration;

use mlmesh_model::{
    AuditNote, CurrentEnvironment, DatasetRef, DepsKind, Digest, Environment, Experiment,
    ListedFile, Network, NewRun, Phase, Placement, Plan, PlanNetwork, PlanSeed, Refusal,
    Reproduction, Run, RunId, RunKind, Seed, SnapshotsError, Submission, Submit, Trust, Workload,
};
use mlmesh_proof::RunResult;

use crate::config::Caller;
use crate::error::{Accepted, ControlError};
use crate::persist::persist;
use crate::reactor::Inner;
use crate::{admit, data};

/// Tries to read the outputs before the judgement is left to the next daemon.
const READS_MAX: u32 = 8;

/// Delay after a failed try; grows with each.
const READ_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Queues a run with the plan of a completed one.
pub(crate) async fn reproduce(
    inner: &Arc<Inner>,
    caller: &Caller,
    id: RunId,
    idempotency_key: Option<String>,
) -> Result<Accepted, ControlError> {
    if inner.cancel.is_cancelled() {
        return Err(ControlError::ShuttingDown);
    }
    let store = &inner.ports.store;
    let original = store.run(&caller.tenant, id).await?;
    let original = original.ok_or(ControlError::NoRun(id))?;
    let plan = reproducible(&original)?;
    let trust = preflight(inner, caller, &original, &plan).await?;
    unchanged_data(inner, &original).await?;
    let request_sha256 = Digest::of(format!("run.reproduce {id}").as_bytes());
    let run = repetition(inner, caller, &original, trust);
    let submit = Submit {
        idempotency_key,
        request_sha256,
        audit: AuditNote {
            time: inner.ports.clock.now(),
            tenant: caller.tenant.clone(),
            owner: caller.owner.clone(),
            key: caller.key.clone(),
            remote: caller.remote.clone(),
            action: "run.reproduce".into(),
            subject: run.id.to_string(),
            details_sha256: Some(request_sha256),
        },
        runs: vec![run],
    };
    admit::enqueue(inner, submit, Default::default()).await
}

/// The plan of a run that has a result of its own.
fn reproducible(original: &Run) -> Result<Arc<Plan>, ControlError> {
    let refused = |code: &str, message: String, hint: &str| {
        Err(ControlError::Refused(vec![Refusal::new(
            code, message, hint,
        )]))
    };
    match &original.plan {
        Some(plan) if original.phase == Phase::Completed => Ok(Arc::clone(plan)),
        Some(_) => refused(
            "reproduce_not_completed",
            format!(
                "run `{}` is {}; only a completed run can be reproduced",
                original.id, original.phase
            ),
            "`ml list --phase completed` shows those that are",
        ),
        None => refused(
            "reproduce_sweep",
            format!(
                "run `{}` is a sweep, which has no result of its own",
                original.id
            ),
            "name one of its points: `ml list --parent SWEEP`",
        ),
    }
}

/// The level that it can reach here, unless something stands in its way now, by the rules
/// of every submission: tree, lock, data, secrets, resources, what the host can enforce.
async fn preflight(
    inner: &Arc<Inner>,
    caller: &Caller,
    original: &Run,
    plan: &Plan,
) -> Result<Trust, ControlError> {
    let submission = Arc::new(submission(original, plan));
    let judged = admit::explain(inner, caller, submission).await?;
    let mut refusals = judged.refusals;
    let is_absent = |wait: &Refusal| wait.code == "commit_not_synced";
    if judged.waits.iter().any(is_absent) {
        // A lock that cannot be read has gone with its tree.
        refusals.retain(|refusal| refusal.code != "lock_missing");
        refusals.push(Refusal::new(
            "reproduce_code_gone",
            format!(
                "the tree `{}` of run `{}` is not complete in the content store",
                original.commit, original.id
            ),
            "`ml sync` in a folder with the same files brings it back; `ml pin` keeps one",
        ));
    }
    let planned = plan
        .deps
        .as_ref()
        .filter(|deps| deps.kind == DepsKind::Lock);
    let found = judged.groups.deps.as_ref();
    if let (Some(planned), Some(found)) = (planned, found)
        && planned.sha256 != found.sha256
    {
        refusals.push(Refusal::new(
            "reproduce_environment_changed",
            format!(
                "the environment of `{}` has digest {}, the plan has {}",
                planned.name, found.sha256, planned.sha256
            ),
            "the lock is read in another way than by the version that planned the run",
        ));
    }
    match refusals.is_empty() {
        true => Ok(judged.trust),
        false => Err(ControlError::Refused(refusals)),
    }
}

/// A recipe that needs what the plan needs. Its own plan is not used: the command could
/// hold what a recipe would replace.
fn submission(original: &Run, plan: &Plan) -> Submission {
    let placement = &original.placement;
    let current = placement.current_environment.clone();
    let environment = plan.deps.as_ref().map(|deps| match deps.kind {
        DepsKind::Current => Environment::Current,
        DepsKind::Lock => Environment::Locked {
            python: deps.python.clone(),
            lock: deps.name.clone(),
        },
    });
    let dataset = |dataset: &mlmesh_model::PlanDataset| DatasetRef {
        name: dataset.name.clone(),
        version: dataset.version.clone(),
        checksum: Some(dataset.checksum),
        mount: dataset.mount.clone(),
    };
    let experiment = Experiment {
        name: original.name.clone(),
        command: vec!["true".to_owned()],
        params: Default::default(),
        seed: match plan.seed {
            PlanSeed::Absent => Seed::Absent,
            PlanSeed::None => Seed::None,
            PlanSeed::Value(seed) => Seed::Value(seed),
        },
        sweep: None,
        environment,
        datasets: plan.datasets.iter().map(dataset).collect(),
        outputs: plan.outputs.clone(),
        resources: plan.resources,
        env: plan.env.clone(),
        secrets: plan.secrets.clone(),
        network: Some(match &plan.network {
            PlanNetwork::None => Network::None,
            PlanNetwork::Hosts(hosts) => Network::Hosts(hosts.clone()),
            PlanNetwork::Open => Network::Open,
        }),
        retries: 0,
        retry_on: Vec::new(),
        tolerance: placement.tolerance.clone(),
        sandbox: placement.sandbox,
        api: placement.api,
        limits: placement.limits,
        after: Vec::new(),
        on_finish: None,
    };
    Submission {
        workload: Workload::Experiment(Box::new(experiment)),
        commit: original.commit,
        recipe_path: String::new(),
        git: None,
        lock: None,
        current: current.map(|prefix| CurrentEnvironment {
            prefix,
            python: plan
                .deps
                .as_ref()
                .map_or(String::new(), |deps| deps.python.clone()),
            frozen: Vec::new(),
        }),
        policy: placement.policy,
        executor: Some(placement.executor),
        priority: 0,
        expected_plan: None,
        secret_values: Default::default(),
    }
}

/// A changed file is said now, and again when the run starts.
async fn unchanged_data(inner: &Inner, original: &Run) -> Result<(), ControlError> {
    let changed = data::changed(inner, original).await.into_iter();
    let refusals: Vec<Refusal> = changed
        .map(|(_, why)| {
            let hint = "restore the file; a result of other data is no reproduction";
            Refusal::new("dataset_changed", why, hint)
        })
        .collect();
    match refusals.is_empty() {
        true => Ok(()),
        false => Err(ControlError::Refused(refusals)),
    }
}

/// A run of its own with the same plan. It is tried once: what needs a second try has
/// not given the result again.
fn repetition(inner: &Inner, caller: &Caller, original: &Run, trust: Trust) -> Run {
    Run::from(NewRun {
        id: RunId::from_random((inner.ports.random)()),
        tenant: original.tenant.clone(),
        owner: caller.owner.clone(),
        name: original.name.clone(),
        kind: RunKind::Single,
        commit: original.commit,
        plan: original.plan.clone(),
        plan_sha256: original.plan_sha256,
        placement: Placement {
            node: None,
            priority: 0,
            retries: 0,
            retry_on: Vec::new(),
            after: Vec::new(),
            reproduces: Some(original.id),
            sandbox: original.placement.sandbox || !caller.daemon_owner,
            apart: original.placement.apart || !caller.daemon_owner,
            on_finish: None,
            ..original.placement.clone()
        },
        git: original.git.clone(),
        trust: Some(trust),
        queued_at: inner.ports.clock.now(),
    })
}

/// Judges, in the background, what an earlier daemon has left to judge.
pub(crate) fn judge_what_is_left(inner: &Arc<Inner>) {
    let judge = Arc::clone(inner);
    inner.tasks.spawn(async move {
        let store = &judge.ports.store;
        match persist(&judge.cancel, "read repetitions", || store.unjudged()).await {
            Ok(runs) => {
                for run in runs {
                    judge_now(&judge, &run).await;
                }
            }
            Err(error) => tracing::warn!(%error, "repetitions could not be read"),
        }
    });
}

/// Judges an ended run in the background, if it repeats another one.
pub(crate) fn judge_later(inner: &Arc<Inner>, run: &Run) {
    if run.placement.reproduces.is_none() {
        return;
    }
    let (judge, tenant, id) = (Arc::clone(inner), run.tenant.clone(), run.id);
    inner.tasks.spawn(async move {
        let store = &judge.ports.store;
        // As it stands in the store, with its end.
        let found = persist(&judge.cancel, "read a run", || store.run(&tenant, id)).await;
        match found {
            Ok(Some(run)) if run.phase.is_ended() => judge_now(&judge, &run).await,
            Ok(_) => {}
            Err(error) => tracing::warn!(run = %id, %error, "a repetition could not be read"),
        }
    });
}

async fn judge_now(inner: &Arc<Inner>, run: &Run) {
    let Some(judgement) = judgement(inner, run).await else {
        return;
    };
    let details = serde_json::to_vec(&judgement).unwrap_or_default();
    let audit = AuditNote {
        time: judgement.time,
        tenant: run.tenant.clone(),
        owner: run.owner.clone(),
        key: "local".into(),
        remote: "local".into(),
        action: "run.judge".into(),
        subject: run.id.to_string(),
        details_sha256: Some(Digest::of(&details)),
    };
    let store = &inner.ports.store;
    let written = persist(&inner.cancel, "keep a judgement", || {
        store.judge(judgement.clone(), audit.clone())
    });
    match written.await {
        Ok(is_first) => {
            let verdict = judgement.verdict.as_str();
            tracing::debug!(run = %run.id, verdict, is_first, "a repetition was judged");
        }
        Err(error) => tracing::warn!(run = %run.id, %error, "a judgement could not be kept"),
    }
}

/// `None` when the daemon goes down, or what has to be read cannot be.
async fn judgement(inner: &Arc<Inner>, run: &Run) -> Option<Reproduction> {
    let original = run.placement.reproduces?;
    let store = &inner.ports.store;
    let found = persist(&inner.cancel, "read the run that was repeated", || {
        store.run(&run.tenant, original)
    });
    let original = found
        .await
        .inspect_err(|error| tracing::warn!(run = %run.id, %error, "a run could not be read"))
        .ok()?;
    for tries in 1..=READS_MAX {
        let (inner_too, run_too, original) = (Arc::clone(inner), run.clone(), original.clone());
        let judged =
            tokio::task::spawn_blocking(move || compare(&inner_too, &run_too, original.as_ref()));
        match judged.await {
            Ok(Ok(judgement)) => return Some(judgement),
            Ok(Err(error)) => {
                tracing::warn!(run = %run.id, %error, "outputs could not be compared");
            }
            Err(error) => tracing::error!(run = %run.id, %error, "a comparison panicked"),
        }
        tokio::select! {
            () = inner.cancel.cancelled() => return None,
            () = tokio::time::sleep(READ_AGAIN_AFTER * tries) => {}
        }
    }
    None
}

/// Blocking.
fn compare(
    inner: &Inner,
    run: &Run,
    original: Option<&Run>,
) -> Result<Reproduction, SnapshotsError> {
    let snapshots = &*inner.ports.snapshots;
    let files = |run: &Run| -> Result<Vec<ListedFile>, SnapshotsError> {
        run.outputs
            .map_or(Ok(Vec::new()), |listing| snapshots.listing(listing))
    };
    let was = original.map(files).transpose()?.unwrap_or_default();
    let is = files(run)?;
    let original = original.map(|run| RunResult { run, outputs: &was });
    let repeated = RunResult { run, outputs: &is };
    let mut first_byte = |one, other| snapshots.first_difference(one, other).ok().flatten();
    let time = inner.ports.clock.now();
    Ok(mlmesh_proof::judge(
        original,
        repeated,
        time,
        &mut first_byte,
    ))
}
