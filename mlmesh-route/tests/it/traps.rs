//! What routers are known to do wrong, with predictions that are learnt.

use std::collections::VecDeque;

use mlmesh_route::{
    Ask, BlockHash, Booking, Event, Forecast, Learnt, LeastPredictedTtft, Outcome, Policy, Router,
    Scratch, Snapshot, mixed,
};

use crate::plain::ask;

/// Engines that work on one prompt after the other, each at its own pace.
struct Engines {
    router: Router<Learnt>,
    snapshot: Snapshot,
    scratch: Scratch,
    /// Microseconds for a token of each.
    pace_us: Vec<u64>,
    held: Vec<Vec<BlockHash>>,
    queues: Vec<VecDeque<(u64, u64, Booking<Memo>)>>,
    free_us: Vec<u64>,
    sent: Vec<u32>,
}

type Memo = <Learnt as Forecast>::Memo;

impl Engines {
    fn new(pace_us: &[u64]) -> Self {
        let count = pace_us.len();
        let strategy = Box::new(LeastPredictedTtft {
            name: "hybrid_mesh",
            copy_percent: 0,
        });
        let forecast = Learnt::new(count as u16, 1 << 20);
        Self {
            router: Router::new(strategy, Policy::default(), forecast),
            snapshot: Snapshot::of_equals(count as u16),
            scratch: Scratch::default(),
            pace_us: pace_us.to_vec(),
            held: vec![Vec::new(); count],
            queues: (0..count).map(|_| VecDeque::new()).collect(),
            free_us: vec![0; count],
            sent: vec![0; count],
        }
    }

    /// Lets first tokens come that are due, then takes a request; where it goes.
    fn offer(&mut self, now_us: u64, ask: &Ask) -> usize {
        self.until(now_us);
        let outcome = self
            .router
            .offer(now_us, &self.snapshot, ask, &mut self.scratch);
        let Outcome::Bind(booking) = outcome else {
            panic!("{outcome:?}")
        };
        let place = booking.terms.target.index();
        let held = &mut self.held[place];
        let cached = ask
            .blocks
            .iter()
            .take_while(|block| held.contains(block))
            .count() as u64;
        let cached_tokens = ask.prompt_tokens.min(cached * ask.block_tokens);
        held.extend(ask.blocks.iter());
        let cost_us = (ask.prompt_tokens - cached_tokens).max(1) * self.pace_us[place];
        self.free_us[place] = self.free_us[place].max(now_us) + cost_us;
        self.queues[place].push_back((self.free_us[place], cached_tokens, booking));
        self.sent[place] += 1;
        place
    }

    fn until(&mut self, now_us: u64) {
        let mut effects = Vec::new();
        for queue in &mut self.queues {
            while queue.front().is_some_and(|(at_us, ..)| *at_us <= now_us) {
                let Some((at_us, cached_tokens, mut booking)) = queue.pop_front() else {
                    return;
                };
                let first = Event::FirstToken(&mut booking);
                self.router.step(at_us, &self.snapshot, first, &mut effects);
                let ended = Event::Ended {
                    booking,
                    cached_tokens: Some(cached_tokens),
                };
                self.router.step(at_us, &self.snapshot, ended, &mut effects);
            }
        }
    }
}

#[test]
fn a_target_three_times_slower_gets_a_third_of_the_work() {
    let mut engines = Engines::new(&[100, 100, 300]);
    let mut now_us = 0;
    for request in 0..3_000 {
        // Nine tenths of what the three can do, and more than two of them can.
        now_us += 46_000 + mixed(request) % 2_000;
        engines.offer(now_us, &ask(request, 1_000));
        if request == 999 {
            engines.sent = vec![0; 3];
        }
    }
    let sent = &engines.sent;
    let slow = f64::from(sent[2]) / 2_000.0;
    // A seventh is its share when all are busy; less when the others are free.
    assert!((0.02..=0.16).contains(&slow), "{sent:?}");
    let even = f64::from(sent[0]) / f64::from(sent[1]);
    assert!((0.8..1.25).contains(&even), "{sent:?}");
}

/// With loads that are read now and then, all would go to the one that was least loaded.
#[test]
fn a_burst_is_spread_at_once() {
    let mut engines = Engines::new(&[100; 8]);
    for request in 0..800 {
        engines.offer(1, &ask(request, 1_000));
    }
    assert!(
        engines.sent.iter().all(|sent| *sent == 100),
        "{:?}",
        engines.sent
    );
}

/// All share 900 of 1,000 tokens. Whoever holds them is preferred, not buried.
#[test]
fn a_shared_prefix_does_not_bury_its_holder() {
    let mut engines = Engines::new(&[100; 4]);
    let mut now_us = 0;
    for request in 0..2_000_u64 {
        let blocks = (0..9).chain([10_000 + request]).map(BlockHash).collect();
        let one = Ask {
            blocks,
            ..ask(request, 1_000)
        };
        // Three quarters of what four can do that hold the prefix.
        now_us += 3_300;
        engines.offer(now_us, &one);
    }
    let most = engines.sent.iter().max().unwrap();
    assert!(*most < 800, "{:?}", engines.sent);
    let longest = engines.free_us.iter().max().unwrap() - now_us;
    assert!(longest < 500_000, "the last one is done after {longest} µs");
}

#[test]
fn a_fresh_replica_is_warmed_without_a_stampede() {
    let mut engines = Engines::new(&[100; 4]);
    engines.snapshot.targets[3].usable = false;
    let mut now_us = 0;
    let mut fresh = Vec::new();
    for request in 0..3_000_u64 {
        let group = mixed(request) % 12;
        let one = Ask {
            blocks: (0..9)
                .map(|depth| BlockHash(group * 100 + depth))
                .chain([BlockHash(1 << 40 | request)])
                .collect(),
            ..ask(request, 1_000)
        };
        // More than three can do that hold everything.
        now_us += 3_000;
        engines.snapshot.targets[3].usable = request >= 1_000;
        let place = engines.offer(now_us, &one);
        if request >= 1_000 {
            fresh.push(place == 3);
        }
    }
    let share = |part: &[bool]| part.iter().filter(|one| **one).count() as f64 / part.len() as f64;
    assert!(
        share(&fresh[..50]) < 0.5,
        "first requests: {}",
        share(&fresh[..50])
    );
    assert!(
        share(&fresh[1_000..]) > 0.05,
        "it gets its part: {}",
        share(&fresh[1_000..])
    );
    let longest = fresh.split(|one| !one).map(<[bool]>::len).max();
    assert!(longest < Some(16), "{longest:?} in a row");
}

/// What engines report is old by the time it is read: all of them go to one that was idle.
#[test]
fn loads_that_are_reported_late_do_not_draw_a_herd() {
    let mut engines = Engines::new(&[100; 8]);
    for (place, target) in engines.snapshot.targets.iter_mut().enumerate() {
        // All but the last have had work of others, and say so for a whole second.
        target.foreign_us = if place < 7 { 200_000 } else { 0 };
        target.foreign = target.foreign_us as u32 / 100_000;
    }
    for request in 0..160 {
        engines.offer(1_000 + request * 1_000, &ask(request, 1_000));
    }
    let most = engines.sent.iter().max().unwrap();
    assert!(
        *most <= 24,
        "20 each, and 2 for what others had: {:?}",
        engines.sent
    );
}

/// The most hits have whoever sends a prefix to one target always. It is not the goal.
#[test]
fn the_best_hit_rate_is_not_the_best_time() {
    let run = |name: &str| {
        let mut engines = Engines::new(&[100; 4]);
        let (strategy, _) = mlmesh_route::strategy_by_name(name).unwrap();
        engines.router = Router::new(strategy, Policy::default(), Learnt::new(4, 1 << 20));
        let (mut waited_us, mut cached, mut now_us) = (0, 0, 0);
        for request in 0..2_000_u64 {
            // Half of all belong to one prefix.
            let group = if mixed(request).is_multiple_of(2) {
                0
            } else {
                1 + mixed(request) % 30
            };
            let blocks = (0..5).map(|depth| BlockHash(group * 100 + depth));
            let one = Ask {
                session: Some(group),
                blocks: blocks.chain([BlockHash(1 << 40 | request)]).collect(),
                ..ask(request, 1_000)
            };
            now_us += 20_000;
            let held = engines.held.clone();
            let place = engines.offer(now_us, &one);
            let hits = one
                .blocks
                .iter()
                .take_while(|block| held[place].contains(block));
            cached += hits.count();
            waited_us += engines.free_us[place] - now_us;
        }
        (waited_us / 2_000, cached)
    };
    let (session_us, session_cached) = run("session_hash");
    let (hybrid_us, hybrid_cached) = run("least_ttft");
    println!("{session_us} µs with {session_cached} hits, {hybrid_us} with {hybrid_cached}");
    assert!(session_cached >= hybrid_cached);
    assert!(hybrid_us * 3 < session_us);
}

/// The trap: what is believed of a target before it has answered is above the SLO, so that
/// it is never asked, and nothing better is ever known of it.
#[test]
fn a_target_of_which_nothing_is_known_is_asked_and_not_refused() {
    let strategy = Box::new(LeastPredictedTtft {
        name: "hybrid_mesh",
        copy_percent: 0,
    });
    let policy = Policy {
        refuse_hopeless: true,
        ..Policy::default()
    };
    let router = Router::new(strategy, policy, Learnt::new(1, 1 << 20));
    let (snapshot, mut scratch) = (Snapshot::of_equals(1), Scratch::default());
    let mut within = |now_us, number, tokens, slo_us| {
        let ask = Ask {
            deadline_us: now_us + slo_us,
            ..ask(number, tokens)
        };
        router.offer(now_us, &snapshot, &ask, &mut scratch)
    };
    let Outcome::Bind(mut booking) = within(0, 0, 2_000, 100_000) else {
        panic!("it was refused unseen");
    };
    router.step(
        20_000,
        &snapshot,
        Event::FirstToken(&mut booking),
        &mut Vec::new(),
    );
    assert!(matches!(
        within(30_000, 1, 2_000, 100_000),
        Outcome::Bind(_)
    ));
    assert!(matches!(
        within(40_000, 2, 200_000, 100),
        Outcome::Reject(_)
    ));
}
