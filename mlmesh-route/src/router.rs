//! Admit, filter, score, pick; and what comes of it later.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mlmesh_strategy::{
    Ask, Candidate, Forecast, LeastQueue, RequestId, Seen, Situation, Strategy, TargetId, TenantId,
};

use crate::ledger::Ledger;
use crate::policy::{Late, Policy};
use crate::queue::Queue;
use crate::snapshot::{Snapshot, Target};
use crate::tenants::Meters;
use crate::trial::{Arm, Shadow, Trial};
use crate::word::{Booking, Effect, Event, Outcome, Reason, Refusal, Scratch, Verdict};

/// One router: a strategy, what it predicts from, its books and its queue.
#[derive(Debug)]
pub struct Router<F> {
    strategy: Box<dyn Strategy>,
    trial: Option<Trial>,
    shadow: Option<Shadow>,
    policy: Policy,
    forecast: F,
    ledger: Ledger,
    queue: Mutex<Queue>,
    /// How many wait; read without the lock.
    waiting: AtomicUsize,
    /// Prefill that they are predicted to need.
    waiting_us: AtomicU64,
    overruns: AtomicU64,
    meters: Meters,
}

/// After so many targets a decision looks at the clock.
const TARGETS_A_LOOK: usize = 32;

impl<F: Forecast> Router<F> {
    /// A router that has sent nothing yet.
    pub fn new(strategy: Box<dyn Strategy>, policy: Policy, forecast: F) -> Self {
        Self {
            strategy,
            trial: None,
            shadow: None,
            policy,
            forecast,
            ledger: Ledger::default(),
            queue: Mutex::new(Queue::default()),
            waiting: AtomicUsize::new(0),
            waiting_us: AtomicU64::new(0),
            overruns: AtomicU64::new(0),
            meters: Meters::default(),
        }
    }

    /// Gives a share of the requests to another strategy, under the same policy.
    #[must_use]
    pub fn with_trial(mut self, trial: Trial) -> Self {
        self.trial = Some(trial);
        self
    }

    /// The trial under way, to be told of first tokens.
    pub const fn trial(&self) -> Option<&Trial> {
        self.trial.as_ref()
    }

    /// Asks another strategy as well, without following it.
    #[must_use]
    pub fn with_shadow(mut self, shadow: Shadow) -> Self {
        self.shadow = Some(shadow);
        self
    }

    /// The shadow, with what it would have done.
    pub const fn shadow(&self) -> Option<&Shadow> {
        self.shadow.as_ref()
    }

    /// What was sent where.
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What it predicts from.
    pub const fn forecast(&self) -> &F {
        &self.forecast
    }

    /// How many requests wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Decisions that took longer than they may.
    pub fn overruns(&self) -> u64 {
        self.overruns.load(Ordering::Relaxed)
    }

    /// A tenant has so many times the claim of others, in thousandths; a thousand when
    /// nothing is said.
    pub fn weigh(&self, tenant: TenantId, weight: u32) {
        self.meters.weigh(tenant, weight);
    }

    /// So many tokens of an answer were written for a tenant.
    pub fn written(&self, tenant: TenantId, tokens: u64) {
        self.meters.answer(tenant, tokens);
    }

    pub(crate) const fn meters(&self) -> &Meters {
        &self.meters
    }

    /// Takes a request: binds it, keeps it or refuses it.
    pub fn offer(
        &self,
        now_us: u64,
        snapshot: &Snapshot,
        ask: &Ask,
        scratch: &mut Scratch,
    ) -> Outcome<F::Memo> {
        match self.decide(now_us, snapshot, ask, scratch) {
            Verdict::Bind(terms) => Outcome::Bind(self.bind(now_us, ask, terms)),
            Verdict::Reject(refusal) => Outcome::Reject(refusal),
            Verdict::Wait(best) => self.keep(now_us, snapshot, ask, &best, scratch),
        }
    }

    /// Takes requests that came in the same moment: where they wait for targets anyway,
    /// none goes first because it was read first.
    pub fn offer_all(
        &self,
        now_us: u64,
        snapshot: &Snapshot,
        asks: &[Ask],
        scratch: &mut Scratch,
        effects: &mut Vec<Effect<F::Memo>>,
    ) {
        let mut queue = self.queue();
        for ask in asks {
            match self.decide(now_us, snapshot, ask, scratch) {
                Verdict::Bind(best) if asks.len() == 1 || self.policy.late.is_none() => {
                    effects.push(Effect::Bind(self.bind(now_us, ask, best)));
                }
                Verdict::Bind(best) | Verdict::Wait(best) => {
                    queue.push(self, now_us, ask, (&best, scratch));
                }
                Verdict::Reject(refusal) => effects.push(Effect::Refuse(ask.request, refusal)),
            }
        }
        self.drain(&mut queue, now_us, snapshot, effects);
        // The ones that came last.
        let queue_max = self.policy.late.map_or(0, |late| late.queue_max);
        for ask in asks.iter().rev() {
            if queue.len() > queue_max && queue.remove(ask.request) {
                let refusal = self.full(now_us, snapshot, queue_max);
                effects.push(Effect::Refuse(ask.request, refusal));
            }
        }
        self.count(&queue);
    }

    /// What would come of a request now. Takes no lock and writes nothing but the
    /// strategy's own position.
    pub fn decide(
        &self,
        now_us: u64,
        snapshot: &Snapshot,
        ask: &Ask,
        scratch: &mut Scratch,
    ) -> Verdict {
        let turn = self.ledger.next_turn();
        let verdict = self.consider(now_us, snapshot, (ask, turn), scratch);
        if let (Some(shadow), Verdict::Bind(best) | Verdict::Wait(best)) = (&self.shadow, verdict) {
            self.ask_shadow(shadow, ask, best, scratch);
        }
        verdict
    }

    fn ask_shadow(&self, shadow: &Shadow, ask: &Ask, best: Candidate, scratch: &mut Scratch) {
        // What the router's own strategy did not need is predicted now.
        if shadow.strategy().needs_forecast() && !self.strategy.needs_forecast() {
            for candidate in &mut scratch.candidates {
                self.predict(ask, candidate);
            }
        }
        shadow.ask(ask, &best, &scratch.candidates, &mut scratch.shadow_costs);
    }

    /// Takes note of what happened, and says what is to be done now.
    pub fn step(
        &self,
        now_us: u64,
        snapshot: &Snapshot,
        event: Event<'_, F::Memo>,
        effects: &mut Vec<Effect<F::Memo>>,
    ) {
        let idle = match &event {
            Event::FirstToken(booking) => Some(booking.terms.target),
            Event::Ended { booking, .. } => Some(booking.terms.target),
            Event::Gone(_) | Event::Tick => None,
        };
        let frees = match &event {
            Event::FirstToken(_) | Event::Tick => true,
            Event::Ended { booking, .. } => !booking.is_answered || self.policy.counts_in_flight(),
            Event::Gone(_) => false,
        };
        match event {
            Event::FirstToken(booking) => {
                let terms = booking.terms;
                booking.is_answered = true;
                let took_us = match booking.is_silent {
                    true => self.sooner(now_us, booking),
                    false => self.ledger.answered(
                        terms.target,
                        now_us,
                        booking.bound_us,
                        terms.prefill_us,
                    ),
                };
                if let Some(took_us) = took_us {
                    booking.took_us = took_us;
                    let seen = Seen::Prefill {
                        prompt_tokens: booking.prompt_tokens,
                        cached_tokens: terms.cached_tokens,
                        took_us,
                    };
                    self.forecast.seen(terms.target, seen, booking.memo);
                }
            }
            Event::Ended {
                booking,
                cached_tokens,
            } => {
                let terms = booking.terms;
                if booking.is_silent && !booking.is_answered {
                    self.sooner(now_us, &booking);
                } else if !booking.is_answered {
                    self.ledger.release(terms.target, now_us, terms.prefill_us);
                }
                self.ledger.ended(terms.target);
                if let Some(cached_tokens) = cached_tokens {
                    let seen = Seen::Cached {
                        prompt_tokens: booking.prompt_tokens,
                        took_us: booking.took_us,
                        cached_tokens,
                        block_tokens: booking.block_tokens,
                    };
                    self.forecast.seen(terms.target, seen, booking.memo);
                }
            }
            Event::Gone(request) => {
                self.leave(request);
            }
            Event::Tick => {}
        }
        // Nobody waits, or for something else: the lock is not worth taking.
        if frees && self.waiting() > 0 {
            let mut queue = self.queue();
            if idle.is_some_and(|target| self.ledger.is_idle(target)) {
                queue.reconsider();
            }
            self.drain(&mut queue, now_us, snapshot, effects);
        }
    }

    /// A silent answer has begun, or the request has ended: whatever its prompt took, it
    /// was not longer than this. Says so where that is less than what was believed.
    fn sooner(&self, now_us: u64, booking: &Booking<F::Memo>) -> Option<u64> {
        let terms = &booking.terms;
        let took_us = now_us.saturating_sub(booking.bound_us).max(1);
        let unused_us = terms.prefill_us.saturating_sub(took_us);
        self.ledger.spare(terms.target, now_us, unused_us);
        (unused_us > 0).then_some(took_us)
    }

    /// Whether a request's prompt has to be there before it is offered.
    pub fn reads_prompts(&self) -> bool {
        let beside = [
            self.trial.as_ref().map(Trial::strategy),
            self.shadow.as_ref().map(Shadow::strategy),
        ];
        let reads = |strategy: &dyn Strategy| strategy.reads_prompt();
        reads(self.strategy.as_ref())
            || beside.into_iter().flatten().any(reads)
            || self.policy.late.is_some()
            || self.policy.refuse_hopeless
    }

    /// A client that waits has gone away. Says whether its request still waited: if it did
    /// not, the word on it is on its way to whom it was told.
    pub fn leave(&self, request: RequestId) -> bool {
        let mut queue = self.queue();
        let waited = queue.remove(request);
        self.count(&queue);
        waited
    }

    /// The target whose turn it is among those that are usable, for what is no work for
    /// it; nothing is booked.
    pub fn turn(&self, snapshot: &Snapshot) -> Option<TargetId> {
        let usable = || snapshot.targets.iter().filter(|target| target.usable);
        let count = usable().count() as u64;
        let place = self.ledger.next_turn().checked_rem(count)?;
        usable().nth(place as usize).map(|target| target.id)
    }

    /// How long a target that holds nothing of a prompt is predicted to work on it; that
    /// of the first one that is usable.
    pub fn cold_prefill_us(&self, snapshot: &Snapshot, ask: &Ask) -> u64 {
        let first = snapshot.targets.iter().find(|target| target.usable);
        first.map_or(0, |target| self.forecast.prefill_us(target.id, ask, 0))
    }

    /// The best target beside some, for an attempt that failed there or is late. Nothing
    /// is booked, and whether it waits or comes in time is the caller's matter.
    pub fn elsewhere(
        &self,
        now_us: u64,
        snapshot: &Snapshot,
        ask: &Ask,
        tried: &[TargetId],
        scratch: &mut Scratch,
    ) -> Option<Candidate> {
        let turn = self.ledger.next_turn();
        self.pick(now_us, snapshot, (ask, turn), tried, scratch)
    }

    /// Books an attempt at the target that [`Router::elsewhere`] found.
    pub fn book(&self, now_us: u64, ask: &Ask, terms: Candidate) -> Booking<F::Memo> {
        self.bind(now_us, ask, terms)
    }

    /// Filter, score, pick and judge.
    pub(crate) fn consider(
        &self,
        now_us: u64,
        snapshot: &Snapshot,
        (ask, turn): (&Ask, u64),
        scratch: &mut Scratch,
    ) -> Verdict {
        match self.pick(now_us, snapshot, (ask, turn), &[], scratch) {
            Some(best) => self.judge(now_us, snapshot, ask, best),
            None => Verdict::Reject(Refusal {
                reason: Reason::NoTarget,
                retry_after_us: RETRY_AFTER_US_MIN,
            }),
        }
    }

    fn pick(
        &self,
        now_us: u64,
        snapshot: &Snapshot,
        asked: (&Ask, u64),
        tried: &[TargetId],
        scratch: &mut Scratch,
    ) -> Option<Candidate> {
        let (ask, turn) = asked;
        let mut strategy = match &self.trial {
            Some(trial) if trial.arm(ask) == Arm::Other => trial.strategy(),
            _ => self.strategy.as_ref(),
        };
        let Scratch {
            candidates,
            costs,
            budget,
            ..
        } = scratch;
        let end_ns = budget.map(|budget| (budget.clock_ns)().saturating_add(budget.ns_max));
        candidates.clear();
        let usable = snapshot.targets.iter().filter(|target| target.usable);
        for target in usable.filter(|target| !tried.contains(&target.id)) {
            let mut candidate = self.stands(now_us, target);
            if strategy.needs_forecast() {
                self.predict(ask, &mut candidate);
                if candidates.len() % TARGETS_A_LOOK == TARGETS_A_LOOK - 1
                    && let Some((budget, end_ns)) = budget.zip(end_ns)
                    && (budget.clock_ns)() > end_ns
                {
                    strategy = &LeastQueue;
                    self.overruns.fetch_add(1, Ordering::Relaxed);
                }
            }
            candidates.push(candidate);
        }
        costs.clear();
        costs.resize(candidates.len(), 0);
        if candidates.is_empty() {
            return None;
        }
        let situation = Situation { ask, turn };
        strategy.score(situation, candidates, costs);
        let mut place = 0;
        for other in 1..costs.len() {
            if costs[other] < costs[place] {
                place = other;
            }
        }
        if !strategy.needs_forecast() {
            self.predict(ask, &mut candidates[place]);
        }
        Some(candidates[place])
    }

    /// How a target stands, whatever it is asked for.
    pub(crate) fn stands(&self, now_us: u64, target: &Target) -> Candidate {
        let backlog = self.ledger.backlog(target.id, now_us);
        let mut candidate = Candidate {
            target: target.id,
            in_flight: self.ledger.in_flight(target.id),
            queued_us: backlog.expected_us,
            queued_doubt_us: backlog.doubt_us,
            prefill_doubt_us: 0,
            cached_tokens: 0,
            prefill_us: 0,
            decode_us: 0,
            rtt_us: 0,
            penalty_us: 0,
        };
        target.weigh_in(&mut candidate);
        candidate
    }

    /// When a target will be within the bound, if time brings it there.
    pub(crate) fn free_us(&self, now_us: u64, late: Late, stands: &Candidate) -> Option<u64> {
        if stands.in_flight >= late.in_flight_max {
            return None;
        }
        let backlog = self.ledger.backlog(stands.target, now_us);
        let foreign_us = stands.queued_us.saturating_sub(backlog.expected_us);
        late.free_us(now_us, backlog, foreign_us)
    }

    fn predict(&self, ask: &Ask, candidate: &mut Candidate) {
        let target = candidate.target;
        candidate.cached_tokens = self.forecast.cached_tokens(target, ask);
        candidate.prefill_us = self
            .forecast
            .prefill_us(target, ask, candidate.cached_tokens);
        candidate.prefill_doubt_us = self.ledger.doubt_us(target, candidate.prefill_us);
    }

    /// Whether a request goes to what suits it best, waits for it, or is refused.
    fn judge(&self, now_us: u64, snapshot: &Snapshot, ask: &Ask, best: Candidate) -> Verdict {
        let predicted_us = now_us.saturating_add(best.ttft_us());
        // A prediction is not held against a request by more than it is worth.
        let hoped_us = predicted_us.saturating_sub(best.prefill_doubt_us);
        // What nothing was seen of is asked, or it would never be known.
        let refuses = self.policy.refuse_hopeless && self.forecast.knows(best.target);
        if refuses && hoped_us > ask.deadline_us {
            return Verdict::Reject(Refusal {
                reason: Reason::DeadlineMissed {
                    predicted_us,
                    deadline_us: ask.deadline_us,
                },
                retry_after_us: self.drained_in_us(now_us, snapshot),
            });
        }
        match self.policy.late {
            Some(late) if !late.admits(&best) => Verdict::Wait(best),
            _ => Verdict::Bind(best),
        }
    }

    /// Writes down that a request goes somewhere.
    pub(crate) fn bind(&self, now_us: u64, ask: &Ask, terms: Candidate) -> Booking<F::Memo> {
        self.ledger
            .book(terms.target, now_us, terms.prefill_us, ask.is_silent);
        let prompt_tokens = ask.prompt_tokens.saturating_sub(terms.cached_tokens);
        self.meters.prompt(ask.tenant, prompt_tokens);
        Booking {
            request: ask.request,
            bound_us: now_us,
            terms,
            prompt_tokens: ask.prompt_tokens,
            block_tokens: ask.block_tokens,
            is_silent: ask.is_silent,
            is_answered: false,
            took_us: 0,
            memo: self.forecast.bound(terms.target, ask),
        }
    }

    pub(crate) const fn policy(&self) -> &Policy {
        &self.policy
    }

    fn keep(
        &self,
        now_us: u64,
        snapshot: &Snapshot,
        ask: &Ask,
        best: &Candidate,
        scratch: &Scratch,
    ) -> Outcome<F::Memo> {
        let late = self.policy.late.unwrap_or_default();
        let mut queue = self.queue();
        if queue.len() >= late.queue_max {
            return Outcome::Reject(self.full(now_us, snapshot, late.queue_max));
        }
        queue.push(self, now_us, ask, (best, scratch));
        self.count(&queue);
        Outcome::Wait {
            look_again_us: self.free_us(now_us, late, best).unwrap_or(u64::MAX),
        }
    }

    fn drain(
        &self,
        queue: &mut Queue,
        now_us: u64,
        snapshot: &Snapshot,
        effects: &mut Vec<Effect<F::Memo>>,
    ) {
        queue.drain(self, now_us, snapshot, effects);
        self.count(queue);
    }

    /// What others read without the lock.
    fn count(&self, queue: &Queue) {
        self.waiting.store(queue.len(), Ordering::Relaxed);
        self.waiting_us.store(queue.prefill_us(), Ordering::Relaxed);
    }

    fn full(&self, now_us: u64, snapshot: &Snapshot, queue_max: usize) -> Refusal {
        Refusal {
            reason: Reason::QueueFull { queue_max },
            retry_after_us: self.drained_in_us(now_us, snapshot),
        }
    }

    /// How long the targets work on what they were sent and what waits: each drains in
    /// a microsecond what was predicted to take it one.
    fn drained_in_us(&self, now_us: u64, snapshot: &Snapshot) -> u64 {
        let usable = snapshot.targets.iter().filter(|target| target.usable);
        let (count, booked) = usable.fold(
            (0_u64, self.waiting_us.load(Ordering::Relaxed)),
            |(count, booked), target| {
                let own_us = self.ledger.backlog(target.id, now_us).expected_us;
                let busy_us = own_us.saturating_add(target.foreign_us);
                (count + 1, booked.saturating_add(busy_us))
            },
        );
        (booked / count.max(1)).max(RETRY_AFTER_US_MIN)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nobody is told to come back sooner than in a second.
const RETRY_AFTER_US_MIN: u64 = 1_000_000;
