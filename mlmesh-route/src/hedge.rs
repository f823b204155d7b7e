//! Whether a second attempt is made beside one that is late, and what that costs.
//!
//! An attempt that is late for some time is expected to be late for as long again; when
//! that misses the deadline and another target would still make it, the other one is
//! asked as well. The first to answer wins, and the other is cancelled at once. What was
//! spent on it is counted.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::retry::{NoRetry, Progress, Repeatable, Share};

/// An attempt that has no first token yet.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// When its first token was expected.
    pub expected_at_us: u64,
    /// By how much that may well be wrong.
    pub doubt_us: u64,
    /// Until when it has to be there.
    pub deadline_us: u64,
    /// How far it has come.
    pub progress: Progress,
    /// Whether it may be made twice.
    pub repeatable: Repeatable,
}

/// Whether to ask another target as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hedge {
    /// Now.
    Now,
    /// Look again then.
    NotBefore(u64),
    /// No.
    No(NoHedge),
}

/// Why no other target is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoHedge {
    /// It has started, or must not be made twice.
    NotRepeatable(NoRetry),
    /// There is no other target.
    NoOther,
    /// No other target would make it in time either.
    TooLate,
    /// Too many were hedged lately.
    OverBudget,
}

/// Hedges of all requests together, at most one for each fifty requests.
#[derive(Debug)]
pub struct Hedges {
    share: Share,
    made: AtomicU64,
    won: AtomicU64,
    wasted_tokens: AtomicU64,
    wasted_us: AtomicU64,
}

/// What hedging has cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HedgeCosts {
    /// How many second attempts were made.
    pub made: u64,
    /// How many of them answered first.
    pub won: u64,
    /// Tokens of prompts and answers that losers have worked on.
    pub wasted_tokens: u64,
    /// For how long losers ran.
    pub wasted_us: u64,
}

/// One hedge for so many requests.
const REQUESTS_A_HEDGE: u64 = 50;
/// Hedges that may be saved up.
const SAVED_MAX: u64 = 20;

impl Default for Hedges {
    fn default() -> Self {
        Self {
            share: Share::new(REQUESTS_A_HEDGE, SAVED_MAX),
            made: AtomicU64::new(0),
            won: AtomicU64::new(0),
            wasted_tokens: AtomicU64::new(0),
            wasted_us: AtomicU64::new(0),
        }
    }
}

impl Hedges {
    /// A request came.
    pub fn request(&self) {
        self.share.deposit();
    }

    /// Whether to ask another target now, whose first token would take so long. A hedge
    /// that is to be made is taken from the budget.
    pub fn consider(&self, now_us: u64, attempt: &Attempt, other_us: Option<u64>) -> Hedge {
        if let Err(why) = attempt.repeatable.allows(attempt.progress) {
            return Hedge::No(NoHedge::NotRepeatable(why));
        }
        let Some(other_us) = other_us else {
            return Hedge::No(NoHedge::NoOther);
        };
        let at_us = attempt.hedge_at_us(other_us);
        if now_us.saturating_add(other_us) > attempt.deadline_us {
            Hedge::No(NoHedge::TooLate)
        } else if now_us < at_us {
            Hedge::NotBefore(at_us)
        } else if self.share.withdraw() {
            self.made.fetch_add(1, Ordering::Relaxed);
            Hedge::Now
        } else {
            Hedge::No(NoHedge::OverBudget)
        }
    }

    /// One of two attempts has answered, and the other was cancelled after so many tokens
    /// and so long.
    pub fn settled(&self, second_won: bool, loser_tokens: u64, loser_us: u64) {
        self.won.fetch_add(u64::from(second_won), Ordering::Relaxed);
        self.wasted_tokens
            .fetch_add(loser_tokens, Ordering::Relaxed);
        self.wasted_us.fetch_add(loser_us, Ordering::Relaxed);
    }

    /// What it has cost until now.
    #[must_use]
    pub fn costs(&self) -> HedgeCosts {
        HedgeCosts {
            made: self.made.load(Ordering::Relaxed),
            won: self.won.load(Ordering::Relaxed),
            wasted_tokens: self.wasted_tokens.load(Ordering::Relaxed),
            wasted_us: self.wasted_us.load(Ordering::Relaxed),
        }
    }
}

impl Attempt {
    /// When it is predicted to miss its deadline: it is later than may well be, and as
    /// late again would be too late, or another target would be too late soon.
    fn hedge_at_us(&self, other_us: u64) -> u64 {
        let late_us = self.expected_at_us.saturating_add(self.doubt_us);
        let left_us = self.deadline_us.saturating_sub(self.expected_at_us);
        let missed_us = self.expected_at_us.saturating_add(left_us / 2);
        let last_us = self.deadline_us.saturating_sub(other_us);
        late_us.max(missed_us.min(last_us))
    }
}
