//! Which request is due next, and when.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::iter::{Enumerate, Peekable, Skip, StepBy};
use std::sync::Arc;

use crate::arrivals::Instants;
use crate::chance::{Chance, Purpose};
use crate::plan::{Bound, Pace, Plan};
use crate::think::Think;
use crate::trace::Trace;

/// Who was not answered asks again after this time at the earliest: an engine that is
/// away is not asked as fast as a loop can.
const FAULT_PAUSE_US: u64 = 100_000;

/// One thread's part of the pace: every `threads`-th request.
pub(super) struct Pacer {
    kind: Kind,
    bound: Bound,
    threads: u64,
}

enum Kind {
    Open(Peekable<StepBy<Skip<Enumerate<Instants>>>>),
    Trace {
        trace: Arc<Trace>,
        speed: f64,
        next: u64,
    },
    Closed {
        /// When somebody asks next; who, does not matter.
        due: BinaryHeap<Reverse<u64>>,
        think: Think,
        seed: u64,
        next: u64,
    },
}

impl Pacer {
    pub(super) fn new(plan: &Plan, thread: usize) -> Self {
        let kind = match (&plan.pace, &plan.trace) {
            (&Pace::Trace { speed }, Some(trace)) => Kind::Trace {
                trace: Arc::clone(trace),
                speed,
                next: thread as u64,
            },
            (&Pace::Closed { concurrency, think }, _) => Kind::Closed {
                due: (thread..concurrency)
                    .step_by(plan.threads)
                    .map(|_| Reverse(0))
                    .collect(),
                think,
                seed: plan.seed,
                next: thread as u64,
            },
            (&Pace::Open { rate, arrivals }, _) => {
                let instants = Instants::new(arrivals, rate, plan.seed);
                let part = instants.enumerate().skip(thread).step_by(plan.threads);
                Kind::Open(part.peekable())
            }
            // The plan's check has refused a replay without a trace.
            (Pace::Trace { .. }, None) => Kind::Trace {
                trace: Arc::default(),
                speed: 1.0,
                next: 0,
            },
        };
        Self {
            kind,
            bound: plan.bound,
            threads: plan.threads as u64,
        }
    }

    /// Index and instant of the next request; `None` when none is due before an answer
    /// comes, or none will be.
    pub(super) fn next(&mut self) -> Option<(u64, u64)> {
        let (index, at_us) = match &mut self.kind {
            Kind::Open(instants) => {
                let (index, at_us) = instants.peek().copied()?;
                (index as u64, at_us)
            }
            Kind::Trace { trace, speed, next } => {
                let recorded = trace.requests.get(*next as usize)?;
                (*next, (recorded.at_us as f64 / *speed) as u64)
            }
            Kind::Closed { due, next, .. } => (*next, due.peek()?.0),
        };
        let within = self.bound.requests.is_none_or(|requests| index < requests)
            && self.bound.duration_us.is_none_or(|end_us| at_us < end_us);
        within.then_some((index, at_us))
    }

    /// The next one has been taken.
    pub(super) fn advance(&mut self) {
        match &mut self.kind {
            Kind::Open(instants) => drop(instants.next()),
            Kind::Trace { next, .. } => *next += self.threads,
            Kind::Closed { due, next, .. } => {
                due.pop();
                *next += self.threads;
            }
        }
    }

    /// A request is over: in a closed loop who had asked thinks, and asks again.
    pub(super) fn ended(&mut self, index: u64, now_us: u64, failed: bool) {
        if let Kind::Closed {
            due, think, seed, ..
        } = &mut self.kind
        {
            let mut chance = Chance::new(*seed, Purpose::Think, index);
            let think_us = think.draw_us(&mut chance);
            let pause_us = if failed { FAULT_PAUSE_US } else { 0 };
            due.push(Reverse(now_us + think_us.max(pause_us)));
        }
    }
}
