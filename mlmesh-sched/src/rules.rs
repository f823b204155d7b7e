//! The single rules of preflight. Each looks at one thing and says what is wrong
//! with it; [`crate::preflight()`] holds the order.

use std::collections::BTreeSet;

use mlmesh_model::{
    DatasetRef, DepsDigest, DepsKind, Environment, EnvironmentFact, Experiment, LimitsPolicy,
    LockFacts, Network, NetworkFact, OnFinish, PLAN_VERSION, Phase, Plan, PlanDataset, PlanDeps,
    PlanDigest, PlanModel, PlanNetwork, PlanSeed, PlanService, Refusal, ReproPolicy,
    ResolvedEnvironment, RunId, Seed, Service, Submission, TrustFacts, deps_digest,
};

use crate::preflight::{SecretGroup, secrets};
use crate::world::{LockSeen, ModelSeen, ParentSeen, World};

/// What the world makes of the recipe's names.
#[derive(Debug, Clone, Default)]
pub(crate) struct Resolved {
    pub(crate) deps: Option<PlanDeps>,
    /// Set when the recipe names an environment whose digest is not known.
    pub(crate) deps_unknown: bool,
    /// Null where a checksum is not known, so that no plan can be made.
    pub(crate) datasets: Option<Vec<PlanDataset>>,
    /// Datasets that cannot be verified at start.
    pub(crate) unverifiable: BTreeSet<String>,
    pub(crate) after: Vec<RunId>,
    pub(crate) sandbox: bool,
    pub(crate) apart: bool,
    pub(crate) network: Option<PlanNetwork>,
    pub(crate) current_prefix: Option<String>,
    /// Set when the recipe names weights that are not there.
    pub(crate) model_unknown: bool,
    pub(crate) model: Option<PlanModel>,
    pub(crate) trust: TrustFacts,
}

impl Resolved {
    /// The plan without what differs between the points of a sweep.
    pub(crate) fn shared_plan(
        &self,
        submission: &Submission,
        experiment: &Experiment,
    ) -> Option<Plan> {
        if self.deps_unknown || self.model_unknown {
            return None;
        }
        Some(Plan {
            plan_version: PLAN_VERSION,
            commit: submission.commit,
            argv: Vec::new(),
            params: Default::default(),
            env: experiment.env.clone(),
            secrets: experiment.secrets.clone(),
            deps: self.deps.clone(),
            datasets: self.datasets.clone()?,
            seed: PlanSeed::Absent,
            outputs: experiment.outputs.clone(),
            resources: experiment.resources,
            image: None,
            network: self.network.clone()?,
            service: submission.workload.service().map(|service| PlanService {
                ports: service.ports.clone(),
                ready: service.ready.clone(),
                kind: service.kind.clone(),
                model: self.model.clone(),
            }),
        })
    }
}

/// Looks up what the recipe names, and refuses what is not there.
pub(crate) fn resolve(
    submission: &Submission,
    experiment: &Experiment,
    world: &World,
    refusals: &mut Vec<Refusal>,
) -> Resolved {
    let strict = submission.policy == ReproPolicy::Strict;
    let mut resolved = Resolved {
        // Jobs run as the daemon's user; nobody else's may see what that one can.
        sandbox: strict || experiment.sandbox || !world.caller_is_daemon_owner,
        apart: !world.caller_is_daemon_owner,
        ..Resolved::default()
    };
    environment(submission, experiment, world, &mut resolved, refusals);
    datasets(experiment, world, &mut resolved, refusals);
    parents(experiment, world, &mut resolved, refusals);
    let service = submission.workload.service();
    if let Some(service) = service {
        serving(service, world, &mut resolved, refusals);
    }
    resolved.network = match &experiment.network {
        Some(Network::None) => Some(PlanNetwork::None),
        Some(Network::Open) => Some(PlanNetwork::Open),
        Some(Network::Hosts(hosts)) => declared(hosts, refusals),
        // Nobody could reach a service from outside of a network of its own.
        None if strict && service.is_none() => Some(PlanNetwork::None),
        None => Some(PlanNetwork::Open),
    };
    let enforced = |able: bool| match able {
        true => NetworkFact::Enforced,
        false => NetworkFact::NotEnforced,
    };
    resolved.trust.network = match &resolved.network {
        Some(PlanNetwork::None) => enforced(world.abilities.network_none),
        Some(PlanNetwork::Hosts(_)) if !resolved.sandbox => NetworkFact::NeedsSandbox,
        Some(PlanNetwork::Hosts(_)) => enforced(world.abilities.network_hosts),
        Some(PlanNetwork::Open) | None => NetworkFact::Open,
    };
    resolved.trust.code_pinned = true;
    resolved.trust.seed_recorded = experiment.seed != Seed::Absent || sweeps_seed(experiment);
    resolved.trust.datasets_unverified = resolved.unverifiable.iter().cloned().collect();
    resolved.trust.sees_more = if !resolved.sandbox {
        Some("the files of this machine that its user can read".into())
    } else if !world.abilities.sandbox {
        Some("the files of this machine, since the sandbox is not possible here".into())
    } else {
        None
    };
    resolved
}

/// What a service needs besides what every job does.
fn serving(service: &Service, world: &World, resolved: &mut Resolved, refusals: &mut Vec<Refusal>) {
    let name = &service.job.name;
    if world.service_open {
        refusals.push(Refusal::new(
            "service_exists",
            format!("a service `{name}` is there already"),
            format!(
                "`ml service scale {name} N` changes its replicas, `ml service stop {name}` ends it"
            ),
        ));
    }
    if !matches!(service.job.network, None | Some(Network::Open)) {
        refusals.push(Refusal::new(
            "service_unreachable",
            "the recipe restricts `network`, and nobody could reach the service then",
            "leave `network` away, or set `network: open`",
        ));
    }
    let Some(model) = &service.model else {
        return;
    };
    let refused = match &world.model {
        ModelSeen::Found(found) => {
            resolved.model = Some(found.clone());
            return;
        }
        ModelSeen::NotAsked | ModelSeen::NoRun => (
            "model_unknown",
            format!(
                "`model: {}@{}:…` names no run whose outputs you may read",
                model.name,
                model.run.as_deref().unwrap_or_default()
            ),
            "`ml list` shows the runs, `ml outputs RUN` what one put out",
        ),
        ModelSeen::NoOutput(run) => (
            "model_unknown",
            format!(
                "run `{run}` has put out no file `{}`",
                model.path.as_deref().unwrap_or_default()
            ),
            "`ml outputs RUN` shows what it put out",
        ),
        ModelSeen::Unrecorded => (
            "model_unrecorded",
            format!(
                "no recorded run is known to have put out sha256:{}",
                model
                    .sha256
                    .map(|sha256| sha256.to_string())
                    .unwrap_or_default()
            ),
            "weights come from a run: declare them in its `outputs`, then name them as `NAME@RUN:PATH`",
        ),
    };
    resolved.model_unknown = true;
    refusals.push(Refusal::new(refused.0, refused.1, refused.2));
}

/// The declared hosts in the one form that every plan has them in.
fn declared(hosts: &[String], refusals: &mut Vec<Refusal>) -> Option<PlanNetwork> {
    match mlmesh_recipe::endpoints(hosts) {
        Ok(endpoints) => {
            let forms = endpoints.iter().map(ToString::to_string);
            Some(PlanNetwork::Hosts(forms.collect()))
        }
        Err(refusal) => {
            refusals.push(refusal);
            None
        }
    }
}

fn sweeps_seed(experiment: &Experiment) -> bool {
    use mlmesh_model::Sweep;
    match &experiment.sweep {
        Some(Sweep::Grid(axes) | Sweep::Zip(axes)) => axes.iter().any(|axis| axis.param == "seed"),
        Some(Sweep::Random { axes, .. }) => axes.iter().any(|axis| axis.param == "seed"),
        None => false,
    }
}

fn environment(
    submission: &Submission,
    experiment: &Experiment,
    world: &World,
    resolved: &mut Resolved,
    refusals: &mut Vec<Refusal>,
) {
    match &experiment.environment {
        None => resolved.trust.environment = EnvironmentFact::Absent,
        Some(Environment::Current) => current(submission, world, resolved, refusals),
        Some(Environment::Locked { python, lock }) => {
            refusals.extend(python_found(python, world));
            match lock_facts(lock, submission, world) {
                Ok(facts) => {
                    resolved.deps = deps_digest(python, facts.sha256)
                        .ok()
                        .map(|sha256| PlanDeps {
                            kind: DepsKind::Lock,
                            name: lock.clone(),
                            python: python.clone(),
                            sha256,
                        });
                    if !facts.unhashed.is_empty() && !world.caller_is_daemon_owner {
                        refusals.push(Refusal::new(
                            "lock_foreign_unpinned",
                            format!(
                                "`{lock}` does not pin everything by hash, and what it brings would be installed with the rights of the daemon's owner"
                            ),
                            "lock again with hashes: `pip-compile --generate-hashes`, or `uv lock`",
                        ));
                    }
                    resolved.trust.environment = if facts.unhashed.is_empty() {
                        EnvironmentFact::Pinned
                    } else {
                        EnvironmentFact::Unhashed(facts.unhashed.clone())
                    };
                }
                Err(refusal) => {
                    refusals.push(*refusal);
                    // Not a matter of trust: what the lock would pin is unknown.
                    resolved.trust.environment = EnvironmentFact::Pinned;
                }
            }
            resolved.deps_unknown = resolved.deps.is_none();
        }
    }
}

fn current(
    submission: &Submission,
    world: &World,
    resolved: &mut Resolved,
    refusals: &mut Vec<Refusal>,
) {
    resolved.trust.environment = EnvironmentFact::Current;
    let Some(current) = &submission.current else {
        resolved.deps_unknown = true;
        refusals.push(Refusal::new(
            "current_environment_absent",
            "`environment: current` needs an active virtual environment, and there is none",
            "activate one (`. .venv/bin/activate`), or name a lock in `environment:`",
        ));
        return;
    };
    if !world.caller_is_daemon_owner {
        refusals.push(Refusal::new(
            "current_environment_foreign",
            "`environment: current` names a folder of the daemon's machine, which is open to its owner only",
            "name a lock in `environment:`",
        ));
    }
    resolved.deps = Some(PlanDeps {
        kind: DepsKind::Current,
        name: "current".into(),
        python: current.python.clone(),
        sha256: DepsDigest(ResolvedEnvironment::packages_digest(&current.frozen)),
    });
    resolved.current_prefix = Some(current.prefix.clone());
}

fn python_found(python: &str, world: &World) -> Option<Refusal> {
    let found = world
        .interpreters
        .iter()
        .any(|interpreter| interpreter.version == python || interpreter.exact == python);
    if found {
        return None;
    }
    let mut versions: Vec<&str> = world
        .interpreters
        .iter()
        .map(|interpreter| interpreter.version.as_str())
        .collect();
    versions.dedup();
    let there = if versions.is_empty() {
        "install one; this machine has none that was found".to_owned()
    } else {
        format!(
            "install it, or name one that is there: {}",
            versions
                .iter()
                .map(|version| format!("`{version}`"))
                .collect::<Vec<_>>()
                .join(", ")
        )
    };
    Some(Refusal::new(
        "python_not_found",
        format!("python `{python}` is not on this machine"),
        there,
    ))
}

fn lock_facts<'a>(
    lock: &str,
    submission: &'a Submission,
    world: &'a World,
) -> Result<&'a LockFacts, Box<Refusal>> {
    let missing = || {
        Box::new(Refusal::new(
            "lock_missing",
            format!("the tree has no lock file `{lock}`"),
            "write it (`uv lock` or `pip-compile --generate-hashes`), or correct the path",
        ))
    };
    let sent = submission.lock.as_ref().filter(|facts| facts.path == lock);
    match &world.lock {
        LockSeen::NotRead => sent.ok_or_else(missing),
        LockSeen::Missing => Err(missing()),
        LockSeen::Read(facts) if sent.is_some_and(|sent| sent != facts) => {
            Err(Box::new(Refusal::new(
                "lock_differs",
                format!("what the client says of `{lock}` is not what the tree holds"),
                "sync again with this version of `ml`",
            )))
        }
        LockSeen::Read(facts) => Ok(facts),
    }
}

fn datasets(
    experiment: &Experiment,
    world: &World,
    resolved: &mut Resolved,
    refusals: &mut Vec<Refusal>,
) {
    let mut planned = Vec::new();
    let mut complete = true;
    for reference in &experiment.datasets {
        let refused = dataset(reference, world);
        if !refused.is_empty() {
            resolved.unverifiable.insert(reference.name.to_string());
        }
        refusals.extend(refused);
        match reference.checksum {
            Some(checksum) => planned.push(PlanDataset {
                name: reference.name.clone(),
                version: reference.version.clone(),
                checksum,
                mount: reference.mount.clone(),
            }),
            None => complete = false,
        }
    }
    resolved.datasets = complete.then_some(planned);
}

fn dataset(reference: &DatasetRef, world: &World) -> Vec<Refusal> {
    let name = &reference.name;
    let known: Vec<_> = world
        .datasets
        .iter()
        .filter(|dataset| dataset.name == *name)
        .collect();
    let fits_version = |version: &str| {
        reference
            .version
            .as_deref()
            .is_none_or(|wanted| wanted == version)
    };
    let candidates: Vec<_> = known
        .iter()
        .filter(|dataset| fits_version(&dataset.version))
        .collect();
    let Some(checksum) = reference.checksum else {
        let hint = match candidates.last() {
            Some(dataset) => format!(
                "add `checksum: \"sha256:{}\"`, as version `{}` is registered",
                dataset.checksum, dataset.version
            ),
            None => format!(
                "register it with `ml data add {name} VERSION PATH`, which prints its checksum"
            ),
        };
        return vec![Refusal::new(
            "dataset_checksum_missing",
            format!(
                "dataset `{name}` has no checksum, and the checksum alone says what the data are"
            ),
            hint,
        )];
    };
    if candidates.is_empty() {
        let (message, hint) = match (known.is_empty(), &reference.version) {
            (false, Some(version)) => (
                format!("dataset `{name}` has no version `{version}`"),
                format!(
                    "registered versions: {}",
                    known
                        .iter()
                        .map(|dataset| format!("`{}`", dataset.version))
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            ),
            _ => (
                format!("dataset `{name}` is not registered"),
                format!(
                    "register it with `ml data add {name} {} PATH`",
                    reference.version.as_deref().unwrap_or("VERSION")
                ),
            ),
        };
        return vec![Refusal::new("dataset_unknown", message, hint)];
    }
    if candidates
        .iter()
        .any(|dataset| dataset.checksum == checksum)
    {
        return Vec::new();
    }
    let there = candidates
        .iter()
        .map(|dataset| {
            format!(
                "version `{}` has checksum sha256:{}",
                dataset.version, dataset.checksum
            )
        })
        .collect::<Vec<_>>()
        .join("; ");
    vec![Refusal::new(
        "dataset_checksum_differs",
        format!("dataset `{name}` is registered with another checksum than sha256:{checksum}"),
        format!("{there}; correct the recipe, or register the data that it means as a new version"),
    )]
}

fn parents(
    experiment: &Experiment,
    world: &World,
    resolved: &mut Resolved,
    refusals: &mut Vec<Refusal>,
) {
    for entry in &experiment.after {
        match world.after.get(entry) {
            Some(ParentSeen::Found { id, phase }) => {
                if phase.is_ended() && *phase != Phase::Completed {
                    refusals.push(Refusal::new(
                        "after_not_completed",
                        format!(
                            "`after: {entry}` names a run that is {phase} and will not complete"
                        ),
                        format!("`ml retry {id}` first, or wait for another run"),
                    ));
                }
                if !resolved.after.contains(id) {
                    resolved.after.push(*id);
                }
            }
            Some(ParentSeen::Ambiguous(count)) => refusals.push(Refusal::new(
                "after_ambiguous",
                format!("`after: {entry}` fits {count} runs"),
                "write more characters of the id",
            )),
            Some(ParentSeen::Unknown) | None => refusals.push(Refusal::new(
                "after_unknown",
                format!("`after: {entry}` names no run"),
                "`ml list` shows the runs",
            )),
        }
    }
}

/// What this host cannot give.
pub(crate) fn host(
    experiment: &Experiment,
    submission: &Submission,
    world: &World,
    resolved: &Resolved,
) -> Vec<Refusal> {
    let abilities = &world.abilities;
    let mut refusals = world.capacity.never_fits(&experiment.resources);
    if resolved.sandbox && !abilities.sandbox {
        let why = abilities
            .sandbox_missing
            .as_deref()
            .unwrap_or("namespaces are missing");
        refusals.push(Refusal::new(
            "sandbox_unavailable",
            format!("the sandbox is not possible on this host: {why}"),
            "`ml doctor` says how to allow it; `--repro-policy relaxed` runs without it",
        ));
    }
    if !abilities.separates_users && !world.caller_is_daemon_owner {
        refusals.push(Refusal::new(
            "owner_only",
            "this host cannot keep a job away from the daemon's files, so only the daemon's owner may queue",
            "ask the owner, or let `ml doctor` say what the host lacks",
        ));
    }
    if experiment.limits == LimitsPolicy::Required {
        refusals.extend(limits_required(experiment, abilities));
    }
    if experiment.api && resolved.network != Some(PlanNetwork::Open) {
        refusals.push(Refusal::new(
            "api_without_network",
            "`api: true` asks for a way to the daemon, and `network:` leaves none open",
            "set `network: open` with `--repro-policy relaxed`, or write points to `metrics.jsonl`, which needs no network",
        ));
    }
    if let Some(hook) = &experiment.on_finish {
        refusals.extend(hook_refusal(hook, world));
    }
    for SecretGroup { name, from } in secrets(submission, experiment, world) {
        if from.is_none() {
            refusals.push(Refusal::new(
                "secret_without_value",
                format!("secret `{name}` has no value"),
                match submission.workload.service() {
                    Some(_) => format!("`ml secret set {name}` stores one, for every start of the service"),
                    None => format!("`ml secret set {name}` stores one; or set it in your environment when you queue"),
                },
            ));
        }
    }
    refusals
}

fn limits_required(experiment: &Experiment, abilities: &mlmesh_model::Abilities) -> Vec<Refusal> {
    let asked = [
        ("cpu", true),
        ("memory", experiment.resources.memory_bytes.is_some()),
        ("time", experiment.resources.time_s.is_some()),
    ];
    asked
        .into_iter()
        .filter(|(name, asked)| *asked && !abilities.limits.iter().any(|able| able == name))
        .map(|(name, _)| {
            Refusal::new(
                "limit_not_enforced",
                format!("`limits: required`, and this host cannot enforce the limit `{name}`"),
                "`ml doctor` says what the host lacks; without `limits: required` the run records it",
            )
        })
        .collect()
}

/// `--plan`: the world has moved since the caller looked.
pub(crate) fn moved(expected: Option<PlanDigest>, seen: Option<PlanDigest>) -> Option<Refusal> {
    let expected = expected?;
    if seen == Some(expected) {
        return None;
    }
    let now = seen.map_or("none".to_owned(), |seen| format!("sha256:{seen}"));
    Some(Refusal::new(
        "plan_moved",
        format!("the plan is {now} now, not sha256:{expected} as expected"),
        "`ml explain` shows commit, environment, data and resources as they are now; with the file that \
         `ml explain --json` wrote before, `--plan` says which of them have moved",
    ))
}

/// Why an accepted run would not start at once.
pub(crate) fn waits(experiment: &Experiment, world: &World) -> Vec<Refusal> {
    let mut waits = Vec::new();
    let load = &world.load;
    let asks = &experiment.resources;
    if !world.commit_complete {
        waits.push(Refusal::new(
            "commit_not_synced",
            "the tree is not complete in the content store",
            "`ml queue` sends it; `ml sync` sends it now",
        ));
    }
    for entry in &experiment.after {
        if let Some(ParentSeen::Found { id, phase }) = world.after.get(entry)
            && !phase.is_ended()
        {
            waits.push(Refusal::new(
                "waits_for_run",
                format!("run `{id}` must complete first; it is {phase}"),
                format!("`ml watch {id}` follows it"),
            ));
        }
    }
    if asks.cpu_milli > load.free_cpu_milli
        || asks.memory_bytes.unwrap_or(0) > load.free_memory_bytes
        || asks.gpus > load.free_gpus
    {
        waits.push(Refusal::new(
            "waits_for_resources",
            "live runs hold resources that it needs",
            "`ml status` shows them",
        ));
    }
    if load.queued > 0 {
        waits.push(Refusal::new(
            "waits_for_turn",
            format!("{} runs are queued", load.queued),
            "`--priority` moves it forward",
        ));
    }
    waits
}

/// A command of a hook is executed outside of any sandbox, and what signs has to be
/// there when the run has ended, when what the caller sent is gone.
fn hook_refusal(hook: &OnFinish, world: &World) -> Option<Refusal> {
    if !hook.command.is_empty() && !world.caller_is_daemon_owner {
        return Some(Refusal::new(
            "hook_owner_only",
            "a command in `on_finish` is executed as the daemon's user, so only the daemon's owner may have one",
            "use a webhook, or `ml watch`",
        ));
    }
    if !hook.command.is_empty() && !world.hook_commands {
        return Some(Refusal::new(
            "hook_commands_off",
            "`on_finish` has a command, which would be executed outside of any sandbox, and `daemon.hook_commands` is `off`",
            "use a webhook; or write `hook_commands = \"on\"` under `[daemon]` in your own `mlmesh.toml` and start the daemon again, then recipes of others can execute commands, too",
        ));
    }
    let secret = hook.secret.as_ref()?;
    (!world.secrets.contains(secret)).then(|| {
        Refusal::new(
            "hook_secret_absent",
            format!("secret `{secret}` of `on_finish` is not stored"),
            format!("`ml secret set {secret}` stores it"),
        )
    })
}
