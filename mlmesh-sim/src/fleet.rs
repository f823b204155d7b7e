//! A trace on whole engines under one router, with a network between them and reports
//! that are late and get lost.
//!
//! ```text
//!   trace ─► Router ─► half a round trip ─► Engine ─► half a round trip ─► Router
//!              ▲                              │ looked at now and then
//!              └── Fusion ◄── later, or never ┘
//! ```
//!
//! Router, strategies, forecast and the fusion of reports are those of the gateway. What
//! a request costs the router itself takes no virtual time.

use std::sync::Arc;

use mlmesh_route::fusion::{Fusion, Kind, Own, Reading, Report};
use mlmesh_route::{
    Ask, BlockHash, Booking, Effect, Event, Forecast, INDEX_BYTES, Learnt, Policy, RequestId,
    Router, Scratch, Snapshot, Strategy, TargetId, mixed_pair,
};

use crate::agenda::Agenda;
use crate::chance::Chance;
use crate::engine::{Detail, Engine, Job, Occurrence, Profile, What};
use crate::exact::Exact;
use crate::reference::BLOCK_TOKENS;
use crate::replay::{Replayed, Served};
use crate::trace::{Request, Trace};

/// Engines and everything around them.
#[derive(Debug, Clone)]
pub struct Fleet {
    /// One engine each.
    pub engines: Vec<Profile>,
    /// From the router to an engine and back.
    pub rtt_us: u64,
    /// What the router hears of engines beside answers.
    pub telemetry: Option<Telemetry>,
    /// Until when an answer counts as good.
    pub slo: Slo,
}

/// Reports of engines.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Telemetry {
    /// Each engine is looked at so often.
    pub every_us: u64,
    /// How old a report is when it comes, in the mean; drawn for each, exponential.
    pub age_us: u64,
    /// The share of reports that never come.
    pub loss: f64,
}

/// When an answer is good.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slo {
    /// Its first token has to be there in this time,
    pub ttft_us: u64,
    /// and in so many times what the prompt alone takes an empty engine.
    pub cold_prefills: f64,
    /// Each other token has to take no longer in the mean; no matter without it.
    pub tpot_us: Option<u64>,
}

impl Default for Slo {
    fn default() -> Self {
        Self {
            ttft_us: 5_000_000,
            cold_prefills: 2.0,
            tpot_us: None,
        }
    }
}

/// What is run how.
#[derive(Debug)]
pub struct FleetRun<'a> {
    /// The requests.
    pub trace: &'a Trace,
    /// On what.
    pub fleet: &'a Fleet,
    /// How targets are chosen.
    pub strategy: Box<dyn Strategy>,
    /// What is kept and refused.
    pub policy: Policy,
    /// Predictions are learnt, instead of known.
    pub learns: bool,
    /// Deviation of the logarithm of predictions' errors.
    pub sigma: f64,
    /// All chance comes from it.
    pub seed: u64,
}

impl Fleet {
    /// Within how long a first token is good. The engine that it is compared with is the
    /// first one.
    #[must_use]
    pub fn ttft_us_max(&self, prompt_tokens: u64) -> u64 {
        let cold_us = self.engines[0].prefill_us(prompt_tokens, 0) as f64;
        self.slo.ttft_us + (self.slo.cold_prefills * cold_us) as u64
    }

    /// Whether an answer is good.
    #[must_use]
    pub fn is_good(&self, request: &Request, served: &Served) -> bool {
        let tpot_us = served.tpot_us(request.output_tokens);
        served.ttft_us <= self.ttft_us_max(request.prompt_tokens)
            && self.slo.tpot_us.is_none_or(|most| tpot_us <= most as f64)
    }

    /// Runs a trace to its end.
    #[must_use]
    pub fn run(run: FleetRun<'_>) -> Replayed {
        if run.learns {
            let count = run.fleet.engines.len() as u16;
            running(run, Learnt::new(count, INDEX_BYTES))
        } else {
            let forecast = Exact::of_fleet(run.fleet, run.sigma, run.seed);
            running(run, forecast)
        }
    }

    /// What nobody can do better than: each request finds an engine of the fastest kind
    /// that is free and holds everything that was ever asked before.
    #[must_use]
    pub fn floor(&self, trace: &Trace) -> Replayed {
        let mut cache = crate::cache::PrefixCache::new(usize::MAX);
        let mut result = Replayed {
            events: trace.requests.len() as u64,
            busy_us: vec![0],
            ..Replayed::default()
        };
        for request in &trace.requests {
            let hit = cache.hit_blocks(&request.blocks) as u64;
            cache.touch(&request.blocks);
            let cached_tokens = request.prompt_tokens.min(hit * BLOCK_TOKENS);
            let alone = |profile: &Profile| {
                let first_us = profile.prefill_us(request.prompt_tokens, cached_tokens);
                let rest_us = profile.answer_us(request.prompt_tokens, request.output_tokens);
                (first_us, first_us + rest_us)
            };
            let each = self.engines.iter().map(alone);
            let least = each.reduce(|a, b| (a.0.min(b.0), a.1.min(b.1)));
            let (ttft_us, e2e_us) = least.unwrap_or_default();
            result.busy_us[0] += e2e_us;
            result.served.push(Some(Served {
                ttft_us: ttft_us + self.rtt_us,
                e2e_us: e2e_us + self.rtt_us,
                cached_tokens,
                engine: 0,
            }));
        }
        result
    }
}

/// Names streams of chance.
const CHANCE_OF_ASKS: u64 = 0xa5c5;
const CHANCE_OF_REPORTS: u64 = 0x2e90;

#[derive(Debug)]
enum Happening<M> {
    /// An engine has something to do.
    Step(usize),
    /// A request reaches its engine.
    Arrive(Booking<M>),
    /// The router hears of a first token, and of an end.
    FirstToken(usize),
    Ended(usize),
    Tick,
    /// An engine is looked at, and the router hears of it.
    Look(usize),
    Told(usize, Box<Report>),
}

/// A request that was bound.
#[derive(Debug, Clone, Copy)]
struct Bound<M> {
    booking: Booking<M>,
    cached_tokens: u64,
}

struct Running<'a, F: Forecast> {
    trace: &'a Trace,
    fleet: &'a Fleet,
    router: Router<F>,
    fusion: Fusion,
    snapshot: Snapshot,
    /// Something was told that is not in the snapshot yet.
    stale: bool,
    agenda: Agenda<Happening<F::Memo>>,
    engines: Vec<Engine>,
    /// For when each engine stands in the agenda; earlier entries have lapsed.
    due_us: Vec<u64>,
    bound: Vec<Option<Bound<F::Memo>>>,
    tick_us: u64,
    told: Vec<Occurrence>,
    effects: Vec<Effect<F::Memo>>,
    reports: Chance,
    present: u128,
    counted_us: u64,
    left: usize,
    result: Replayed,
}

fn running<F: Forecast>(run: FleetRun<'_>, forecast: F) -> Replayed {
    let (trace, fleet) = (run.trace, run.fleet);
    let count = fleet.engines.len();
    let engine = |profile: &Profile| Engine::new(profile.clone(), Detail::Ends);
    let mut snapshot = Snapshot::of_equals(count as u16);
    for target in &mut snapshot.targets {
        target.rtt_us = fleet.rtt_us;
    }
    let mut running = Running {
        trace,
        fleet,
        router: Router::new(run.strategy, run.policy, forecast),
        fusion: Fusion::new(count as u16),
        snapshot,
        stale: false,
        agenda: Agenda::default(),
        engines: fleet.engines.iter().map(engine).collect(),
        due_us: vec![u64::MAX; count],
        bound: vec![None; trace.requests.len()],
        tick_us: u64::MAX,
        told: Vec::new(),
        effects: Vec::new(),
        reports: Chance::new(run.seed, CHANCE_OF_REPORTS),
        present: 0,
        counted_us: 0,
        left: trace.requests.len(),
        result: Replayed {
            served: vec![None; trace.requests.len()],
            ..Replayed::default()
        },
    };
    running.begin_looks();
    running.all(&mut Chance::new(run.seed, CHANCE_OF_ASKS));
    let engines = running.engines.iter().map(Engine::counts);
    running.result.busy_us = engines.clone().map(|counts| counts.busy_us).collect();
    running.result.preempted = engines.map(|counts| counts.preempted).sum();
    running.result
}

impl<F: Forecast> Running<'_, F> {
    fn all(&mut self, chance: &mut Chance) {
        let mut scratch = Scratch::default();
        let mut asks = Vec::new();
        let mut number = 0;
        for together in self.trace.requests.chunk_by(|a, b| a.at_us == b.at_us) {
            let now_us = together[0].at_us;
            self.until(now_us);
            self.count(now_us, together.len() as i128);
            asks.clear();
            for request in together {
                asks.push(Ask {
                    request: RequestId(number),
                    prompt_tokens: request.prompt_tokens,
                    blocks: request.blocks.clone(),
                    block_tokens: BLOCK_TOKENS,
                    session: None,
                    deadline_us: now_us + self.fleet.ttft_us_max(request.prompt_tokens),
                    chance: chance.next(),
                    ..Ask::default()
                });
                number += 1;
            }
            self.result.events += together.len() as u64;
            self.renew(now_us);
            let effects = &mut self.effects;
            self.router
                .offer_all(now_us, &self.snapshot, &asks, &mut scratch, effects);
            self.carry_out(now_us);
        }
        self.until(u64::MAX);
        assert_eq!(self.left, 0, "whatever came is served or refused");
    }

    /// Lets everything happen that happens up to then.
    fn until(&mut self, until_us: u64) {
        while let Some((now_us, what)) = self.agenda.pop_until(until_us) {
            match what {
                Happening::Step(place) => self.step(now_us, place),
                Happening::Arrive(booking) => self.arrive(now_us, booking),
                Happening::FirstToken(number) => {
                    let bound = self.bound[number].as_mut().expect("it was bound");
                    let event = Event::FirstToken(&mut bound.booking);
                    self.router
                        .step(now_us, &self.snapshot, event, &mut self.effects);
                    self.carry_out(now_us);
                }
                Happening::Ended(number) => {
                    let bound = self.bound[number].take().expect("it was bound");
                    self.ended(now_us, bound.booking, Some(bound.cached_tokens));
                }
                Happening::Tick if now_us != self.tick_us => {}
                Happening::Tick => {
                    self.tick_us = u64::MAX;
                    self.router
                        .step(now_us, &self.snapshot, Event::Tick, &mut self.effects);
                    self.carry_out(now_us);
                }
                Happening::Look(place) => self.look(now_us, place),
                Happening::Told(place, report) => {
                    self.fusion.take(target(place), &report);
                    self.stale = true;
                }
            }
        }
    }

    fn carry_out(&mut self, now_us: u64) {
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Bind(booking) => {
                    let at_us = now_us + self.fleet.rtt_us / 2;
                    self.agenda.push(at_us, Happening::Arrive(booking));
                }
                Effect::Refuse(..) => self.refused(now_us),
                Effect::WakeAt(at_us) if at_us == self.tick_us => {}
                Effect::WakeAt(at_us) => {
                    self.tick_us = at_us;
                    self.agenda.push(at_us, Happening::Tick);
                }
            }
        }
        self.effects = effects;
    }

    fn refused(&mut self, now_us: u64) {
        self.count(now_us, -1);
        self.left -= 1;
        self.result.refused += 1;
    }

    /// A request is at its engine, which may say that it can never hold it.
    fn arrive(&mut self, now_us: u64, booking: Booking<F::Memo>) {
        let number = booking.request.0 as usize;
        let place = booking.terms.target.index();
        let request = &self.trace.requests[number];
        let engine = &mut self.engines[place];
        let job = Job {
            name: number as u64,
            prompt_tokens: request.prompt_tokens,
            output_tokens: request.output_tokens,
            blocks: engine_blocks(request, engine.profile().block_tokens),
        };
        if engine.submit(now_us, job).is_err() {
            self.refused(now_us);
            self.ended(now_us, booking, None);
            return;
        }
        let before = self.bound[number].replace(Bound {
            booking,
            cached_tokens: 0,
        });
        assert!(before.is_none(), "a request is bound once");
        self.schedule(place);
    }

    fn step(&mut self, now_us: u64, place: usize) {
        if self.due_us[place] != now_us {
            return;
        }
        self.due_us[place] = u64::MAX;
        let engine = &mut self.engines[place];
        let before = engine.counts().iterations;
        let mut told = std::mem::take(&mut self.told);
        engine.step(&mut told);
        self.result.events += engine.counts().iterations - before;
        for one in told.drain(..) {
            self.happened(one, place);
        }
        self.told = told;
        self.schedule(place);
    }

    fn happened(&mut self, one: Occurrence, place: usize) {
        let number = one.name as usize;
        let request = &self.trace.requests[number];
        let heard_us = one.at_us + self.fleet.rtt_us.div_ceil(2);
        match one.what {
            What::Begun { cached_tokens } => {
                let bound = self.bound[number].as_mut().expect("it was bound");
                bound.cached_tokens = cached_tokens;
            }
            What::FirstToken => {
                let bound = self.bound[number].as_ref().expect("it was bound");
                let before = self.result.served[number].replace(Served {
                    ttft_us: heard_us - request.at_us,
                    e2e_us: 0,
                    cached_tokens: bound.cached_tokens,
                    engine: place as u16,
                });
                assert!(before.is_none(), "a request has one first token");
                self.agenda.push(heard_us, Happening::FirstToken(number));
            }
            What::Done => {
                let served = self.result.served[number].as_mut();
                let served = served.expect("a first token comes before the end");
                assert_eq!(served.e2e_us, 0, "a request ends once");
                served.e2e_us = heard_us - request.at_us;
                self.result.events += 1;
                self.agenda.push(heard_us, Happening::Ended(number));
            }
            What::Preempted | What::Token => {}
        }
    }

    /// The router hears of an end.
    fn ended(&mut self, now_us: u64, booking: Booking<F::Memo>, cached_tokens: Option<u64>) {
        if cached_tokens.is_some() {
            self.count(now_us, -1);
            self.left -= 1;
        }
        let event = Event::Ended {
            booking,
            cached_tokens,
        };
        self.router
            .step(now_us, &self.snapshot, event, &mut self.effects);
        self.carry_out(now_us);
    }

    fn schedule(&mut self, place: usize) {
        let next_us = self.engines[place].next_us().unwrap_or(u64::MAX);
        if next_us != self.due_us[place] {
            self.due_us[place] = next_us;
            if next_us != u64::MAX {
                self.agenda.push(next_us, Happening::Step(place));
            }
        }
    }

    /// So many come, or go.
    fn count(&mut self, now_us: u64, change: i128) {
        let since_us = u128::from(now_us - self.counted_us);
        self.result.presence_us += self.present * since_us;
        self.present = self.present.strict_add_signed(change);
        self.counted_us = now_us;
    }

    /// Engines are looked at in turn, not all in the same moment.
    fn begin_looks(&mut self) {
        let Some(telemetry) = self.fleet.telemetry else {
            return;
        };
        for place in 0..self.engines.len() {
            let at_us = self.reports.next() % telemetry.every_us.max(1);
            self.agenda.push(at_us, Happening::Look(place));
        }
    }

    fn look(&mut self, now_us: u64, place: usize) {
        let Some(telemetry) = self.fleet.telemetry.filter(|_| self.left > 0) else {
            return;
        };
        let next_us = now_us + telemetry.every_us.max(1);
        self.agenda.push(next_us, Happening::Look(place));
        let (lost, aged) = (self.reports.part(), self.reports.exponential());
        if lost <= telemetry.loss {
            return;
        }
        let age_us = (telemetry.age_us as f64 * aged) as u64;
        let report = Box::new(self.report(now_us, place));
        self.agenda
            .push(now_us + age_us, Happening::Told(place, report));
    }

    fn report(&self, now_us: u64, place: usize) -> Report {
        let counts = self.engines[place].counts();
        let memory_blocks = self.engines[place].profile().memory_blocks;
        let ledger = self.router.ledger();
        let cached = counts.hit_tokens as f64;
        Report {
            source: Arc::from("sim"),
            at_us: now_us,
            delay_us: 0,
            own: Own {
                in_flight: ledger.in_flight(target(place)),
                backlog_us: ledger.backlog(target(place), now_us).expected_us,
                ..Own::default()
            },
            readings: vec![
                (Kind::Waiting, Reading::Now(counts.waiting as f64)),
                (Kind::Running, Reading::Now(counts.running as f64)),
                (
                    Kind::KvUsage,
                    Reading::Now(counts.used_blocks as f64 / memory_blocks as f64),
                ),
                (
                    Kind::PromptTokens,
                    Reading::Total(counts.queried_tokens as f64),
                ),
                (Kind::CachedTokens, Reading::Total(cached)),
                (Kind::Preemptions, Reading::Total(counts.preempted as f64)),
                (
                    Kind::BetweenTokens,
                    Reading::Timing {
                        seconds: counts.written_us as f64 / 1e6,
                        count: counts.written_tokens as f64,
                    },
                ),
                (
                    Kind::RoundTrip,
                    Reading::Now(self.fleet.rtt_us as f64 / 1e6),
                ),
            ],
            missing: Vec::new(),
        }
    }

    /// Puts what was told into the snapshot, before a request that comes is decided by it.
    fn renew(&mut self, now_us: u64) {
        if std::mem::take(&mut self.stale) {
            self.snapshot = self.fusion.snapshot(now_us).0;
        }
    }
}

fn target(place: usize) -> TargetId {
    TargetId(place as u16)
}

/// A trace's blocks cut into those of an engine. A block of the trace names everything
/// before its end, so that the one in which an engine's block ends names that one, too.
fn engine_blocks(request: &Request, block_tokens: u64) -> Arc<[BlockHash]> {
    let full = request.prompt_tokens / block_tokens;
    let blocks = (0..full).map_while(|block| {
        let last_token = (block + 1) * block_tokens - 1;
        let named = request.blocks.get((last_token / BLOCK_TOKENS) as usize)?;
        Some(BlockHash(mixed_pair(named.0, block)))
    });
    blocks.collect()
}
