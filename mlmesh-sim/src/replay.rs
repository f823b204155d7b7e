//! A trace on reference engines under one router.

use mlmesh_route::{
    Ask, Booking, Effect, Event, Forecast, INDEX_BYTES, Learnt, Policy, RequestId, Router, Scratch,
    Snapshot, Strategy,
};

use crate::agenda::Agenda;
use crate::cache::PrefixCache;
use crate::chance::Chance;
use crate::exact::Exact;
use crate::reference::{self, BLOCK_TOKENS, Service, slo_us};
use crate::trace::{Request, Trace};

/// What is replayed how.
#[derive(Debug)]
pub struct Replay<'a> {
    /// The requests.
    pub trace: &'a Trace,
    /// So many engines.
    pub engines: u16,
    /// What each does with a prompt.
    pub service: Service,
    /// Blocks that each holds.
    pub cache_blocks: usize,
    /// How targets are chosen.
    pub strategy: Box<dyn Strategy>,
    /// What is kept and refused.
    pub policy: Policy,
    /// Predictions are learnt from first tokens and reported cached tokens, as in a
    /// gateway, instead of known.
    pub learns: bool,
    /// Standard deviation of the logarithm of the error of each predicted prefill.
    pub sigma: f64,
    /// All chance comes from it.
    pub seed: u64,
}

/// What came of a replay.
#[derive(Debug, Clone, Default)]
pub struct Replayed {
    /// By request of the trace; none was refused.
    pub served: Vec<Option<Served>>,
    /// How many were refused.
    pub refused: usize,
    /// Requests that were there, waiting or worked on, times how long.
    pub presence_us: u128,
    /// How long each engine worked.
    pub busy_us: Vec<u64>,
    /// Requests that engines put back for want of memory.
    pub preempted: u64,
    /// Arrivals, first tokens and ticks; of whole engines arrivals, iterations and ends.
    pub events: u64,
}

/// What came of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// From its coming to its first token.
    pub ttft_us: u64,
    /// From its coming to its last one.
    pub e2e_us: u64,
    /// How much of the prompt the engine held.
    pub cached_tokens: u64,
    /// Which engine.
    pub engine: u16,
}

impl Served {
    /// The mean time of each token of so many but the first; zero of one.
    #[must_use]
    pub fn tpot_us(&self, output_tokens: u64) -> f64 {
        let others = output_tokens.saturating_sub(1).max(1);
        (self.e2e_us - self.ttft_us) as f64 / others as f64
    }
}

#[derive(Debug)]
enum Happening<M> {
    FirstToken(Booking<M>),
    Tick,
}

#[derive(Debug)]
struct Engine {
    free_at_us: u64,
    busy_us: u64,
    cache: PrefixCache,
}

struct Running<'a, M> {
    trace: &'a Trace,
    agenda: Agenda<Happening<M>>,
    engines: Vec<Engine>,
    held: fn(M) -> Option<u64>,
    /// When the router wants to look again; earlier wishes have lapsed.
    tick_us: u64,
    service: Service,
    present: u128,
    /// Until when [`Replayed::presence_us`] is counted.
    counted_us: u64,
    result: Replayed,
}

/// Replays a trace to its end.
#[must_use]
pub fn replay(replay: Replay<'_>) -> Replayed {
    if replay.learns {
        let forecast = Learnt::new(replay.engines, INDEX_BYTES);
        replay_with(replay, forecast, |_| None)
    } else {
        let forecast = Exact::of(&replay);
        replay_with(replay, forecast, |held| Some(held.0))
    }
}

/// `held` says what an engine held when a prompt was bound, where the forecast's memo
/// knows it; else the engine's own cache does.
fn replay_with<F: Forecast>(
    replay: Replay<'_>,
    forecast: F,
    held: fn(F::Memo) -> Option<u64>,
) -> Replayed {
    let mut chance = Chance::new(replay.seed, CHANCE_OF_ASKS);
    let trace = replay.trace;
    let snapshot = Snapshot::of_equals(replay.engines);
    let router = Router::new(replay.strategy, replay.policy, forecast);
    let engine = |_| Engine {
        free_at_us: 0,
        busy_us: 0,
        cache: PrefixCache::new(replay.cache_blocks),
    };
    let mut running = Running {
        trace,
        agenda: Agenda::default(),
        engines: (0..replay.engines).map(engine).collect(),
        held,
        service: replay.service,
        tick_us: u64::MAX,
        present: 0,
        counted_us: 0,
        result: Replayed {
            served: vec![None; trace.requests.len()],
            ..Replayed::default()
        },
    };
    let mut scratch = Scratch::default();
    let mut effects = Vec::new();
    let mut asks = Vec::new();
    let mut number = 0;
    // A trace's clock has steps: what has the same time came in the same moment.
    for together in trace.requests.chunk_by(|a, b| a.at_us == b.at_us) {
        let now_us = together[0].at_us;
        running.until(now_us, &router, &snapshot, &mut effects);
        running.count(now_us, together.len() as i128);
        asks.clear();
        for request in together {
            asks.push(ask(number, request, chance.next()));
            number += 1;
        }
        running.result.events += together.len() as u64;
        router.offer_all(now_us, &snapshot, &asks, &mut scratch, &mut effects);
        running.carry_out(now_us, &mut effects);
    }
    running.until(u64::MAX, &router, &snapshot, &mut effects);
    running.result.busy_us = running.engines.iter().map(|one| one.busy_us).collect();
    running.result
}

/// What nobody can do better than: each request finds an engine that is free and holds
/// everything that was ever asked before.
#[must_use]
pub fn floor(trace: &Trace) -> Replayed {
    let mut cache = PrefixCache::new(usize::MAX);
    let mut result = Replayed {
        events: trace.requests.len() as u64,
        busy_us: vec![0],
        ..Replayed::default()
    };
    for request in &trace.requests {
        let hit = cache.hit_blocks(&request.blocks);
        let cached_tokens = reference::cached_tokens(request.prompt_tokens, hit);
        let ttft_us = reference::prefill_us(request.prompt_tokens, cached_tokens);
        cache.touch(&request.blocks);
        result.busy_us[0] += ttft_us;
        result.served.push(Some(Served {
            ttft_us,
            e2e_us: ttft_us,
            cached_tokens,
            engine: 0,
        }));
    }
    result
}

/// Names a stream of chance.
const CHANCE_OF_ASKS: u64 = 0xa5c5;

fn ask(number: usize, request: &Request, chance: u64) -> Ask {
    Ask {
        request: RequestId(number as u64),
        prompt_tokens: request.prompt_tokens,
        blocks: request.blocks.clone(),
        block_tokens: BLOCK_TOKENS,
        session: None,
        deadline_us: request.at_us + slo_us(request.prompt_tokens),
        chance,
        ..Ask::default()
    }
}

impl<M: Copy> Running<'_, M> {
    /// Lets everything happen that happens up to then.
    fn until<F: Forecast<Memo = M>>(
        &mut self,
        until_us: u64,
        router: &Router<F>,
        snapshot: &Snapshot,
        effects: &mut Vec<Effect<M>>,
    ) {
        while let Some((now_us, what)) = self.agenda.pop_until(until_us) {
            match what {
                Happening::Tick if now_us != self.tick_us => continue,
                Happening::Tick => {
                    self.tick_us = u64::MAX;
                    router.step(now_us, snapshot, Event::Tick, effects);
                }
                Happening::FirstToken(mut booking) => {
                    self.count(now_us, -1);
                    router.step(now_us, snapshot, Event::FirstToken(&mut booking), effects);
                    let ended = Event::Ended {
                        booking,
                        cached_tokens: self.cached_tokens(&booking),
                    };
                    router.step(now_us, snapshot, ended, effects);
                }
            }
            self.result.events += 1;
            self.carry_out(now_us, effects);
        }
    }

    fn carry_out(&mut self, now_us: u64, effects: &mut Vec<Effect<M>>) {
        for effect in effects.drain(..) {
            match effect {
                Effect::Bind(booking) => self.bind(now_us, booking),
                Effect::Refuse(..) => {
                    self.count(now_us, -1);
                    self.result.refused += 1;
                }
                Effect::WakeAt(at_us) => self.tick_at(at_us),
            }
        }
    }

    /// What the engine says in the end about its cache.
    fn cached_tokens(&self, booking: &Booking<M>) -> Option<u64> {
        let served = self.result.served[booking.request.0 as usize];
        served.map(|served| served.cached_tokens)
    }

    /// So many come, or go.
    fn count(&mut self, now_us: u64, change: i128) {
        let since_us = u128::from(now_us - self.counted_us);
        self.result.presence_us += self.present * since_us;
        self.present = self.present.strict_add_signed(change);
        self.counted_us = now_us;
    }

    fn tick_at(&mut self, at_us: u64) {
        if at_us != self.tick_us {
            self.tick_us = at_us;
            self.agenda.push(at_us, Happening::Tick);
        }
    }

    /// The engine gets a prompt, works on it when it is free, and holds it from now on.
    fn bind(&mut self, now_us: u64, booking: Booking<M>) {
        let number = booking.request.0 as usize;
        let request = &self.trace.requests[number];
        let engine = &mut self.engines[booking.terms.target.index()];
        let cached_tokens = (self.held)(booking.memo).unwrap_or_else(|| {
            let hit = engine.cache.hit_blocks(&request.blocks);
            engine.cache.touch(&request.blocks);
            reference::cached_tokens(request.prompt_tokens, hit)
        });
        let cost_us = self
            .service
            .prefill_us(request.prompt_tokens, cached_tokens);
        engine.busy_us += cost_us;
        engine.free_at_us = engine.free_at_us.max(now_us) + cost_us;
        let ended_before = self.result.served[number].replace(Served {
            ttft_us: engine.free_at_us - request.at_us,
            e2e_us: engine.free_at_us - request.at_us,
            cached_tokens,
            engine: booking.terms.target.0,
        });
        assert!(ended_before.is_none(), "a request is served once");
        let at_us = engine.free_at_us;
        self.agenda.push(at_us, Happening::FirstToken(booking));
    }
}
