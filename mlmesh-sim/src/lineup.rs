//! Who takes part in a comparison: the strategies of the router by their names, and what
//! only a simulation knows.

use mlmesh_route::{BlockAffinity, NameError, Policy, STRATEGIES, Strategy, strategy_by_name};

/// Bound to one target for each first block, and the bound that nobody beats.
const OURS: [&str; 2] = ["block_affinity", "floor"];

/// One that takes part in a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contender {
    /// As it was typed.
    pub name: String,
    /// The name as the router knows it; for one of [`OURS`] a strategy of the same policy.
    routed: String,
    ours: Option<&'static str>,
    learns: bool,
}

/// A name that stands for nothing.
#[derive(Debug, thiserror::Error)]
pub enum LineupError {
    /// No such strategy.
    #[error(
        "strategy `{0}` is unknown; known are {known}, {ours}",
        known = STRATEGIES.join(", "),
        ours = OURS.join(", ")
    )]
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
    /// A name as [`strategy_by_name`] knows it, `block_affinity` or `floor`, and beside
    /// the router's additions `+learnt`: predictions are learnt as in a gateway, and not
    /// known.
    pub fn parse(name: &str) -> Result<Self, LineupError> {
        let mut parts = name.split('+');
        let typed = parts.next().unwrap_or_default();
        let ours = OURS.into_iter().find(|one| *one == typed);
        let mut routed = ours.map_or(typed, |_| "random").to_owned();
        let mut learns = false;
        for addition in parts {
            if addition == "learnt" {
                learns = true;
            } else {
                routed = routed + "+" + addition;
            }
        }
        strategy_by_name(&routed).map_err(|error| match error {
            NameError::Strategy(base) => LineupError::Strategy(base),
            NameError::Addition { addition, .. } => LineupError::Addition {
                name: name.to_owned(),
                addition,
            },
        })?;
        Ok(Self {
            name: name.to_owned(),
            routed,
            ours,
            learns,
        })
    }

    /// Whether it is the bound that nobody beats.
    pub(crate) fn is_floor(&self) -> bool {
        self.ours == Some("floor")
    }

    pub(crate) const fn learns(&self) -> bool {
        self.learns
    }

    /// What its router keeps and refuses.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.parts().1
    }

    /// A strategy that has decided nothing yet. The first blocks that all requests have
    /// in common are told to the one that cannot find out.
    #[must_use]
    pub fn strategy(&self, common_blocks: usize, seed: u64) -> Box<dyn Strategy> {
        match self.ours {
            Some(_) => Box::new(BlockAffinity {
                common_blocks,
                key: seed,
            }),
            None => self.parts().0,
        }
    }

    fn parts(&self) -> (Box<dyn Strategy>, Policy) {
        strategy_by_name(&self.routed).expect("the name was known when it was parsed")
    }
}
