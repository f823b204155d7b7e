//! What is known of the targets, as one value that is swapped and never changed.

use mlmesh_strategy::{Candidate, TargetId};

/// Targets of one router.
pub const TARGETS_MAX: usize = 512;

/// The targets at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// When it was put together.
    pub at_us: u64,
    /// In the order in which they take turns.
    pub targets: Vec<Target>,
}

/// One target at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its place in the ledger; below [`TARGETS_MAX`], and of this target alone.
    pub id: TargetId,
    /// Whether it may be sent anything.
    pub usable: bool,
    /// The way there and back.
    pub rtt_us: u64,
    /// What is added because it is not in good health.
    pub penalty_us: u64,
    /// Requests there that others have sent, as far as it says.
    pub foreign: u32,
    /// How long it is expected to work on those of them that wait.
    pub foreign_us: u64,
    /// What the answers that it is writing add to a prompt.
    pub decode_us: u64,
}

impl Target {
    /// One that answers, and of which nothing else is known.
    #[must_use]
    pub const fn unknown(id: TargetId) -> Self {
        Self {
            id,
            usable: true,
            rtt_us: 0,
            penalty_us: 0,
            foreign: 0,
            foreign_us: 0,
            decode_us: 0,
        }
    }

    /// Adds what it reports to what this router knows of its own requests there.
    pub(crate) const fn weigh_in(&self, candidate: &mut Candidate) {
        candidate.in_flight = candidate.in_flight.saturating_add(self.foreign);
        candidate.queued_us = candidate.queued_us.saturating_add(self.foreign_us);
        candidate.decode_us = candidate.decode_us.saturating_add(self.decode_us);
        candidate.rtt_us = self.rtt_us;
        candidate.penalty_us = self.penalty_us;
    }
}

impl Snapshot {
    /// So many targets that answer and of which nothing else is known.
    #[must_use]
    pub fn of_equals(count: u16) -> Self {
        let places = 0..count;
        Self {
            at_us: 0,
            targets: places.map(|at| Target::unknown(TargetId(at))).collect(),
        }
    }
}
