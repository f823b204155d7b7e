//! Who goes next: the one place that orders waiting runs.
//!
//! Priority first, then the owner who used less of the node lately, then time of
//! arrival. Usage is forgotten by half each [`USAGE_HALF_LIFE_US`]. Instead of
//! lowering all old usage as time passes, new usage weighs more the later it
//! comes, so that the order between two owners changes only when one of them is
//! charged. A strategy that orders otherwise replaces [`Rank`] and [`Usage`].

use std::collections::BTreeMap;

use mlmesh_model::{Micros, Owner, Resources, Tenant};

use crate::Capacity;

/// After this time an owner's usage counts half.
pub const USAGE_HALF_LIFE_US: i64 = 3_600 * 1_000_000;

/// What the start of a run costs its owner until its end tells the true time, in
/// seconds of its share of the node.
const START_CHARGE_S: f64 = 60.0;

/// Weights grow to 2 to this power before they are scaled back.
const WEIGHT_EXPONENT_MAX: f64 = 256.0;

/// Where a waiting run stands; smaller goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// Priority, turned around.
    falling_priority: i64,
    /// Bits of the owner's usage, which order as the number does: it is never negative.
    usage: u64,
    /// Order of arrival.
    arrival: u64,
}

impl Rank {
    pub(crate) fn of(priority: i32, usage: f64, arrival: u64) -> Self {
        Self {
            falling_priority: -i64::from(priority),
            usage: usage.max(0.0).to_bits(),
            arrival,
        }
    }
}

/// An owner as the scheduler counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OwnerIndex(usize);

/// What each owner used lately.
#[derive(Debug, Clone, Default)]
pub(crate) struct Usage {
    indices: BTreeMap<(Tenant, Owner), OwnerIndex>,
    weighted: Vec<f64>,
    base: Option<Micros>,
}

/// What a start charged, to be corrected at the end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Charge {
    weighted: f64,
    share: f64,
    since: Micros,
}

impl Usage {
    pub(crate) fn index(&mut self, tenant: &Tenant, owner: &Owner) -> OwnerIndex {
        let next = OwnerIndex(self.weighted.len());
        let index = *self
            .indices
            .entry((tenant.clone(), owner.clone()))
            .or_insert(next);
        if index == next {
            self.weighted.push(0.0);
        }
        index
    }

    /// The owner's usage, comparable with that of the others.
    pub(crate) fn of(&self, owner: OwnerIndex) -> f64 {
        self.weighted[owner.0]
    }

    /// Charges the start of a run.
    pub(crate) fn start(
        &mut self,
        owner: OwnerIndex,
        resources: &Resources,
        capacity: &Capacity,
        now: Micros,
    ) -> Charge {
        let share = share(resources, capacity);
        let weighted = share * START_CHARGE_S * self.weight(now);
        self.weighted[owner.0] += weighted;
        Charge {
            weighted,
            share,
            since: now,
        }
    }

    /// Replaces the charge of the start by what was used.
    pub(crate) fn end(&mut self, owner: OwnerIndex, charge: Charge, now: Micros) {
        let seconds = now.since(charge.since).max(0) as f64 / 1e6;
        let used = charge.share * seconds * self.weight(now);
        let total = &mut self.weighted[owner.0];
        *total = (*total - charge.weighted).max(0.0) + used;
    }

    /// Scales all weights back when they have grown large. True when it did:
    /// every [`Rank`] has to be made anew then.
    pub(crate) fn rebase(&mut self, now: Micros) -> bool {
        let Some(base) = self.base else {
            self.base = Some(now);
            return false;
        };
        let exponent = now.since(base) as f64 / USAGE_HALF_LIFE_US as f64;
        if exponent < WEIGHT_EXPONENT_MAX {
            return false;
        }
        for weighted in &mut self.weighted {
            *weighted *= (-exponent).exp2();
        }
        self.base = Some(now);
        true
    }

    fn weight(&self, now: Micros) -> f64 {
        let since = self.base.map_or(0, |base| now.since(base));
        (since as f64 / USAGE_HALF_LIFE_US as f64).exp2()
    }
}

/// The largest part that the run takes of any of the node's resources.
fn share(resources: &Resources, capacity: &Capacity) -> f64 {
    let part = |asked: u64, has: u64| match has {
        0 => 0.0,
        has => asked as f64 / has as f64,
    };
    part(resources.cpu_milli, capacity.cpu_milli)
        .max(part(
            resources.memory_bytes.unwrap_or(0),
            capacity.memory_bytes,
        ))
        .max(part(u64::from(resources.gpus), capacity.gpus.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: fn() -> Capacity = || Capacity {
        cpu_milli: 1000,
        ..Capacity::default()
    };

    #[test]
    fn priority_goes_before_usage_and_usage_before_time() {
        assert!(Rank::of(1, 9.0, 9) < Rank::of(0, 0.0, 0));
        assert!(Rank::of(0, 1.0, 9) < Rank::of(0, 2.0, 0));
        assert!(Rank::of(0, 1.0, 1) < Rank::of(0, 1.0, 2));
        assert!(Rank::of(i32::MAX, 0.0, 0) < Rank::of(i32::MIN, 0.0, 0));
    }

    #[test]
    fn usage_is_forgotten_by_half() {
        let mut usage = Usage::default();
        let tenant = Tenant::default();
        let early = usage.index(&tenant, &"early".parse().unwrap());
        let late = usage.index(&tenant, &"late".parse().unwrap());
        let resources = Resources::default();
        let at = |s: i64| Micros(s * 1_000_000);
        usage.rebase(at(0));
        let first = usage.start(early, &resources, &CAPACITY(), at(0));
        usage.end(early, first, at(100));
        let second = usage.start(late, &resources, &CAPACITY(), at(3600));
        usage.end(late, second, at(3700));
        let ratio = usage.of(late) / usage.of(early);
        assert!((ratio - 2.0).abs() < 0.01, "{ratio}");
    }

    #[test]
    fn weights_are_scaled_back_before_they_overflow() {
        let mut usage = Usage::default();
        let owner = usage.index(&Tenant::default(), &"a".parse().unwrap());
        let mut rebased = 0;
        for hours in 0..2_000_i64 {
            let now = Micros(hours * USAGE_HALF_LIFE_US);
            rebased += usize::from(usage.rebase(now));
            let charge = usage.start(owner, &Resources::default(), &CAPACITY(), now);
            usage.end(owner, charge, now.plus_us(1_000_000));
            assert!(usage.of(owner).is_finite());
        }
        assert!(rebased > 0);
    }
}
