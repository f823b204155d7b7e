//! Which request is due next, and when.

use std::iter::Peekable;
use std::iter::{Enumerate, Skip, StepBy};

use crate::arrivals::Instants;
use crate::plan::{Bound, Pace, Plan};

/// One thread's part of the pace.
pub(super) struct Pacer {
    instants: Peekable<StepBy<Skip<Enumerate<Instants>>>>,
    bound: Bound,
}

impl Pacer {
    pub(super) fn new(plan: &Plan, thread: usize) -> Self {
        let Pace::Open { rate, arrivals } = plan.pace;
        let instants = Instants::new(arrivals, rate, plan.seed);
        Self {
            instants: instants
                .enumerate()
                .skip(thread)
                .step_by(plan.threads)
                .peekable(),
            bound: plan.bound,
        }
    }

    /// Index and instant of the next request; `None` when none will come.
    pub(super) fn next(&mut self) -> Option<(u64, u64)> {
        let (index, at_us) = self.instants.peek().copied()?;
        let index = index as u64;
        let within = self.bound.requests.is_none_or(|requests| index < requests)
            && self.bound.duration_us.is_none_or(|end_us| at_us < end_us);
        within.then_some((index, at_us))
    }

    /// The next one has been taken.
    pub(super) fn advance(&mut self) {
        self.instants.next();
    }
}
