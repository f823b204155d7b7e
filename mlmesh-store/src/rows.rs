//! Runs as rows: what a run becomes in the `runs` table and how it comes back
//! exactly as it was.
//!
//! A sweep's points differ in little. The parent's row therefore carries a
//! template made of its first point, and each point stores only what differs:
//!
//! ```text
//!   parent.template   {name, commit, placement, git, trust, plan}
//!   point.plan        {"argv": …, "params": …}       other columns NULL
//! ```

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;

use mlmesh_model::{
    CommitId, DepsDigest, Digest, GitFacts, Labels, Logged, MetricSummary, MetricValue, Micros,
    Name, NodeId, ObjectId, PHASES, Placement, Plan, PlanDataset, PlanDeps, PlanDigest,
    PlanNetwork, PlanSeed, Resources, Run, RunId, RunKind, Sequence, StoreError, Trust,
};
use serde::{Deserialize, Deserializer, Serialize};

use crate::derived::{self, Derived};
use crate::laws::phase_code;
use crate::sql::{Param, Row, Sql, from_json, to_json};

/// Columns of `runs` in the order in which rows are written and read.
macro_rules! run_columns {
    () => {
        "seq, id, tenant, owner, kind, parent, idx, name, tree, plan, plan_sha256, placement, git, \
         phase, cause, message, exit, attempts, token, node, queued_at, started_at, ended_at, \
         trust, metrics, outputs, manifest_sha256, isolation"
    };
}
/// What is read of a run: its columns, until when it waits, when it was pinned, and what
/// people wrote on it.
macro_rules! read_columns {
    () => {
        concat!(
            $crate::rows::run_columns!(),
            ", (SELECT not_before FROM queue WHERE queue.seq = runs.seq), \
             (SELECT time FROM pins WHERE pins.tenant = runs.tenant AND pins.target = runs.id), labels"
        )
    };
}
pub(crate) use {read_columns, run_columns};

pub(crate) const INSERT_RUN: &str = concat!(
    "INSERT INTO runs (",
    run_columns!(),
    ", template, labels) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, \
     $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30) ON CONFLICT (id) DO NOTHING"
);

pub(crate) const UPDATE_RUN: &str = "UPDATE runs SET phase = $1, cause = $2, message = $3, exit = $4, \
     attempts = $5, token = $6, node = $7, started_at = $8, ended_at = $9, trust = $10, \
     metrics = $11, outputs = $12, manifest_sha256 = $13, isolation = $14, labels = $15 \
     WHERE seq = $16";

const SELECT_RUN: &str = concat!("SELECT ", read_columns!(), " FROM runs WHERE id = $1");

/// A run and the sequence of its sweep's parent.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) run: Run,
    pub(crate) parent: Option<i64>,
    /// Metrics and labels as they stand in its row.
    stored: (Option<String>, Option<String>),
    /// Whether the trust column is to stay NULL: the run has its template's.
    template_trust: Option<Trust>,
}

/// Reads a run by its id, of whatever tenant.
pub(crate) async fn load(sql: &mut impl Sql, id: RunId) -> Result<Option<Loaded>, StoreError> {
    let rows = sql
        .rows(SELECT_RUN, &[Param::owned(id.to_string())])
        .await?;
    Ok(decode_all(sql, rows).await?.pop())
}

/// Turns rows of [`read_columns`] into runs, reading each sweep's template once.
pub(crate) async fn decode_all(
    sql: &mut impl Sql,
    rows: Vec<Row>,
) -> Result<Vec<Loaded>, StoreError> {
    let mut templates = HashMap::new();
    let mut loaded = Vec::with_capacity(rows.len());
    for mut row in rows {
        let head = RowHead::read(&mut row)?;
        if let Some(parent) = head.parent
            && !templates.contains_key(&parent)
        {
            templates.insert(parent, Template::load(sql, parent).await?);
        }
        let template = head.parent.and_then(|parent| templates.get(&parent));
        loaded.push(decode(head, row, template)?);
    }
    Ok(loaded)
}

/// Reads those of these runs that are there, in order of acceptance.
pub(crate) async fn load_each<S: Sql>(
    sql: &mut S,
    ids: &[RunId],
) -> Result<Vec<Loaded>, StoreError> {
    let ids = [Param::owned(to_json(ids)?)];
    let rows = sql.rows(S::RUNS_BY_ID, &ids).await?;
    decode_all(sql, rows).await
}

/// The same by their sequences.
pub(crate) async fn load_listed<S: Sql>(
    sql: &mut S,
    seqs: &[i64],
) -> Result<Vec<Loaded>, StoreError> {
    let seqs = [Param::owned(to_json(seqs)?)];
    let rows = sql.rows(S::RUNS_BY_SEQ, &seqs).await?;
    decode_all(sql, rows).await
}

/// Writes back what claims and moves change.
pub(crate) async fn save(sql: &mut impl Sql, loaded: &Loaded) -> Result<(), StoreError> {
    sql.run(UPDATE_RUN, &update_params(loaded)?).await?;
    let (metrics, labels) = &loaded.stored;
    let before = (
        stored_metrics(metrics.as_deref())?,
        stored_logged(labels.as_deref())?,
    );
    let before = Derived {
        metrics: &before.0,
        logged: before.1.as_ref(),
    };
    derived::replace(sql, loaded.run.seq, before, Derived::of(&loaded.run)).await
}

/// The parameters of [`UPDATE_RUN`].
pub(crate) fn update_params(loaded: &Loaded) -> Result<Vec<Param<'_>>, StoreError> {
    let run = &loaded.run;
    Ok(vec![
        Param::Int(phase_code(run.phase) as i64),
        Param::or_null(run.cause.map(|cause| Param::text(cause.as_str()))),
        message_param(run),
        json_or_null(run.exit.as_ref())?,
        Param::int(run.attempts),
        Param::count(run.token.0),
        Param::or_null(node_param(run)),
        time_param(run.started_at),
        time_param(run.ended_at),
        trust_param(run, loaded.parent.map(|_| &loaded.template_trust))?,
        metrics_param(run)?,
        Param::or_null(run.outputs.as_ref().map(|id| Param::digest(&id.0))),
        Param::or_null(run.manifest_sha256.as_ref().map(Param::digest)),
        json_or_null(run.isolation.as_ref())?,
        written_param(run)?,
        Param::count(run.seq.0),
    ])
}

/// What the points of a sweep have in common.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    pub(crate) parent: RunId,
    pub(crate) common: Common,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Common {
    pub(crate) name: Name,
    pub(crate) commit: CommitId,
    pub(crate) placement: Placement,
    git: Option<GitFacts>,
    pub(crate) trust: Option<Trust>,
    pub(crate) plan: Option<Arc<Plan>>,
}

impl Template {
    /// Made of the first point of a sweep.
    pub(crate) fn of(parent: RunId, point: &Run) -> Self {
        let mut placement = point.placement.clone();
        placement.node = None;
        let common = Common {
            name: point.name.clone(),
            commit: point.commit,
            placement,
            git: point.git.clone(),
            trust: point.trust.clone(),
            plan: point.plan.clone(),
        };
        Self { parent, common }
    }

    pub(crate) fn to_text(&self) -> Result<String, StoreError> {
        to_json(&self.common)
    }

    pub(crate) async fn load(sql: &mut impl Sql, parent: i64) -> Result<Self, StoreError> {
        let found = sql
            .row(
                "SELECT id, template FROM runs WHERE seq = $1",
                &[Param::Int(parent)],
            )
            .await?;
        let missing = || StoreError::Damaged(format!("sweep {parent} has no template"));
        let mut row = found.ok_or_else(missing)?;
        Ok(Self {
            parent: row.parsed()?,
            common: row.opt_json()?.ok_or_else(missing)?,
        })
    }
}

/// The parameters of [`INSERT_RUN`]. A point comes with its parent's sequence and
/// template, a parent with the text of the template that it carries.
pub(crate) fn insert_params<'a>(
    run: &'a Run,
    parent: Option<(i64, &Template)>,
    carries: Option<String>,
) -> Result<Vec<Param<'a>>, StoreError> {
    let (kind, idx) = match run.kind {
        RunKind::Single => (0, Param::Null),
        RunKind::Parent { children } => (1, Param::int(children)),
        RunKind::Child { index, .. } => (2, Param::int(index)),
    };
    let common = parent.map(|(_, template)| &template.common);
    let same_name = common.is_some_and(|common| common.name == run.name);
    let same_commit = common.is_some_and(|common| common.commit == run.commit);
    let same_git = common.is_some_and(|common| common.git == run.git);
    Ok(vec![
        Param::count(run.seq.0),
        Param::owned(run.id.to_string()),
        Param::text(run.tenant.as_str()),
        Param::text(run.owner.as_str()),
        Param::Int(kind),
        Param::or_null(parent.map(|(seq, _)| Param::Int(seq))),
        idx,
        Param::or_null((!same_name).then(|| Param::text(run.name.as_str()))),
        Param::or_null((!same_commit).then(|| Param::digest(&run.commit.0))),
        plan_param(run, common.and_then(|common| common.plan.as_deref()))?,
        Param::digest(&run.plan_sha256.0),
        placement_param(run, common)?,
        if same_git {
            Param::Null
        } else {
            Param::owned(to_json(&run.git)?)
        },
        Param::Int(phase_code(run.phase) as i64),
        Param::or_null(run.cause.map(|cause| Param::text(cause.as_str()))),
        message_param(run),
        json_or_null(run.exit.as_ref())?,
        Param::int(run.attempts),
        Param::count(run.token.0),
        Param::or_null(node_param(run)),
        Param::Int(run.queued_at.0),
        time_param(run.started_at),
        time_param(run.ended_at),
        trust_param(run, common.map(|common| &common.trust))?,
        metrics_param(run)?,
        Param::or_null(run.outputs.as_ref().map(|id| Param::digest(&id.0))),
        Param::or_null(run.manifest_sha256.as_ref().map(Param::digest)),
        json_or_null(run.isolation.as_ref())?,
        Param::or_null(carries.map(Param::owned)),
        written_param(run)?,
    ])
}

/// The first columns of a row: what is needed to find the template.
struct RowHead {
    seq: Sequence,
    id: RunId,
    tenant: mlmesh_model::Tenant,
    owner: mlmesh_model::Owner,
    kind: i64,
    parent: Option<i64>,
    idx: Option<i64>,
}

impl RowHead {
    fn read(row: &mut Row) -> Result<Self, StoreError> {
        Ok(Self {
            seq: Sequence(row.number()?),
            id: row.parsed()?,
            tenant: row.parsed()?,
            owner: row.parsed()?,
            kind: row.int()?,
            parent: row.opt_int()?,
            idx: row.opt_int()?,
        })
    }

    fn kind(&self, template: Option<&Template>) -> Result<RunKind, StoreError> {
        let damaged = || StoreError::Damaged(format!("run `{}` has no sound kind", self.id));
        let idx = || {
            let idx = self.idx.ok_or_else(damaged)?;
            u32::try_from(idx).map_err(|_| damaged())
        };
        match (self.kind, template) {
            (0, None) => Ok(RunKind::Single),
            (1, None) => Ok(RunKind::Parent { children: idx()? }),
            (2, Some(template)) => Ok(RunKind::Child {
                parent: template.parent,
                index: idx()?,
            }),
            _ => Err(damaged()),
        }
    }
}

fn decode(head: RowHead, mut row: Row, template: Option<&Template>) -> Result<Loaded, StoreError> {
    let kind = head.kind(template)?;
    let common = template.map(|template| &template.common);
    let id = head.id;
    let inherited = |what: &'static str| {
        move || StoreError::Damaged(format!("run `{id}` has no {what} and no template"))
    };
    let name = row.opt_parsed()?;
    let tree = row.opt_digest()?.map(CommitId);
    let plan_text = row.opt_text()?;
    let plan_sha256 = PlanDigest(row.digest()?);
    let placement = row.opt_json::<Placement>()?;
    let git = row.opt_json::<Option<GitFacts>>()?;
    let code: usize = row.number()?;
    let phase = *PHASES
        .get(code)
        .ok_or_else(|| StoreError::Damaged(format!("run `{id}` has phase {code}")))?;
    let cause = row
        .opt_text()?
        .map(|name| {
            mlmesh_model::Cause::from_name(&name)
                .ok_or_else(|| StoreError::Damaged(format!("run `{id}` has cause `{name}`")))
        })
        .transpose()?;
    let message = row.opt_text()?.unwrap_or_default();
    let exit = row.opt_json()?;
    let attempts = row.number()?;
    let token = mlmesh_model::FencingToken(row.number()?);
    let node: Option<NodeId> = row.opt_parsed()?;
    let queued_at = Micros(row.int()?);
    let started_at = row.opt_int()?.map(Micros);
    let ended_at = row.opt_int()?.map(Micros);
    let own_trust = row.opt_json::<Option<Trust>>()?;
    let metrics_text = row.opt_text()?;
    let metrics = stored_metrics(metrics_text.as_deref())?;
    let outputs = row.opt_digest()?.map(ObjectId);
    let manifest_sha256 = row.opt_digest()?;
    let isolation = row.opt_json()?;
    let not_before = row.opt_int()?.map(Micros);
    let pinned = row.opt_int()?.is_some();
    let labels_text = row.opt_text()?;
    let Written { tags, note, logged } = written(labels_text.as_deref())?;
    let mut placement = match placement {
        Some(placement) => placement,
        None => common
            .map(|common| common.placement.clone())
            .ok_or_else(inherited("placement"))?,
    };
    placement.node = node;
    let run = Run {
        id,
        seq: head.seq,
        tenant: head.tenant,
        owner: head.owner,
        name: name
            .or_else(|| common.map(|common| common.name.clone()))
            .ok_or_else(inherited("name"))?,
        kind,
        commit: tree
            .or_else(|| common.map(|common| common.commit))
            .ok_or_else(inherited("commit"))?,
        plan: plan_of(plan_text, common.and_then(|common| common.plan.as_ref()))?,
        plan_sha256,
        placement,
        git: match git {
            Some(git) => git,
            None => common
                .map(|common| common.git.clone())
                .ok_or_else(inherited("git facts"))?,
        },
        phase,
        cause,
        message,
        exit,
        attempts,
        token,
        queued_at,
        not_before,
        started_at,
        ended_at,
        trust: match own_trust {
            Some(trust) => trust,
            None => common.and_then(|common| common.trust.clone()),
        },
        metrics,
        outputs,
        manifest_sha256,
        isolation,
        pinned,
        labels: Labels { tags, note },
        logged,
    };
    Ok(Loaded {
        run,
        parent: head.parent,
        stored: (metrics_text, labels_text),
        template_trust: common.and_then(|common| common.trust.clone()),
    })
}

/// What is written on a run, as it stands in the column `labels`: by people, and by the
/// last attempt's job.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Written {
    #[serde(default)]
    tags: BTreeMap<String, String>,
    #[serde(default)]
    note: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    logged: Option<Logged>,
}

fn written(text: Option<&str>) -> Result<Written, StoreError> {
    text.map_or(Ok(Written::default()), from_json)
}

/// What a job has logged, as that column has it.
pub(crate) fn stored_logged(text: Option<&str>) -> Result<Option<Logged>, StoreError> {
    Ok(written(text)?.logged)
}

/// That column's parameter.
pub(crate) fn written_param(run: &Run) -> Result<Param<'static>, StoreError> {
    let Labels { tags, note } = &run.labels;
    if tags.is_empty() && note.is_empty() && run.logged.is_none() {
        return Ok(Param::Null);
    }
    let written = Written {
        tags: tags.clone(),
        note: note.clone(),
        logged: run.logged.clone(),
    };
    Ok(Param::owned(to_json(&written)?))
}

fn message_param(run: &Run) -> Param<'_> {
    Param::or_null((!run.message.is_empty()).then(|| Param::text(&run.message)))
}

fn node_param(run: &Run) -> Option<Param<'_>> {
    let node = run.placement.node.as_ref()?;
    Some(Param::text(node.as_str()))
}

fn time_param(time: Option<Micros>) -> Param<'static> {
    Param::or_null(time.map(|time| Param::Int(time.0)))
}

fn json_or_null<T: Serialize>(value: Option<&T>) -> Result<Param<'static>, StoreError> {
    Ok(Param::or_null(
        value.map(to_json).transpose()?.map(Param::owned),
    ))
}

/// NULL stands for the template's trust in a point and for none elsewhere; JSON
/// `null` stands for none in a point.
fn trust_param(run: &Run, template: Option<&Option<Trust>>) -> Result<Param<'static>, StoreError> {
    match template {
        Some(trust) if *trust == run.trust => Ok(Param::Null),
        Some(_) => Ok(Param::owned(to_json(&run.trust)?)),
        None => json_or_null(run.trust.as_ref()),
    }
}

fn placement_param(run: &Run, common: Option<&Common>) -> Result<Param<'static>, StoreError> {
    if common.is_some_and(|common| common.placement == run.placement) {
        return Ok(Param::Null);
    }
    let mut placement = run.placement.clone();
    placement.node = None;
    if common.is_some_and(|common| common.placement == placement) {
        return Ok(Param::Null);
    }
    Ok(Param::owned(to_json(&placement)?))
}

/// Metrics in the store: values as text that reads back to the same bits, which
/// a JSON number does not promise.
#[derive(Serialize, Deserialize)]
pub(crate) struct StoredMetric(String, String, String, u64);

fn metrics_param(run: &Run) -> Result<Param<'static>, StoreError> {
    if run.metrics.is_empty() {
        return Ok(Param::Null);
    }
    let text = |value: MetricValue| format!("{:?}", value.0);
    let stored: BTreeMap<&String, StoredMetric> = run
        .metrics
        .iter()
        .map(|(name, summary)| {
            let MetricSummary {
                last,
                min,
                max,
                steps,
            } = *summary;
            (name, StoredMetric(text(last), text(min), text(max), steps))
        })
        .collect();
    Ok(Param::owned(to_json(&stored)?))
}

/// Metrics as they stand in a row.
pub(crate) fn stored_metrics(
    text: Option<&str>,
) -> Result<BTreeMap<String, MetricSummary>, StoreError> {
    let Some(text) = text else {
        return Ok(BTreeMap::new());
    };
    let stored: BTreeMap<String, StoredMetric> = from_json(text)?;
    let stored = stored.into_iter();
    Ok(stored
        .map(|(name, metric)| (name, metric.summary()))
        .collect())
}

impl StoredMetric {
    pub(crate) fn summary(&self) -> MetricSummary {
        let value = |text: &str| MetricValue(text.parse().unwrap_or(f64::NAN));
        MetricSummary {
            last: value(&self.0),
            min: value(&self.1),
            max: value(&self.2),
            steps: self.3,
        }
    }
}

fn plan_param(run: &Run, template: Option<&Plan>) -> Result<Param<'static>, StoreError> {
    let text = match (&run.plan, template) {
        (None, _) => return Ok(Param::Null),
        (Some(plan), None) => to_json(plan)?,
        (Some(plan), Some(template)) => to_json(&PlanChange::of(plan, template))?,
    };
    Ok(Param::owned(text))
}

fn plan_of(
    text: Option<String>,
    template: Option<&Arc<Plan>>,
) -> Result<Option<Arc<Plan>>, StoreError> {
    match (text, template) {
        (None, _) => Ok(None),
        (Some(text), None) => Ok(Some(Arc::new(from_json(&text)?))),
        (Some(text), Some(template)) => {
            let changes: PlanChanges = from_json(&text)?;
            Ok(Some(Arc::new(changes.applied(template))))
        }
    }
}

/// Defines the two forms of a plan's difference: borrowed for writing, owned for
/// reading. The list is checked against `Plan` by the compiler: a field that is
/// missing here does not destructure.
macro_rules! plan_changes {
    ($($field:ident: $type:ty),* $(,)?) => {
        #[derive(Serialize)]
        struct PlanChange<'a> {
            $(#[serde(skip_serializing_if = "Option::is_none")] $field: Option<&'a $type>,)*
        }

        impl<'a> PlanChange<'a> {
            fn of(plan: &'a Plan, template: &Plan) -> Self {
                let Plan { $($field),* } = plan;
                Self { $($field: (*$field != template.$field).then_some($field),)* }
            }
        }

        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct PlanChanges {
            $(#[serde(default, deserialize_with = "present")] $field: Option<$type>,)*
        }

        impl PlanChanges {
            fn applied(self, template: &Plan) -> Plan {
                Plan { $($field: self.$field.unwrap_or_else(|| template.$field.clone()),)* }
            }
        }
    };
}

plan_changes! {
    plan_version: u32,
    commit: CommitId,
    argv: Vec<String>,
    params: BTreeMap<String, mlmesh_model::ParamValue>,
    env: BTreeMap<String, String>,
    secrets: Vec<String>,
    deps: Option<PlanDeps>,
    datasets: Vec<PlanDataset>,
    seed: PlanSeed,
    outputs: Vec<String>,
    resources: Resources,
    image: Option<mlmesh_model::Digest>,
    network: PlanNetwork,
    service: Option<mlmesh_model::PlanService>,
}

/// Tells a field that is null from one that is absent.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// The commit that a template gives to points without one.
pub(crate) fn template_commit(text: &str) -> Result<CommitId, StoreError> {
    Ok(from_json::<Common>(text)?.commit)
}

/// The environment's digest in the text of a plan, or of a point's changes to one.
pub(crate) fn plan_deps(text: &str) -> Result<Option<DepsDigest>, StoreError> {
    #[derive(Deserialize)]
    struct Deps {
        #[serde(default)]
        deps: Option<PlanDeps>,
    }
    Ok(from_json::<Deps>(text)?.deps.map(|deps| deps.sha256))
}

/// The environment's digest in a template's plan.
pub(crate) fn template_deps(text: &str) -> Result<Option<DepsDigest>, StoreError> {
    let plan = from_json::<Common>(text)?.plan;
    Ok(plan.and_then(|plan| plan.deps.as_ref().map(|deps| deps.sha256)))
}

/// Checksums of the datasets in the text of a plan, or of a point's changes to one.
pub(crate) fn plan_datasets(text: &str) -> Result<Vec<Digest>, StoreError> {
    #[derive(Deserialize)]
    struct Datasets {
        #[serde(default)]
        datasets: Vec<PlanDataset>,
    }
    let datasets = from_json::<Datasets>(text)?.datasets.into_iter();
    Ok(datasets.map(|dataset| dataset.checksum).collect())
}

/// Digest of the weights in the text of a service's plan.
pub(crate) fn plan_weights(text: &str) -> Result<Option<Digest>, StoreError> {
    #[derive(Deserialize)]
    struct Serving {
        #[serde(default)]
        service: Option<mlmesh_model::PlanService>,
    }
    let service = from_json::<Serving>(text)?.service;
    Ok(service.and_then(|service| Some(service.model?.sha256)))
}

/// Checksums of the datasets in a template's plan.
pub(crate) fn template_datasets(text: &str) -> Result<Vec<Digest>, StoreError> {
    let plan = from_json::<Common>(text)?.plan;
    let datasets = plan.into_iter().flat_map(|plan| plan.datasets.clone());
    Ok(datasets.map(|dataset| dataset.checksum).collect())
}
