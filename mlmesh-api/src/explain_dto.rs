//! What `ml explain` shows: the six groups, the verdict, and why a run could wait.
//! The answer to an accepted submission stands here too.

use mlmesh_model::{CommitId, DepsDigest, Digest, PlanDigest, Refusal, Resources, RunId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{TrustDto, wire};

/// Schema name of [`ExplanationDto`].
pub const EXPLANATION_SCHEMA: &str = "mlmesh.explanation/1";
/// Schema name of [`AcceptedDto`].
pub const ACCEPTED_SCHEMA: &str = "mlmesh.accepted/1";

/// What would run, whether it may, and what it would prove. No side effects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExplanationDto {
    /// [`EXPLANATION_SCHEMA`].
    pub schema: String,
    /// Whether `ml queue` would accept it now.
    pub admitted: bool,
    /// Each reason why not.
    pub refusals: Vec<RefusalDto>,
    /// Why it would not start at once.
    pub waits: Vec<RefusalDto>,
    /// Group 1: commit and experiment.
    pub experiment: ExplainedExperiment,
    /// Group 2: the environment; null without one.
    pub deps: Option<ExplainedDeps>,
    /// Group 3: the snapshot of the tree.
    pub snapshot: ExplainedSnapshot,
    /// Group 4: data.
    pub datasets: Vec<ExplainedDataset>,
    /// Names of secrets, and who has the value of each.
    #[serde(default)]
    pub secrets: Vec<ExplainedSecret>,
    /// Group 5: what it may use.
    pub resources: ResourcesDto,
    /// Group 6: the candidate image; null on the process executor.
    pub image: Option<ExplainedImage>,
    /// The level that it can reach.
    pub trust: TrustDto,
    /// `strict` or `relaxed`.
    pub repro_policy: String,
    /// The plans: one, or one per point of the sweep, at most [`POINTS_SHOWN_MAX`].
    pub points: Vec<ExplainedPoint>,
    /// Number of points in all; 1 without a sweep.
    pub points_total: u32,
}

/// Where the value of a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainedSecret {
    /// Its name.
    pub name: String,
    /// `caller`, `store`, or null when nobody has it.
    pub from: Option<String>,
}

/// Points of a sweep that an explanation shows in full.
pub const POINTS_SHOWN_MAX: usize = 100;

/// Commit and experiment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainedExperiment {
    /// Name of the experiment.
    pub name: String,
    /// Recipe, relative to the project root.
    pub recipe: String,
    /// The source tree.
    #[schemars(schema_with = "wire::digest")]
    pub commit: CommitId,
    /// Digest of the plan, or of the sweep; null where a refusal left no plan.
    #[schemars(schema_with = "wire::digest_or_null")]
    pub plan_sha256: Option<PlanDigest>,
}

/// The environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainedDeps {
    /// Path of the lock, or `current`.
    pub name: String,
    /// Version of the interpreter.
    pub python: String,
    /// Digest of lock and version together.
    #[schemars(schema_with = "wire::digest")]
    pub sha256: DepsDigest,
}

/// The snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainedSnapshot {
    /// Short form of the commit, as people write it.
    pub id: String,
    /// Digest of the tree's listing.
    #[schemars(schema_with = "wire::digest")]
    pub sha256: Digest,
    /// Whether the content store has all of it.
    pub complete: bool,
}

/// A dataset that a run would read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainedDataset {
    /// Registered name.
    pub name: String,
    /// Version, if the recipe names one.
    pub version: Option<String>,
    /// Digest that decides; null is refused.
    #[schemars(schema_with = "wire::digest_or_null")]
    pub checksum: Option<Digest>,
    /// Where the job finds it.
    pub mount: String,
    /// Whether the catalog has it under this checksum.
    pub registered: bool,
}

/// What a run may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResourcesDto {
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Whole GPUs.
    pub gpus: u32,
    /// Seconds of wall time.
    pub time_s: Option<u64>,
}

impl From<Resources> for ResourcesDto {
    fn from(resources: Resources) -> Self {
        Self {
            cpu_milli: resources.cpu_milli,
            memory_bytes: resources.memory_bytes,
            gpus: resources.gpus,
            time_s: resources.time_s,
        }
    }
}

/// The image that would be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainedImage {
    /// Its name.
    pub name: String,
    /// Its digest.
    #[schemars(schema_with = "wire::digest")]
    pub sha256: Digest,
}

/// One plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainedPoint {
    /// Its digest.
    #[schemars(schema_with = "wire::digest")]
    pub plan_sha256: PlanDigest,
    /// The plan itself.
    #[schemars(schema_with = "wire::plan_or_null")]
    pub plan: serde_json::Value,
}

/// One reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RefusalDto {
    /// Stable word.
    pub code: String,
    /// The rule, the value seen, the value allowed.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

impl From<&Refusal> for RefusalDto {
    fn from(refusal: &Refusal) -> Self {
        Self {
            code: refusal.code.clone(),
            message: refusal.message.clone(),
            hint: refusal.hint.clone(),
        }
    }
}

/// A submission is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AcceptedDto {
    /// [`ACCEPTED_SCHEMA`].
    pub schema: String,
    /// The run, or the parent of the sweep.
    #[schemars(schema_with = "wire::run_id")]
    pub id: RunId,
    /// False when an earlier request with the same idempotency key was answered again.
    pub fresh: bool,
    /// Digest of the plan, or of the sweep.
    #[schemars(schema_with = "wire::digest")]
    pub plan_sha256: PlanDigest,
    /// Number of points, of a sweep.
    pub children: Option<u32>,
}
