//! Runs that repeat another one, and what came of it.

use std::collections::BTreeMap;

use mlmesh_model::{Digest, PlanDigest, Repetition, ResultDifference, RunId, Tolerance};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::run_dto::{ToleranceDto, TrustReasonDto, word};
use crate::{Timestamp, wire};

/// Schema name of [`ReproductionsDto`].
pub const REPRODUCTIONS_SCHEMA: &str = "mlmesh.reproductions/1";

/// The repetitions of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReproductionsDto {
    /// [`REPRODUCTIONS_SCHEMA`].
    pub schema: String,
    /// The run.
    #[schemars(schema_with = "wire::run_id")]
    pub run: RunId,
    /// Its repetitions, oldest first; and the run itself, if it is one.
    pub reproductions: Vec<ReproductionDto>,
}

/// A run that repeats another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReproductionDto {
    /// The repetition.
    #[schemars(schema_with = "wire::run_id")]
    pub run: RunId,
    /// The run that it repeats.
    #[schemars(schema_with = "wire::run_id")]
    pub original: RunId,
    /// What came of it; null until it has ended and is judged.
    pub judgement: Option<JudgementDto>,
    /// What was signed about it; null until somebody did.
    pub statement: Option<StatementDto>,
}

/// A signed statement over the manifests of a run and of its repetition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StatementDto {
    /// The DSSE envelope, byte by byte.
    pub envelope: String,
    /// Fingerprint of who signed it.
    pub signer: String,
}

/// A statement that is to be kept with a judgement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttestDto {
    /// The DSSE envelope, byte by byte.
    pub envelope: String,
}

/// What came of a repetition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JudgementDto {
    /// The plan of both.
    #[schemars(schema_with = "wire::digest")]
    pub plan_sha256: PlanDigest,
    /// `bit_identical`, `within_tolerance`, `differs` or `not_compared`.
    pub verdict: String,
    /// What was met: `bit-identical`, or the tolerance; null where nothing was.
    pub how: Option<String>,
    /// Digest of the original's manifest.
    #[schemars(schema_with = "wire::digest_or_null")]
    pub original_manifest_sha256: Option<Digest>,
    /// Digest of the repetition's manifest.
    #[schemars(schema_with = "wire::digest_or_null")]
    pub manifest_sha256: Option<Digest>,
    /// Output files that were compared.
    pub outputs_compared: u64,
    /// Metrics that were compared.
    pub metrics_compared: u64,
    /// The first of what is not the same; what decides stands first.
    pub differences: Vec<ResultDifferenceDto>,
    /// How much is not the same.
    pub differences_total: u64,
    /// The bounds that were applied, by metric.
    pub tolerance: BTreeMap<String, ToleranceDto>,
    /// Why it does not make the original L4; null when it does.
    pub denied: Option<TrustReasonDto>,
    /// When it was judged.
    pub time: Timestamp,
}

/// An output or a metric that is not the same in both runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResultDifferenceDto {
    /// `output` or `metric`.
    pub kind: String,
    /// Its path or name.
    pub name: String,
    /// What the original has: digest or value; null when it has none.
    pub original: Option<String>,
    /// What the repetition has.
    pub repeated: Option<String>,
    /// The first byte that differs, from 0; of the first output that does.
    pub first_byte: Option<u64>,
    /// Whether the tolerance allows it.
    pub allowed: bool,
}

impl From<&Repetition> for ReproductionDto {
    fn from(repetition: &Repetition) -> Self {
        let judgement = repetition.judgement.as_ref().map(|it| JudgementDto {
            plan_sha256: it.plan_sha256,
            verdict: it.verdict.as_str().to_owned(),
            how: it.was_met().then(|| it.how()),
            original_manifest_sha256: it.original_manifest_sha256,
            manifest_sha256: it.manifest_sha256,
            outputs_compared: it.outputs_compared,
            metrics_compared: it.metrics_compared,
            differences: it.differences.iter().map(difference).collect(),
            differences_total: it.differences_total,
            tolerance: it.tolerance.iter().map(bounds).collect(),
            denied: it.denied.as_ref().map(TrustReasonDto::from),
            time: it.time.into(),
        });
        Self {
            run: repetition.run,
            original: repetition.original,
            judgement,
            statement: repetition.statement.as_ref().map(|it| StatementDto {
                envelope: it.envelope.clone(),
                signer: it.signer.clone(),
            }),
        }
    }
}

fn difference(it: &ResultDifference) -> ResultDifferenceDto {
    ResultDifferenceDto {
        kind: word(&it.kind),
        name: it.name.clone(),
        original: it.original.clone(),
        repeated: it.repeated.clone(),
        first_byte: it.first_byte,
        allowed: it.allowed,
    }
}

fn bounds((name, tolerance): (&String, &Tolerance)) -> (String, ToleranceDto) {
    (name.clone(), ToleranceDto::from(tolerance))
}
