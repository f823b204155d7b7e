//! Services: workloads that answer requests until somebody ends them, and what is asked
//! of them from outside.
//!
//! A replica of a service is a run like any other; what differs is data. The plan has its
//! ports, when it is ready and whose weights it serves, the placement how long it is kept
//! and what follows when it ends. Which replicas a service has is nowhere written: they
//! are the runs of that name that have not ended.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{AttemptNumber, BoxFuture, Digest, Experiment, Micros, Name, NodeId, RunId};

/// One `service:` recipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// The command and what it needs: what every workload has.
    pub job: Experiment,
    /// Ports by name; 0 is chosen by the machine at each start.
    pub ports: BTreeMap<String, u16>,
    /// When it is ready.
    pub ready: Readiness,
    /// Which kind of service it is, where it is one that data describe.
    #[serde(default)]
    pub kind: Option<ServiceKind>,
    /// Whose weights it serves.
    #[serde(default)]
    pub model: Option<ModelRef>,
    /// How many of it there are to be.
    pub replicas: u32,
    /// What follows when one ends, and how long it is kept.
    pub keep: Keep,
    /// Tags that its runs begin with.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

impl Service {
    /// Replicas of one service.
    pub const REPLICAS_MAX: u32 = 64;
    /// Ports of one replica.
    pub const PORTS_MAX: usize = 16;
}

/// What a replica's plan says beyond a job's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanService {
    /// Ports by name; 0 is chosen at each start.
    pub ports: BTreeMap<String, u16>,
    /// When it is ready.
    pub ready: Readiness,
    /// Its kind, by the digest of what describes it.
    pub kind: Option<ServiceKind>,
    /// The weights.
    pub model: Option<PlanModel>,
}

/// A kind of service as data describe it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceKind {
    /// Its name.
    pub name: Name,
    /// Digest of the file that describes it.
    pub sha256: Digest,
    /// Which adapter reads its metrics.
    #[serde(default)]
    pub runtime: Option<String>,
    /// Path of its page of metrics.
    #[serde(default)]
    pub metrics: Option<String>,
}

/// Weights as a recipe names them: `NAME@sha256:…`, or `NAME@RUN:PATH`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRef {
    /// The name under which it is served.
    pub name: Name,
    /// Digest of the file.
    #[serde(default)]
    pub sha256: Option<Digest>,
    /// The run that put it out: an id, or the start of one.
    #[serde(default)]
    pub run: Option<String>,
    /// Its path among that run's outputs.
    #[serde(default)]
    pub path: Option<String>,
}

/// Weights that a recorded run put out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanModel {
    /// The name under which it is served.
    pub name: Name,
    /// Digest of the file: its id in the content store.
    pub sha256: Digest,
    /// The run that put it out.
    pub run: RunId,
    /// Its path among that run's outputs.
    pub path: String,
    /// Bytes.
    pub size: u64,
}

/// When a service is ready, and how it is asked. Everything is read by the machine that
/// it runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Readiness {
    /// What is asked.
    pub request: ReadyRequest,
    /// Which port; the first by name without one.
    #[serde(default)]
    pub port: Option<String>,
    /// What answers a `GET` while it is well; a connection is looked for without one.
    #[serde(default)]
    pub health: Option<String>,
    /// How long a start may take.
    pub timeout_s: u64,
}

impl Readiness {
    /// How long a start may take where a recipe does not say.
    pub const TIMEOUT_S_DEFAULT: u64 = 60;
}

/// What is asked of a service before it counts as ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadyRequest {
    /// One generated token, by OpenAI's completions.
    Completion,
    /// One inference, by KServe's version 2, of zeros in the shape that the model names.
    Inference,
    /// A `GET` of this path that is answered with success.
    Http(String),
    /// A connection.
    Tcp,
}

/// How long a replica is kept, and what follows when it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keep {
    /// After which ends it is started again.
    pub restart: Restart,
    /// Ends in a row after which it is not. What has been ready for [`Keep::STEADY_S`]
    /// begins a new count.
    pub restarts_max: u32,
    /// Seconds from its acceptance after which it is ended.
    #[serde(default)]
    pub ttl_s: Option<u64>,
    /// Seconds that requests under way are given when it is to end.
    pub drain_s: u64,
}

impl Keep {
    /// Restarts in a row where a recipe does not say.
    pub const RESTARTS_DEFAULT: u32 = 5;
    /// Most that a recipe may ask for.
    pub const RESTARTS_MAX: u32 = 1_000;
    /// Drain where a recipe does not say.
    pub const DRAIN_S_DEFAULT: u64 = 10;
    /// A replica that ran so long counts as started well.
    pub const STEADY_S: u64 = 600;
}

impl Default for Keep {
    fn default() -> Self {
        Self {
            restart: Restart::OnFailure,
            restarts_max: Self::RESTARTS_DEFAULT,
            ttl_s: None,
            drain_s: Self::DRAIN_S_DEFAULT,
        }
    }
}

/// After which ends of a replica it is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restart {
    /// After none; what the machine lost is started again all the same.
    Never,
    /// After an end with an exit code other than 0, a signal, or without getting ready.
    #[default]
    OnFailure,
    /// After every end that nobody asked for.
    Always,
}

/// What is known of a live replica: where it answers, and how it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The node that it runs on.
    pub node: NodeId,
    /// Which try of the run it is, from 1.
    pub attempt: AttemptNumber,
    /// Ports by name, as they are.
    pub ports: BTreeMap<String, u16>,
    /// How it is.
    pub health: Health,
    /// Since when.
    pub since: Micros,
    /// What was said last, for people; empty when it is well.
    pub said: String,
}

/// How a replica is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It has not yet answered as it should.
    Starting,
    /// It answers.
    Healthy,
    /// It was ready and does not answer any more.
    Unhealthy,
    /// It is to end, and finishes what it has begun.
    Draining,
}

impl Health {
    /// The name used everywhere.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Draining => "draining",
        }
    }
}

/// The port to services that run here: whether one answers, and whether somebody is
/// connected to it.
pub trait Prober: Send + Sync {
    /// Asks once; what was wrong with the answer, for people.
    fn ask(&self, ask: Ask) -> BoxFuture<'_, Result<(), String>>;

    /// Models of the engine that listens there.
    fn models(&self, port: u16) -> BoxFuture<'_, Result<Vec<EngineModel>, String>>;

    /// Has the engine load a model of its repository, or unload it.
    fn change_model(
        &self,
        port: u16,
        model: String,
        load: bool,
    ) -> BoxFuture<'_, Result<(), NotChanged>>;

    /// Established connections to this port of the machine, looked up by nobody's name.
    fn connections(&self, port: u16) -> BoxFuture<'_, Result<usize, String>>;
}

/// A model as the engine of a replica has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineModel {
    /// The engine's name for it.
    pub name: String,
    /// Whether requests to it are answered.
    pub loaded: bool,
    /// What the engine says of it; empty where it says nothing.
    pub said: String,
}

/// Why an engine did not load or unload a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotChanged {
    /// It has no repository of models.
    NoRepository,
    /// It did not want to, or did not answer.
    Said(String),
}

/// One question to a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Which port of the machine's loopback.
    pub port: u16,
    /// What.
    pub request: ReadyRequest,
    /// The name of its model, where it has one.
    pub model: Option<Name>,
}
