//! A run as scripts read it: `mlmesh.run/1`, its attempts and its outputs.

use std::collections::BTreeMap;

use mlmesh_model::{
    Attempt, Cause, CommitId, Digest, Exit, HostTraffic, Isolation, Logged, MetricSummary,
    MetricValue, ObjectId, ParamValue, Phase, Placement, PlanDigest, Run, RunId, RunKind,
    Tolerance, Trust, TrustLevel, TrustReason,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{CountsDto, Timestamp, wire};

/// Schema name of [`RunDto`].
pub const RUN_SCHEMA: &str = "mlmesh.run/1";
/// Schema name of [`AttemptsDto`].
pub const ATTEMPTS_SCHEMA: &str = "mlmesh.attempts/1";
/// Schema name of [`OutputsDto`].
pub const OUTPUTS_SCHEMA: &str = "mlmesh.outputs/1";

/// One run with everything that is recorded of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunDto {
    /// [`RUN_SCHEMA`].
    pub schema: String,
    /// Its id.
    #[schemars(schema_with = "wire::run_id")]
    pub id: RunId,
    /// Its place in the order of acceptance.
    pub seq: u64,
    /// Who pays.
    pub tenant: String,
    /// Who asked.
    pub owner: String,
    /// Name of the experiment.
    pub name: String,
    /// Alone, a sweep, or a point of one.
    pub kind: RunKindDto,
    /// Where it stands; a sweep's is derived from its points.
    #[schemars(schema_with = "wire::phase")]
    pub phase: Phase,
    /// Whether it is kept from prune.
    pub pinned: bool,
    /// What people wrote on it: tags with their values. The manifest has those that
    /// stood there when it was written.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// A note; empty for none.
    #[serde(default)]
    pub note: String,
    /// Why it ended other than by exit code 0, or why it waits again.
    #[schemars(schema_with = "wire::cause_or_null")]
    pub cause: Option<Cause>,
    /// What a person should read about the end.
    pub message: String,
    /// Exit code of the last attempt's command.
    pub exit_code: Option<i32>,
    /// Signal that ended the last attempt's command.
    pub signal: Option<i32>,
    /// Tries so far.
    pub attempts: u32,
    /// The source tree.
    #[schemars(schema_with = "wire::digest")]
    pub commit: CommitId,
    /// The plan; null for a sweep.
    #[schemars(schema_with = "wire::plan_or_null")]
    pub plan: Option<serde_json::Value>,
    /// Digest of the plan; of a sweep, of its points' digests.
    #[schemars(schema_with = "wire::digest")]
    pub plan_sha256: PlanDigest,
    /// Everything that is not plan.
    pub placement: PlacementDto,
    /// What git said of the project.
    pub git: Option<GitDto>,
    /// Level and reasons; predicted until the run ends.
    pub trust: Option<TrustDto>,
    /// Metrics by name.
    pub metrics: BTreeMap<String, MetricDto>,
    /// What the last attempt's job has logged beside them; null until that has ended.
    #[serde(default)]
    pub logged: Option<LoggedDto>,
    /// The manifest; null until the run ends.
    #[schemars(schema_with = "wire::object_or_null")]
    pub manifest: Option<serde_json::Value>,
    /// Digest of the manifest's file.
    #[schemars(schema_with = "wire::digest_or_null")]
    pub manifest_sha256: Option<Digest>,
    /// Listing of the collected outputs, an object of the content store.
    #[schemars(schema_with = "wire::digest_or_null")]
    pub outputs: Option<ObjectId>,
    /// What isolation the last attempt had.
    pub isolation: Option<IsolationDto>,
    /// When it was accepted.
    pub queued_at: Timestamp,
    /// While it waits for its next try: not before this time.
    pub not_before: Option<Timestamp>,
    /// When the last attempt's command started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// The sweep it is a point of.
    #[schemars(schema_with = "wire::run_id_or_null")]
    pub parent: Option<RunId>,
    /// Its place in that sweep, from 0.
    pub index: Option<u32>,
    /// Number of points, of a sweep.
    pub children: Option<u32>,
    /// Points by phase, of a sweep.
    pub children_counts: Option<CountsDto>,
}

impl RunDto {
    /// The run as it goes out, with what lies outside its record: the manifest and, of
    /// a sweep, the phases of its points.
    pub fn new(
        run: &Run,
        manifest: Option<serde_json::Value>,
        children_counts: Option<CountsDto>,
    ) -> Self {
        let (exit_code, signal) = exit_parts(run.exit);
        let (kind, parent, index, children) = kind_parts(run.kind);
        Self {
            schema: RUN_SCHEMA.to_owned(),
            id: run.id,
            seq: run.seq.0,
            tenant: run.tenant.to_string(),
            owner: run.owner.to_string(),
            name: run.name.to_string(),
            kind,
            phase: run.phase,
            tags: run.labels.tags.clone(),
            note: run.labels.note.clone(),
            cause: run.cause,
            message: run.message.clone(),
            exit_code,
            signal,
            attempts: run.attempts,
            commit: run.commit,
            plan: run
                .plan
                .as_ref()
                .and_then(|plan| serde_json::to_value(plan.as_ref()).ok()),
            plan_sha256: run.plan_sha256,
            placement: PlacementDto::from(&run.placement),
            git: run.git.as_ref().map(|git| GitDto {
                head: git.head.clone(),
                branch: git.branch.clone(),
                dirty: git.dirty,
            }),
            trust: run.standing_trust().as_ref().map(TrustDto::from),
            metrics: metrics(&run.metrics),
            logged: run.logged.clone().map(LoggedDto::from),
            manifest,
            manifest_sha256: run.manifest_sha256,
            outputs: run.outputs,
            isolation: run.isolation.as_ref().map(IsolationDto::from),
            queued_at: run.queued_at.into(),
            not_before: run.not_before.map(Timestamp),
            pinned: run.pinned,
            started_at: run.started_at.map(Timestamp),
            ended_at: run.ended_at.map(Timestamp),
            parent,
            index,
            children,
            children_counts,
        }
    }
}

/// Parameters and tags that a job has logged through its MLflow client: its claims.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LoggedDto {
    /// Parameters, as text.
    pub params: BTreeMap<String, String>,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// Parameters and tags that were left out, since there were too many.
    pub left_out: u64,
    /// Values that were cut, since they were too long.
    pub shortened: u64,
}

impl From<Logged> for LoggedDto {
    fn from(logged: Logged) -> Self {
        Self {
            params: logged.params,
            tags: logged.tags,
            left_out: logged.left_out,
            shortened: logged.shortened,
        }
    }
}

/// A run in a list: what a table shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunSummaryDto {
    /// Its id.
    #[schemars(schema_with = "wire::run_id")]
    pub id: RunId,
    /// Its place in the order of acceptance; the cursor of lists.
    pub seq: u64,
    /// Name of the experiment.
    pub name: String,
    /// Who asked.
    pub owner: String,
    /// Alone, a sweep, or a point of one.
    pub kind: RunKindDto,
    /// Where it stands.
    #[schemars(schema_with = "wire::phase")]
    pub phase: Phase,
    /// Whether it is kept from prune.
    pub pinned: bool,
    /// Why it ended, or waits again.
    #[schemars(schema_with = "wire::cause_or_null")]
    pub cause: Option<Cause>,
    /// What a person should read about the end.
    pub message: String,
    /// Exit code of the last attempt's command.
    pub exit_code: Option<i32>,
    /// Signal that ended the last attempt's command.
    pub signal: Option<i32>,
    /// Tries so far.
    pub attempts: u32,
    /// Digest of the plan.
    #[schemars(schema_with = "wire::digest")]
    pub plan_sha256: PlanDigest,
    /// Level of trust; predicted until the run ends.
    pub trust: Option<TrustDto>,
    /// Parameters of this point.
    #[schemars(schema_with = "wire::params")]
    pub params: BTreeMap<String, ParamValue>,
    /// Metrics by name.
    pub metrics: BTreeMap<String, MetricDto>,
    /// When it was accepted.
    pub queued_at: Timestamp,
    /// While it waits for its next try: not before this time.
    pub not_before: Option<Timestamp>,
    /// When the last attempt's command started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// The sweep it is a point of.
    #[schemars(schema_with = "wire::run_id_or_null")]
    pub parent: Option<RunId>,
    /// Its place in that sweep.
    pub index: Option<u32>,
    /// Number of points, of a sweep.
    pub children: Option<u32>,
}

impl From<&Run> for RunSummaryDto {
    fn from(run: &Run) -> Self {
        let (exit_code, signal) = exit_parts(run.exit);
        let (kind, parent, index, children) = kind_parts(run.kind);
        Self {
            id: run.id,
            seq: run.seq.0,
            name: run.name.to_string(),
            owner: run.owner.to_string(),
            kind,
            phase: run.phase,
            cause: run.cause,
            message: run.message.clone(),
            exit_code,
            signal,
            attempts: run.attempts,
            plan_sha256: run.plan_sha256,
            trust: run.standing_trust().as_ref().map(TrustDto::from),
            params: run
                .plan
                .as_ref()
                .map(|plan| plan.params.clone())
                .unwrap_or_default(),
            metrics: metrics(&run.metrics),
            queued_at: run.queued_at.into(),
            not_before: run.not_before.map(Timestamp),
            pinned: run.pinned,
            started_at: run.started_at.map(Timestamp),
            ended_at: run.ended_at.map(Timestamp),
            parent,
            index,
            children,
        }
    }
}

/// A run's part in a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunKindDto {
    /// Stands alone.
    Single,
    /// The parent of points.
    Sweep,
    /// A point of a sweep.
    Point,
}

/// Where and for whom a plan runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlacementDto {
    /// Where attempts run.
    pub executor: String,
    /// The node that holds it.
    pub node: Option<String>,
    /// Larger goes first.
    pub priority: i32,
    /// How often it may be tried again.
    pub retries: u32,
    /// What besides loss is tried again.
    pub retry_on: Vec<String>,
    /// Runs that must complete first.
    #[schemars(schema_with = "wire::run_ids")]
    pub after: Vec<RunId>,
    /// `strict` or `relaxed`.
    pub repro_policy: String,
    /// Whether the sandbox is used.
    pub sandbox: bool,
    /// Whether each attempt gets a token for the API.
    #[serde(default)]
    pub api: bool,
    /// `recorded` or `required`.
    pub limits: String,
    /// What "reproduced" means, by metric.
    pub tolerance: BTreeMap<String, ToleranceDto>,
    /// Site options of a cluster.
    pub site: BTreeMap<String, String>,
    /// The run that it repeats.
    #[serde(default)]
    #[schemars(schema_with = "wire::run_id_or_null")]
    pub reproduces: Option<RunId>,
}

impl From<&Placement> for PlacementDto {
    fn from(placement: &Placement) -> Self {
        Self {
            executor: word(&placement.executor),
            node: placement.node.as_ref().map(ToString::to_string),
            priority: placement.priority,
            retries: placement.retries,
            retry_on: placement.retry_on.iter().map(word).collect(),
            after: placement.after.clone(),
            repro_policy: word(&placement.policy),
            sandbox: placement.sandbox,
            api: placement.api,
            limits: word(&placement.limits),
            tolerance: placement
                .tolerance
                .iter()
                .map(|(name, tolerance)| (name.clone(), tolerance.into()))
                .collect(),
            site: placement.site.clone(),
            reproduces: placement.reproduces,
        }
    }
}

/// How far a reproduced metric may lie off, as typed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ToleranceDto {
    /// Absolute difference.
    pub abs: Option<String>,
    /// Relative difference.
    pub rel: Option<String>,
}

impl From<&Tolerance> for ToleranceDto {
    fn from(tolerance: &Tolerance) -> Self {
        Self {
            abs: tolerance.abs.clone(),
            rel: tolerance.rel.clone(),
        }
    }
}

/// Git facts of a project folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GitDto {
    /// Object name of HEAD.
    pub head: String,
    /// Branch, unless detached.
    pub branch: Option<String>,
    /// Whether git said that the folder differs from HEAD; null when it was not asked.
    #[serde(default)]
    pub dirty: Option<bool>,
}

/// A level of the trust ladder and what keeps a run from the next ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TrustDto {
    /// The highest level that holds.
    #[schemars(schema_with = "wire::trust_level")]
    pub level: TrustLevel,
    /// Each condition that failed.
    pub reasons: Vec<TrustReasonDto>,
    /// How it was reproduced; there at L4 alone, as in a manifest it never is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reproduced: Option<ReproducedDto>,
}

/// How a run was reproduced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReproducedDto {
    /// By this run.
    #[schemars(schema_with = "wire::run_id")]
    pub by: RunId,
    /// `bit-identical`, or the tolerance that was met: `accuracy within abs 0.01`.
    pub how: String,
    /// Fingerprint of who signed a statement over both manifests; null until then.
    #[serde(default)]
    pub signer: Option<String>,
}

impl From<&Trust> for TrustDto {
    fn from(trust: &Trust) -> Self {
        Self {
            level: trust.level,
            reasons: trust.reasons.iter().map(TrustReasonDto::from).collect(),
            reproduced: trust.reproduced.as_ref().map(|reproduced| ReproducedDto {
                by: reproduced.by,
                how: reproduced.how.clone(),
                signer: reproduced.signer.clone(),
            }),
        }
    }
}

/// A condition that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TrustReasonDto {
    /// The level it denies.
    #[schemars(schema_with = "wire::trust_level")]
    pub level: TrustLevel,
    /// Stable word.
    pub code: String,
    /// For people.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

impl From<&TrustReason> for TrustReasonDto {
    fn from(reason: &TrustReason) -> Self {
        Self {
            level: reason.level,
            code: reason.code.clone(),
            message: reason.message.clone(),
            hint: reason.hint.clone(),
        }
    }
}

/// What is kept of a metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MetricDto {
    /// Value at the highest step.
    #[schemars(schema_with = "wire::metric_value")]
    pub last: MetricValue,
    /// Smallest value.
    #[schemars(schema_with = "wire::metric_value")]
    pub min: MetricValue,
    /// Largest value.
    #[schemars(schema_with = "wire::metric_value")]
    pub max: MetricValue,
    /// Number of points.
    pub steps: u64,
}

fn metrics(summaries: &BTreeMap<String, MetricSummary>) -> BTreeMap<String, MetricDto> {
    summaries
        .iter()
        .map(|(name, summary)| {
            let metric = MetricDto {
                last: summary.last,
                min: summary.min,
                max: summary.max,
                steps: summary.steps,
            };
            (name.clone(), metric)
        })
        .collect()
}

/// The isolation an attempt had and the limits that held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IsolationDto {
    /// Namespaces of its own.
    pub namespaces: Vec<String>,
    /// Whether it saw only its inputs and the system's read-only files.
    pub sandboxed: bool,
    /// Whether the network policy was enforced.
    pub network_enforced: bool,
    /// What went to the declared hosts and came from them, once it has ended.
    #[serde(default)]
    pub hosts: Vec<HostTrafficDto>,
    /// Each limit as asked and as read back.
    pub limits: Vec<LimitDto>,
}

impl From<&Isolation> for IsolationDto {
    fn from(isolation: &Isolation) -> Self {
        Self {
            namespaces: isolation.namespaces.clone(),
            sandboxed: isolation.sandboxed,
            network_enforced: isolation.network_enforced,
            hosts: isolation.hosts.iter().map(HostTrafficDto::from).collect(),
            limits: isolation
                .limits
                .iter()
                .map(|limit| LimitDto {
                    name: limit.name.clone(),
                    asked: limit.asked,
                    held: limit.held,
                    by: limit.by.clone(),
                })
                .collect(),
        }
    }
}

/// What an attempt exchanged with one declared host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostTrafficDto {
    /// `host:port` as the plan lists it.
    pub host: String,
    /// Connections that were made to it.
    pub connections: u64,
    /// Connections that the job asked for and that could not be made.
    pub refused: u64,
    /// Bytes from the job.
    pub bytes_sent: u64,
    /// Bytes to the job.
    pub bytes_received: u64,
}

impl From<&HostTraffic> for HostTrafficDto {
    fn from(traffic: &HostTraffic) -> Self {
        Self {
            host: traffic.host.clone(),
            connections: traffic.connections,
            refused: traffic.refused,
            bytes_sent: traffic.bytes_sent,
            bytes_received: traffic.bytes_received,
        }
    }
}

/// One limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LimitDto {
    /// `cpu`, `memory`, `pids` or `time`.
    pub name: String,
    /// The value asked for, in the unit of the plan.
    pub asked: u64,
    /// The value read back; null when it does not hold.
    pub held: Option<u64>,
    /// By what means, or why it does not hold.
    pub by: String,
}

/// The tries of a run, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AttemptsDto {
    /// [`ATTEMPTS_SCHEMA`].
    pub schema: String,
    /// The run.
    #[schemars(schema_with = "wire::run_id")]
    pub run: RunId,
    /// Its tries.
    pub attempts: Vec<AttemptDto>,
}

/// One try of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AttemptDto {
    /// Which try, from 1.
    pub number: u32,
    /// The lease it ran under.
    pub token: u64,
    /// Who held the lease.
    pub node: String,
    /// Boot of that node.
    pub boot_id: String,
    /// When the lease was granted.
    pub leased_at: Timestamp,
    /// When the command started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Exit code of the command.
    pub exit_code: Option<i32>,
    /// Signal that ended the command.
    pub signal: Option<i32>,
    /// Why it ended.
    #[schemars(schema_with = "wire::cause_or_null")]
    pub cause: Option<Cause>,
}

impl From<&Attempt> for AttemptDto {
    fn from(attempt: &Attempt) -> Self {
        let (exit_code, signal) = exit_parts(attempt.exit);
        Self {
            number: attempt.number.0,
            token: attempt.token.0,
            node: attempt.node.to_string(),
            boot_id: attempt.boot_id.clone(),
            leased_at: attempt.leased_at.into(),
            started_at: attempt.started_at.map(Timestamp),
            ended_at: attempt.ended_at.map(Timestamp),
            exit_code,
            signal,
            cause: attempt.cause,
        }
    }
}

/// Files that a run left, as they lie in the content store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OutputsDto {
    /// [`OUTPUTS_SCHEMA`].
    pub schema: String,
    /// The run.
    #[schemars(schema_with = "wire::run_id")]
    pub run: RunId,
    /// Listing of the outputs; null when there are none.
    #[schemars(schema_with = "wire::digest_or_null")]
    pub listing: Option<ObjectId>,
    /// The files, by path.
    pub files: Vec<OutputFileDto>,
}

/// One output file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OutputFileDto {
    /// Path relative to the working directory, with `/`.
    pub path: String,
    /// Octal, such as `644`; `link` for a symbolic link.
    pub mode: String,
    /// Bytes.
    pub size: u64,
    /// Digest of the bytes: the object's id.
    #[schemars(schema_with = "wire::digest")]
    pub sha256: Digest,
}

fn exit_parts(exit: Option<Exit>) -> (Option<i32>, Option<i32>) {
    match exit {
        None => (None, None),
        Some(Exit::Code(code)) => (Some(code), None),
        Some(Exit::Signal(signal)) => (None, Some(signal)),
    }
}

fn kind_parts(kind: RunKind) -> (RunKindDto, Option<RunId>, Option<u32>, Option<u32>) {
    match kind {
        RunKind::Single => (RunKindDto::Single, None, None, None),
        RunKind::Parent { children } => (RunKindDto::Sweep, None, None, Some(children)),
        RunKind::Child { parent, index } => (RunKindDto::Point, Some(parent), Some(index), None),
    }
}

/// The word by which a unit variant of the model is written.
pub(crate) fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        other => unreachable!("unit variants are written as words, not as {other:?}"),
    }
}
