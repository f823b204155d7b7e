//! Where a test asks a process to die.
//!
//! Between two steps that a crash could tear apart, crates with durable state
//! have named points. `MLMESH_CRASH_AT=NAME` makes the process abort at the first
//! hit of that point, `NAME:7` at the seventh. This is the reading of that text;
//! the crates read the environment and abort.

use std::sync::atomic::{AtomicU64, Ordering};

/// One point and the hit at which the process is to die.
#[derive(Debug)]
pub struct CrashPlan {
    name: String,
    hits_left: AtomicU64,
}

impl CrashPlan {
    /// Reads `NAME` or `NAME:HIT`, hits counted from 1. Other text plans nothing.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, hit) = text.split_once(':').unwrap_or((text, "1"));
        let hit: u64 = hit.parse().ok().filter(|hit| *hit > 0)?;
        Some(Self {
            name: name.to_owned(),
            hits_left: AtomicU64::new(hit),
        })
    }

    /// Counts a hit of `point`; true at exactly the hit that was asked for.
    pub fn is_due(&self, point: &str) -> bool {
        point == self.name && self.hits_left.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_names_the_hit_and_other_points_do_not_count() {
        let plan = CrashPlan::parse("cas.x:2").unwrap();
        let seen = ["cas.x", "cas.y", "cas.x", "cas.x"].map(|point| plan.is_due(point));
        assert_eq!(seen, [false, false, true, false]);
        assert!(CrashPlan::parse("cas.x").unwrap().is_due("cas.x"));
        for bad in ["cas.x:y", "cas.x:0", "cas.x:"] {
            assert!(CrashPlan::parse(bad).is_none(), "{bad}");
        }
    }
}
