//! A forecast that believes what a test says, and short words for the rest.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use mlmesh_route::{
    Ask, BlockHash, Booking, Effect, Event, Forecast, Late, LeastPredictedTtft, Outcome, Policy,
    RequestId, Router, Scratch, Seen, Snapshot, Strategy, TargetId,
};

/// A token takes a millisecond, and a target holds what it was sent.
#[derive(Debug, Default)]
pub(crate) struct Plain {
    held: Mutex<Vec<(TargetId, BlockHash)>>,
    /// How often it was asked.
    asked: Arc<AtomicUsize>,
}

impl Forecast for Plain {
    type Memo = ();

    fn cached_tokens(&self, target: TargetId, ask: &Ask) -> u64 {
        let held = self.held.lock().unwrap();
        let blocks = ask.blocks.iter();
        100 * blocks
            .take_while(|block| held.contains(&(target, **block)))
            .count() as u64
    }

    fn prefill_us(&self, _target: TargetId, ask: &Ask, cached_tokens: u64) -> u64 {
        self.asked.fetch_add(1, Ordering::Relaxed);
        (ask.prompt_tokens - cached_tokens) * 1_000
    }

    fn bound(&self, target: TargetId, ask: &Ask) {
        let blocks = ask.blocks.iter().map(|block| (target, *block));
        self.held.lock().unwrap().extend(blocks);
    }

    fn seen(&self, _target: TargetId, _seen: Seen, (): ()) {}
}

pub(crate) struct Bench {
    pub(crate) router: Router<Plain>,
    pub(crate) snapshot: Snapshot,
    pub(crate) scratch: Scratch,
    asked: Arc<AtomicUsize>,
}

impl Bench {
    pub(crate) fn new(targets: u16, policy: Policy) -> Self {
        let strategy = Box::new(LeastPredictedTtft {
            name: "hybrid_mesh",
            copy_percent: 0,
        });
        Self::with(targets, policy, strategy)
    }

    pub(crate) fn with(targets: u16, policy: Policy, strategy: Box<dyn Strategy>) -> Self {
        let forecast = Plain::default();
        Self {
            asked: forecast.asked.clone(),
            router: Router::new(strategy, policy, forecast),
            snapshot: Snapshot::of_equals(targets),
            scratch: Scratch::default(),
        }
    }

    /// How often a prefill was predicted since this was asked last.
    pub(crate) fn predictions(&self) -> usize {
        self.asked.swap(0, Ordering::Relaxed)
    }

    pub(crate) fn offer(&mut self, now_us: u64, ask: &Ask) -> Outcome<()> {
        self.router
            .offer(now_us, &self.snapshot, ask, &mut self.scratch)
    }

    /// An offer that has to be bound.
    pub(crate) fn bind(&mut self, now_us: u64, ask: &Ask) -> Booking<()> {
        match self.offer(now_us, ask) {
            Outcome::Bind(booking) => booking,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn step(&self, now_us: u64, event: Event<'_, ()>) -> Vec<Effect<()>> {
        let mut effects = Vec::new();
        self.router
            .step(now_us, &self.snapshot, event, &mut effects);
        effects
    }

    /// First token and end at once; who is bound by it, and where.
    pub(crate) fn finish(&self, now_us: u64, mut booking: Booking<()>) -> Vec<(u64, u16)> {
        let mut effects = self.step(now_us, Event::FirstToken(&mut booking));
        effects.extend(self.step(
            now_us,
            Event::Ended {
                booking,
                cached_tokens: None,
            },
        ));
        bound(&effects)
    }
}

pub(crate) fn bound(effects: &[Effect<()>]) -> Vec<(u64, u16)> {
    let bound = effects.iter().filter_map(|effect| match effect {
        Effect::Bind(booking) => Some((booking.request.0, booking.terms.target.0)),
        Effect::Refuse(..) | Effect::WakeAt(_) => None,
    });
    bound.collect()
}

/// A request without a deadline and without anything in common with others.
pub(crate) fn ask(request: u64, prompt_tokens: u64) -> Ask {
    Ask {
        request: RequestId(request),
        prompt_tokens,
        blocks: [BlockHash(1_000_000 + request)].into(),
        block_tokens: 100,
        session: None,
        deadline_us: u64::MAX,
        chance: request,
        ..Ask::default()
    }
}

/// Bound late with the defaults, and the hopeless are refused.
pub(crate) fn late() -> Policy {
    Policy {
        late: Some(Late::default()),
        refuse_hopeless: true,
    }
}
