//! How long a decision takes: 32 KiB of prompt are hashed, every target is predicted and
//! scored, and the request is booked where it goes; and how long a step takes while many
//! wait. A first argument chooses how many are timed.
#![expect(clippy::print_stdout, reason = "the figures are what this is for")]
#![expect(clippy::disallowed_methods, reason = "a bench measures time")]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use mlmesh_route::{
    Ask, BLOCK_BYTES, BlockHash, BlockHasher, Booking, Budget, Effect, Event, Forecast,
    INDEX_BYTES, Learnt, Outcome, RequestId, Router, Scratch, Snapshot, mixed, strategy_by_name,
};

const PROMPT_BYTES: usize = 32 << 10;
/// Prompts of one group share three quarters; the first ones are drawn more often.
const GROUPS: u64 = 64;
const ROUNDS: u64 = 20_000;

type Memo = <Learnt as Forecast>::Memo;

fn main() {
    let rounds = std::env::args().skip(1).find_map(|text| text.parse().ok());
    for waiting in [16, 256, 4_096] {
        let (p50, p99, bound) = steps(waiting, rounds.unwrap_or(ROUNDS).min(5_000));
        println!("{waiting} waiting: p50 {p50:.2} us, p99 {p99:.2} us, {bound:.2} bound in each");
    }
    for targets in [16, 512] {
        let mut bench = Bench::new(targets);
        let rounds = rounds.unwrap_or(ROUNDS);
        for round in 0..rounds / 2 {
            bench.decide(round);
        }
        let mut times_ns: Vec<(u64, u64)> =
            (0..rounds).map(|at| bench.decide(rounds + at)).collect();
        let rank = |share: f64| ((rounds as f64 * share) as usize).min(rounds as usize - 1);
        times_ns.sort_unstable_by_key(|(hash, rest)| hash + rest);
        let us = |at: usize| {
            let (hash, rest) = times_ns[at];
            (hash + rest) as f64 / 1e3
        };
        let (p50, p99) = (us(rank(0.5)), us(rank(0.99)));
        let mut rest: Vec<u64> = times_ns.iter().map(|(_, rest)| *rest).collect();
        rest.sort_unstable();
        println!(
            "{targets} targets: p50 {p50:.2} us, p99 {p99:.2} us, of it without hashing p99 \
             {:.2} us, overruns {}",
            rest[rank(0.99)] as f64 / 1e3,
            bench.router.overruns()
        );
    }
}

/// How long a step takes in which a target comes free, with so many that wait: p50 and
/// p99 in microseconds, and how many requests each step has bound.
fn steps(waiting: u64, rounds: u64) -> (f64, f64, f64) {
    let mut bench = Bench::new(8);
    let mut running: Vec<Booking<Memo>> = Vec::new();
    let mut ends = BinaryHeap::new();
    let mut free_us = [0; 8];
    let (mut request, mut now_us, mut bound) = (0, 0, 0);
    let mut effects = Vec::new();
    let mut times_ns = Vec::new();
    while (times_ns.len() as u64) < rounds {
        while bench.router.waiting() < waiting as usize {
            request += 1;
            match bench.offer(now_us, request) {
                Outcome::Bind(booking) => effects.push(Effect::Bind(booking)),
                Outcome::Wait { .. } => {}
                Outcome::Reject(refusal) => panic!("{refusal:?}"),
            }
        }
        for effect in effects.drain(..) {
            if let Effect::Bind(booking) = effect {
                let free_us = &mut free_us[booking.terms.target.index()];
                // A third more or less than an engine of 5,000 tokens a second.
                let tokens = booking.prompt_tokens - booking.terms.cached_tokens;
                let percent = 67 + mixed(booking.request.0) % 67;
                *free_us = now_us.max(*free_us) + (10_000 + tokens * 200) * percent / 100;
                ends.push(Reverse((*free_us, running.len())));
                running.push(booking);
            }
        }
        let Some(Reverse((end_us, place))) = ends.pop() else {
            panic!("nothing runs");
        };
        now_us = end_us;
        let mut booking = running[place];
        let begun = Instant::now();
        let first = Event::FirstToken(&mut booking);
        bench
            .router
            .step(now_us, &bench.snapshot, first, &mut effects);
        times_ns.push(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX));
        let ended = Event::Ended {
            booking,
            cached_tokens: Some(booking.terms.cached_tokens),
        };
        bench
            .router
            .step(now_us, &bench.snapshot, ended, &mut effects);
        let is_bound = |effect: &&Effect<Memo>| matches!(effect, Effect::Bind(_));
        bound += effects.iter().filter(is_bound).count();
    }
    times_ns.sort_unstable();
    let us = |share: f64| times_ns[(rounds as f64 * share) as usize] as f64 / 1e3;
    (us(0.5), us(0.99), bound as f64 / rounds as f64)
}

struct Bench {
    router: Router<Learnt>,
    snapshot: Snapshot,
    scratch: Scratch,
    prompt: Vec<u8>,
    blocks: Vec<BlockHash>,
    running: Option<Booking<Memo>>,
}

impl Bench {
    fn new(targets: u16) -> Self {
        let (strategy, policy) = strategy_by_name("hybrid_mesh").expect("it comes with the router");
        let scratch = Scratch {
            budget: Some(Budget {
                clock_ns,
                ns_max: 100_000,
            }),
            ..Scratch::default()
        };
        Self {
            router: Router::new(strategy, policy, Learnt::new(targets, INDEX_BYTES)),
            snapshot: Snapshot::of_equals(targets),
            scratch,
            prompt: vec![b'a'; PROMPT_BYTES],
            blocks: Vec::new(),
            running: None,
        }
    }

    /// A short prompt, of one of the groups.
    fn offer(&mut self, now_us: u64, request: u64) -> Outcome<Memo> {
        let drawn = mixed(request);
        let group = drawn % GROUPS * 100;
        let shared = (0..16).map(|depth| BlockHash(mixed(group + depth)));
        let ask = Ask {
            request: RequestId(request),
            prompt_tokens: 1_100 + drawn % 4_000,
            blocks: shared.chain([BlockHash(drawn)]).collect(),
            block_tokens: 64,
            chance: drawn,
            ..Ask::default()
        };
        self.router
            .offer(now_us, &self.snapshot, &ask, &mut self.scratch)
    }

    /// How many nanoseconds hashing took, and the rest.
    fn decide(&mut self, round: u64) -> (u64, u64) {
        let drawn = mixed(round);
        let group = (drawn % GROUPS) * (drawn / GROUPS % GROUPS) / GROUPS;
        self.prompt[..8].copy_from_slice(&group.to_le_bytes());
        self.prompt[PROMPT_BYTES * 3 / 4..][..8].copy_from_slice(&round.to_le_bytes());
        let now_us = round * 20_000;
        let begun = Instant::now();
        let mut hasher = BlockHasher::new(7, BLOCK_BYTES);
        self.blocks.clear();
        hasher.push(&self.prompt, &mut self.blocks);
        let hashed = Instant::now();
        let ask = Ask {
            request: RequestId(round),
            prompt_tokens: PROMPT_BYTES as u64 / 4,
            blocks: self.blocks.as_slice().into(),
            block_tokens: BLOCK_BYTES as u64 / 4,
            session: None,
            deadline_us: u64::MAX,
            chance: drawn,
            ..Ask::default()
        };
        let outcome = self
            .router
            .offer(now_us, &self.snapshot, &ask, &mut self.scratch);
        let done = Instant::now();
        if let Outcome::Bind(booking) = outcome {
            self.finish(now_us);
            self.running = Some(booking);
        }
        let ns = |span: std::time::Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        (ns(hashed - begun), ns(done - hashed))
    }

    fn finish(&mut self, now_us: u64) {
        let Some(mut booking) = self.running.take() else {
            return;
        };
        let mut effects = Vec::new();
        let first = Event::FirstToken(&mut booking);
        self.router
            .step(now_us, &self.snapshot, first, &mut effects);
        let ended = Event::Ended {
            booking,
            cached_tokens: Some(booking.terms.cached_tokens),
        };
        self.router
            .step(now_us, &self.snapshot, ended, &mut effects);
    }
}

fn clock_ns() -> u64 {
    static BEGUN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let begun = BEGUN.get_or_init(Instant::now);
    u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
