//! Runs: explain, submit, list, show, cancel, retry.

use std::str::FromStr;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::Response;
use mlmesh_api::{
    ACCEPTED_SCHEMA, ATTEMPTS_SCHEMA, AcceptedDto, AttemptDto, AttemptsDto, CANCELLED_SCHEMA,
    CHANGED_RUNS_SCHEMA, CancelDto, CancelOutcomeDto, CancelledDto, ChangedRunsDto, CountsDto,
    EXPLANATION_SCHEMA, ExplainedDataset, ExplainedDeps, ExplainedExperiment, ExplainedPoint,
    ExplainedSecret, ExplainedSnapshot, ExplanationDto, OUTPUTS_SCHEMA, OutputFileDto, OutputsDto,
    POINTS_SHOWN_MAX, RUNS_SCHEMA, RefusalDto, ResourcesDto, RetryDto, RunDto, RunSummaryDto,
    RunsDto, STATUS_SCHEMA, StatusDto, TrustDto,
};
use mlmesh_cas::{TREE_BYTES_MAX, Tree};
use mlmesh_control::{Caller, Changed, ControlError, Preflight, SecretSource};
use mlmesh_model::filter::{Comparison, Field, Filter, FilterError, Literal, Sort, Test};
use mlmesh_model::{
    CommitId, Micros, ObjectId, Owner, Permission, Phase, ReproPolicy, Run, RunKind, RunQuery,
    RunSearch, Sequence, Submission, Tenant,
};
use mlmesh_proof::{Extras, MANIFEST_FILE};

use super::possession::{is_own, keep};
use super::wait::Looks;
use super::{objects_error, page_rows, run_name};
use crate::daemon::Daemon;
use crate::http::body::{blocking, clipped, read_json};
use crate::http::query::{PathParts, Query, parsed};
use crate::limits::{
    CANCEL_NAMES_MAX, IDEMPOTENCY_KEY_CHARS_MAX, JSON_BYTES_MAX, STATUS_ENDED_MAX, STATUS_OPEN_MAX,
    SUBMISSION_BYTES_MAX,
};
use crate::reply::{ApiError, ApiResult, json_bytes, ok};

pub(crate) async fn explain(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    let (submission, _) = read_json::<Submission>(&headers, body, SUBMISSION_BYTES_MAX).await?;
    let recipe = submission.recipe_path.clone();
    let policy = submission.policy;
    let preflight = daemon.control.explain(&caller, submission).await?;
    Ok(ok(&explanation(&preflight, recipe, policy)))
}

fn explanation(preflight: &Preflight, recipe: String, policy: ReproPolicy) -> ExplanationDto {
    let groups = &preflight.groups;
    let refusals: Vec<RefusalDto> = preflight.refusals.iter().map(RefusalDto::from).collect();
    let waits: Vec<RefusalDto> = preflight.waits.iter().map(RefusalDto::from).collect();
    ExplanationDto {
        schema: EXPLANATION_SCHEMA.to_owned(),
        admitted: refusals.is_empty(),
        experiment: ExplainedExperiment {
            name: groups.experiment.name.to_string(),
            recipe,
            commit: groups.commit,
            plan_sha256: preflight.plan_sha256,
        },
        deps: groups.deps.as_ref().map(|deps| ExplainedDeps {
            name: deps.name.clone(),
            python: deps.python.clone(),
            sha256: deps.sha256,
        }),
        snapshot: ExplainedSnapshot {
            id: groups.snapshot.id.clone(),
            sha256: groups.snapshot.sha256,
            complete: !waits.iter().any(|wait| wait.code == "commit_not_synced"),
        },
        datasets: groups
            .datasets
            .iter()
            .map(|dataset| ExplainedDataset {
                name: dataset.name.to_string(),
                version: dataset.version.clone(),
                checksum: dataset.checksum,
                mount: dataset.mount.clone(),
                registered: dataset.registered,
            })
            .collect(),
        secrets: groups
            .secrets
            .iter()
            .map(|secret| ExplainedSecret {
                name: secret.name.clone(),
                from: secret.from.map(|from| match from {
                    SecretSource::Caller => "caller".to_owned(),
                    SecretSource::Store => "store".to_owned(),
                }),
            })
            .collect(),
        resources: ResourcesDto::from(groups.resources),
        image: None,
        trust: TrustDto::from(&preflight.trust),
        repro_policy: match policy {
            ReproPolicy::Strict => "strict".to_owned(),
            ReproPolicy::Relaxed => "relaxed".to_owned(),
        },
        points: preflight
            .runs
            .iter()
            .take(POINTS_SHOWN_MAX)
            .filter_map(|run| {
                let plan = serde_json::to_value(run.plan.as_ref()).ok()?;
                Some(ExplainedPoint {
                    plan_sha256: run.plan_sha256,
                    plan,
                })
            })
            .collect(),
        points_total: groups.experiment.runs,
        refusals,
        waits,
    }
}

pub(crate) async fn submit(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    let key = idempotency_key(&headers, &caller)?;
    let (submission, _) = read_json::<Submission>(&headers, body, SUBMISSION_BYTES_MAX).await?;
    let accepted = daemon.control.submit(&caller, submission, key).await?;
    // Replicas of a service are runs of their own.
    let is_sweep = !accepted.children.contains(&accepted.id);
    let children = match is_sweep {
        true => u32::try_from(accepted.children.len()).unwrap_or(u32::MAX),
        false => 0,
    };
    Ok(ok(&AcceptedDto {
        schema: ACCEPTED_SCHEMA.to_owned(),
        id: accepted.id,
        fresh: accepted.fresh,
        plan_sha256: accepted.plan_sha256,
        children: (children > 0).then_some(children),
    }))
}

/// The key that names one intention, if the client sent one. Keys of different people
/// never meet: one who is not the daemon's owner has theirs behind their name, with a
/// blank that no key has.
pub(crate) fn idempotency_key(headers: &HeaderMap, caller: &Caller) -> ApiResult<Option<String>> {
    let key = sent_key(headers)?;
    Ok(match caller.daemon_owner {
        true => key,
        false => key.map(|key| format!("{} {key}", caller.owner)),
    })
}

/// The same as it was sent.
pub(crate) fn sent_key(headers: &HeaderMap) -> ApiResult<Option<String>> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or("");
    let good = (1..=IDEMPOTENCY_KEY_CHARS_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic());
    if good {
        return Ok(Some(text.to_owned()));
    }
    Err(ApiError::bad_parameter(
        format!("the idempotency key is `{}`", clipped(text)),
        format!("it has 1 to {IDEMPOTENCY_KEY_CHARS_MAX} visible ASCII characters"),
    ))
}

pub(crate) async fn list(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    RawQuery(query): RawQuery,
) -> ApiResult<Response> {
    let names = [
        "phase", "parent", "owner", "where", "sort", "cursor", "limit",
    ];
    let query = Query::parse(query.as_deref(), &names)?;
    let limit = page_rows(&query)?;
    let asked = RunQuery {
        tenant: caller.tenant.clone(),
        phases: phases_of(&query, "phase")?,
        parent: match query.one("parent")? {
            Some(name) => Some(run_name::run_id(&daemon, &caller, name).await?),
            None => None,
        },
        owner: query
            .one("owner")?
            .map(|text| parsed::<Owner>("owner", text, "an owner's name"))
            .transpose()?,
        cursor: query.number("cursor", "a cursor")?.map(Sequence),
        limit,
    };
    let filter = expression::<Filter>(&query, "where")?;
    let sort = expression::<Sort>(&query, "sort")?;
    let runs = if filter.is_none() && sort.is_none() {
        daemon.store.runs(asked).await?
    } else {
        let now = daemon.clock.now();
        daemon.store.find(search(asked, filter, sort, now)).await?
    };
    let full = runs.len() as u32 >= limit;
    Ok(ok(&RunsDto {
        schema: RUNS_SCHEMA.to_owned(),
        next_cursor: runs.last().filter(|_| full).map(|run| run.seq.0),
        runs: runs.iter().map(RunSummaryDto::from).collect(),
    }))
}

/// A query parameter that is an expression or a key to sort by.
fn expression<T: FromStr<Err = FilterError>>(query: &Query, name: &str) -> ApiResult<Option<T>> {
    let Some(text) = query.one(name)? else {
        return Ok(None);
    };
    let read = text.parse::<T>();
    read.map(Some)
        .map_err(|error| ApiError::bad_parameter(format!("`{name}`: {error}"), error.hint))
}

/// The search for what a list and an expression ask for together.
fn search(asked: RunQuery, filter: Option<Filter>, sort: Option<Sort>, now: Micros) -> RunSearch {
    let is = |field, value| Filter::Is(field, Test::Compare(Comparison::Equal, value));
    let parent = asked
        .parent
        .map(|id| is(Field::Parent, Literal::Text(id.to_string())));
    let owner = asked
        .owner
        .map(|owner| is(Field::Owner, Literal::Text(owner.to_string())));
    let phases: Vec<Literal> = asked.phases.into_iter().map(Literal::Phase).collect();
    let phases = (!phases.is_empty()).then_some(Filter::Is(Field::Phase, Test::In(phases)));
    let terms = [filter, parent, owner, phases];
    RunSearch {
        tenant: asked.tenant,
        filter: terms.into_iter().flatten().reduce(Filter::and),
        sort,
        cursor: asked.cursor,
        limit: asked.limit,
        now,
    }
}

pub(crate) async fn status(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
) -> ApiResult<Response> {
    let query = |phases: &[Phase], limit| RunQuery {
        tenant: caller.tenant.clone(),
        phases: phases.to_vec(),
        parent: None,
        owner: None,
        cursor: None,
        limit,
    };
    let live = query(
        &[
            Phase::Running,
            Phase::Ready,
            Phase::Starting,
            Phase::Draining,
            Phase::Finishing,
        ],
        STATUS_OPEN_MAX,
    );
    let queued = query(&[Phase::Queued], STATUS_OPEN_MAX);
    let ended = query(
        &[
            Phase::Completed,
            Phase::Failed,
            Phase::Cancelled,
            Phase::Interrupted,
        ],
        STATUS_ENDED_MAX,
    );
    let counts = daemon.store.counts(&caller.tenant).await?;
    let mut runs = Vec::new();
    for query in [live, queued, ended] {
        let found = daemon.store.runs(query).await?;
        runs.extend(found.iter().map(RunSummaryDto::from));
    }
    Ok(ok(&StatusDto {
        schema: STATUS_SCHEMA.to_owned(),
        counts: CountsDto::from(&counts),
        runs,
        prewarm: None,
    }))
}

/// The phases that a query names.
fn phases_of(query: &Query, name: &str) -> ApiResult<Vec<Phase>> {
    let phase_of = |text: &str| {
        Phase::from_name(text).ok_or_else(|| {
            ApiError::bad_parameter(
                format!("`{}` is no phase", clipped(text)),
                "phases are queued, starting, running, finishing, completed, failed, cancelled, interrupted",
            )
        })
    };
    query.all(name).map(phase_of).collect()
}

pub(crate) async fn show(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
    RawQuery(query): RawQuery,
) -> ApiResult<Response> {
    let query = Query::parse(query.as_deref(), &["while", "wait_ms"])?;
    let unwanted = phases_of(&query, "while")?;
    let mut looks = Looks::of(&daemon, &query)?;
    let mut run = run_name::run(&daemon, &caller, path.first()).await?;
    while unwanted.contains(&run.phase) && looks.again().await {
        run = run_name::run(&daemon, &caller, &run.id.to_string()).await?;
    }
    let manifest = read_manifest(&daemon, &run).await?;
    let children = match run.kind {
        RunKind::Parent { .. } => Some(children_counts(&daemon, &caller.tenant, &run).await?),
        RunKind::Single | RunKind::Child { .. } => None,
    };
    let mut shown = RunDto::new(&run, manifest, children);
    if run.phase.is_live() {
        live_metrics(&daemon, &run, &mut shown).await;
    }
    Ok(ok(&shown))
}

/// Points that a live run has written so far; its record has them only at its end.
async fn live_metrics(daemon: &Daemon, run: &Run, shown: &mut RunDto) {
    let lease = mlmesh_model::AttemptRef {
        run: run.id,
        number: mlmesh_model::AttemptNumber(run.attempts),
        token: run.token,
    };
    if let Ok(metrics) = daemon.executor.metrics(lease).await {
        let current = Run {
            metrics,
            ..run.clone()
        };
        shown.metrics = RunSummaryDto::from(&current).metrics;
    }
}

async fn children_counts(daemon: &Daemon, tenant: &Tenant, run: &Run) -> ApiResult<CountsDto> {
    let counts = daemon.store.sweep_counts(tenant, run.id).await?;
    Ok(CountsDto::from(&counts.unwrap_or_default()))
}

async fn read_manifest(daemon: &Daemon, run: &Run) -> ApiResult<Option<serde_json::Value>> {
    let is_sweep = matches!(run.kind, RunKind::Parent { .. });
    if is_sweep || !run.phase.is_ended() {
        return Ok(None);
    }
    if run.manifest_sha256.is_none() {
        // It ended in the queue: nobody knows more than its record.
        let attempts = daemon.store.attempts(run.id).await?;
        let extras = Extras {
            daemon_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Extras::default()
        };
        return Ok(Some(mlmesh_proof::manifest(run, &attempts, &extras)));
    }
    let bytes = manifest_file(daemon, run).await?;
    let read = bytes
        .map(|bytes| serde_json::from_slice(&bytes))
        .transpose();
    read.map_err(|error| ApiError::internal("the run's manifest", &error))
}

/// The bytes of a run's manifest, if it has a file.
pub(crate) async fn manifest_file(daemon: &Daemon, run: &Run) -> ApiResult<Option<Vec<u8>>> {
    let path = daemon.run_folder(run.id).join(MANIFEST_FILE);
    match blocking(move || std::fs::read(path)).await? {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ApiError::io("the run's manifest", &error)),
    }
}

pub(crate) async fn attempts(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
) -> ApiResult<Response> {
    let run = run_name::run(&daemon, &caller, path.first()).await?;
    let attempts = daemon.store.attempts(run.id).await?;
    Ok(ok(&AttemptsDto {
        schema: ATTEMPTS_SCHEMA.to_owned(),
        run: run.id,
        attempts: attempts.iter().map(AttemptDto::from).collect(),
    }))
}

pub(crate) async fn manifest(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
) -> ApiResult<Response> {
    let run = run_name::run(&daemon, &caller, path.first()).await?;
    if run.manifest_sha256.is_some()
        && let Some(bytes) = manifest_file(&daemon, &run).await?
    {
        // As it was written, so that its digest can be checked.
        return Ok(json_bytes(bytes));
    }
    let manifest = read_manifest(&daemon, &run).await?;
    let manifest = manifest.ok_or_else(|| {
        ApiError::not_found(
            format!("run `{}` is {} and has no manifest", run.id, run.phase),
            "a manifest is written when a run ends; each point of a sweep has its own",
        )
    })?;
    Ok(ok(&manifest))
}

pub(crate) async fn outputs(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
) -> ApiResult<Response> {
    let closed = Permission::OutputsReadOthers;
    let what = "to read the outputs of";
    let run = run_name::reached(&daemon, &caller, path.first(), closed, what).await?;
    let files = match run.outputs {
        None => Vec::new(),
        Some(listing) => {
            let objects = Arc::clone(&daemon.objects);
            let tree = blocking(move || output_tree(&objects, listing)).await??;
            if run.owner == caller.owner && !is_own(&daemon, &caller, listing).await? {
                // What one's run has left is one's own: it can be downloaded.
                let ids = tree.entries.iter().map(|entry| entry.object);
                keep(&daemon, &caller, ids.chain([listing]).collect()).await?;
            }
            tree.entries
                .into_iter()
                .map(|entry| OutputFileDto {
                    path: entry.path,
                    mode: entry.mode.word().to_owned(),
                    size: entry.size,
                    sha256: entry.object.0,
                })
                .collect()
        }
    };
    Ok(ok(&OutputsDto {
        schema: OUTPUTS_SCHEMA.to_owned(),
        run: run.id,
        listing: run.outputs,
        files,
    }))
}

fn output_tree(objects: &mlmesh_cas::ObjectStore, listing: ObjectId) -> ApiResult<Tree> {
    match objects.tree(CommitId(listing.0)) {
        Ok(tree) => Ok(tree),
        Err(mlmesh_cas::StoreError::Missing(_)) => {
            let bytes = objects
                .read(listing, TREE_BYTES_MAX)
                .map_err(objects_error)?;
            Tree::parse(&bytes)
                .map_err(|error| ApiError::internal("the listing of outputs", &error))
        }
        Err(error) => Err(objects_error(error)),
    }
}

pub(crate) async fn cancel(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let key = idempotency_key(&headers, &caller)?;
    let id = run_name::run_id(&daemon, &caller, path.first()).await?;
    let mut outcomes = daemon.control.cancel(&caller, vec![id], key).await?;
    let outcome = outcomes.pop();
    let changed = outcome.unwrap_or(Err(ControlError::NoRun(id)))?;
    Ok(ok(&changed_runs(changed)))
}

fn changed_runs(changed: Changed) -> ChangedRunsDto {
    ChangedRunsDto {
        schema: CHANGED_RUNS_SCHEMA.to_owned(),
        id: changed.id,
        runs: changed.runs,
    }
}

/// Cancels many by name; says of each what became of it.
pub(crate) async fn cancel_each(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    let key = idempotency_key(&headers, &caller)?;
    let (asked, _) = read_json::<CancelDto>(&headers, body, JSON_BYTES_MAX).await?;
    if asked.runs.len() > CANCEL_NAMES_MAX {
        return Err(ApiError::bad_request(
            format!("{} runs are named", asked.runs.len()),
            format!("a request names at most {CANCEL_NAMES_MAX}"),
        ));
    }
    let mut named = Vec::with_capacity(asked.runs.len());
    for name in &asked.runs {
        named.push(run_name::run_id(&daemon, &caller, name).await);
    }
    let ids = named.iter().filter_map(|id| id.as_ref().ok().copied());
    let cancelled = daemon.control.cancel(&caller, ids.collect(), key).await?;
    let mut cancelled = cancelled.into_iter();
    let outcomes = named.into_iter().map(|id| {
        let id = id?;
        let outcome = cancelled.next().unwrap_or(Err(ControlError::NoRun(id)));
        Ok(changed_runs(outcome?))
    });
    Ok(ok(&CancelledDto {
        schema: CANCELLED_SCHEMA.to_owned(),
        outcomes: outcomes
            .map(|outcome: ApiResult<ChangedRunsDto>| match outcome {
                Ok(changed) => CancelOutcomeDto {
                    changed: Some(changed),
                    error: None,
                },
                Err(error) => CancelOutcomeDto {
                    changed: None,
                    error: Some(error.body),
                },
            })
            .collect(),
    }))
}

pub(crate) async fn retry(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    let key = idempotency_key(&headers, &caller)?;
    let (retry, _) = read_json::<RetryDto>(&headers, body, JSON_BYTES_MAX).await?;
    let id = run_name::run_id(&daemon, &caller, path.first()).await?;
    let control = &daemon.control;
    let changed = control.retry(&caller, id, retry.failed_only, key).await?;
    Ok(ok(&changed_runs(changed)))
}
