//! The one preflight: what a submission becomes, and every reason why it may not run.
//!
//! `ml explain` shows the result, `ml queue` acts on it. It collects all refusals
//! instead of stopping at the first, and plans as far as a plan can be made, so
//! that a person sees everything at once.

use std::sync::Arc;

use mlmesh_model::{
    CommitId, DatasetRef, DepsDigest, Digest, Experiment, Name, ParamValue, Placement, Plan,
    PlanDigest, PlanSeed, Refusal, ReproPolicy, Resources, Seed, Submission, Trust, TrustLevel,
    sweep_digest,
};
use mlmesh_recipe::{Point, check, expand, start_names, substitute};
use serde::Serialize;

use crate::World;
use crate::rules::{self, Resolved};
use crate::template::Template;

/// What a submission would do now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Preflight {
    /// The runs, in sweep order; empty when no plan can be made.
    pub runs: Vec<PlannedRun>,
    /// Digest of the plan, or of the sweep; null when no plan can be made.
    pub plan_sha256: Option<PlanDigest>,
    /// Whether the runs are points of a sweep.
    pub sweep: bool,
    /// The level that can be reached, and what keeps it from the next ones.
    pub trust: Trust,
    /// Everything beside the plan.
    pub placement: Placement,
    /// Why it may not be enqueued; empty when it may.
    pub refusals: Vec<Refusal>,
    /// Why it could wait once enqueued.
    pub waits: Vec<Refusal>,
    /// What it is made of, for people.
    pub groups: Groups,
}

/// One run that would be accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedRun {
    /// Its place in the sweep, from 0.
    pub index: u32,
    /// `plan_sha256`.
    pub plan_sha256: PlanDigest,
    /// The plan.
    pub plan: Arc<Plan>,
}

/// The parts that identify an experiment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Groups {
    /// The source tree.
    pub commit: CommitId,
    /// The experiment and its digest.
    pub experiment: ExperimentGroup,
    /// The environment; null without one or when it is not known.
    pub deps: Option<DepsGroup>,
    /// The snapshot of the tree.
    pub snapshot: SnapshotGroup,
    /// The data, in recipe order.
    pub datasets: Vec<DatasetGroup>,
    /// Where the value of each secret comes from.
    pub secrets: Vec<SecretGroup>,
    /// What a run may use.
    pub resources: Resources,
    /// Digest of the image that would be used; null on `process`.
    pub candidate_image: Option<Digest>,
}

/// The experiment in [`Groups`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExperimentGroup {
    /// Its name.
    pub name: Name,
    /// Digest of its plan or sweep.
    pub sha256: Option<PlanDigest>,
    /// Number of runs.
    pub runs: u32,
}

/// The environment in [`Groups`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DepsGroup {
    /// Path of the lock in the tree, or `current`.
    pub name: String,
    /// Interpreter version.
    pub python: String,
    /// Its digest.
    pub sha256: DepsDigest,
}

/// The snapshot in [`Groups`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotGroup {
    /// First digits of the commit, as people name it.
    pub id: String,
    /// Digest of the tree's listing.
    pub sha256: Digest,
}

/// A dataset in [`Groups`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DatasetGroup {
    /// Its name.
    pub name: Name,
    /// Its version, if the recipe names one.
    pub version: Option<String>,
    /// The checksum that the recipe names.
    pub checksum: Option<Digest>,
    /// Where the job finds it.
    pub mount: String,
    /// Whether it is registered under this checksum.
    pub registered: bool,
}

/// A secret in [`Groups`]: its name, never its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SecretGroup {
    /// Its name.
    pub name: String,
    /// Who has the value; null when nobody has.
    pub from: Option<SecretSource>,
}

/// Who has a secret's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretSource {
    /// The caller sends it, and it wins.
    Caller,
    /// The daemon's store.
    Store,
}

/// Judges `submission` in `world`. The only source of refusals of plans.
pub fn preflight(submission: &Submission, world: &World) -> Preflight {
    let experiment = submission.workload.job();
    // What a client sends obeys the rules of recipes, whoever wrote the client.
    let mut refusals: Vec<Refusal> = check(&submission.workload).err().into_iter().collect();
    let resolved = rules::resolve(submission, experiment, world, &mut refusals);
    refusals.extend(rules::host(experiment, submission, world, &resolved));
    let trust = Trust::of(&resolved.trust);
    // A service has no result that could be had again: what it answers depends on who
    // asks. Of it strict wants that code and environment are known.
    let asked = match submission.workload.service() {
        Some(_) => TrustLevel::L2,
        None => TrustLevel::L3,
    };
    if submission.policy == ReproPolicy::Strict && trust.level < asked {
        refusals.extend(strict_refusals(&trust, asked, &refusals));
    }
    let runs = match plan_runs(submission, experiment, &resolved) {
        Ok(runs) => runs,
        Err(refusal) => {
            refusals.push(*refusal);
            Vec::new()
        }
    };
    let sweep = experiment.sweep.is_some();
    let plan_sha256 = match runs.as_slice() {
        [] => None,
        [only] if !sweep => Some(only.plan_sha256),
        runs => Some(sweep_digest(runs.iter().map(|run| run.plan_sha256))),
    };
    refusals.extend(rules::moved(submission.expected_plan, plan_sha256));
    Preflight {
        sweep,
        trust,
        waits: rules::waits(experiment, world),
        groups: groups(
            submission,
            experiment,
            world,
            &resolved,
            plan_sha256,
            runs.len(),
        ),
        placement: placement(submission, experiment, &resolved),
        plan_sha256,
        runs,
        refusals,
    }
}

/// Under strict every reason that keeps a run from the level asked is a refusal, unless
/// a more exact one was given for the same thing.
fn strict_refusals(trust: &Trust, asked: TrustLevel, given: &[Refusal]) -> Vec<Refusal> {
    let said = |code: &str| given.iter().any(|refusal| refusal.code == code);
    trust
        .reasons
        .iter()
        .filter(|reason| reason.level <= asked)
        .filter(|reason| match reason.code.as_str() {
            "sees_host_files" => !said("sandbox_unavailable"),
            "data_unverified" => !given.iter().any(is_about_data),
            _ => true,
        })
        .map(|reason| Refusal::new(&reason.code, reason.message.clone(), reason.hint.clone()))
        .collect()
}

fn is_about_data(refusal: &Refusal) -> bool {
    refusal.code.starts_with("dataset_")
}

fn plan_runs(
    submission: &Submission,
    experiment: &Experiment,
    resolved: &Resolved,
) -> Result<Vec<PlannedRun>, Box<Refusal>> {
    let Some(shared) = resolved.shared_plan(submission, experiment) else {
        return Ok(Vec::new());
    };
    let unplannable = |error: &dyn std::fmt::Display| {
        Box::new(Refusal::new(
            "plan_not_canonical",
            format!("the plan has no canonical form: {error}"),
            "use ASCII names, and write numbers other than integers below 2^53 as strings",
        ))
    };
    let template = Template::of(&shared).map_err(|error| unplannable(&error))?;
    let start_names = submission.workload.service().map(start_names);
    let start_names = start_names.unwrap_or_default();
    expand(experiment)?
        .into_iter()
        .zip(0_u32..)
        .map(|(point, index)| {
            let argv = match start_names.is_empty() {
                true => substitute(experiment, &point)?,
                false => substitute(experiment, &with_start_names(&point, &start_names))?,
            };
            let Point { params, seed } = point;
            let seed = match seed {
                Seed::Absent => PlanSeed::Absent,
                Seed::None => PlanSeed::None,
                Seed::Value(seed) => PlanSeed::Value(seed),
            };
            let plan_sha256 = template
                .digest(&argv, &params, seed)
                .map_err(|error| unplannable(&error))?;
            let plan = Arc::new(Plan {
                argv,
                params,
                seed,
                ..shared.clone()
            });
            Ok(PlannedRun {
                index,
                plan_sha256,
                plan,
            })
        })
        .collect()
}

/// Names that only the machine knows at a start stand in a plan as they are.
fn with_start_names(point: &Point, names: &[String]) -> Point {
    let itself = |name: &String| {
        let value = ParamValue::Text(format!("${{{name}}}"));
        (name.clone(), value)
    };
    let mut point = point.clone();
    point.params.extend(names.iter().map(itself));
    point
}

fn placement(submission: &Submission, experiment: &Experiment, resolved: &Resolved) -> Placement {
    Placement {
        executor: submission.executor.unwrap_or(Placement::default().executor),
        node: None,
        priority: submission.priority,
        retries: experiment.retries,
        retry_on: experiment.retry_on.clone(),
        after: resolved.after.clone(),
        policy: submission.policy,
        sandbox: resolved.sandbox,
        apart: resolved.apart,
        api: experiment.api,
        limits: experiment.limits,
        tolerance: experiment.tolerance.clone(),
        current_environment: resolved.current_prefix.clone(),
        site: std::collections::BTreeMap::new(),
        reproduces: None,
        on_finish: experiment.on_finish.clone(),
        keep: submission
            .workload
            .service()
            .map(|service| service.keep.clone()),
    }
}

/// Where each value comes from, in the order of the plan.
pub(crate) fn secrets(
    submission: &Submission,
    experiment: &Experiment,
    world: &World,
) -> Vec<SecretGroup> {
    let source = |name: &String| {
        let sent = submission.secret_values.contains_key(name);
        // What a caller sends is gone when a service is started once more.
        if sent && submission.workload.service().is_none() {
            return Some(SecretSource::Caller);
        }
        world.secrets.contains(name).then_some(SecretSource::Store)
    };
    let names = experiment.secrets.iter();
    names
        .map(|name| SecretGroup {
            name: name.clone(),
            from: source(name),
        })
        .collect()
}

fn groups(
    submission: &Submission,
    experiment: &Experiment,
    world: &World,
    resolved: &Resolved,
    plan_sha256: Option<PlanDigest>,
    runs: usize,
) -> Groups {
    let dataset = |reference: &DatasetRef| DatasetGroup {
        name: reference.name.clone(),
        version: reference.version.clone(),
        checksum: reference.checksum,
        mount: reference.mount.clone(),
        registered: !resolved.unverifiable.contains(reference.name.as_str()),
    };
    Groups {
        commit: submission.commit,
        experiment: ExperimentGroup {
            name: experiment.name.clone(),
            sha256: plan_sha256,
            runs: u32::try_from(runs).unwrap_or(u32::MAX),
        },
        deps: resolved.deps.as_ref().map(|deps| DepsGroup {
            name: deps.name.clone(),
            python: deps.python.clone(),
            sha256: deps.sha256,
        }),
        snapshot: SnapshotGroup {
            id: submission.commit.0.short(),
            sha256: submission.commit.0,
        },
        datasets: experiment.datasets.iter().map(dataset).collect(),
        secrets: secrets(submission, experiment, world),
        resources: experiment.resources,
        candidate_image: None,
    }
}
