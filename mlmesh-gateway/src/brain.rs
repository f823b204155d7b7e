//! The process's one router, and the requests that wait for its word.
//!
//! ```text
//!   thread A ─ offer ─► Wait ─► a place in `waiting` ◄── word ── thread B, whose request
//!                               (woken by its own channel)       ended and freed a target
//! ```
//!
//! A request that does not wait meets no lock here. One that waits takes one to leave a
//! channel behind, over which whoever frees a target hands it the router's word.

mod booked;
mod waiting;

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mlmesh_route::fusion::Own;
use mlmesh_route::{
    Ask, BLOCK_BYTES, BlockHash, BlockHasher, Booking, Circuit, Effect, Event, Evidence,
    Explanations, INDEX_BYTES, Later, Learnt, NameError, Outcome, Progress, Reason, Repeatable,
    RequestId, RetryBudget, Router, Scratch, Snapshot, TargetId, mixed_pair, strategy_by_name,
};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::keys::Tenant;
use crate::refusal::Refusal;
use crate::scan::{Scan, scan};
use crate::signals::SnapshotCell;
use crate::times::Times;

pub(crate) use booked::Bound;
use waiting::Place;
pub(crate) use waiting::Waits;

/// What the index of prompts wants to remember of a booking.
type Memo = <Learnt as mlmesh_route::Forecast>::Memo;

/// The router's last word on a request that waits.
type Word = Result<Booking<Memo>, mlmesh_route::Refusal>;

/// Bytes of a prompt for each of its tokens, until an engine has said how many there were.
const BYTES_A_TOKEN_AT_FIRST: f32 = 4.0;
/// Weight of the newest answer in their mean.
const BYTES_A_TOKEN_WEIGHT: f32 = 1.0 / 16.0;

/// What is farther away than this, a year, is looked at again before.
const FAR_US: u64 = 365 * 86_400 * 1_000_000;
/// The weight of a tenant that stands once, in the router's terms.
const WEIGHT_UNIT: u32 = 1_000;
/// Prompts of fewer tokens are mostly what a chat's template adds.
const PROMPT_TOKENS_TOLD_MIN: u64 = 32;

/// One for the process; threads share it.
#[derive(Debug)]
pub(crate) struct Brain {
    router: Router<Learnt>,
    strategy: String,
    /// What is known of the targets, and the clock of all times here.
    known: SnapshotCell,
    /// Chance, and hashes that nobody foresees.
    key: u64,
    requests: AtomicU64,
    bytes_a_token: AtomicU32,
    /// What a first token may take, beside twice what the prompt takes an empty target.
    slo: Duration,
    waiting: Mutex<HashMap<RequestId, Place>>,
    /// When the router wants to look again at what waits.
    wake_at_us: AtomicU64,
    /// When a target that is left out may be tried again.
    probe_at_us: AtomicU64,
    retries: RetryBudget,
    pub(crate) explanations: Explanations,
    wake: watch::Sender<u64>,
    pub(crate) counts: Counts,
    pub(crate) times: Times,
}

/// What became of offers.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) bound: AtomicU64,
    pub(crate) waited: AtomicU64,
    pub(crate) hopeless: AtomicU64,
    pub(crate) full: AtomicU64,
    pub(crate) without_target: AtomicU64,
}

/// What the body of a request says that matters here.
pub(crate) struct Wish {
    pub(crate) ask: Ask,
    pub(crate) prompt_bytes: u64,
    pub(crate) model: Option<String>,
    pub(crate) is_stream: bool,
    pub(crate) answer_tokens_max: Option<u64>,
}

/// Room that a thread uses again for each decision.
#[derive(Debug, Default)]
pub(crate) struct Work {
    scratch: Scratch,
    blocks: Vec<BlockHash>,
}

/// What comes of an offer.
pub(crate) enum Offered {
    Bound(Bound),
    Waits(Waits),
    Refused(Refusal),
}

impl Brain {
    /// For targets that answer as far as anybody knows.
    pub(crate) fn new(
        targets: u16,
        known: SnapshotCell,
        strategy: &str,
        slo: Duration,
    ) -> Result<Brain, NameError> {
        let (chooses, policy) = strategy_by_name(strategy)?;
        Ok(Brain {
            strategy: strategy.to_owned(),
            router: Router::new(chooses, policy, Learnt::new(targets, INDEX_BYTES)),
            known,
            key: RandomState::new().hash_one(0_u64),
            requests: AtomicU64::new(0),
            bytes_a_token: AtomicU32::new(BYTES_A_TOKEN_AT_FIRST.to_bits()),
            slo,
            waiting: Mutex::default(),
            wake_at_us: AtomicU64::new(u64::MAX),
            probe_at_us: AtomicU64::new(u64::MAX),
            retries: RetryBudget::default(),
            explanations: Explanations::default(),
            wake: watch::Sender::new(u64::MAX),
            counts: Counts::default(),
            times: Times::new(usize::from(targets)),
        })
    }

    /// Whether a body has to be there before a target is chosen.
    pub(crate) fn reads_bodies(&self) -> bool {
        self.router.reads_prompts()
    }

    /// How many requests wait.
    pub(crate) fn waiting(&self) -> usize {
        self.router.waiting()
    }

    /// How targets are chosen, by name.
    pub(crate) fn strategy(&self) -> &str {
        &self.strategy
    }

    /// The clock of all times here.
    pub(crate) fn clock(&self) -> &SnapshotCell {
        &self.known
    }

    /// What is asked for by a body, or by so many bytes of one that are not here.
    pub(crate) fn wish(&self, work: &mut Work, body: Option<&[u8]>, bytes: u64) -> Wish {
        let request = RequestId(self.requests.fetch_add(1, Ordering::Relaxed));
        let scanned = body.map_or_else(Scan::default, |body| scan(body).unwrap_or_default());
        let blocks = &mut work.blocks;
        blocks.clear();
        let mut hasher = BlockHasher::new(self.key, BLOCK_BYTES);
        let prompt_bytes = match (scanned.prompt_bytes() as u64, body) {
            // Not JSON, or of an unknown kind: what is the same from its beginning on is
            // the same.
            (0, Some(body)) => {
                hasher.push(body, blocks);
                bytes
            }
            (0, None) => bytes,
            (prompt_bytes, _) => {
                for part in scanned.prompt {
                    hasher.push(part, blocks);
                }
                prompt_bytes
            }
        };
        let a_token = f64::from(f32::from_bits(self.bytes_a_token.load(Ordering::Relaxed)));
        let session = scanned.session.as_deref();
        let mut ask = Ask {
            request,
            prompt_tokens: (prompt_bytes as f64 / a_token).ceil() as u64,
            blocks: blocks.as_slice().into(),
            block_tokens: (BLOCK_BYTES as f64 / a_token).ceil() as u64,
            session: session.map(|session| self.hashed(session.as_bytes())),
            deadline_us: u64::MAX,
            chance: mixed_pair(self.key, request.0),
            ..Ask::default()
        };
        let now_us = self.now_us();
        let cold_us = self.router.cold_prefill_us(&self.known.load(now_us), &ask);
        let slo_us = u64::try_from(self.slo.as_micros()).unwrap_or(u64::MAX);
        ask.deadline_us = now_us
            .saturating_add(slo_us)
            .saturating_add(cold_us.saturating_mul(2));
        Wish {
            ask,
            prompt_bytes,
            model: scanned.model.map(Cow::into_owned),
            is_stream: scanned.stream,
            answer_tokens_max: scanned.tokens_max,
        }
    }

    /// Asks for a target. After an attempt that failed at those in `tried` another one is
    /// taken at once, whatever waits.
    pub(crate) fn offer(self: &Arc<Brain>, work: &mut Work, ask: &Ask, tried: &[usize]) -> Offered {
        let now_us = self.now_us();
        let snapshot = self.known.load(now_us);
        let scratch = &mut work.scratch;
        if !tried.is_empty() {
            let tried: Vec<TargetId> = tried.iter().map(|target| id(*target)).collect();
            let other = self
                .router
                .elsewhere(now_us, &snapshot, ask, &tried, scratch);
            return match other {
                Some(terms) => {
                    let booking = self.router.book(now_us, ask, terms);
                    Offered::Bound(self.bound(booking, now_us))
                }
                None => Offered::Refused(Refusal::NoTarget { retry_after_s: 1 }),
            };
        }
        self.retries.request();
        let outcome = self.router.offer(now_us, &snapshot, ask, scratch);
        self.explanations
            .note(now_us, &snapshot, ask, &outcome, scratch);
        match outcome {
            Outcome::Bind(booking) => Offered::Bound(self.bound(booking, now_us)),
            Outcome::Reject(refusal) => Offered::Refused(self.refused(refusal)),
            Outcome::Wait { look_again_us } => {
                self.counts.waited.fetch_add(1, Ordering::Relaxed);
                self.wake_at(look_again_us);
                Offered::Waits(self.wait(ask.request, now_us))
            }
        }
    }

    /// The target whose turn it is for what is no work, but for those in `tried`.
    pub(crate) fn turn(&self, tried: &[usize]) -> Option<usize> {
        let snapshot = self.known.load(self.now_us());
        let target = match tried {
            [] => self.router.turn(&snapshot),
            tried => self.router.turn(&without(&snapshot, tried)),
        };
        target.map(TargetId::index)
    }

    /// Looks again at what waits whenever the router wants to, and at targets that are left
    /// out when they may be tried. Each thread does, since the others may have ended; the
    /// first one that wakes does it for all.
    pub(crate) async fn keep_time(self: Arc<Brain>) {
        let mut woken = self.wake.subscribe();
        loop {
            woken.mark_unchanged();
            let order = Ordering::Relaxed;
            let at_us = self
                .wake_at_us
                .load(order)
                .min(self.probe_at_us.load(order));
            let wait_us = at_us.saturating_sub(self.now_us()).min(FAR_US);
            tokio::select! {
                changed = woken.changed() => if changed.is_err() { return },
                () = sleep(Duration::from_micros(wait_us)), if at_us < u64::MAX => {
                    let now_us = self.now_us();
                    if is_due(&self.probe_at_us, now_us) {
                        self.refresh();
                    }
                    if is_due(&self.wake_at_us, now_us) {
                        self.step(Event::Tick, &mut Vec::new());
                    }
                }
            }
        }
    }

    /// An attempt at a target begins.
    pub(crate) fn begun(self: &Arc<Brain>, target: usize) {
        if self.known.health().begun(id(target)) {
            self.refresh();
        }
    }

    /// Something came of an attempt at a target.
    pub(crate) fn told(self: &Arc<Brain>, target: usize, evidence: Evidence) {
        let (now_us, health) = (self.now_us(), self.known.health());
        // Not a secret, and not to be the same twice.
        let chance = mixed_pair(self.key, now_us);
        if health.told(id(target), evidence, now_us, chance) {
            let circuit = health.circuit(id(target));
            tracing::warn!(target, ?evidence, ?circuit, "a target's circuit");
            self.refresh();
        }
    }

    /// An attempt ended that says nothing of its target.
    pub(crate) fn abandoned(self: &Arc<Brain>, target: usize) {
        if self.known.health().abandoned(id(target)) {
            self.refresh();
        }
    }

    /// Whether a target is left out for what requests have met there.
    pub(crate) fn is_left_out(&self, target: usize) -> bool {
        self.known.health().circuit(id(target)) != Circuit::Closed
    }

    /// The share of a tenant beside others.
    pub(crate) fn weigh(&self, tenant: &Tenant) {
        let weight = tenant.weight.get().saturating_mul(WEIGHT_UNIT);
        self.router.weigh(tenant.id, weight);
    }

    /// Whether an attempt that came so far may be made again, within what all may.
    pub(crate) fn may_retry(&self, repeatable: Repeatable, progress: Progress) -> bool {
        let taken = self.retries.take(self.now_us(), repeatable, progress);
        taken.is_ok()
    }

    /// Whether there is a target beside these.
    pub(crate) fn has_other(&self, tried: &[usize]) -> bool {
        let snapshot = self.known.load(self.now_us());
        let mut usable = snapshot.targets.iter().filter(|target| target.usable);
        usable.any(|target| !tried.contains(&target.id.index()))
    }

    fn refresh(self: &Arc<Brain>) {
        if let Some(again_us) = self.known.refresh() {
            self.probe_at_us.fetch_min(again_us, Ordering::Relaxed);
            self.wake.send_replace(again_us);
        }
        self.look_again();
    }

    /// What this process knows by itself of a target.
    pub(crate) fn own(&self, target: TargetId) -> Own {
        let ledger = self.router.ledger();
        Own {
            in_flight: ledger.in_flight(target),
            backlog_us: ledger.backlog(target, self.now_us()).expected_us,
            pace_us: ledger.pace_us(target),
            prompt_tokens: None,
        }
    }

    /// A target is another process than before, and holds no prompts.
    pub(crate) fn forget_prompts(&self, target: TargetId) {
        self.router.forecast().forget_prompts(target);
    }

    /// Something else is known of the targets: what waits may go.
    pub(crate) fn look_again(self: &Arc<Brain>) {
        if self.waiting() > 0 {
            self.step(Event::Tick, &mut Vec::new());
        }
    }

    fn now_us(&self) -> u64 {
        self.known.now_us()
    }

    fn hashed(&self, bytes: &[u8]) -> u64 {
        let words = bytes.chunks(8).map(|chunk| {
            let word = chunk
                .iter()
                .fold(0, |word, byte| word << 8 | u64::from(*byte));
            mixed_pair(word, chunk.len() as u64)
        });
        words.fold(self.key, mixed_pair)
    }

    /// Tells the router, and those who wait what it says.
    fn step(self: &Arc<Brain>, event: Event<'_, Memo>, effects: &mut Vec<Effect<Memo>>) {
        let now_us = self.now_us();
        let snapshot = self.known.load(now_us);
        self.router.step(now_us, &snapshot, event, effects);
        // In their order; what comes of one stands behind the others.
        let mut next = 0;
        while let Some(effect) = effects.get(next).copied() {
            next += 1;
            let undelivered = match effect {
                Effect::WakeAt(at_us) => {
                    self.wake_at(at_us);
                    None
                }
                Effect::Bind(booking) => self.tell(booking.request, Ok(booking)),
                Effect::Refuse(request, refusal) => self.tell(request, Err(refusal)),
            };
            if let Some(booking) = undelivered {
                let ended = Event::Ended {
                    booking,
                    cached_tokens: None,
                };
                self.router.step(now_us, &snapshot, ended, effects);
            }
        }
        effects.clear();
    }

    fn wake_at(&self, at_us: u64) {
        self.wake_at_us.store(at_us, Ordering::Relaxed);
        self.wake.send_replace(at_us);
    }

    /// Writes down what became of a request.
    pub(crate) fn later(&self, request: RequestId, later: Later) {
        self.explanations.later(self.now_us(), request, later);
    }

    fn refused(&self, refusal: mlmesh_route::Refusal) -> Refusal {
        let seconds = refusal.retry_after_us.div_ceil(1_000_000);
        let retry_after_s = u32::try_from(seconds).unwrap_or(u32::MAX);
        let (count, refusal) = match refusal.reason {
            Reason::NoTarget => (
                &self.counts.without_target,
                Refusal::NoTarget { retry_after_s },
            ),
            Reason::DeadlineMissed {
                predicted_us,
                deadline_us,
            } => {
                let late_ms = predicted_us.saturating_sub(deadline_us).div_ceil(1_000);
                let refusal = Refusal::Hopeless {
                    late_ms,
                    retry_after_s,
                };
                (&self.counts.hopeless, refusal)
            }
            Reason::QueueFull { queue_max } => (
                &self.counts.full,
                Refusal::QueueFull {
                    queue_max,
                    retry_after_s,
                },
            ),
        };
        count.fetch_add(1, Ordering::Relaxed);
        refusal
    }
}

fn id(target: usize) -> TargetId {
    TargetId(u16::try_from(target).unwrap_or(u16::MAX))
}

/// Whether it is time; only the first one that asks is told so.
fn is_due(at_us: &AtomicU64, now_us: u64) -> bool {
    let due = |at_us: u64| (at_us <= now_us).then_some(u64::MAX);
    at_us
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, due)
        .is_ok()
}

/// The same targets, without these.
fn without(snapshot: &Snapshot, tried: &[usize]) -> Snapshot {
    let mut snapshot = snapshot.clone();
    for target in &mut snapshot.targets {
        target.usable &= !tried.contains(&target.id.index());
    }
    snapshot
}
