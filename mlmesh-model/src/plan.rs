//! The plan: everything that determines a run's result, resolved before it starts.
//!
//! `plan_sha256` is the SHA-256 of the plan's canonical JSON (see
//! [`crate::canonical_json`]), so that the same plan has the same digest on every
//! executor and in every language. Who runs it, where, how urgently and how often
//! stand beside it in [`Placement`](crate::Placement) and are never hashed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    CanonicalError, CommitId, DepsDigest, Digest, Name, ParamValue, PlanDigest, PlanService,
    Resources, canonical_json,
};

/// Version of the plan's shape. A change of any field's meaning is a new number.
pub const PLAN_VERSION: u32 = 1;

/// What determines the result. All fields but the last are always written, `null`
/// included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`PLAN_VERSION`].
    pub plan_version: u32,
    /// The source tree.
    pub commit: CommitId,
    /// The command after substitution.
    pub argv: Vec<String>,
    /// Parameters of this point, overrides applied.
    pub params: BTreeMap<String, ParamValue>,
    /// Environment variables from the recipe; no secrets.
    pub env: BTreeMap<String, String>,
    /// Names of secrets, sorted.
    pub secrets: Vec<String>,
    /// Environment, if one is declared.
    pub deps: Option<PlanDeps>,
    /// Data, in recipe order.
    pub datasets: Vec<PlanDataset>,
    /// The seed.
    pub seed: PlanSeed,
    /// Output globs, in recipe order.
    pub outputs: Vec<String>,
    /// CPUs, memory, GPUs and time.
    pub resources: Resources,
    /// Digest of the declared image; null without one.
    pub image: Option<Digest>,
    /// Resolved network policy.
    pub network: PlanNetwork,
    /// What makes it a service. Alone among the fields it is not written where it is
    /// absent, so that digests of experiments stay what they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<PlanService>,
}

/// The environment as far as it determines the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanDeps {
    /// Where the digest comes from.
    pub kind: DepsKind,
    /// Path of the lock in the tree, or `current`.
    pub name: String,
    /// Interpreter version as the recipe names it.
    pub python: String,
    /// For a lock: see [`deps_digest`]. For `current`: of the frozen list.
    pub sha256: DepsDigest,
}

/// Where an environment's digest comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DepsKind {
    /// A lock file and a `python:` version.
    Lock,
    /// The frozen list of an existing virtual environment.
    Current,
}

/// A dataset in a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanDataset {
    /// Registered name.
    pub name: Name,
    /// Version, if the recipe names one.
    pub version: Option<String>,
    /// Digest of the file, or of the directory's listing.
    pub checksum: Digest,
    /// Path relative to the working directory.
    pub mount: String,
}

/// The seed as the plan records it: a number, the word `none`, or null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanSeed {
    /// The recipe says nothing.
    Absent,
    /// The recipe declares that no randomness is drawn.
    None,
    /// A seed below 2^53.
    Value(u64),
}

impl Serialize for PlanSeed {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Absent => serializer.serialize_none(),
            Self::None => serializer.serialize_str("none"),
            Self::Value(seed) => serializer.serialize_u64(*seed),
        }
    }
}

impl<'de> Deserialize<'de> for PlanSeed {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::Null => Ok(Self::Absent),
            serde_json::Value::String(text) if text == "none" => Ok(Self::None),
            serde_json::Value::Number(number) => {
                let seed = number.as_u64().filter(|seed| *seed < 1 << 53);
                seed.map(Self::Value)
                    .ok_or_else(|| serde::de::Error::custom("a seed is an integer below 2^53"))
            }
            other => Err(serde::de::Error::custom(format!("`{other}` is not a seed"))),
        }
    }
}

/// The network policy as the plan records it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanNetwork {
    /// Own loopback only.
    None,
    /// These hosts only, each as `host:port`: lower case, sorted, no port implied.
    Hosts(Vec<String>),
    /// Everything.
    Open,
}

impl Plan {
    /// The canonical bytes that are hashed.
    pub fn canonical_bytes(&self) -> Result<Vec<u8>, PlanError> {
        Ok(canonical_json(&serde_json::to_value(self)?)?)
    }

    /// `plan_sha256`.
    pub fn digest(&self) -> Result<PlanDigest, PlanError> {
        Ok(PlanDigest(Digest::of(&self.canonical_bytes()?)))
    }
}

/// The digest of an environment: SHA-256 over the canonical JSON of
/// `{"lock_sha256": …, "python": …}`.
pub fn deps_digest(python: &str, lock_sha256: Digest) -> Result<DepsDigest, PlanError> {
    let value = serde_json::json!({"lock_sha256": lock_sha256.to_string(), "python": python});
    Ok(DepsDigest(Digest::of(&canonical_json(&value)?)))
}

/// A sweep's digest: SHA-256 of its children's hex digests, concatenated in order.
pub fn sweep_digest(children: impl IntoIterator<Item = PlanDigest>) -> PlanDigest {
    let text: String = children
        .into_iter()
        .map(|digest| digest.to_string())
        .collect();
    PlanDigest(Digest::of(text.as_bytes()))
}

/// A plan that has no canonical form.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A value that canonical JSON cannot carry.
    #[error(transparent)]
    Canonical(#[from] CanonicalError),
    /// A value that JSON cannot carry.
    #[error("write the plan as JSON")]
    Json(#[from] serde_json::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn plan() -> Plan {
        Plan {
            plan_version: PLAN_VERSION,
            commit: CommitId(Digest::of(b"tree")),
            argv: vec![
                "python".into(),
                "train.py".into(),
                "--lr".into(),
                "0.10".into(),
            ],
            params: BTreeMap::from([("lr".into(), ParamValue::Text("0.10".into()))]),
            env: BTreeMap::new(),
            secrets: vec![],
            deps: None,
            datasets: vec![],
            seed: PlanSeed::Value(7),
            outputs: vec!["model.npz".into()],
            resources: Resources::default(),
            image: None,
            network: PlanNetwork::None,
            service: None,
        }
    }

    #[test]
    fn canonical_form_is_the_documented_one() {
        let text = String::from_utf8(plan().canonical_bytes().unwrap()).unwrap();
        let commit = Digest::of(b"tree");
        assert_eq!(
            text,
            format!(
                concat!(
                    r#"{{"argv":["python","train.py","--lr","0.10"],"commit":"{}","datasets":[],"deps":null,"env":{{}},"#,
                    r#""image":null,"network":"none","outputs":["model.npz"],"params":{{"lr":"0.10"}},"plan_version":1,"#,
                    r#""resources":{{"cpu_milli":1000,"gpus":0,"memory_bytes":null,"time_s":null}},"secrets":[],"seed":7}}"#
                ),
                commit
            )
        );
    }

    #[test]
    fn every_field_moves_the_digest_and_a_round_trip_does_not() {
        let first = plan();
        let text = serde_json::to_string(&first).unwrap();
        let again: Plan = serde_json::from_str(&text).unwrap();
        assert_eq!(first.digest().unwrap(), again.digest().unwrap());
        let mut other = plan();
        other.seed = PlanSeed::None;
        assert_ne!(first.digest().unwrap(), other.digest().unwrap());
        other.seed = PlanSeed::Absent;
        assert_ne!(first.digest().unwrap(), other.digest().unwrap());
    }

    #[test]
    fn a_sweep_is_the_digest_of_its_children_in_order() {
        let one = plan().digest().unwrap();
        let two = PlanDigest(Digest::of(b"two"));
        assert_ne!(sweep_digest([one, two]), sweep_digest([two, one]));
        assert_eq!(
            sweep_digest([one]).0,
            Digest::of(one.to_string().as_bytes())
        );
    }
}
