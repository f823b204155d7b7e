//! A run and its attempts as they are recorded.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    AttemptNumber, Cause, CommitId, Digest, Exit, FencingToken, Keep, LimitsPolicy, Micros, Name,
    NodeId, ObjectId, OnFinish, Owner, ParamValue, Phase, Plan, PlanDigest, ReproPolicy, RetryOn,
    RunId, Sequence, Tenant, Tolerance, Trust,
};

/// One accepted execution of a plan, or the parent of a sweep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// Its place in the order of acceptance; set by the store.
    pub seq: Sequence,
    /// Who pays.
    pub tenant: Tenant,
    /// Who asked.
    pub owner: Owner,
    /// Name of the experiment.
    pub name: Name,
    /// Alone, parent or point of a sweep.
    pub kind: RunKind,
    /// The source tree.
    pub commit: CommitId,
    /// The plan; a parent has none of its own.
    pub plan: Option<Arc<Plan>>,
    /// `plan_sha256`; a parent's is the digest of its children's.
    pub plan_sha256: PlanDigest,
    /// Everything that is not plan.
    pub placement: Placement,
    /// Git facts of the tree, if it has a repository.
    pub git: Option<GitFacts>,
    /// Where it stands. A parent's is derived from its children on reading.
    pub phase: Phase,
    /// Why it ended, or why it waits again.
    pub cause: Option<Cause>,
    /// What a person should read about the end; empty when all is well.
    pub message: String,
    /// How the last attempt's command ended.
    pub exit: Option<Exit>,
    /// Tries so far.
    pub attempts: u32,
    /// Token of the newest lease; 0 before the first.
    pub token: FencingToken,
    /// When it was accepted.
    pub queued_at: Micros,
    /// While it waits for another try: not before this time.
    #[serde(default)]
    pub not_before: Option<Micros>,
    /// When its last attempt's command started.
    pub started_at: Option<Micros>,
    /// When it ended.
    pub ended_at: Option<Micros>,
    /// Level and reasons; predicted until the end, then computed.
    pub trust: Option<Trust>,
    /// Metrics by name.
    pub metrics: BTreeMap<String, MetricSummary>,
    /// Listing of the collected outputs: an object in the content store in the
    /// tree form of commits.
    pub outputs: Option<ObjectId>,
    /// Digest of `run_manifest.json`, once written.
    pub manifest_sha256: Option<Digest>,
    /// Isolation and limits that the last attempt had.
    pub isolation: Option<Isolation>,
    /// Whether somebody pinned it: prune keeps it, with everything it refers to.
    #[serde(default)]
    pub pinned: bool,
    /// What people wrote on it.
    #[serde(default)]
    pub labels: Labels,
    /// What the last attempt has said of it through its MLflow client.
    #[serde(default)]
    pub logged: Option<Logged>,
}

/// What a job has said of its own run: parameters and tags that its MLflow client has
/// logged. Claims, which nothing checks; the plan has the recipe's own parameters, and
/// labels are what people write.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Logged {
    /// Parameters, as text.
    #[serde(default)]
    pub params: BTreeMap<String, String>,
    /// Tags, those of the client itself (`mlflow.…`) among them.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Parameters and tags that were left out, since there were too many.
    #[serde(default)]
    pub left_out: u64,
    /// Values that were cut.
    #[serde(default)]
    pub shortened: u64,
}

impl Logged {
    /// Most parameters of a run, and most tags.
    pub const ENTRIES_MAX: usize = 500;
    /// Longest name.
    pub const NAME_CHARS_MAX: usize = 250;
    /// Longest value.
    pub const VALUE_CHARS_MAX: usize = 500;
    /// Most bytes of names and values together.
    pub const BYTES_MAX: usize = 64 << 10;
}

/// What people write on a run, at any time. The record has what stands now, the manifest
/// what stood there when it was written.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Labels {
    /// Tags with their values; empty for one that is only a word.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// A note; empty for none.
    #[serde(default)]
    pub note: String,
}

impl Labels {
    /// Most tags of a run.
    pub const TAGS_MAX: usize = 100;
    /// Longest name of a tag.
    pub const KEY_CHARS_MAX: usize = 100;
    /// Longest value of a tag.
    pub const VALUE_CHARS_MAX: usize = 1000;
    /// Longest note.
    pub const NOTE_CHARS_MAX: usize = 16 << 10;
}

/// What is known of a run when it is accepted.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// Its id, drawn.
    pub id: RunId,
    /// Whose it is.
    pub tenant: Tenant,
    /// Who asked for it.
    pub owner: Owner,
    /// From the recipe.
    pub name: Name,
    /// Single, the parent of a sweep or a point of one.
    pub kind: RunKind,
    /// The tree that it runs.
    pub commit: CommitId,
    /// Absent of a parent.
    pub plan: Option<Arc<Plan>>,
    /// Of the plan, or of a sweep's plans in order.
    pub plan_sha256: PlanDigest,
    /// What stands beside the plan.
    pub placement: Placement,
    /// Of the project, where it has a repository.
    pub git: Option<GitFacts>,
    /// What it can reach, predicted.
    pub trust: Option<Trust>,
    /// When it was accepted.
    pub queued_at: Micros,
}

impl From<NewRun> for Run {
    /// A run to which nothing has happened; the store gives it its place in the order.
    fn from(new: NewRun) -> Self {
        Self {
            id: new.id,
            seq: Sequence(0),
            tenant: new.tenant,
            owner: new.owner,
            name: new.name,
            kind: new.kind,
            commit: new.commit,
            plan: new.plan,
            plan_sha256: new.plan_sha256,
            placement: new.placement,
            git: new.git,
            phase: Phase::Queued,
            cause: None,
            message: String::new(),
            exit: None,
            attempts: 0,
            token: FencingToken(0),
            queued_at: new.queued_at,
            not_before: None,
            started_at: None,
            ended_at: None,
            trust: new.trust,
            metrics: BTreeMap::new(),
            outputs: None,
            manifest_sha256: None,
            isolation: None,
            pinned: false,
            labels: Labels::default(),
            logged: None,
        }
    }
}

impl Run {
    /// Whether it is a replica of a service.
    pub fn is_service(&self) -> bool {
        self.plan
            .as_ref()
            .is_some_and(|plan| plan.service.is_some())
    }

    /// Whether it ran elsewhere and was imported.
    pub fn is_imported(&self) -> bool {
        self.trust.as_ref().is_some_and(Trust::is_imported)
    }

    /// The level that counts now: predicted until the run has ended, then computed.
    /// One that ended before its command was started has nothing but its record,
    /// whatever was predicted.
    pub fn standing_trust(&self) -> Option<Trust> {
        if self.is_imported() {
            return self.trust.clone();
        }
        let executes = !matches!(self.kind, RunKind::Parent { .. });
        if executes && self.phase.is_ended() && self.started_at.is_none() {
            return Some(Trust::never_started());
        }
        self.trust.clone()
    }
}

/// A run's part in a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunKind {
    /// Stands alone.
    Single,
    /// Parent of `children` points; never executed itself, never counted.
    Parent {
        /// Number of points.
        children: u32,
    },
    /// A point of a sweep.
    Child {
        /// The sweep.
        parent: RunId,
        /// Its place in the sweep, from 0.
        index: u32,
    },
}

/// Where and for whom a plan runs. Recorded beside the plan, never hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Where attempts run.
    pub executor: ExecutorKind,
    /// The node that holds it, once leased.
    #[serde(default)]
    pub node: Option<NodeId>,
    /// Larger goes first; 0 is usual.
    #[serde(default)]
    pub priority: i32,
    /// How often it may be tried again.
    #[serde(default)]
    pub retries: u32,
    /// What besides loss is tried again.
    #[serde(default)]
    pub retry_on: Vec<RetryOn>,
    /// Runs that must complete first.
    #[serde(default)]
    pub after: Vec<RunId>,
    /// The policy it was admitted under.
    #[serde(default)]
    pub policy: ReproPolicy,
    /// Whether the sandbox is used.
    #[serde(default)]
    pub sandbox: bool,
    /// Whether somebody else than the daemon's user queued it: nothing of its making is
    /// run outside the sandbox then, neither its job nor what its environment brings.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub apart: bool,
    /// Whether each attempt gets a token for the daemon's API.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub api: bool,
    /// Whether a limit that cannot be enforced stops it.
    #[serde(default)]
    pub limits: LimitsPolicy,
    /// What "reproduced" means.
    #[serde(default)]
    pub tolerance: BTreeMap<String, Tolerance>,
    /// For `environment: current`: the virtual environment to use.
    #[serde(default)]
    pub current_environment: Option<String>,
    /// Site options of a cluster.
    #[serde(default)]
    pub site: BTreeMap<String, String>,
    /// The run that it repeats, to be judged when it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reproduces: Option<RunId>,
    /// Who is told when it has ended; of a sweep its parent's counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_finish: Option<OnFinish>,
    /// Of a service: how long it is kept, and what follows when it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
}

impl Default for Placement {
    fn default() -> Self {
        Self {
            executor: ExecutorKind::Process,
            node: None,
            priority: 0,
            retries: 0,
            retry_on: Vec::new(),
            after: Vec::new(),
            policy: ReproPolicy::Strict,
            sandbox: false,
            apart: false,
            api: false,
            limits: LimitsPolicy::Recorded,
            tolerance: BTreeMap::new(),
            current_environment: None,
            site: BTreeMap::new(),
            reproduces: None,
            on_finish: None,
            keep: None,
        }
    }
}

/// Where attempts run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecutorKind {
    /// Processes of this machine under a supervisor each.
    Process,
}

/// What git says of the project folder when it was submitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitFacts {
    /// Object name of HEAD.
    pub head: String,
    /// Branch, unless detached.
    pub branch: Option<String>,
    /// Whether git said that the folder differs from HEAD; null when it was not asked.
    #[serde(default)]
    pub dirty: Option<bool>,
}

/// One try of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The run.
    pub run: RunId,
    /// Which try, from 1.
    pub number: AttemptNumber,
    /// The lease it runs under.
    pub token: FencingToken,
    /// Who holds the lease.
    pub node: NodeId,
    /// Boot of the node when the lease was granted (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// When the lease was granted.
    pub leased_at: Micros,
    /// When the command started.
    pub started_at: Option<Micros>,
    /// When it ended.
    pub ended_at: Option<Micros>,
    /// How the command ended.
    pub exit: Option<Exit>,
    /// Why it ended.
    pub cause: Option<Cause>,
}

impl Attempt {
    /// Public name of its token: stands in logs and in the audit.
    pub fn key_name(&self) -> String {
        let AttemptNumber(number) = self.number;
        format!("attempt/{}/{number}", self.run)
    }
}

impl AttemptNumber {
    /// The attempt that a token of this public name belongs to.
    pub fn of_key_name(name: &str) -> Option<Self> {
        name.rsplit_once('/')?.1.parse().ok().map(Self)
    }
}

/// What is kept of a metric in the run itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricSummary {
    /// Value at the highest step.
    pub last: MetricValue,
    /// Smallest value.
    pub min: MetricValue,
    /// Largest value.
    pub max: MetricValue,
    /// Number of points.
    pub steps: u64,
}

impl Eq for MetricSummary {}

/// A metric's value. In JSON not-a-number and the infinities are the strings
/// `nan`, `inf` and `-inf`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MetricValue(pub f64);

impl Serialize for MetricValue {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_finite() {
            serializer.serialize_f64(self.0)
        } else if self.0.is_nan() {
            serializer.serialize_str("nan")
        } else if self.0 > 0.0 {
            serializer.serialize_str("inf")
        } else {
            serializer.serialize_str("-inf")
        }
    }
}

impl<'de> Deserialize<'de> for MetricValue {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;

        impl serde::de::Visitor<'_> for Number {
            type Value = MetricValue;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number, `nan`, `inf` or `-inf`")
            }

            fn visit_f64<E>(self, value: f64) -> Result<MetricValue, E> {
                Ok(MetricValue(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<MetricValue, E> {
                Ok(MetricValue(value as f64))
            }

            fn visit_i64<E>(self, value: i64) -> Result<MetricValue, E> {
                Ok(MetricValue(value as f64))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<MetricValue, E> {
                match text.to_ascii_lowercase().as_str() {
                    "nan" => Ok(MetricValue(f64::NAN)),
                    "inf" | "+inf" | "infinity" => Ok(MetricValue(f64::INFINITY)),
                    "-inf" | "-infinity" => Ok(MetricValue(f64::NEG_INFINITY)),
                    _ => Err(E::custom(format!(
                        "`{text}` is not a number, `nan`, `inf` or `-inf`"
                    ))),
                }
            }
        }

        deserializer.deserialize_any(Number)
    }
}

/// One metric point as jobs write it: a line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricPoint {
    /// Name of the metric.
    pub name: String,
    /// Its value.
    pub value: MetricValue,
    /// Its step; absent takes the next one of this name.
    #[serde(default)]
    pub step: Option<i64>,
    /// Seconds since 1970-01-01 00:00 UTC.
    #[serde(default)]
    pub time: Option<f64>,
}

/// The isolation an attempt had and the limits that held.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Isolation {
    /// Namespaces of its own, of `user`, `mount`, `pid`, `net`, `ipc`, `uts`.
    pub namespaces: Vec<String>,
    /// Whether it saw only its inputs and the system's read-only files.
    pub sandboxed: bool,
    /// Whether the plan's network policy was enforced.
    pub network_enforced: bool,
    /// What went to the declared hosts and came from them, once it has ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostTraffic>,
    /// Each limit, as asked and as read back.
    pub limits: Vec<LimitReport>,
}

/// What an attempt exchanged with one declared host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostTraffic {
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

/// One limit: asked for, read back, and by what means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitReport {
    /// `cpu`, `memory`, `pids` or `time`.
    pub name: String,
    /// The value asked for, in the unit of the plan.
    pub asked: u64,
    /// The value read back after setting; null when it does not hold.
    pub held: Option<u64>,
    /// `cgroup2`, `cgroup1`, `supervisor`, or why it does not hold.
    pub by: String,
}

/// A parameter assignment such as `lr=0.1`, for tables.
pub fn params_line(params: &BTreeMap<String, ParamValue>) -> String {
    params
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect::<Vec<_>>()
        .join(" ")
}
