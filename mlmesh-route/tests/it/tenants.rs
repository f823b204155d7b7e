//! Whose requests go first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use mlmesh_route::{
    Ask, BlockHash, Booking, Class, Effect, Event, Late, Order, Outcome, Policy, RequestId,
    TenantId,
};

use crate::plain::{Bench, ask, bound};

/// In the order of coming, one request at a time.
fn one_by_one() -> Policy {
    Policy {
        late: Some(Late {
            order: Order::Fifo,
            in_flight_max: 1,
            backlog_us_max: u64::MAX,
            ..Late::default()
        }),
        refuse_hopeless: false,
    }
}

fn of(tenant: u16, request: u64, tokens: u64) -> Ask {
    Ask {
        tenant: TenantId(tenant),
        ..ask(request, tokens)
    }
}

/// A first token and an end in one; who is bound by it.
fn ended(bench: &Bench, now_us: u64, mut booking: Booking<()>) -> Vec<Booking<()>> {
    let mut effects = bench.step(now_us, Event::FirstToken(&mut booking));
    let ended = Event::Ended {
        booking,
        cached_tokens: None,
    };
    effects.extend(bench.step(now_us, ended));
    let bound = effects.into_iter().filter_map(|effect| match effect {
        Effect::Bind(booking) => Some(booking),
        Effect::Refuse(..) | Effect::WakeAt(_) => None,
    });
    bound.collect()
}

/// Offers that wait behind a first one of a stranger's; in which order they are bound.
fn order(asks: &[Ask], prepare: impl Fn(&Bench), written: impl Fn(u64) -> u64) -> Vec<u64> {
    let mut bench = Bench::new(1, one_by_one());
    prepare(&bench);
    let mut running = bench.bind(0, &of(99, 0, 1));
    for one in asks {
        assert!(matches!(bench.offer(0, one), Outcome::Wait { .. }));
    }
    let mut order = Vec::new();
    for now_us in 1..=asks.len() as u64 {
        let tenant = asks.iter().find(|one| one.request == running.request);
        if let Some(ask) = tenant {
            bench.router.written(ask.tenant, written(ask.request.0));
        }
        running = ended(&bench, now_us, running)[0];
        order.push(running.request.0);
    }
    order
}

#[test]
fn who_was_given_less_goes_first() {
    let asks: Vec<Ask> = (1..=8)
        .map(|one| of(u16::from(one > 6), one, 100))
        .collect();
    // Two of the second tenant's came last, and wait for one of the first's each.
    assert_eq!(order(&asks, |_| {}, |_| 0), [1, 7, 2, 8, 3, 4, 5, 6]);
    // Long answers count as well.
    let long = |request| if request == 7 { 60 } else { 0 };
    assert_eq!(order(&asks, |_| {}, long), [1, 7, 2, 3, 8, 4, 5, 6]);
}

#[test]
fn weights_and_classes_count() {
    let asks: Vec<Ask> = (1..=8).map(|one| of((one % 2) as u16, one, 100)).collect();
    let thrice = |bench: &Bench| bench.router.weigh(TenantId(1), 3_000);
    assert_eq!(order(&asks, thrice, |_| 0), [1, 2, 3, 5, 7, 4, 6, 8]);
    let mut asks = asks;
    for one in &mut asks {
        one.class = match one.request.0 {
            1 | 2 => Class::Low,
            5 => Class::High,
            _ => Class::Normal,
        };
    }
    assert_eq!(order(&asks, |_| {}, |_| 0), [5, 4, 3, 6, 7, 8, 1, 2]);
}

#[test]
fn what_was_not_used_is_not_saved_up() {
    let mut bench = Bench::new(1, one_by_one());
    let mut running = bench.bind(0, &of(99, 0, 1));
    let mut next = |bench: &Bench, now_us| {
        running = ended(bench, now_us, running)[0];
        running.request.0
    };
    // The first tenant alone is given much.
    for request in 1..=9 {
        bench.offer(0, &of(1, request, 100));
    }
    for now_us in 1..=5 {
        assert_eq!(next(&bench, now_us), now_us);
    }
    // Who comes now gets every other turn, and not all of them.
    for request in 11..=14 {
        bench.offer(5, &of(2, request, 100));
    }
    let order: Vec<u64> = (6..=13).map(|now_us| next(&bench, now_us)).collect();
    assert_eq!(order, [11, 6, 12, 7, 13, 8, 14, 9]);
}

#[test]
fn tenants_are_fair_in_targets_own_lines_too() {
    let mut bench = Bench::new(
        2,
        Policy {
            late: Some(Late::default()),
            refuse_hopeless: false,
        },
    );
    let held = |request, tenant| Ask {
        blocks: (0..50).map(BlockHash).collect(),
        ..of(tenant, request, 5_000 + 700)
    };
    let first = bench.bind(0, &held(0, 9));
    for (request, tenant) in [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)] {
        let outcome = bench.offer(3_000_000, &held(request, tenant));
        assert!(matches!(outcome, Outcome::Wait { .. }), "{outcome:?}");
    }
    let mut order = bound(&bench.step(5_200_000, Event::Tick));
    order.extend(bench.finish(5_700_000, first));
    for step in 0..20 {
        order.extend(bound(&bench.step(5_800_000 + step * 300_000, Event::Tick)));
    }
    let requests: Vec<u64> = order.iter().map(|(request, _)| *request).collect();
    assert_eq!(requests, [1, 4, 2, 5, 3]);
    assert!(order.iter().all(|(_, target)| *target == 0), "{order:?}");
}

/// An engine with twenty places, each of which writes a token in 40 ms: about what the
/// published runs had.
struct Engine {
    /// When it came, its client, tokens of its prompt and of its answer.
    rows: Vec<[u64; 4]>,
    running: BTreeMap<u64, Booking<()>>,
    ends: BinaryHeap<Reverse<(u64, u64)>>,
    first_tokens: BTreeMap<u16, Vec<f64>>,
    last_us: u64,
}

impl Engine {
    fn begin(&mut self, now_us: u64, booking: Booking<()>) {
        let RequestId(number) = booking.request;
        let [at_us, client, prompt, output] = self.rows[number as usize];
        let first_us = now_us + prompt * 1_000;
        let waited_s = (first_us - at_us) as f64 / 1e6;
        let all = self.first_tokens.entry(client as u16).or_default();
        all.push(waited_s);
        let end_us = first_us + output * 40_000;
        self.last_us = self.last_us.max(end_us);
        self.ends.push(Reverse((end_us, number)));
        self.running.insert(number, booking);
    }
}

/// First tokens by client, and tokens a second; with tenants or all as one.
fn published(tenants: bool) -> (BTreeMap<u16, Vec<f64>>, f64) {
    let text = include_str!("../data/vtc-real.txt");
    let cells =
        |line: &str| -> Vec<u64> { line.split(' ').map(|one| one.parse().unwrap()).collect() };
    let rows = text.lines().map(|line| cells(line).try_into().unwrap());
    let mut engine = Engine {
        rows: rows.collect(),
        running: BTreeMap::new(),
        ends: BinaryHeap::new(),
        first_tokens: BTreeMap::new(),
        last_us: 0,
    };
    let rows = engine.rows.clone();
    let tokens: u64 = rows
        .iter()
        .map(|[.., prompt, output]| prompt + output)
        .sum();
    let tenant = |number: u64| match tenants {
        true => rows[number as usize][1] as u16,
        false => 0,
    };
    let mut bench = Bench::new(
        1,
        Policy {
            late: Some(Late {
                order: Order::Fifo,
                in_flight_max: 20,
                backlog_us_max: u64::MAX,
                ..Late::default()
            }),
            refuse_hopeless: false,
        },
    );
    let mut arrivals = (0..).zip(&rows).peekable();
    loop {
        let arrival_us = arrivals.peek().map_or(u64::MAX, |(_, row)| row[0]);
        let end_us = engine.ends.peek().map_or(u64::MAX, |end| end.0.0);
        if arrival_us <= end_us {
            let Some((number, [at_us, _, prompt, _])) = arrivals.next() else {
                break;
            };
            let outcome = bench.offer(*at_us, &of(tenant(number), number, *prompt));
            if let Outcome::Bind(booking) = outcome {
                engine.begin(*at_us, booking);
            }
        } else if let Some(Reverse((now_us, number))) = engine.ends.pop() {
            let output = rows[number as usize][3];
            bench.router.written(TenantId(tenant(number)), output);
            let booking = engine.running.remove(&number).unwrap();
            for booking in ended(&bench, now_us, booking) {
                engine.begin(now_us, booking);
            }
        }
    }
    (
        engine.first_tokens,
        tokens as f64 / engine.last_us as f64 * 1e6,
    )
}

#[test]
fn a_small_client_of_the_published_trace_waits_a_tenth_as_long() {
    let (came, came_throughput) = published(false);
    let (fair, fair_throughput) = published(true);
    let mean = |of: &BTreeMap<u16, Vec<f64>>, client: u16| {
        let all = &of[&client];
        all.iter().sum::<f64>() / all.len() as f64
    };
    for client in came.keys() {
        println!(
            "client {client}: {} requests, {:.1} s, {:.1} s",
            came[client].len(),
            mean(&came, *client),
            mean(&fair, *client)
        );
    }
    println!("{came_throughput:.1} and {fair_throughput:.1} tokens/s");
    assert_eq!(came[&11].len(), 26);
    assert!(mean(&came, 11) >= 10.0 * mean(&fair, 11));
    let part = fair_throughput / came_throughput;
    assert!((0.995..1.005).contains(&part), "{part}");
    let served = |of: &BTreeMap<u16, Vec<f64>>| of.values().map(Vec::len).sum::<usize>();
    assert_eq!((served(&came), served(&fair)), (1_500, 1_500));
}
