//! The words that a router and its shell exchange.

use mlmesh_strategy::{Candidate, RequestId};

/// What comes of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome<M> {
    /// Send it there, now.
    Bind(Booking<M>),
    /// It waits; an [`Effect`] will say what comes of it.
    Wait {
        /// Come with [`Event::Tick`] then, if nothing else happens before; never, if that
        /// is [`u64::MAX`].
        look_again_us: u64,
    },
    /// It is refused.
    Reject(Refusal),
}

/// What a decision says, before anything is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// This target, now.
    Bind(Candidate),
    /// None now; this one would suit best.
    Wait(Candidate),
    /// None.
    Reject(Refusal),
}

/// A request and its target, with everything that was predicted. It is given back with
/// the request's first token and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Booking<M> {
    /// Which request.
    pub request: RequestId,
    /// When it was bound.
    pub bound_us: u64,
    /// Where it goes, and the terms of which its cost consists.
    pub terms: Candidate,
    /// Length of its prompt.
    pub prompt_tokens: u64,
    /// What a block of it stands for.
    pub block_tokens: u64,
    /// Its answer comes as a whole.
    pub is_silent: bool,
    /// Whether its first token was there, or the beginning of a silent answer.
    pub is_answered: bool,
    /// How long the target worked on it, if that is known; else zero.
    pub took_us: u64,
    /// What the forecast wants to remember of it.
    pub memo: M,
}

/// Why a request is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The rule.
    pub reason: Reason,
    /// When it is worth to ask again.
    pub retry_after_us: u64,
}

/// The rules by which requests are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// No target is usable.
    NoTarget,
    /// Its deadline cannot be met any more.
    DeadlineMissed {
        /// When its first token would have come.
        predicted_us: u64,
        /// When it had to be there.
        deadline_us: u64,
    },
    /// As many wait as may.
    QueueFull {
        /// How many may.
        queue_max: usize,
    },
}

/// What happened to requests.
#[derive(Debug)]
pub enum Event<'a, M> {
    /// The first token of an answer came; the booking takes note of it.
    FirstToken(&'a mut Booking<M>),
    /// An answer ended, or the request did: failed or left by its client.
    Ended {
        /// Which.
        booking: Booking<M>,
        /// How many of the prompt's tokens the engine held, if it says so.
        cached_tokens: Option<u64>,
    },
    /// A client that waits has gone away.
    Gone(RequestId),
    /// The time that [`Effect::WakeAt`] named, or targets have changed.
    Tick,
}

/// What the shell has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect<M> {
    /// Send a request that has waited.
    Bind(Booking<M>),
    /// Refuse a request that has waited.
    Refuse(RequestId, Refusal),
    /// Come back with [`Event::Tick`] then, if nothing else happens before. The newest
    /// one counts.
    WakeAt(u64),
}

/// Room for one decision, to be used again. After [`crate::Router::decide`] it explains it.
#[derive(Debug, Default)]
pub struct Scratch {
    /// What was known of each usable target.
    pub candidates: Vec<Candidate>,
    /// What the strategy made of it.
    pub costs: Vec<u64>,
    /// How long a decision may take; none is as long as it takes.
    pub budget: Option<Budget>,
    /// What the shadow made of it, if there is one.
    pub shadow_costs: Vec<u64>,
}

/// How long a decision may take. A decision that takes longer sends the request to the
/// target with the fewest, and is counted ([`crate::Router::overruns`]).
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Nanoseconds since any beginning: this crate has no clock of its own.
    pub clock_ns: fn() -> u64,
    /// So long.
    pub ns_max: u64,
}
