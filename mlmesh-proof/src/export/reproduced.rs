//! The signed statement that stands behind L4: an in-toto Statement v1 whose two subjects
//! are the manifests of a run and of its repetition, and whose predicate is what the
//! daemon judged of them.
//!
//! ```text
//!   judgement ─► claim ─► payload ─► envelope (signed by who asked for the repetition)
//!   envelope ─► signature ─► claim ─► the rules of L4 ─► the same as the judgement?
//! ```
//!
//! It is about two manifests and therefore in neither. A payload has one byte form, so
//! that nothing can stand in it that is not checked.

use std::collections::BTreeMap;

use mlmesh_model::{
    Digest, Micros, PlanDigest, Reproduction, ReproductionVerdict, RunId, Tolerance, TrustLevel,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::bundle::ExportedRun;
use super::envelope::{Envelope, EnvelopeError, Fingerprint, SigningKey};
use crate::MANIFEST_FILE;

/// Its name beside the manifest of the run that was reproduced.
pub const REPRODUCTION_FILE: &str = "reproduction.dsse.json";
/// Bytes that its envelope may have: a tolerance names metrics.
pub const REPRODUCTION_BYTES_MAX: u64 = 1 << 20;

const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "urn:mlmesh:reproduction:1";

/// What is stated of a run and its repetition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReproductionClaim {
    /// The run that was reproduced.
    pub original: RunId,
    /// Digest of its manifest.
    pub original_manifest_sha256: Digest,
    /// The run that was executed anew.
    pub repetition: RunId,
    /// Digest of its manifest.
    pub manifest_sha256: Digest,
    /// The plan of both.
    pub plan_sha256: PlanDigest,
    /// That it is the same, or near enough.
    pub verdict: ReproductionVerdict,
    /// The bounds that were applied.
    pub tolerance: BTreeMap<String, Tolerance>,
    /// Output files that were compared.
    pub outputs_compared: u64,
    /// Metrics that were compared.
    pub metrics_compared: u64,
    /// When the daemon judged.
    pub judged_at: Micros,
}

/// A claim with its signature.
#[derive(Debug, Clone)]
pub struct SignedReproduction {
    /// What is stated.
    pub claim: ReproductionClaim,
    /// Who signed.
    pub signer: Fingerprint,
    /// When, by the signer's clock.
    pub signed_at: String,
    /// The envelope's bytes.
    pub envelope: Vec<u8>,
}

/// Why a statement proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReproductionError {
    /// It is not signed.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// It says something else than such a statement does, or about something else.
    #[error("{0}")]
    Claim(&'static str),
}

/// The predicate, as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Predicate {
    original: RunId,
    repetition: RunId,
    plan_sha256: PlanDigest,
    verdict: ReproductionVerdict,
    met: String,
    tolerance: BTreeMap<String, Tolerance>,
    outputs_compared: u64,
    metrics_compared: u64,
    judged_at: Micros,
    #[serde(rename = "mlmesh_signedOn")]
    signed_on: String,
}

impl ReproductionClaim {
    /// What may be signed about a judgement: nothing, unless it makes a run L4.
    pub fn of(judgement: &Reproduction) -> Option<Self> {
        if judgement.denied.is_some() || !judgement.was_met() {
            return None;
        }
        Some(Self {
            original: judgement.original,
            original_manifest_sha256: judgement.original_manifest_sha256?,
            repetition: judgement.run,
            manifest_sha256: judgement.manifest_sha256?,
            plan_sha256: judgement.plan_sha256,
            verdict: judgement.verdict,
            tolerance: judgement.tolerance.clone(),
            outputs_compared: judgement.outputs_compared,
            metrics_compared: judgement.metrics_compared,
            judged_at: judgement.time,
        })
    }

    /// What was met: `bit-identical`, or the tolerance.
    pub fn how(&self) -> String {
        self.verdict.how(&self.tolerance)
    }

    /// Signs it; `signed_at` is the signer's word.
    pub fn sign(&self, key: &SigningKey, signed_at: &str) -> Vec<u8> {
        Envelope::sign(&self.payload(signed_at), key).to_bytes()
    }

    fn payload(&self, signed_at: &str) -> Vec<u8> {
        let subject = |run: RunId, manifest: Digest| {
            json!({
                "name": format!("{run}/{MANIFEST_FILE}"),
                "digest": {"sha256": manifest},
            })
        };
        let predicate = Predicate {
            original: self.original,
            repetition: self.repetition,
            plan_sha256: self.plan_sha256,
            verdict: self.verdict,
            met: self.how(),
            tolerance: self.tolerance.clone(),
            outputs_compared: self.outputs_compared,
            metrics_compared: self.metrics_compared,
            judged_at: self.judged_at,
            signed_on: signed_at.to_owned(),
        };
        let statement = json!({
            "_type": STATEMENT_TYPE,
            "subject": [
                subject(self.original, self.original_manifest_sha256),
                subject(self.repetition, self.manifest_sha256),
            ],
            "predicateType": PREDICATE_TYPE,
            "predicate": predicate,
        });
        statement.to_string().into_bytes()
    }

    /// The rules of L4, as far as a statement can break them.
    fn check(&self) -> Result<(), &'static str> {
        use ReproductionVerdict::{BitIdentical, WithinTolerance};
        if self.original == self.repetition || self.original_manifest_sha256 == self.manifest_sha256
        {
            return Err("it is about two runs with a manifest each");
        }
        if self.outputs_compared == 0 && self.metrics_compared == 0 {
            return Err("at least one output or metric was compared");
        }
        match self.verdict {
            BitIdentical => Ok(()),
            WithinTolerance if !self.tolerance.is_empty() => Ok(()),
            _ => Err("the result was bit-identical, or within a tolerance that is named"),
        }
    }

    /// Whether it is about this run, as its manifest has it.
    pub(super) fn is_about(&self, bytes: &[u8], manifest: &Value) -> Result<(), &'static str> {
        if self.original_manifest_sha256 != Digest::of(bytes)
            || manifest["run"] != self.original.to_string()
        {
            return Err("its first subject is the manifest beside it");
        }
        if manifest["plan_sha256"] != self.plan_sha256.to_string() {
            return Err("its plan is that of the manifest");
        }
        match manifest["trust"]["level"] == TrustLevel::L3.to_string() {
            true => Ok(()),
            false => Err("only what is L3 by itself can be L4"),
        }
    }
}

impl SignedReproduction {
    /// Reads an envelope and checks all that can be checked without the two runs.
    pub fn open(envelope: &[u8]) -> Result<Self, ReproductionError> {
        let (payload, signer) = Envelope::open(envelope)?;
        let (claim, signed_at) = claim(&payload).map_err(ReproductionError::Claim)?;
        claim.check().map_err(ReproductionError::Claim)?;
        Ok(Self {
            claim,
            signer,
            signed_at,
            envelope: envelope.to_vec(),
        })
    }

    /// The same, and that it is about this run.
    pub(super) fn of_run(envelope: &[u8], run: &ExportedRun) -> Result<Self, ReproductionError> {
        let signed = Self::open(envelope)?;
        let about = signed.claim.is_about(&run.bytes, &run.manifest);
        about.map_err(ReproductionError::Claim)?;
        Ok(signed)
    }
}

/// Reads the payload of an envelope; nothing of it is checked but its form.
pub(super) fn claim(payload: &[u8]) -> Result<(ReproductionClaim, String), &'static str> {
    const FORM: &str = "it is an in-toto statement of version 1 over two manifests, as \
                        `ml reproduce` writes it";
    let said: Value = serde_json::from_slice(payload).map_err(|_| FORM)?;
    let digest = |place: usize| {
        let digest = said["subject"][place]["digest"]["sha256"].as_str();
        digest
            .and_then(|text| text.parse::<Digest>().ok())
            .ok_or(FORM)
    };
    let predicate = Predicate::deserialize(&said["predicate"]).map_err(|_| FORM)?;
    let claim = ReproductionClaim {
        original: predicate.original,
        original_manifest_sha256: digest(0)?,
        repetition: predicate.repetition,
        manifest_sha256: digest(1)?,
        plan_sha256: predicate.plan_sha256,
        verdict: predicate.verdict,
        tolerance: predicate.tolerance,
        outputs_compared: predicate.outputs_compared,
        metrics_compared: predicate.metrics_compared,
        judged_at: predicate.judged_at,
    };
    // All else follows from it.
    match claim.payload(&predicate.signed_on) == payload {
        true => Ok((claim, predicate.signed_on)),
        false => Err(FORM),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::export) fn example() -> ReproductionClaim {
        ReproductionClaim {
            original: "aaaaaaaaaaaa".parse().unwrap(),
            original_manifest_sha256: Digest::of(b"one"),
            repetition: "bbbbbbbbbbbb".parse().unwrap(),
            manifest_sha256: Digest::of(b"two"),
            plan_sha256: PlanDigest(Digest::of(b"plan")),
            verdict: ReproductionVerdict::WithinTolerance,
            tolerance: BTreeMap::from([(
                "accuracy".to_owned(),
                Tolerance {
                    abs: Some("0.01".into()),
                    rel: None,
                },
            )]),
            outputs_compared: 1,
            metrics_compared: 2,
            judged_at: Micros(7),
        }
    }

    fn opened(claim: &ReproductionClaim) -> Result<SignedReproduction, ReproductionError> {
        let key = SigningKey::generate().unwrap();
        SignedReproduction::open(&claim.sign(&key, "now"))
    }

    #[test]
    fn what_was_signed_is_read_back() {
        let signed = opened(&example()).unwrap();
        assert_eq!(signed.claim, example());
        assert_eq!(signed.signed_at, "now");
        assert_eq!(signed.claim.how(), "accuracy within abs 0.01");
    }

    #[test]
    fn what_is_no_l4_cannot_be_stated() {
        type Change = fn(&mut ReproductionClaim);
        let changes: [(&str, Change); 5] = [
            ("one run", |it| it.repetition = it.original),
            ("one manifest", |it| {
                it.manifest_sha256 = it.original_manifest_sha256
            }),
            ("nothing compared", |it| {
                (it.outputs_compared, it.metrics_compared) = (0, 0)
            }),
            ("differs", |it| it.verdict = ReproductionVerdict::Differs),
            ("no tolerance", |it| it.tolerance.clear()),
        ];
        for (what, change) in changes {
            let mut claim = example();
            change(&mut claim);
            let said = opened(&claim).unwrap_err();
            assert!(
                matches!(said, ReproductionError::Claim(_)),
                "{what}: {said}"
            );
        }
    }

    #[test]
    fn a_payload_has_one_form() {
        let key = SigningKey::generate().unwrap();
        let payload = example().payload("now");
        let text = String::from_utf8(payload.clone()).unwrap();
        let others = [
            text.replace("\"now\"", "\"now\",\"more\":1"),
            text.replace("aaaaaaaaaaaa/run_manifest", "cccccccccccc/run_manifest"),
            text.replace("abs 0.01", "abs 0.001"),
            text.replace("urn:mlmesh:reproduction:1", "urn:mlmesh:reproduction:2"),
            format!("{text} "),
            "null".to_owned(),
        ];
        for other in others {
            assert_ne!(other, text);
            let envelope = Envelope::sign(other.as_bytes(), &key).to_bytes();
            assert!(SignedReproduction::open(&envelope).is_err(), "{other}");
        }
        let envelope = Envelope::sign(&payload, &key).to_bytes();
        assert!(SignedReproduction::open(&envelope).is_ok());
    }

    #[test]
    fn only_the_manifest_that_was_signed_fits() {
        let claim = example();
        let said = json!({
            "run": "aaaaaaaaaaaa",
            "plan_sha256": claim.plan_sha256,
            "trust": {"level": "L3"},
        });
        assert!(claim.is_about(b"one", &said).is_ok());
        assert!(claim.is_about(b"two", &said).is_err());
        for (key, value) in [
            ("run", json!("bbbbbbbbbbbb")),
            ("plan_sha256", json!(Digest::of(b"other"))),
            ("trust", json!({"level": "L2"})),
        ] {
            let mut other = said.clone();
            other[key] = value;
            assert!(claim.is_about(b"one", &other).is_err(), "{key}");
        }
    }
}
