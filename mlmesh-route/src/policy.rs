//! What a router does beside choosing: how long it keeps requests, and what it refuses.

use mlmesh_strategy::Candidate;

use crate::ledger::{Backlog, overdue_us};

/// How long what a target was sent may keep it busy before it is sent no more.
pub const BACKLOG_US: u64 = 500_000;
/// Requests that wait in one router.
pub const QUEUE_MAX: usize = 4_096;

/// The settings of a router.
#[derive(Debug, Clone, Copy, Default)]
pub struct Policy {
    /// Requests are bound late, or else at once when they come.
    pub late: Option<Late>,
    /// Requests whose deadline cannot be met are refused.
    pub refuse_hopeless: bool,
}

impl Policy {
    /// Whether a target comes free by the end of an answer, and not by its beginning.
    pub(crate) fn counts_in_flight(&self) -> bool {
        self.late.is_some_and(|late| late.in_flight_max < u32::MAX)
    }
}

/// How requests are kept until a target is free.
#[derive(Debug, Clone, Copy)]
pub struct Late {
    /// See [`BACKLOG_US`].
    pub backlog_us_max: u64,
    /// Which goes first of those whose target is free.
    pub order: Order,
    /// See [`QUEUE_MAX`].
    pub queue_max: usize,
    /// Requests that a target works on at once, however short they are: for engines
    /// whose prefill is not what keeps others waiting.
    pub in_flight_max: u32,
}

/// Which request goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The one that came first.
    Fifo,
    /// The one whose target works least on it.
    ShortestPrefill,
}

impl Late {
    /// Whether a target is sent more.
    pub(crate) fn admits(&self, target: &Candidate) -> bool {
        let busy_us = target.queued_us.saturating_add(target.queued_doubt_us);
        busy_us <= self.backlog_us_max && target.in_flight < self.in_flight_max
    }

    /// When a target with such a backlog, and so much of others', is sent more, if time
    /// alone brings it there: of one of which too much is in doubt, or that others keep
    /// busy, something has to be heard first.
    pub(crate) const fn free_us(
        &self,
        now_us: u64,
        backlog: Backlog,
        foreign_us: u64,
    ) -> Option<u64> {
        let Backlog {
            expected_us,
            doubt_us,
        } = backlog;
        let others_us = doubt_us.saturating_add(foreign_us);
        match self.backlog_us_max.checked_sub(others_us) {
            Some(bound_us) if bound_us >= overdue_us(doubt_us) => {
                Some(now_us.saturating_add(expected_us.saturating_sub(bound_us)))
            }
            _ => None,
        }
    }
}

impl Default for Late {
    fn default() -> Self {
        Self {
            backlog_us_max: BACKLOG_US,
            order: Order::ShortestPrefill,
            queue_max: QUEUE_MAX,
            in_flight_max: u32::MAX,
        }
    }
}
