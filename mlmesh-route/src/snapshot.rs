//! What is known of the targets, as one value that is swapped and never changed.

use mlmesh_strategy::TargetId;

/// Targets of one router.
pub const TARGETS_MAX: usize = 512;

/// The targets at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
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
}

impl Snapshot {
    /// So many targets that answer and of which nothing else is known.
    #[must_use]
    pub fn of_equals(count: u16) -> Self {
        let target = |place| Target {
            id: TargetId(place),
            usable: true,
            rtt_us: 0,
            penalty_us: 0,
        };
        Self {
            targets: (0..count).map(target).collect(),
        }
    }
}
