//! Why requests went where they went: the last decisions, in rings of a fixed size.
//!
//! ```text
//!   decision ──► recent, one place for each number of request
//!                   │ refused, hedged, failed, slow, or one of so many
//!                   ▼
//!                 kept, the oldest goes
//! ```
//!
//! Every decision is written to the first ring, since what becomes of it is known only
//! later. Nothing is allocated for it, and nobody waits: who finds a place locked counts
//! a loss and goes on. What an explanation says beyond the numbers ([`Explanation::changes`])
//! is worked out when somebody reads it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use mlmesh_strategy::{Ask, Candidate, Class, RequestId, TargetId, TenantId};

use crate::snapshot::Snapshot;
use crate::word::{Outcome, Reason, Refusal, Scratch};

/// Targets of a decision that are kept, the best ones.
pub const TERMS_MAX: usize = 8;
/// Decisions whose outcome may still come.
const RECENT: usize = 2_048;
/// Decisions that are kept for readers.
const KEPT: usize = 1_024;
/// Of those that are nothing special, one of so many is kept.
const SAMPLED: u64 = 64;
/// A first token is slow when it takes so many times what was predicted, and so much
/// longer, or comes after its deadline.
const SLOW: u64 = 2;
const SLOW_US: u64 = 100_000;

/// One target in a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term {
    /// What was known and predicted of it.
    pub known: Candidate,
    /// What the strategy made of it; the least wins.
    pub cost: u64,
}

/// What was decided at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decided {
    /// It was sent at once.
    Bound,
    /// It waited.
    Waits,
    /// It was refused.
    Refused(Refusal),
}

/// Why a decision is kept, worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kept {
    /// It was refused.
    Refused,
    /// Its attempt failed.
    Failed,
    /// A second target was asked.
    Hedged,
    /// Its first token came late.
    Slow,
    /// It is one of so many.
    Sampled,
}

/// What became of a request later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Later {
    /// It had waited and goes there.
    Bound(Candidate),
    /// It had waited and is refused.
    Refused(Refusal),
    /// This one is asked as well.
    Hedged(TargetId),
    /// An attempt failed.
    Failed(TargetId),
    /// Its first token came.
    FirstToken,
}

/// One decision, and what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explanation {
    /// Which request.
    pub request: RequestId,
    /// Whose.
    pub tenant: TenantId,
    /// How urgent.
    pub class: Class,
    /// When it was decided.
    pub at_us: u64,
    /// How old what is known of the targets was.
    pub age_us: u64,
    /// Length of its prompt.
    pub prompt_tokens: u64,
    /// Until when its first token has to be there.
    pub deadline_us: u64,
    /// What was decided.
    pub decided: Decided,
    /// How many targets were compared.
    pub compared: usize,
    /// How many were left out, since they were not usable.
    pub left_out: usize,
    terms: [Option<Term>; TERMS_MAX],
    /// Where it went after it had waited, and when.
    pub bound: Option<(Candidate, u64)>,
    /// Why it was refused after it had waited.
    pub refused: Option<Refusal>,
    /// The second target, if one was asked.
    pub hedged: Option<TargetId>,
    /// The last target at which an attempt failed.
    pub failed: Option<TargetId>,
    /// When its first token came.
    pub first_token_us: Option<u64>,
    /// Why it is kept.
    pub kept: Option<Kept>,
}

/// What would have sent a request to another target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// That target.
    pub target: TargetId,
    /// By so much it was worse than what was taken.
    pub behind: u64,
    /// What alone would have been enough.
    pub enough: Enough,
}

/// One thing that would have been enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enough {
    /// A queue that is shorter by so much.
    ShorterQueue(u64),
    /// So many more tokens of the prompt in its cache.
    MoreCached(u64),
    /// No penalty for its health.
    NoPenalty,
    /// Nothing of what it is made of: a strategy without times decided, or several.
    Several,
}

/// The rings of one router.
#[derive(Debug)]
pub struct Explanations {
    recent: Box<[Mutex<Option<Explanation>>]>,
    kept: Box<[Mutex<Option<Explanation>>]>,
    next: AtomicU64,
    lost: AtomicU64,
}

impl Default for Explanations {
    fn default() -> Self {
        let ring = |count| (0..count).map(|_| Mutex::new(None)).collect();
        Self {
            recent: ring(RECENT),
            kept: ring(KEPT),
            next: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }
}

impl Explanations {
    /// Writes down what came of an offer; `scratch` is that of the offer.
    pub fn note<M>(
        &self,
        now_us: u64,
        snapshot: &Snapshot,
        ask: &Ask,
        outcome: &Outcome<M>,
        scratch: &Scratch,
    ) {
        let (decided, kept) = match outcome {
            Outcome::Bind(_) => (Decided::Bound, None),
            Outcome::Wait { .. } => (Decided::Waits, None),
            Outcome::Reject(refusal) => (Decided::Refused(*refusal), Some(Kept::Refused)),
        };
        let is_sampled = ask.request.0.is_multiple_of(SAMPLED);
        let explanation = Explanation {
            request: ask.request,
            tenant: ask.tenant,
            class: ask.class,
            at_us: now_us,
            age_us: now_us.saturating_sub(snapshot.at_us),
            prompt_tokens: ask.prompt_tokens,
            deadline_us: ask.deadline_us,
            decided,
            compared: scratch.candidates.len(),
            left_out: snapshot.targets.len() - scratch.candidates.len(),
            terms: best_of(scratch),
            bound: None,
            refused: None,
            hedged: None,
            failed: None,
            first_token_us: None,
            kept: kept.or(is_sampled.then_some(Kept::Sampled)),
        };
        let place = &self.recent[ask.request.0 as usize % RECENT];
        self.write(place, explanation);
        // What has an outcome is kept with it.
        if matches!(outcome, Outcome::Reject(_)) {
            self.keep(explanation);
        }
    }

    /// Writes down what became of a request.
    pub fn later(&self, now_us: u64, request: RequestId, later: Later) {
        let place = &self.recent[request.0 as usize % RECENT];
        let Ok(mut place) = place.try_lock() else {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let Some(explanation) = place.as_mut().filter(|one| one.request == request) else {
            return;
        };
        let before = *explanation;
        let worse = match later {
            Later::Bound(terms) => {
                explanation.bound = Some((terms, now_us));
                None
            }
            Later::Refused(refusal) => {
                explanation.refused = Some(refusal);
                Some(Kept::Refused)
            }
            Later::Hedged(target) => {
                explanation.hedged = Some(target);
                Some(Kept::Hedged)
            }
            Later::Failed(target) => {
                explanation.failed = Some(target);
                Some(Kept::Failed)
            }
            Later::FirstToken => {
                explanation.first_token_us = Some(now_us);
                explanation.is_slow(now_us).then_some(Kept::Slow)
            }
        };
        explanation.kept = [before.kept, worse].into_iter().flatten().min();
        // It is kept when there is something to keep it for, and its end is known.
        let is_end = matches!(later, Later::Refused(_) | Later::FirstToken);
        let is_new = is_end || explanation.kept != before.kept;
        let kept = explanation.kept.filter(|_| is_new).map(|_| *explanation);
        drop(place);
        if let Some(explanation) = kept {
            self.keep(explanation);
        }
    }

    /// What is known of a request, the newest.
    #[must_use]
    pub fn find(&self, request: RequestId) -> Option<Explanation> {
        let recent = &self.recent[request.0 as usize % RECENT];
        let recent = read(recent).filter(|one| one.request == request);
        recent.or_else(|| self.kept().into_iter().find(|one| one.request == request))
    }

    /// All that are kept, the newest first, each request once.
    #[must_use]
    pub fn kept(&self) -> Vec<Explanation> {
        let next = self.next.load(Ordering::Relaxed);
        let numbers = (next.saturating_sub(KEPT as u64)..next).rev();
        let mut kept: Vec<Explanation> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for number in numbers {
            let one = read(&self.kept[number as usize % KEPT]);
            kept.extend(one.filter(|one| seen.insert(one.request)));
        }
        kept
    }

    /// For how long decisions are kept, as things go now: since when the oldest is there.
    #[must_use]
    pub fn retention_s(&self, now_us: u64) -> f64 {
        let oldest_us = self.kept().iter().map(|one| one.at_us).min();
        now_us.saturating_sub(oldest_us.unwrap_or(now_us)) as f64 / 1e6
    }

    /// How often something could not be written down.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn keep(&self, explanation: Explanation) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.write(&self.kept[number as usize % KEPT], explanation);
    }

    fn write(&self, place: &Mutex<Option<Explanation>>, explanation: Explanation) {
        match place.try_lock() {
            Ok(mut place) => *place = Some(explanation),
            Err(_) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Explanation {
    /// The targets that were compared, the best first, at most [`TERMS_MAX`].
    pub fn terms(&self) -> impl Iterator<Item = &Term> {
        self.terms.iter().flatten()
    }

    /// What would have to change for each of the others to be taken.
    #[must_use]
    pub fn changes(&self) -> Vec<Change> {
        let mut terms = self.terms();
        let Some(winner) = terms.next() else {
            return Vec::new();
        };
        let change = |other: &Term| Change {
            target: other.known.target,
            behind: other.cost - winner.cost,
            enough: enough(self.prompt_tokens, &other.known, other.cost - winner.cost),
        };
        terms.map(change).collect()
    }

    /// By how much later its deadline would have had to be, if it was refused for that.
    #[must_use]
    pub fn short_by_us(&self) -> Option<u64> {
        let refusal = match (self.refused, self.decided) {
            (Some(refusal), _) | (None, Decided::Refused(refusal)) => refusal,
            (None, Decided::Bound | Decided::Waits) => return None,
        };
        match refusal.reason {
            Reason::DeadlineMissed {
                predicted_us,
                deadline_us,
            } => Some(predicted_us.saturating_sub(deadline_us)),
            Reason::NoTarget | Reason::QueueFull { .. } => None,
        }
    }

    fn is_slow(&self, now_us: u64) -> bool {
        let winner = self.terms().next().map(|term| term.known);
        let (known, since_us) = match (self.bound, winner) {
            (Some(bound), _) => bound,
            (None, Some(known)) => (known, self.at_us),
            (None, None) => return false,
        };
        let took_us = now_us.saturating_sub(since_us);
        let predicted_us = known.ttft_us();
        let is_late = took_us > predicted_us.saturating_mul(SLOW)
            && took_us > predicted_us.saturating_add(SLOW_US);
        is_late || now_us > self.deadline_us
    }
}

/// What alone would have made up for so much.
fn enough(prompt_tokens: u64, known: &Candidate, behind_us: u64) -> Enough {
    let uncached = prompt_tokens.saturating_sub(known.cached_tokens);
    if known.queued_us > behind_us {
        Enough::ShorterQueue(behind_us + 1)
    } else if known.prefill_us > behind_us && uncached > 0 {
        let share = u128::from(behind_us + 1) * u128::from(uncached);
        Enough::MoreCached(share.div_ceil(u128::from(known.prefill_us)) as u64)
    } else if known.penalty_us > behind_us {
        Enough::NoPenalty
    } else {
        Enough::Several
    }
}

/// The best of a decision, the least cost first and of equal ones the first.
fn best_of(scratch: &Scratch) -> [Option<Term>; TERMS_MAX] {
    let mut best: [Option<Term>; TERMS_MAX] = [None; TERMS_MAX];
    let mut count = 0;
    for (known, cost) in scratch.candidates.iter().zip(&scratch.costs) {
        let is_better = |other: &Option<Term>| other.is_none_or(|other| *cost < other.cost);
        if count == TERMS_MAX && !is_better(&best[TERMS_MAX - 1]) {
            continue;
        }
        let place = best.iter().position(is_better).unwrap_or(TERMS_MAX - 1);
        best[place..].rotate_right(1);
        best[place] = Some(Term {
            known: *known,
            cost: *cost,
        });
        count = (count + 1).min(TERMS_MAX);
    }
    best
}

fn read(place: &Mutex<Option<Explanation>>) -> Option<Explanation> {
    *place.lock().unwrap_or_else(PoisonError::into_inner)
}
