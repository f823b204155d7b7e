//! The level that a run has reached, from what held while it ran.

use mlmesh_model::{
    DepsKind, EnvironmentFact, Isolation, NetworkFact, Plan, PlanNetwork, PlanSeed, Trust,
    TrustFacts,
};

/// Climbs the ladder again with what was verified and enforced. `verified` are the
/// datasets whose digest was verified at start. `predicted` is what preflight said:
/// it alone knows which requirements of the lock carry no hash, and its wording is
/// kept for reasons that did not change.
pub fn final_trust(
    plan: &Plan,
    isolation: &Isolation,
    verified: &[String],
    predicted: Option<&Trust>,
) -> Trust {
    let reason = |code: &str| {
        predicted
            .into_iter()
            .flat_map(|trust| &trust.reasons)
            .find(|reason| reason.code == code)
    };
    let environment = match &plan.deps {
        None => EnvironmentFact::Absent,
        Some(deps) if deps.kind == DepsKind::Current => EnvironmentFact::Current,
        Some(_) if reason("environment_unhashed").is_some() => EnvironmentFact::Unhashed(vec![]),
        Some(_) => EnvironmentFact::Pinned,
    };
    let network = match (&plan.network, isolation.network_enforced) {
        (PlanNetwork::Open, _) => NetworkFact::Open,
        (PlanNetwork::None | PlanNetwork::Hosts(_), true) => NetworkFact::Enforced,
        (PlanNetwork::Hosts(_), false) if !isolation.sandboxed => NetworkFact::NeedsSandbox,
        (PlanNetwork::None | PlanNetwork::Hosts(_), false) => NetworkFact::NotEnforced,
    };
    let mut trust = Trust::of(&TrustFacts {
        code_pinned: true,
        environment,
        datasets_unverified: plan
            .datasets
            .iter()
            .map(|dataset| dataset.name.to_string())
            .filter(|name| !verified.contains(name))
            .collect(),
        seed_recorded: plan.seed != PlanSeed::Absent,
        network,
        sees_more: (!isolation.sandboxed)
            .then(|| "the files of this machine that its user can read".to_owned()),
    });
    for kept in &mut trust.reasons {
        if let Some(said) = reason(&kept.code) {
            kept.clone_from(said);
        }
    }
    trust
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlmesh_model::{
        CommitId, DepsDigest, Digest, PLAN_VERSION, PlanDataset, PlanDeps, Resources, TrustLevel,
        TrustReason,
    };

    fn plan() -> Plan {
        Plan {
            plan_version: PLAN_VERSION,
            commit: CommitId(Digest::of(b"tree")),
            argv: vec!["true".into()],
            params: Default::default(),
            env: Default::default(),
            secrets: vec![],
            deps: Some(PlanDeps {
                kind: DepsKind::Lock,
                name: "requirements.lock".into(),
                python: "3.11".into(),
                sha256: DepsDigest(Digest::of(b"lock")),
            }),
            datasets: vec![PlanDataset {
                name: "digits".parse().unwrap(),
                version: None,
                checksum: Digest::of(b"data"),
                mount: "data/digits".into(),
            }],
            seed: PlanSeed::Value(7),
            outputs: vec![],
            resources: Resources::default(),
            image: None,
            network: PlanNetwork::None,
            service: None,
        }
    }

    fn held() -> Isolation {
        Isolation {
            sandboxed: true,
            network_enforced: true,
            ..Isolation::default()
        }
    }

    #[test]
    fn what_held_decides_and_not_what_was_predicted() {
        let verified = vec!["digits".to_owned()];
        let codes = |trust: Trust| -> (TrustLevel, Vec<String>) {
            let codes = trust.reasons.into_iter().map(|reason| reason.code);
            (trust.level, codes.collect())
        };
        let level = |plan: &Plan, isolation: &Isolation, verified: &[String]| {
            codes(final_trust(plan, isolation, verified, None))
        };
        let miss = |code: &str| (TrustLevel::L2, vec![code.to_owned()]);
        assert_eq!(level(&plan(), &held(), &verified), (TrustLevel::L3, vec![]));
        assert_eq!(level(&plan(), &held(), &[]), miss("data_unverified"));
        let open = Isolation {
            sandboxed: false,
            ..held()
        };
        assert_eq!(level(&plan(), &open, &verified), miss("sees_host_files"));
        let net = Isolation {
            network_enforced: false,
            ..held()
        };
        assert_eq!(
            level(&plan(), &net, &verified),
            miss("network_not_enforced")
        );
        let unseeded = Plan {
            seed: PlanSeed::Absent,
            ..plan()
        };
        assert_eq!(level(&unseeded, &held(), &verified), miss("seed_absent"));
        let bare = Plan {
            deps: None,
            ..plan()
        };
        assert_eq!(
            level(&bare, &held(), &verified),
            (TrustLevel::L1, vec!["environment_absent".to_owned()])
        );
    }

    #[test]
    fn requirements_without_hash_stay_named() {
        let said = TrustReason {
            level: TrustLevel::L2,
            code: "environment_unhashed".into(),
            message: "requirements without a hash: `numpy`".into(),
            hint: "hash it".into(),
        };
        let predicted = Trust {
            level: TrustLevel::L1,
            reasons: vec![said.clone()],
            reproduced: None,
        };
        let trust = final_trust(&plan(), &held(), &["digits".into()], Some(&predicted));
        assert_eq!(
            trust,
            Trust {
                level: TrustLevel::L1,
                reasons: vec![said],
                reproduced: None,
            }
        );
    }
}
