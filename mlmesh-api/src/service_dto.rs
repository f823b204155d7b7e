//! Services, their replicas, and where they answer.

use mlmesh_model::{Health, Phase, RunId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Timestamp, wire};

/// Schema name of [`ServicesDto`].
pub const SERVICES_SCHEMA: &str = "mlmesh.services/1";
/// Schema name of [`EndpointsDto`].
pub const ENDPOINTS_SCHEMA: &str = "mlmesh.endpoints/1";
/// Schema name of [`ModelsDto`].
pub const MODELS_SCHEMA: &str = "mlmesh.models/1";
/// Schema name of [`ChangedModelDto`].
pub const CHANGED_MODEL_SCHEMA: &str = "mlmesh.changed_model/1";
/// Schema name of [`MakerDto`].
pub const MAKER_SCHEMA: &str = "mlmesh.maker/1";
/// Schema name of [`ScaledServiceDto`].
pub const SCALED_SERVICE_SCHEMA: &str = "mlmesh.scaled_service/1";

/// The services of a tenant that have not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServicesDto {
    /// [`SERVICES_SCHEMA`].
    pub schema: String,
    /// By name.
    pub services: Vec<ServiceDto>,
}

/// One service: the live runs of one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceDto {
    /// Its name.
    pub name: String,
    /// Who started it.
    pub owner: String,
    /// Its kind; null for a command of its own.
    pub kind: Option<String>,
    /// The model that it serves; null without one.
    pub model: Option<ServedModelDto>,
    /// Replicas that are ready.
    pub ready: u32,
    /// Replicas in order of acceptance.
    pub replicas: Vec<ReplicaDto>,
}

/// One replica: a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplicaDto {
    /// Its run.
    #[schemars(schema_with = "wire::run_id")]
    pub run: RunId,
    /// Where it stands.
    #[schemars(schema_with = "wire::phase")]
    pub phase: Phase,
    /// How it is; null while its command does not run.
    pub health: Option<HealthWord>,
    /// Since when it is so.
    pub since: Option<Timestamp>,
    /// What was wrong at the last look; empty when it is well.
    pub said: String,
    /// The node that it runs on.
    pub node: Option<String>,
    /// Tries so far.
    pub attempts: u32,
    /// Where it answers; empty while its command does not run.
    pub endpoints: Vec<PortDto>,
}

/// One port of a replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortDto {
    /// Its name in the recipe.
    pub name: String,
    /// `host:port`.
    pub address: String,
    /// With `http://` in front.
    pub url: String,
}

/// The weights that a service serves, and where they come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServedModelDto {
    /// The name under which it is served.
    pub name: String,
    /// Digest of the weights.
    pub sha256: String,
    /// The run that put them out.
    #[schemars(schema_with = "wire::run_id")]
    pub run: RunId,
    /// Their path among its outputs.
    pub path: String,
}

/// Endpoints that a gateway may send requests to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EndpointsDto {
    /// [`ENDPOINTS_SCHEMA`].
    pub schema: String,
    /// Replicas that are ready, by service and in order of acceptance.
    pub endpoints: Vec<EndpointDto>,
}

/// Where a ready replica answers, and what stands behind its answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EndpointDto {
    /// The service.
    pub service: String,
    /// The replica's run: the value of `mlmesh-run` in its answers.
    #[schemars(schema_with = "wire::run_id")]
    pub run: RunId,
    /// The node that it runs on.
    pub node: String,
    /// Address of the port that requests go to.
    pub url: String,
    /// Path of its page of metrics; null where the kind names none.
    pub metrics: Option<String>,
    /// The runtime, as adapters are named; null where the kind names none.
    pub runtime: Option<String>,
    /// The kind; null for a command of its own.
    pub kind: Option<String>,
    /// The model; its digest is the value of `mlmesh-model` in answers. Null without one.
    pub model: Option<ServedModelDto>,
    /// Since when it is ready.
    pub since: Timestamp,
}

/// How a replica is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthWord {
    /// It has not yet answered as it should.
    Starting,
    /// It answers.
    Healthy,
    /// It was ready and does not answer any more.
    Unhealthy,
    /// It is to end, and finishes what it has begun.
    Draining,
}

impl From<Health> for HealthWord {
    fn from(health: Health) -> Self {
        match health {
            Health::Starting => Self::Starting,
            Health::Healthy => Self::Healthy,
            Health::Unhealthy => Self::Unhealthy,
            Health::Draining => Self::Draining,
        }
    }
}

impl HealthWord {
    /// The word itself.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Draining => "draining",
        }
    }
}

/// Models of services that are ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModelsDto {
    /// [`MODELS_SCHEMA`].
    pub schema: String,
    /// By service and replica.
    pub models: Vec<ModelDto>,
}

/// One model as the engine of one replica has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModelDto {
    /// The service.
    pub service: String,
    /// The replica's run.
    #[schemars(schema_with = "wire::run_id")]
    pub run: RunId,
    /// The engine's name for it; empty where it did not say.
    pub name: String,
    /// Whether requests to it are answered.
    pub loaded: bool,
    /// What the engine says of it, or why it says nothing.
    pub said: String,
    /// The weights behind it, where a recorded run put them out.
    pub weights: Option<ServedModelDto>,
}

/// What came of loading or unloading a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChangedModelDto {
    /// [`CHANGED_MODEL_SCHEMA`].
    pub schema: String,
    /// The service.
    pub service: String,
    /// The model.
    pub model: String,
    /// Whether it is loaded now.
    pub loaded: bool,
    /// Replicas that did so.
    #[schemars(schema_with = "wire::run_ids")]
    pub replicas: Vec<RunId>,
}

/// Which run put a file out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MakerDto {
    /// [`MAKER_SCHEMA`].
    pub schema: String,
    /// Digest of the file.
    pub sha256: String,
    /// The newest run that put it out.
    #[schemars(schema_with = "wire::run_id")]
    pub run: RunId,
    /// Its path among that run's outputs.
    pub path: String,
    /// Bytes.
    pub size: u64,
}

/// Asks for a number of replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScaleServiceDto {
    /// How many there are to be.
    pub replicas: u32,
}

/// What came of scaling or stopping a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ScaledServiceDto {
    /// [`SCALED_SERVICE_SCHEMA`].
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Replicas that are to be there.
    #[schemars(schema_with = "wire::run_ids")]
    pub replicas: Vec<RunId>,
    /// Replicas that were told to end.
    #[schemars(schema_with = "wire::run_ids")]
    pub ending: Vec<RunId>,
}
