//! What a recipe becomes: the validated spec of a piece of work, before anything
//! of the machine that will run it is known.
//!
//! Values are kept as the author typed them wherever their text form matters
//! (`0.10` stays `0.10`), because argv and the plan's digest depend on it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Digest, Name, Phase, Service};

/// A validated recipe. The kinds differ in data, never in machinery; later
/// kinds (client, monitor, training) join here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Workload {
    /// A command with pinned inputs, whose outputs and metrics are recorded.
    Experiment(Box<Experiment>),
    /// A command that answers requests until somebody ends it.
    Service(Box<Service>),
}

impl Workload {
    /// What every workload has: a command and what it needs.
    pub fn job(&self) -> &Experiment {
        match self {
            Self::Experiment(job) => job,
            Self::Service(service) => &service.job,
        }
    }

    /// The same, to be changed.
    pub fn job_mut(&mut self) -> &mut Experiment {
        match self {
            Self::Experiment(job) => job,
            Self::Service(service) => &mut service.job,
        }
    }

    /// What it has as a service, if it is one.
    pub fn service(&self) -> Option<&Service> {
        match self {
            Self::Experiment(_) => None,
            Self::Service(service) => Some(service),
        }
    }
}

/// One `experiment:` recipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// Its name, for people; not part of the plan.
    pub name: Name,
    /// The command before substitution. At least one element.
    pub command: Vec<String>,
    /// Named values that `${name}` stands for.
    #[serde(default)]
    pub params: BTreeMap<String, ParamValue>,
    /// The seed, or the word that there is none.
    #[serde(default)]
    pub seed: Seed,
    /// Several runs from one recipe.
    #[serde(default)]
    pub sweep: Option<Sweep>,
    /// Interpreter and packages; absent keeps a run at L1.
    #[serde(default)]
    pub environment: Option<Environment>,
    /// Registered data that the job reads.
    #[serde(default)]
    pub datasets: Vec<DatasetRef>,
    /// Globs relative to the working directory; each must match something.
    #[serde(default)]
    pub outputs: Vec<String>,
    /// What a run may use.
    #[serde(default)]
    pub resources: Resources,
    /// Environment variables without secrets.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Names of secrets; sorted, without repetition.
    #[serde(default)]
    pub secrets: Vec<String>,
    /// Network policy; absent is `none` under strict and `open` under relaxed.
    #[serde(default)]
    pub network: Option<Network>,
    /// How often a lost or interrupted attempt is tried again.
    #[serde(default)]
    pub retries: u32,
    /// What besides loss is tried again.
    #[serde(default)]
    pub retry_on: Vec<RetryOn>,
    /// What "reproduced" means, by metric name.
    #[serde(default)]
    pub tolerance: BTreeMap<String, Tolerance>,
    /// Asks for the sandbox where the policy would not.
    #[serde(default)]
    pub sandbox: bool,
    /// Whether the job gets a token of its attempt for the daemon's API.
    #[serde(default)]
    pub api: bool,
    /// Whether a limit that cannot be enforced is a refusal.
    #[serde(default)]
    pub limits: LimitsPolicy,
    /// Runs that must have completed first: ids, prefixes or `@last`.
    #[serde(default)]
    pub after: Vec<String>,
    /// What is told when it has ended. Placement: it is no part of a plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_finish: Option<OnFinish>,
}

/// Who is told when a run, or a sweep as a whole, has ended. Either a command or a
/// webhook; the recipe's rules see to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnFinish {
    /// A program and its arguments, executed on the daemon's machine as its user.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Where a JSON document is posted to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<String>,
    /// Name of the stored secret that signs what is posted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Only these ends; none means every end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub when: Vec<Phase>,
}

impl OnFinish {
    /// Arguments of a command.
    pub const ARGUMENTS_MAX: usize = 256;
    /// Bytes of a webhook's URL.
    pub const URL_BYTES_MAX: usize = 2_048;

    /// Whether an end in this phase is told.
    pub fn wants(&self, phase: Phase) -> bool {
        phase.is_ended() && (self.when.is_empty() || self.when.contains(&phase))
    }
}

/// A parameter's value. Integers below 2^53 that were typed in plain decimal
/// form are numbers; every other number keeps its text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ParamValue {
    /// `true` or `false`.
    Bool(bool),
    /// A plain decimal integer of magnitude below 2^53.
    Int(i64),
    /// Text, and every other number as typed.
    Text(String),
}

impl fmt::Display for ParamValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::Int(value) => value.fmt(f),
            Self::Text(value) => f.write_str(value),
        }
    }
}

impl Serialize for ParamValue {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Int(value) => serializer.serialize_i64(*value),
            Self::Text(value) => serializer.serialize_str(value),
        }
    }
}

impl<'de> Deserialize<'de> for ParamValue {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::Bool(value) => Ok(Self::Bool(value)),
            serde_json::Value::String(value) => Ok(Self::Text(value)),
            serde_json::Value::Number(number) => number
                .as_i64()
                .filter(|integer| integer.unsigned_abs() < 1 << 53)
                .map(Self::Int)
                .ok_or_else(|| {
                    serde::de::Error::custom(
                        "numbers other than integers below 2^53 travel as strings",
                    )
                }),
            other => Err(serde::de::Error::custom(format!(
                "`{other}` is not a parameter value"
            ))),
        }
    }
}

/// What the recipe says about randomness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seed {
    /// Nothing: the run cannot reach L3.
    #[default]
    Absent,
    /// `seed: none`: the author declares that no randomness is drawn.
    None,
    /// A seed below 2^53, given to the job as `${seed}` and `MLMESH_SEED`.
    Value(u64),
}

/// How a sweep's points are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sweep {
    /// Every combination; the last axis varies fastest, axes in recipe order.
    Grid(Vec<Axis>),
    /// The i-th values of all axes together; all axes have one length.
    Zip(Vec<Axis>),
    /// `count` points drawn with `seed`, the same on every machine.
    Random {
        /// Number of points.
        count: u32,
        /// Seed of the draw.
        seed: u64,
        /// What is drawn for each parameter.
        axes: Vec<RandomAxis>,
    },
}

/// One swept parameter (or `seed`) and its values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Axis {
    /// Parameter name, or `seed`.
    pub param: String,
    /// Its values, in recipe order.
    pub values: Vec<ParamValue>,
}

/// One parameter of a random sweep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RandomAxis {
    /// Parameter name, or `seed`.
    pub param: String,
    /// Where its values come from.
    pub range: RandomRange,
}

/// A source of random values. Bounds keep the text that was typed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RandomRange {
    /// One of a list.
    Choice(Vec<ParamValue>),
    /// Uniform over `[low, high)`.
    Uniform {
        /// Lower bound.
        low: String,
        /// Upper bound.
        high: String,
    },
    /// Uniform in the logarithm over `[low, high)`, both positive.
    LogUniform {
        /// Lower bound.
        low: String,
        /// Upper bound.
        high: String,
    },
    /// A uniform integer from `low` to `high`, both included.
    Int {
        /// Lower bound.
        low: i64,
        /// Upper bound.
        high: i64,
    },
}

/// Interpreter and packages of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Environment {
    /// A virtual environment built from a lock file of the project.
    Locked {
        /// Version such as `3.11`; the machine must have that interpreter.
        python: String,
        /// Path of the lock, relative to the project root.
        lock: String,
    },
    /// The caller's virtual environment as it is; relaxed only.
    Current,
}

/// A dataset as the recipe names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetRef {
    /// Registered name.
    pub name: Name,
    /// Registered version; absent takes the one with this checksum.
    #[serde(default)]
    pub version: Option<String>,
    /// Digest that decides. Its absence is a refusal of preflight.
    #[serde(default)]
    pub checksum: Option<Digest>,
    /// Where the job finds it, relative to its working directory.
    pub mount: String,
}

/// What a run may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
    /// Bytes of memory; absent means no limit and no reservation.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Whole GPUs.
    #[serde(default)]
    pub gpus: u32,
    /// Seconds of wall time after which the attempt is ended.
    #[serde(default)]
    pub time_s: Option<u64>,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cpu_milli: 1000,
            memory_bytes: None,
            gpus: 0,
            time_s: None,
        }
    }
}

/// What a job may reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// Nothing but its own loopback.
    None,
    /// Only these `host:port` or `host` entries.
    Hosts(Vec<String>),
    /// Whatever the machine reaches.
    Open,
}

/// What is tried again besides lost and interrupted attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryOn {
    /// An exit code other than 0.
    Exit,
}

/// How far a reproduced metric may lie from the first. Bounds keep their text.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tolerance {
    /// Absolute difference allowed.
    #[serde(default)]
    pub abs: Option<String>,
    /// Difference allowed relative to the first value.
    #[serde(default)]
    pub rel: Option<String>,
}

/// What happens when the host cannot enforce a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitsPolicy {
    /// The run starts; the record says which limit did not hold.
    #[default]
    Recorded,
    /// The run is refused.
    Required,
}

/// Which runs a submission lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReproPolicy {
    /// Only what can reach L3.
    #[default]
    Strict,
    /// Everything that can run; level and reasons are recorded.
    Relaxed,
}
