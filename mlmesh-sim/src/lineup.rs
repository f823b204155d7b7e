//! Names that stand for a strategy and what its router does beside it.

use mlmesh_route::{
    BaselineRoundRobin, BlockAffinity, Late, LeastPredictedTtft, LeastQueue, LeastWork, Order,
    Policy, PowerOfTwo, PrefixHash, Random, SessionHash, Strategy,
};

/// Names of strategies that can be compared.
pub const STRATEGIES: &[&str] = &[
    "baseline_rr",
    "random",
    "least_queue",
    "power_of_two",
    "least_work",
    "session_hash",
    "block_affinity",
    "prefix_hash",
    "least_ttft",
    "hybrid_mesh",
    "floor",
];

/// One that takes part in a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contender {
    /// As it was typed.
    pub name: String,
    base: &'static str,
    late: Option<Order>,
    refuses: bool,
    learns: bool,
}

/// A name that stands for nothing.
#[derive(Debug, thiserror::Error)]
pub enum LineupError {
    /// No such strategy.
    #[error("strategy `{0}` is unknown; known are {known}", known = STRATEGIES.join(", "))]
    Strategy(String),
    /// No such addition.
    #[error("`+{addition}` of `{name}` is unknown; known are +late, +fifo, +refuse and +learnt")]
    Addition {
        /// The whole name.
        name: String,
        /// What is wrong about it.
        addition: String,
    },
}

impl Contender {
    /// A strategy's name, and what is added to it: `+late` (bound late, the shortest
    /// prefill first), `+fifo` (bound late, in the order of coming), `+refuse` (the
    /// hopeless are refused), `+learnt` (predictions are learnt as in a gateway, and not
    /// known). `hybrid_mesh` is `least_ttft+late+refuse`.
    pub fn parse(name: &str) -> Result<Self, LineupError> {
        let mut parts = name.split('+');
        let typed = parts.next().unwrap_or_default();
        let base = STRATEGIES.iter().find(|known| **known == typed);
        let base = *base.ok_or_else(|| LineupError::Strategy(typed.to_owned()))?;
        let hybrid = base == "hybrid_mesh";
        let mut contender = Self {
            name: name.to_owned(),
            base,
            late: hybrid.then_some(Order::ShortestPrefill),
            refuses: hybrid,
            learns: false,
        };
        for addition in parts {
            match addition {
                "late" => contender.late = Some(Order::ShortestPrefill),
                "fifo" => contender.late = Some(Order::Fifo),
                "refuse" => contender.refuses = true,
                "learnt" => contender.learns = true,
                _ => {
                    return Err(LineupError::Addition {
                        name: name.to_owned(),
                        addition: addition.to_owned(),
                    });
                }
            }
        }
        Ok(contender)
    }

    /// Whether it is the bound that nobody beats.
    pub(crate) fn is_floor(&self) -> bool {
        self.base == "floor"
    }

    pub(crate) const fn learns(&self) -> bool {
        self.learns
    }

    /// What its router keeps and refuses.
    #[must_use]
    pub fn policy(&self) -> Policy {
        Policy {
            late: self.late.map(|order| Late {
                order,
                ..Late::default()
            }),
            refuse_hopeless: self.refuses,
        }
    }

    /// A strategy that has decided nothing yet. The first blocks that all requests have
    /// in common are told to the one that cannot find out.
    #[must_use]
    pub fn strategy(&self, common_blocks: usize, seed: u64) -> Box<dyn Strategy> {
        match self.base {
            "baseline_rr" => Box::new(BaselineRoundRobin),
            "random" => Box::new(Random),
            "least_queue" => Box::new(LeastQueue),
            "power_of_two" => Box::new(PowerOfTwo),
            "least_work" => Box::new(LeastWork),
            "session_hash" => Box::new(SessionHash),
            "block_affinity" => Box::new(BlockAffinity {
                common_blocks,
                key: seed,
            }),
            "prefix_hash" => Box::new(PrefixHash::default()),
            base => Box::new(LeastPredictedTtft { name: base }),
        }
    }
}
