//! What a step looks at, and that nobody is forgotten in a line.

use std::collections::HashSet;
use std::sync::Arc;

use mlmesh_route::{
    Ask, BlockHash, Booking, Effect, Event, Late, Outcome, Policy, RequestId, TargetId, mixed,
};

use crate::plain::{Bench, ask, late};

fn unrefusing() -> Policy {
    Policy {
        late: Some(Late::default()),
        refuse_hopeless: false,
    }
}

#[test]
fn a_step_looks_at_few_of_the_many_that_wait() {
    let mut bench = Bench::new(4, unrefusing());
    let running: Vec<Booking<()>> = (0..4).map(|one| bench.bind(0, &ask(one, 9_000))).collect();
    for request in 4..4_000 {
        // Every other one prefers a target that is busy.
        let blocks = [BlockHash(1_000_000 + request % 8)].into();
        let one = Ask {
            blocks,
            ..ask(request, 200 + mixed(request) % 1_000)
        };
        assert!(matches!(bench.offer(1, &one), Outcome::Wait { .. }));
    }
    assert_eq!(bench.router.waiting(), 3_996);
    bench.predictions();
    for now_us in 2..1_000 {
        bench.step(now_us, Event::Tick);
    }
    assert_eq!(bench.predictions(), 0, "nothing is free");
    let mut steps = 0;
    for (now_us, booking) in (2_000..).zip(running) {
        steps += bench.finish(now_us, booking).len();
    }
    assert!(steps > 3, "{steps} were bound");
    let looks = bench.predictions() / 4;
    assert!(looks < 10 * steps, "{looks} looks for {steps} bound");
}

#[test]
fn who_waits_for_one_target_goes_elsewhere_when_that_is_gone() {
    let mut bench = Bench::new(2, late());
    let blocks: Arc<[BlockHash]> = (0..30).map(BlockHash).collect();
    let with = |request| Ask {
        blocks: blocks.clone(),
        ..ask(request, 3_100)
    };
    bench.bind(0, &with(0));
    // Three seconds of prefill are held there: that is worth 2.9 of waiting.
    assert!(matches!(
        bench.offer(200_000, &with(1)),
        Outcome::Wait { .. }
    ));
    let effects = bench.step(200_000, Event::Tick);
    assert_eq!(effects, [Effect::WakeAt(2_600_000)]);
    bench.snapshot.targets[0].usable = false;
    let effects = bench.step(200_001, Event::Tick);
    assert!(
        matches!(effects[..], [Effect::Bind(booking)] if booking.terms.target == TargetId(1)),
        "{effects:?}"
    );
}

#[test]
fn who_waits_for_one_target_goes_elsewhere_when_that_takes_too_long() {
    let mut bench = Bench::new(2, unrefusing());
    let blocks: Arc<[BlockHash]> = (0..10).map(BlockHash).collect();
    let with = |request, tokens| Ask {
        blocks: blocks.clone(),
        ..ask(request, tokens)
    };
    let first = bench.bind(0, &with(0, 2_000));
    // A second of prefill is held there, and it is free in two: the other one is better.
    let second = bench.bind(0, &with(1, 2_000));
    assert_eq!([first, second].map(|one| one.terms.target.0), [0, 1]);
    for request in [2, 3] {
        assert!(matches!(
            bench.offer(0, &with(request, 1_600)),
            Outcome::Wait { .. }
        ));
    }
    // One each, at the same moment, whoever was preferred before.
    let mut bound: Vec<u16> = Vec::new();
    for effect in bench.step(1_500_000, Event::Tick) {
        if let Effect::Bind(booking) = effect {
            bound.push(booking.terms.target.0);
        }
    }
    assert_eq!(bound, [0, 1]);
}

/// Requests under way, as the shell of a router keeps them.
struct Shell {
    bench: Bench,
    open: HashSet<RequestId>,
    running: Vec<Booking<()>>,
}

impl Shell {
    fn offer(&mut self, now_us: u64, ask: &Ask) {
        match self.bench.offer(now_us, ask) {
            Outcome::Bind(booking) => self.running.push(booking),
            Outcome::Wait { .. } => assert!(self.open.insert(ask.request)),
            Outcome::Reject(_) => {}
        }
    }

    fn leave(&mut self, request: RequestId) {
        assert_eq!(self.bench.router.leave(request), self.open.remove(&request));
    }

    /// One of those that run, by a number drawn, has its first token and its end.
    fn finish(&mut self, now_us: u64, drawn: u64) {
        let place = drawn as usize % self.running.len();
        let mut booking = self.running.swap_remove(place);
        let mut effects = self.bench.step(now_us, Event::FirstToken(&mut booking));
        let ended = Event::Ended {
            booking,
            cached_tokens: None,
        };
        effects.extend(self.bench.step(now_us, ended));
        self.carry_out(effects);
    }

    fn tick(&mut self, now_us: u64) {
        let effects = self.bench.step(now_us, Event::Tick);
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect<()>>) {
        for effect in effects {
            match effect {
                Effect::Bind(booking) => {
                    assert!(self.open.remove(&booking.request), "{booking:?} twice");
                    self.running.push(booking);
                }
                Effect::Refuse(request, _) => {
                    assert!(self.open.remove(&request), "{request:?} is told twice");
                }
                Effect::WakeAt(_) => {}
            }
        }
        assert_eq!(self.bench.router.waiting(), self.open.len());
    }
}

/// Random prompts with some in common, random ends, clients that go, targets that go and
/// come back: each request ends once, and all of them do.
#[test]
fn nobody_is_forgotten() {
    for seed in 0..30_u64 {
        println!("seed {seed}");
        let policy = if seed % 2 == 0 { late() } else { unrefusing() };
        let mut shell = Shell {
            bench: Bench::new(3, policy),
            open: HashSet::new(),
            running: Vec::new(),
        };
        let mut chance = seed;
        let mut draw = |below: u64| {
            chance = mixed(chance);
            chance % below
        };
        let mut now_us = 0;
        for request in 0..600 {
            now_us += draw(400_000);
            let group = draw(40);
            let blocks = (0..draw(12)).map(|depth| BlockHash(group * 100 + depth));
            shell.offer(
                now_us,
                &Ask {
                    blocks: blocks.collect(),
                    deadline_us: now_us + 1_000_000 + draw(20_000_000),
                    ..ask(request, 1_200 + draw(1_500))
                },
            );
            match draw(20) {
                0 => {
                    let place = draw(3) as usize;
                    let target = &mut shell.bench.snapshot.targets[place];
                    target.usable = !target.usable || place == 0;
                }
                1 => shell.leave(RequestId(draw(request + 1))),
                2..12 if !shell.running.is_empty() => shell.finish(now_us, draw(1 << 20)),
                _ => shell.tick(now_us),
            }
        }
        for target in &mut shell.bench.snapshot.targets {
            target.usable = true;
        }
        for step in 0..1_000 {
            now_us += 100_000;
            match shell.running.is_empty() {
                true => shell.tick(now_us),
                false => shell.finish(now_us, step),
            }
        }
        assert!(shell.open.is_empty(), "{:?}", shell.open);
    }
}

/// What any target would do for does not wait beside a free one.
#[test]
fn no_target_rests_while_somebody_waits_for_any() {
    let mut shell = Shell {
        bench: Bench::new(3, unrefusing()),
        open: HashSet::new(),
        running: Vec::new(),
    };
    let mut waited = 0;
    for request in 0..2_000 {
        let now_us = request * 250_000;
        shell.offer(now_us, &ask(request, 100 + mixed(request) % 1_300));
        if request % 3 > 0 && !shell.running.is_empty() {
            shell.finish(now_us, mixed(request + 1));
        } else {
            shell.tick(now_us);
        }
        if shell.bench.router.waiting() == 0 {
            continue;
        }
        waited += 1;
        let ledger = shell.bench.router.ledger();
        let idle = (0..3).find(|target| ledger.in_flight(TargetId(*target)) == 0);
        assert_eq!(idle, None, "at {now_us}");
    }
    assert!((100..2_000).contains(&waited), "{waited}");
}
