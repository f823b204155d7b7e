//! Names that stand for a strategy and what its router does beside it.

use mlmesh_strategy::{
    BaselineRoundRobin, COPY_PERCENT, LeastPredictedTtft, LeastQueue, LeastWork, PowerOfTwo,
    PrefixHash, Random, SessionHash, Strategy,
};

use crate::policy::{Late, Order, Policy};

/// Names that [`strategy_by_name`] knows.
pub const STRATEGIES: &[&str] = &[
    "baseline_rr",
    "random",
    "least_queue",
    "power_of_two",
    "least_work",
    "session_hash",
    "prefix_hash",
    "least_ttft",
    "hybrid_mesh",
];

/// A name that stands for nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No such strategy.
    #[error("strategy `{0}` is unknown; known are {known}", known = STRATEGIES.join(", "))]
    Strategy(String),
    /// No such addition.
    #[error("`+{addition}` of `{name}` is unknown; known are +late, +fifo and +refuse")]
    Addition {
        /// The whole name.
        name: String,
        /// What is wrong about it.
        addition: String,
    },
}

/// A strategy that has decided nothing yet, and the policy of its router.
///
/// A name may have additions: `+late` (bound late, the shortest prefill first), `+fifo`
/// (bound late, in the order of coming), `+refuse` (the hopeless are refused).
/// `hybrid_mesh` is `least_ttft+late+refuse`.
pub fn strategy_by_name(name: &str) -> Result<(Box<dyn Strategy>, Policy), NameError> {
    let (base, additions) = match name.split_once('+') {
        Some((base, additions)) => (base, Some(additions)),
        None => (name, None),
    };
    let strategy: Box<dyn Strategy> = match base {
        "baseline_rr" => Box::new(BaselineRoundRobin),
        "random" => Box::new(Random),
        "least_queue" => Box::new(LeastQueue),
        "power_of_two" => Box::new(PowerOfTwo),
        "least_work" => Box::new(LeastWork),
        "session_hash" => Box::new(SessionHash),
        "prefix_hash" => Box::new(PrefixHash::default()),
        "least_ttft" => Box::new(LeastPredictedTtft {
            name: "least_ttft",
            copy_percent: 0,
        }),
        "hybrid_mesh" => Box::new(LeastPredictedTtft {
            name: "hybrid_mesh",
            copy_percent: COPY_PERCENT,
        }),
        _ => return Err(NameError::Strategy(base.to_owned())),
    };
    let hybrid = base == "hybrid_mesh";
    let late_by = |order| {
        Some(Late {
            order,
            ..Late::default()
        })
    };
    let mut policy = Policy {
        late: late_by(Order::ShortestPrefill).filter(|_| hybrid),
        refuse_hopeless: hybrid,
    };
    for addition in additions.into_iter().flat_map(|all| all.split('+')) {
        match addition {
            "late" => policy.late = late_by(Order::ShortestPrefill),
            "fifo" => policy.late = late_by(Order::Fifo),
            "refuse" => policy.refuse_hopeless = true,
            _ => {
                return Err(NameError::Addition {
                    name: name.to_owned(),
                    addition: addition.to_owned(),
                });
            }
        }
    }
    Ok((strategy, policy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_stands_for_the_strategy_that_bears_it() {
        for name in STRATEGIES {
            let (strategy, policy) = strategy_by_name(name).unwrap();
            assert_eq!(strategy.name(), *name);
            let hybrid = *name == "hybrid_mesh";
            assert_eq!(policy.late.is_some(), hybrid, "{name}");
            assert_eq!(policy.refuse_hopeless, hybrid, "{name}");
        }
    }

    #[test]
    fn additions_change_the_policy_alone() {
        let (strategy, policy) = strategy_by_name("least_work+fifo+refuse").unwrap();
        assert_eq!(strategy.name(), "least_work");
        assert_eq!(policy.late.unwrap().order, Order::Fifo);
        assert!(policy.refuse_hopeless);
    }

    #[test]
    fn what_is_unknown_is_told_with_what_is_known() {
        let told = strategy_by_name("rr").unwrap_err().to_string();
        assert_eq!(
            told,
            "strategy `rr` is unknown; known are baseline_rr, random, least_queue, \
             power_of_two, least_work, session_hash, prefix_hash, least_ttft, hybrid_mesh"
        );
        let told = strategy_by_name("random+soon").unwrap_err().to_string();
        assert_eq!(
            told,
            "`+soon` of `random+soon` is unknown; known are +late, +fifo and +refuse"
        );
        assert!(strategy_by_name("random+").is_err());
    }
}
