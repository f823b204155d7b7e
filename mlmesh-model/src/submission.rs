//! What a client sends for `explain` and `queue`: the parsed recipe and what only
//! the client can know (the tree, the lock, git, the caller's interpreter).

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{CommitId, Digest, ExecutorKind, GitFacts, PlanDigest, ReproPolicy, Workload};

/// A request to plan, and perhaps run, a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// The parsed recipe, overrides (`--set`) applied.
    pub workload: Workload,
    /// The snapshot of the project's tree.
    pub commit: CommitId,
    /// Recipe path relative to the project root, for people.
    pub recipe_path: String,
    /// Git facts of the project folder.
    #[serde(default, deserialize_with = "named_head")]
    pub git: Option<GitFacts>,
    /// Facts about the lock file that `environment:` names. The server checks
    /// them against the commit before anything is enqueued.
    #[serde(default)]
    pub lock: Option<LockFacts>,
    /// The caller's virtual environment, for `environment: current`.
    #[serde(default)]
    pub current: Option<CurrentEnvironment>,
    /// Which runs are let through.
    #[serde(default)]
    pub policy: ReproPolicy,
    /// Where to run.
    #[serde(default)]
    pub executor: Option<ExecutorKind>,
    /// Larger goes first.
    #[serde(default)]
    pub priority: i32,
    /// `--plan`: refuse unless the plan (or sweep) still has this digest.
    #[serde(default)]
    pub expected_plan: Option<PlanDigest>,
    /// Values of secrets that the caller hands over. Never stored in the run.
    #[serde(default)]
    pub secret_values: BTreeMap<String, SecretText>,
}

/// Object names of git are the hex digits of SHA-1 or SHA-256.
const GIT_NAME_CHARS: [usize; 2] = [40, 64];

fn named_head<'de, D: Deserializer<'de>>(input: D) -> Result<Option<GitFacts>, D::Error> {
    let git = Option::<GitFacts>::deserialize(input)?;
    let is_name = |head: &str| {
        GIT_NAME_CHARS.contains(&head.len()) && head.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    match git {
        Some(git) if !is_name(&git.head) => Err(D::Error::custom(
            "the `head` of `git` is an object name, 40 or 64 hex digits",
        )),
        git => Ok(git),
    }
}

/// What a lock file pins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockFacts {
    /// Path relative to the project root.
    pub path: String,
    /// Digest of the file's bytes.
    pub sha256: Digest,
    /// Number of requirements.
    pub requirements: u32,
    /// Names of requirements that carry no hash.
    pub unhashed: Vec<String>,
}

/// A virtual environment taken as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CurrentEnvironment {
    /// Its folder on the machine, absolute.
    pub prefix: String,
    /// Its interpreter's version, such as `3.11`.
    pub python: String,
    /// `name==version` lines, sorted.
    pub frozen: Vec<String>,
}

/// A secret's value. It is written to the wire and never to a log: `Debug` hides it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretText(pub String);

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_an_object_name() {
        for (head, good) in [
            ("a".repeat(40), true),
            ("0F".repeat(32), true),
            (String::new(), false),
            ("a".repeat(41), false),
            ("g".repeat(40), false),
        ] {
            let git = serde_json::json!({"head": head, "branch": null});
            assert_eq!(named_head(git).is_ok(), good, "{head}");
        }
    }
}
