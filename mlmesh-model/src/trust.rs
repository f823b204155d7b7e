//! The trust ladder L0–L4: computed from what was verified, never typed in.
//!
//! | level | what holds |
//! |---|---|
//! | L0 | the run is recorded |
//! | L1 | its code is pinned: a commit of the whole tree |
//! | L2 | its environment is pinned: hash-locked packages and a `python:` version, or an image digest |
//! | L3 | its data are pinned: every digest verified at start, seed recorded, network none or enforced, nothing else visible |
//! | L4 | it was reproduced: an attestation over two manifests |
//!
//! The same function predicts the level before a run (preflight: what can this
//! reach?) and records it afterwards (what did hold?); the facts differ.

use serde::{Deserialize, Serialize};

use crate::Reproduced;

/// A rung of the ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TrustLevel {
    /// Recorded.
    L0,
    /// Code pinned.
    L1,
    /// Environment pinned.
    L2,
    /// Data pinned and nothing else visible.
    L3,
    /// Reproduced.
    L4,
}

impl std::fmt::Display for TrustLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::L0 => "L0",
            Self::L1 => "L1",
            Self::L2 => "L2",
            Self::L3 => "L3",
            Self::L4 => "L4",
        })
    }
}

/// The level of a run and what keeps it from the next ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// The highest level that holds.
    pub level: TrustLevel,
    /// Each condition that failed, with the level it denies.
    pub reasons: Vec<TrustReason>,
    /// How it was reproduced, at L4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reproduced: Option<Reproduced>,
}

/// A condition that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustReason {
    /// The level it denies.
    pub level: TrustLevel,
    /// Stable snake_case word.
    pub code: String,
    /// For people.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

/// Code of the reason of a run that was imported.
const IMPORTED: &str = "imported";

/// What is known of a run, or would be.
#[derive(Debug, Clone, Default)]
pub struct TrustFacts {
    /// The source tree has a commit.
    pub code_pinned: bool,
    /// The environment.
    pub environment: EnvironmentFact,
    /// Names of datasets whose digest was not (or cannot be) verified.
    pub datasets_unverified: Vec<String>,
    /// Seed given, or `seed: none`.
    pub seed_recorded: bool,
    /// The network policy is `none` or a list of hosts, and was enforced.
    pub network: NetworkFact,
    /// The job saw only its checkout, environment, datasets and the system's
    /// read-only files. The text says what else it saw.
    pub sees_more: Option<String>,
}

/// What pins the environment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum EnvironmentFact {
    /// No `environment:`.
    #[default]
    Absent,
    /// `environment: current`.
    Current,
    /// A lock in which these requirements carry no hash.
    Unhashed(Vec<String>),
    /// Every requirement carries a hash, or an image digest.
    Pinned,
}

/// What is known of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetworkFact {
    /// `open`.
    #[default]
    Open,
    /// A restriction was asked for and the host cannot enforce it.
    NotEnforced,
    /// Hosts were declared and there was no sandbox, which alone enforces them.
    NeedsSandbox,
    /// Restricted, and enforced.
    Enforced,
}

impl Trust {
    /// Of a run that ended before its command was started.
    pub fn never_started() -> Self {
        Self {
            level: TrustLevel::L0,
            reasons: vec![TrustReason {
                level: TrustLevel::L1,
                code: "never_started".to_owned(),
                message: "the command was never started, so there is no result to trust".to_owned(),
                hint: "`ml info` says why it ended; `ml retry` puts it back into the queue"
                    .to_owned(),
            }],
            reproduced: None,
        }
    }

    /// Of a run that was imported: here nothing of it was seen to happen. What its
    /// exporter says of it is named, and his reasons are kept; and that it was reproduced,
    /// when there is a signed statement (what was met, and who says so).
    pub fn imported(
        claimed: Option<&Trust>,
        signer: &str,
        reproduced: Option<(&str, &str)>,
    ) -> Self {
        let level = claimed.map_or(TrustLevel::L0, |trust| trust.level);
        let reproduced = reproduced.map_or(String::new(), |(how, by)| {
            format!("; reproduced ({how}) as signed by {by}")
        });
        let mut reasons = vec![TrustReason {
            level: TrustLevel::L1,
            code: IMPORTED.to_owned(),
            message: format!("imported: {level} as signed by {signer}{reproduced}"),
            hint: "`ml reproduce` runs it again here".to_owned(),
        }];
        reasons.extend(claimed.into_iter().flat_map(|trust| trust.reasons.clone()));
        Self {
            level: TrustLevel::L0,
            reasons,
            reproduced: None,
        }
    }

    /// Whether it is that of a run that was imported.
    pub fn is_imported(&self) -> bool {
        self.reasons.iter().any(|reason| reason.code == IMPORTED)
    }

    /// Climbs the ladder. L4 is never reached here: it needs two runs.
    pub fn of(facts: &TrustFacts) -> Self {
        let mut reasons = Vec::new();
        let mut deny = |level, code: &str, message: String, hint: &str| {
            reasons.push(TrustReason {
                level,
                code: code.to_owned(),
                message,
                hint: hint.to_owned(),
            });
        };
        if !facts.code_pinned {
            deny(
                TrustLevel::L1,
                "code_not_pinned",
                "the source tree has no commit".into(),
                "queue from a project folder, so that its tree is snapshotted",
            );
        }
        match &facts.environment {
            EnvironmentFact::Pinned => {}
            EnvironmentFact::Absent => deny(
                TrustLevel::L2,
                "environment_absent",
                "the recipe declares no `environment:`".into(),
                "add `environment: {python: \"3.11\", lock: requirements.lock}`",
            ),
            EnvironmentFact::Current => deny(
                TrustLevel::L2,
                "environment_current",
                "`environment: current` takes the caller's packages as they are".into(),
                "write a hash-pinned lock and name it in `environment:`",
            ),
            EnvironmentFact::Unhashed(requirements) => deny(
                TrustLevel::L2,
                "environment_unhashed",
                format!("requirements without a hash: {}", listed(requirements)),
                "give every requirement a `--hash=sha256:…`",
            ),
        }
        if !facts.datasets_unverified.is_empty() {
            deny(
                TrustLevel::L3,
                "data_unverified",
                format!(
                    "datasets that are not verified: {}",
                    listed(&facts.datasets_unverified)
                ),
                "register them with `ml data add` and put the checksum into the recipe",
            );
        }
        if !facts.seed_recorded {
            deny(
                TrustLevel::L3,
                "seed_absent",
                "the recipe names no seed".into(),
                "add `seed: 7`, or `seed: none` when no randomness is drawn",
            );
        }
        match facts.network {
            NetworkFact::Enforced => {}
            NetworkFact::Open => deny(
                TrustLevel::L3,
                "network_open",
                "the network is open, so the result can depend on what is out there".into(),
                "set `network: none`, or name the hosts",
            ),
            NetworkFact::NotEnforced => deny(
                TrustLevel::L3,
                "network_not_enforced",
                "this host cannot enforce the network policy".into(),
                "`ml doctor` says what the host lacks",
            ),
            NetworkFact::NeedsSandbox => deny(
                TrustLevel::L3,
                "network_not_enforced",
                "declared hosts are enforced in the sandbox only, and this run has none".into(),
                "queue under `--repro-policy strict`, or add `sandbox: true`",
            ),
        }
        if let Some(what) = &facts.sees_more {
            deny(
                TrustLevel::L3,
                "sees_host_files",
                format!("the job can see more than its inputs: {what}"),
                "queue under `--repro-policy strict`, or add `sandbox: true`",
            );
        }
        let level = [TrustLevel::L1, TrustLevel::L2, TrustLevel::L3]
            .into_iter()
            .take_while(|level| reasons.iter().all(|reason| reason.level != *level))
            .last()
            .unwrap_or(TrustLevel::L0);
        Self {
            level,
            reasons,
            reproduced: None,
        }
    }
}

fn listed(names: &[String]) -> String {
    const SHOWN_MAX: usize = 5;
    let mut text = names
        .iter()
        .take(SHOWN_MAX)
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > SHOWN_MAX {
        text.push_str(&format!(" and {} more", names.len() - SHOWN_MAX));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> TrustFacts {
        TrustFacts {
            code_pinned: true,
            environment: EnvironmentFact::Pinned,
            datasets_unverified: vec![],
            seed_recorded: true,
            network: NetworkFact::Enforced,
            sees_more: None,
        }
    }

    fn level_and_codes(facts: &TrustFacts) -> (TrustLevel, Vec<String>) {
        let trust = Trust::of(facts);
        (
            trust.level,
            trust
                .reasons
                .into_iter()
                .map(|reason| reason.code)
                .collect(),
        )
    }

    #[test]
    fn each_level_and_each_way_to_miss_it() {
        use TrustLevel::*;
        let cases: Vec<(TrustFacts, TrustLevel, &[&str])> = vec![
            (full(), L3, &[]),
            (
                TrustFacts {
                    seed_recorded: false,
                    ..full()
                },
                L2,
                &["seed_absent"],
            ),
            (
                TrustFacts {
                    network: NetworkFact::Open,
                    ..full()
                },
                L2,
                &["network_open"],
            ),
            (
                TrustFacts {
                    network: NetworkFact::NotEnforced,
                    ..full()
                },
                L2,
                &["network_not_enforced"],
            ),
            (
                TrustFacts {
                    network: NetworkFact::NeedsSandbox,
                    ..full()
                },
                L2,
                &["network_not_enforced"],
            ),
            (
                TrustFacts {
                    sees_more: Some("/home".into()),
                    ..full()
                },
                L2,
                &["sees_host_files"],
            ),
            (
                TrustFacts {
                    datasets_unverified: vec!["d".into()],
                    ..full()
                },
                L2,
                &["data_unverified"],
            ),
            (
                TrustFacts {
                    environment: EnvironmentFact::Absent,
                    ..full()
                },
                L1,
                &["environment_absent"],
            ),
            (
                TrustFacts {
                    environment: EnvironmentFact::Current,
                    ..full()
                },
                L1,
                &["environment_current"],
            ),
            (
                TrustFacts {
                    environment: EnvironmentFact::Unhashed(vec!["numpy".into()]),
                    ..full()
                },
                L1,
                &["environment_unhashed"],
            ),
            (
                TrustFacts {
                    code_pinned: false,
                    ..full()
                },
                L0,
                &["code_not_pinned"],
            ),
        ];
        for (facts, level, codes) in cases {
            let expected = codes.iter().map(|code| (*code).to_owned()).collect();
            assert_eq!(level_and_codes(&facts), (level, expected), "{facts:?}");
        }
    }

    #[test]
    fn a_missing_lower_rung_is_not_skipped() {
        let facts = TrustFacts {
            code_pinned: false,
            environment: EnvironmentFact::Pinned,
            ..full()
        };
        assert_eq!(Trust::of(&facts).level, TrustLevel::L0);
    }
}
