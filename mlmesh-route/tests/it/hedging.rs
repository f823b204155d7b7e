//! When a second attempt is made, and what that is worth.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use mlmesh_route::{
    Ask, Attempt, Booking, Event, Hedge, HedgeCosts, Hedges, Learnt, LeastPredictedTtft, NoHedge,
    NoRetry, Outcome, Policy, Progress, Repeatable, Router, Scratch, Snapshot, mixed,
};

use crate::plain::ask;

const HEDGEABLE: Repeatable = Repeatable {
    idempotent: false,
    keyed: false,
    hedgeable: true,
};

fn attempt() -> Attempt {
    Attempt {
        expected_at_us: 1_000,
        doubt_us: 100,
        deadline_us: 2_000,
        progress: Progress::Sent,
        repeatable: HEDGEABLE,
    }
}

fn saved() -> Hedges {
    let hedges = Hedges::default();
    for _ in 0..50 {
        hedges.request();
    }
    hedges
}

#[test]
fn another_target_is_asked_only_when_the_deadline_will_be_missed() {
    let relayed = Attempt {
        progress: Progress::Relayed,
        ..attempt()
    };
    let unrepeatable = Attempt {
        repeatable: Repeatable::default(),
        ..attempt()
    };
    let doubtful = Attempt {
        doubt_us: 700,
        ..attempt()
    };
    let no = |why| Hedge::No(NoHedge::NotRepeatable(why));
    let table = [
        // As late again would be too late from 1,500 on.
        (1_499, attempt(), Some(300), Hedge::NotBefore(1_500)),
        (1_500, attempt(), Some(300), Hedge::Now),
        // The other one takes long, so that it is asked while it still makes it.
        (1_199, attempt(), Some(800), Hedge::NotBefore(1_200)),
        (1_200, attempt(), Some(800), Hedge::Now),
        // Not before the first one is really late.
        (1_000, attempt(), Some(950), Hedge::NotBefore(1_100)),
        (1_100, attempt(), Some(950), Hedge::No(NoHedge::TooLate)),
        (1_699, doubtful, Some(200), Hedge::NotBefore(1_700)),
        (1_700, doubtful, Some(200), Hedge::Now),
        (1_701, attempt(), Some(300), Hedge::No(NoHedge::TooLate)),
        (1_500, attempt(), None, Hedge::No(NoHedge::NoOther)),
        (1_500, relayed, Some(300), no(NoRetry::Started)),
        (1_500, unrepeatable, Some(300), no(NoRetry::NotRepeatable)),
    ];
    for (now_us, attempt, other_us, expected) in table {
        let decided = saved().consider(now_us, &attempt, other_us);
        assert_eq!(decided, expected, "at {now_us}, other in {other_us:?}");
    }
}

#[test]
fn hedges_are_two_in_a_hundred_requests() {
    let hedges = Hedges::default();
    let mut made = 0;
    for _ in 0..10_000 {
        hedges.request();
        made += u64::from(hedges.consider(1_500, &attempt(), Some(1)) == Hedge::Now);
    }
    assert_eq!(made, 200);
    let last = hedges.consider(1_500, &attempt(), Some(1));
    assert_eq!(last, Hedge::No(NoHedge::OverBudget));
    hedges.settled(true, 70, 1_000);
    hedges.settled(false, 30, 500);
    let costs = HedgeCosts {
        made: 200,
        won: 1,
        wasted_tokens: 100,
        wasted_us: 1_500,
    };
    assert_eq!(hedges.costs(), costs);
}

/// Four targets that take a millisecond for a token, and one of which stalls.
struct Mesh {
    router: Router<Learnt>,
    snapshot: Snapshot,
    scratch: Scratch,
    free_us: [u64; 4],
    hedges: Hedges,
    hedging: bool,
    ttfts_us: Vec<u64>,
}

/// What happens next: when, to which request, and by which attempt.
type Agenda = BinaryHeap<Reverse<(u64, usize, What)>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Token(usize),
    Look,
}

struct Call {
    ask: Ask,
    at_us: u64,
    attempts: Vec<Booking<<Learnt as mlmesh_route::Forecast>::Memo>>,
    is_done: bool,
}

const REQUESTS: u64 = 20_000;

impl Mesh {
    fn new(hedging: bool) -> Self {
        let strategy = Box::new(LeastPredictedTtft {
            name: "hybrid_mesh",
            copy_percent: 0,
        });
        Self {
            router: Router::new(strategy, Policy::default(), Learnt::new(4, 1 << 20)),
            snapshot: Snapshot::of_equals(4),
            scratch: Scratch::default(),
            free_us: [0; 4],
            hedges: Hedges::default(),
            hedging,
            ttfts_us: Vec::new(),
        }
    }

    /// The sorted times to the first token.
    fn run(mut self, seed: u64, stalls: bool) -> (Vec<u64>, HedgeCosts) {
        let mut agenda = Agenda::new();
        let mut calls: Vec<Call> = Vec::new();
        let mut now_us = 0;
        for request in 0..REQUESTS {
            let drawn = mixed(seed << 32 | request);
            // Open loop: half of what four can do, exponential gaps.
            let share = (drawn >> 11) as f64 / (1_u64 << 53) as f64;
            now_us += (-(1.0 - share).ln() * 50_000.0) as u64;
            while agenda.peek().is_some_and(|next| next.0.0 <= now_us) {
                self.happen(&mut agenda, &mut calls, seed, stalls);
            }
            self.hedges.request();
            let one = Ask {
                deadline_us: now_us + 600_000,
                ..ask(request, 50 + mixed(drawn) % 100)
            };
            let outcome = self
                .router
                .offer(now_us, &self.snapshot, &one, &mut self.scratch);
            let Outcome::Bind(booking) = outcome else {
                panic!("{outcome:?}")
            };
            calls.push(Call {
                ask: one,
                at_us: now_us,
                attempts: Vec::new(),
                is_done: false,
            });
            self.send(&mut agenda, &mut calls, now_us, booking, (seed, stalls));
            if self.hedging {
                agenda.push(Reverse((now_us, calls.len() - 1, What::Look)));
            }
        }
        while !agenda.is_empty() {
            self.happen(&mut agenda, &mut calls, seed, stalls);
        }
        self.ttfts_us.sort_unstable();
        (self.ttfts_us, self.hedges.costs())
    }

    fn send(
        &mut self,
        agenda: &mut Agenda,
        calls: &mut [Call],
        now_us: u64,
        booking: Booking<<Learnt as mlmesh_route::Forecast>::Memo>,
        (seed, stalls): (u64, bool),
    ) {
        let place = booking.terms.target.index();
        let number = booking.request.0 as usize;
        let cost_us = calls[number].ask.prompt_tokens * 1_000;
        self.free_us[place] = self.free_us[place].max(now_us) + cost_us;
        let drawn = mixed(seed.wrapping_mul(31) ^ booking.request.0);
        let stall_us = match stalls && place == 0 && drawn.is_multiple_of(20) {
            true => 2_000_000,
            false => 0,
        };
        let at_us = self.free_us[place] + stall_us;
        calls[number].attempts.push(booking);
        let attempt = calls[number].attempts.len() - 1;
        agenda.push(Reverse((at_us, number, What::Token(attempt))));
    }

    fn happen(&mut self, agenda: &mut Agenda, calls: &mut [Call], seed: u64, stalls: bool) {
        let Some(Reverse((now_us, number, what))) = agenda.pop() else {
            return;
        };
        match what {
            What::Token(attempt) => self.token(calls, number, attempt, now_us),
            What::Look if calls[number].is_done => {}
            What::Look => {
                let first = calls[number].attempts[0];
                let attempt = Attempt {
                    expected_at_us: first.bound_us + first.terms.ttft_us(),
                    doubt_us: first.terms.queued_doubt_us + first.terms.prefill_doubt_us,
                    deadline_us: calls[number].ask.deadline_us,
                    progress: Progress::Sent,
                    repeatable: HEDGEABLE,
                };
                let tried = [first.terms.target];
                let ask = calls[number].ask.clone();
                let other =
                    self.router
                        .elsewhere(now_us, &self.snapshot, &ask, &tried, &mut self.scratch);
                let other_us = other.map(|other| other.ttft_us());
                match self.hedges.consider(now_us, &attempt, other_us) {
                    Hedge::Now => {
                        let other = other.unwrap();
                        assert_ne!(other.target, first.terms.target);
                        let booking = self.router.book(now_us, &ask, other);
                        self.send(agenda, calls, now_us, booking, (seed, stalls));
                    }
                    Hedge::NotBefore(at_us) => {
                        agenda.push(Reverse((at_us, number, What::Look)));
                    }
                    Hedge::No(_) => {}
                }
            }
        }
    }

    /// The first of two wins, and the other is cancelled.
    fn token(&mut self, calls: &mut [Call], number: usize, attempt: usize, now_us: u64) {
        let call = &mut calls[number];
        if call.is_done {
            return;
        }
        call.is_done = true;
        self.ttfts_us.push(now_us - call.at_us);
        let mut effects = Vec::new();
        for (place, mut booking) in call.attempts.drain(..).enumerate() {
            if place == attempt {
                let first = Event::FirstToken(&mut booking);
                self.router
                    .step(now_us, &self.snapshot, first, &mut effects);
            } else {
                let ran_us = now_us - booking.bound_us;
                self.hedges
                    .settled(attempt > 0, booking.prompt_tokens, ran_us);
            }
            let ended = Event::Ended {
                booking,
                cached_tokens: None,
            };
            self.router
                .step(now_us, &self.snapshot, ended, &mut effects);
        }
    }
}

#[test]
fn one_of_four_that_stalls_now_and_then_is_not_seen() {
    for seed in 1..4 {
        let at = |sorted: &[u64], rank: usize| sorted[sorted.len() * rank / 1_000];
        let (healthy, _) = Mesh::new(false).run(seed, false);
        let (stalled, _) = Mesh::new(false).run(seed, true);
        let (hedged, costs) = Mesh::new(true).run(seed, true);
        let (calm, calm_costs) = Mesh::new(true).run(seed, false);
        println!("seed {seed}: {costs:?}, calm {calm_costs:?}");
        for rank in [990, 995] {
            let each = [&healthy, &stalled, &hedged, &calm];
            println!("{rank}: {:?}", each.map(|one| at(one, rank)));
        }
        assert_eq!(hedged.len() as u64, REQUESTS, "each is answered once");
        assert!(
            at(&stalled, 995) > 5 * at(&healthy, 995),
            "it would be seen"
        );
        assert!(at(&hedged, 990) <= 2 * at(&healthy, 990));
        assert!(at(&hedged, 995) <= 3 * at(&healthy, 995));
        assert!(costs.made <= REQUESTS / 50 && costs.won > 0 && costs.wasted_us > 0);
        assert!(calm_costs.made <= REQUESTS / 1_000, "{calm_costs:?}");
    }
}
