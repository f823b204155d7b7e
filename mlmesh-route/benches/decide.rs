//! How long a decision takes: 32 KiB of prompt are hashed, every target is predicted and
//! scored, and the request is booked where it goes. A first argument chooses how many
//! decisions are timed.
#![expect(clippy::print_stdout, reason = "the figures are what this is for")]
#![expect(clippy::disallowed_methods, reason = "a bench measures time")]

use std::time::Instant;

use mlmesh_route::{
    Ask, BLOCK_BYTES, BlockHasher, Booking, Budget, Event, Forecast, INDEX_BYTES, Learnt, Outcome,
    RequestId, Router, Scratch, Snapshot, mixed, strategy_by_name,
};

const PROMPT_BYTES: usize = 32 << 10;
/// Prompts of one group share three quarters; the first ones are drawn more often.
const GROUPS: u64 = 64;
const ROUNDS: u64 = 20_000;

type Memo = <Learnt as Forecast>::Memo;

fn main() {
    let rounds = std::env::args().skip(1).find_map(|text| text.parse().ok());
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

struct Bench {
    router: Router<Learnt>,
    snapshot: Snapshot,
    scratch: Scratch,
    prompt: Vec<u8>,
    blocks: Vec<mlmesh_route::BlockHash>,
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
