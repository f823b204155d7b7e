//! Digests of a sweep's plans without serialising what they share.
//!
//! The points of a sweep differ in `argv`, `params` and `seed` only. The canonical
//! bytes of everything else are made once; a point's digest is taken over the
//! pieces in key order. The result is by construction, and by a property test,
//! the one of [`Plan::digest`].

use std::collections::BTreeMap;

use mlmesh_model::{
    CanonicalError, Digest, ParamValue, Plan, PlanDigest, PlanError, PlanSeed, canonical_json,
};
use serde_json::Value;

/// The shared part of a sweep's plans.
#[derive(Debug)]
pub(crate) struct Template {
    pieces: Vec<Piece>,
    bytes: usize,
}

#[derive(Debug)]
enum Piece {
    Shared(Vec<u8>),
    Argv,
    Params,
    Seed,
}

impl Template {
    /// Makes the shared pieces of `plan`; its own argv, params and seed do not count.
    pub(crate) fn of(plan: &Plan) -> Result<Self, PlanError> {
        let Value::Object(members) = serde_json::to_value(plan)? else {
            return Ok(Self {
                pieces: Vec::new(),
                bytes: 0,
            });
        };
        let sorted: BTreeMap<&String, &Value> = members.iter().collect();
        let mut pieces = Vec::new();
        let mut shared = vec![b'{'];
        for (index, (key, value)) in sorted.into_iter().enumerate() {
            if index > 0 {
                shared.push(b',');
            }
            shared.extend(canonical_json(&Value::from(key.as_str()))?);
            shared.push(b':');
            let own = match key.as_str() {
                "argv" => Piece::Argv,
                "params" => Piece::Params,
                "seed" => Piece::Seed,
                _ => {
                    shared.extend(canonical_json(value)?);
                    continue;
                }
            };
            pieces.push(Piece::Shared(std::mem::take(&mut shared)));
            pieces.push(own);
        }
        shared.push(b'}');
        pieces.push(Piece::Shared(shared));
        let bytes = pieces
            .iter()
            .map(|piece| match piece {
                Piece::Shared(bytes) => bytes.len(),
                Piece::Argv | Piece::Params | Piece::Seed => 0,
            })
            .sum();
        Ok(Self { pieces, bytes })
    }

    /// The digest of the plan with these parts of its own.
    pub(crate) fn digest(
        &self,
        argv: &[String],
        params: &BTreeMap<String, ParamValue>,
        seed: PlanSeed,
    ) -> Result<PlanDigest, CanonicalError> {
        const OWN_BYTES_USUAL: usize = 512;
        let mut bytes = Vec::with_capacity(self.bytes + OWN_BYTES_USUAL);
        for piece in &self.pieces {
            match piece {
                Piece::Shared(shared) => bytes.extend_from_slice(shared),
                Piece::Argv => bytes.extend(canonical_json(&Value::from(argv))?),
                Piece::Params => {
                    let members = params
                        .iter()
                        .map(|(name, value)| (name.clone(), param_json(value)));
                    bytes.extend(canonical_json(&Value::Object(members.collect()))?);
                }
                Piece::Seed => bytes.extend(canonical_json(&seed_json(seed))?),
            }
        }
        Ok(PlanDigest(Digest::of(&bytes)))
    }
}

fn param_json(value: &ParamValue) -> Value {
    match value {
        ParamValue::Bool(value) => Value::from(*value),
        ParamValue::Int(value) => Value::from(*value),
        ParamValue::Text(value) => Value::from(value.as_str()),
    }
}

fn seed_json(seed: PlanSeed) -> Value {
    match seed {
        PlanSeed::Absent => Value::Null,
        PlanSeed::None => Value::from("none"),
        PlanSeed::Value(seed) => Value::from(seed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlmesh_model::{CommitId, Name, PLAN_VERSION, PlanDataset, PlanNetwork, Resources};
    use proptest::prelude::*;

    fn param() -> impl Strategy<Value = ParamValue> {
        prop_oneof![
            any::<bool>().prop_map(ParamValue::Bool),
            (-(1_i64 << 53) + 1..1 << 53).prop_map(ParamValue::Int),
            ".*".prop_map(ParamValue::Text),
        ]
    }

    fn seed() -> impl Strategy<Value = PlanSeed> {
        prop_oneof![
            Just(PlanSeed::Absent),
            Just(PlanSeed::None),
            (0_u64..1 << 53).prop_map(PlanSeed::Value),
        ]
    }

    prop_compose! {
        fn plan()(
            argv in prop::collection::vec(".*", 1..5),
            params in prop::collection::btree_map("[a-z_]{1,8}", param(), 0..5),
            env in prop::collection::btree_map("[A-Z_]{1,8}", ".*", 0..3),
            outputs in prop::collection::vec("[a-z*/.]{1,12}", 0..3),
            name in "[a-z]{1,8}",
            seed in seed(),
            open in any::<bool>(),
            time_s in prop::option::of(1_u64..10_000),
        ) -> Plan {
            Plan {
                plan_version: PLAN_VERSION,
                commit: CommitId(Digest::of(name.as_bytes())),
                argv,
                params,
                env,
                secrets: vec![name.clone()],
                deps: None,
                datasets: vec![PlanDataset {
                    name: name.parse::<Name>().unwrap(),
                    version: None,
                    checksum: Digest::of(b"data"),
                    mount: format!("data/{name}"),
                }],
                seed,
                outputs,
                resources: Resources { time_s, ..Resources::default() },
                image: None,
                network: if open { PlanNetwork::Open } else { PlanNetwork::Hosts(vec![name]) },
                service: None,
            }
        }
    }

    proptest! {
        #[test]
        fn a_template_gives_the_digest_of_the_whole_plan(first in plan(), second in plan()) {
            let template = Template::of(&first).unwrap();
            let other = Plan {
                argv: second.argv,
                params: second.params,
                seed: second.seed,
                ..first
            };
            let digest = template.digest(&other.argv, &other.params, other.seed).unwrap();
            prop_assert_eq!(digest, other.digest().unwrap());
        }
    }
}
