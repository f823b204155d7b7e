//! Running a run once more: what came of it, and what that proves.
//!
//! A repetition is a run of its own with the same plan, whose placement names the run
//! that it repeats. When it has ended it is judged once, by the daemon, from what both
//! have left. The judgement is kept beside the runs and never inside a manifest: it is
//! about two of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Digest, Micros, PlanDigest, RunId, Tenant, Tolerance, Trust, TrustLevel, TrustReason};

/// A judgement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reproduction {
    /// The repetition.
    pub run: RunId,
    /// The run that it repeats.
    pub original: RunId,
    /// Whose runs these are.
    pub tenant: Tenant,
    /// The plan of both.
    pub plan_sha256: PlanDigest,
    /// Digest of the original's manifest.
    pub original_manifest_sha256: Option<Digest>,
    /// Digest of the repetition's manifest.
    pub manifest_sha256: Option<Digest>,
    /// What the comparison found.
    pub verdict: ReproductionVerdict,
    /// Output files that were compared.
    pub outputs_compared: u64,
    /// Metrics that were compared.
    pub metrics_compared: u64,
    /// The first of what is not the same, in order; with a tolerance also what it allows.
    pub differences: Vec<ResultDifference>,
    /// How much is not the same.
    pub differences_total: u64,
    /// The recipe's tolerance, which was applied.
    pub tolerance: BTreeMap<String, Tolerance>,
    /// Why it does not make the original L4; null when it does.
    pub denied: Option<TrustReason>,
    /// When it was judged.
    pub time: Micros,
}

/// What a comparison of two results found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReproductionVerdict {
    /// Every output and every metric is the same, to the bit.
    BitIdentical,
    /// What the tolerance names lies within it.
    WithinTolerance,
    /// Something is not the same and no tolerance allows it.
    Differs,
    /// There was nothing to compare, or no result.
    NotCompared,
}

impl ReproductionVerdict {
    /// Its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BitIdentical => "bit_identical",
            Self::WithinTolerance => "within_tolerance",
            Self::Differs => "differs",
            Self::NotCompared => "not_compared",
        }
    }
}

/// An output or a metric that is not the same in both runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultDifference {
    /// `output` or `metric`.
    pub kind: ResultKind,
    /// Its path or name.
    pub name: String,
    /// What the original has: digest or value; null when it has none.
    pub original: Option<String>,
    /// What the repetition has.
    pub repeated: Option<String>,
    /// Of an output: the first byte that differs, from 0, where it was looked for.
    pub first_byte: Option<u64>,
    /// Whether the tolerance allows it.
    pub allowed: bool,
}

/// What can be compared of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResultKind {
    /// A file.
    Output,
    /// The last value of a metric.
    Metric,
}

/// How a run that is L4 was reproduced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reproduced {
    /// By this run.
    pub by: RunId,
    /// `bit-identical`, or the tolerance that was met: `accuracy within abs 0.01`.
    pub how: String,
    /// Fingerprint of who signed a statement over both manifests; `None` until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<String>,
}

/// A signed statement over the manifests of a run and of its repetition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedStatement {
    /// The envelope, byte by byte.
    pub envelope: String,
    /// Fingerprint of who signed it.
    pub signer: String,
}

impl Reproduction {
    /// Whether the result was had again.
    pub fn was_met(&self) -> bool {
        use ReproductionVerdict::{BitIdentical, WithinTolerance};
        matches!(self.verdict, BitIdentical | WithinTolerance)
    }

    /// What was met, as it stands beside the level.
    pub fn how(&self) -> String {
        self.verdict.how(&self.tolerance)
    }
}

impl ReproductionVerdict {
    /// What was met, under these bounds.
    pub fn how(self, tolerance: &BTreeMap<String, Tolerance>) -> String {
        if self == Self::BitIdentical {
            return "bit-identical".to_owned();
        }
        let bounds = tolerance.iter().map(|(name, tolerance)| {
            let abs = tolerance.abs.iter().map(|bound| format!("abs {bound}"));
            let rel = tolerance.rel.iter().map(|bound| format!("rel {bound}"));
            let bounds: Vec<String> = abs.chain(rel).collect();
            format!("{name} within {}", bounds.join(" and "))
        });
        bounds.collect::<Vec<_>>().join(", ")
    }
}

impl Trust {
    /// The level after a judgement. The newest one with a result decides: what was
    /// reproduced and then differs is not L4 any more. One without a result changes
    /// nothing for a run that is L4.
    pub fn judged(&self, judgement: &Reproduction) -> Self {
        let is_l4 = self.level == TrustLevel::L4;
        let mut trust = self.clone();
        let reason = match &judgement.denied {
            None if self.level >= TrustLevel::L3 => {
                trust.level = TrustLevel::L4;
                trust.reasons.retain(|reason| reason.level < TrustLevel::L4);
                trust.reproduced = Some(Reproduced {
                    by: judgement.run,
                    how: judgement.how(),
                    signer: None,
                });
                return trust;
            }
            None => return trust,
            Some(_) if is_l4 && judgement.verdict != ReproductionVerdict::Differs => return trust,
            Some(reason) => reason.clone(),
        };
        trust.level = trust.level.min(TrustLevel::L3);
        trust.reproduced = None;
        trust.reasons.retain(|reason| reason.level < TrustLevel::L4);
        trust.reasons.push(reason);
        trust
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judgement(verdict: ReproductionVerdict, denied: Option<&str>) -> Reproduction {
        Reproduction {
            run: "bbbbbbbbbbbb".parse().unwrap(),
            original: "aaaaaaaaaaaa".parse().unwrap(),
            tenant: Tenant::default(),
            plan_sha256: PlanDigest(Digest::of(b"plan")),
            original_manifest_sha256: None,
            manifest_sha256: None,
            verdict,
            outputs_compared: 1,
            metrics_compared: 0,
            differences: vec![],
            differences_total: 0,
            tolerance: BTreeMap::from([(
                "accuracy".to_owned(),
                Tolerance {
                    abs: Some("0.01".into()),
                    rel: None,
                },
            )]),
            denied: denied.map(|code| TrustReason {
                level: TrustLevel::L4,
                code: code.into(),
                message: String::new(),
                hint: String::new(),
            }),
            time: Micros(1),
        }
    }

    fn trust(level: TrustLevel) -> Trust {
        Trust {
            level,
            reasons: vec![],
            reproduced: None,
        }
    }

    #[test]
    fn the_newest_judgement_with_a_result_decides() {
        use ReproductionVerdict::*;
        let same = judgement(BitIdentical, None);
        let near = judgement(WithinTolerance, None);
        let differs = judgement(Differs, Some("reproduction_differs"));
        let none = judgement(NotCompared, Some("reproduction_incomplete"));
        let how = |trust: &Trust| trust.reproduced.as_ref().map(|it| it.how.clone());
        let first = trust(TrustLevel::L3).judged(&same);
        assert_eq!(first.level, TrustLevel::L4);
        assert_eq!(how(&first).as_deref(), Some("bit-identical"));
        assert_eq!(first.judged(&none), first, "no result changes nothing");
        let near = first.judged(&near);
        assert_eq!(how(&near).as_deref(), Some("accuracy within abs 0.01"));
        let gone = near.judged(&differs);
        assert_eq!((gone.level, how(&gone)), (TrustLevel::L3, None));
        assert_eq!(gone.reasons[0].code, "reproduction_differs");
        let other = gone.judged(&none);
        let codes: Vec<&str> = other.reasons.iter().map(|it| it.code.as_str()).collect();
        assert_eq!(codes, ["reproduction_incomplete"]);
        assert_eq!(other.judged(&same).level, TrustLevel::L4);
        assert_eq!(other.judged(&same).reasons, vec![]);
    }

    #[test]
    fn nothing_lifts_a_run_that_is_not_l3() {
        for level in [TrustLevel::L0, TrustLevel::L1, TrustLevel::L2] {
            let same = judgement(ReproductionVerdict::BitIdentical, None);
            assert_eq!(trust(level).judged(&same), trust(level));
        }
    }
}
