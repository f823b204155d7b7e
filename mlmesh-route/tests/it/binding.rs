//! Who is bound where and when, who waits, who is refused.

use std::sync::atomic::{AtomicU64, Ordering};

use mlmesh_route::{
    Ask, BaselineRoundRobin, BlockHash, Budget, Effect, Event, Late, Order, Outcome, Policy,
    Reason, RequestId, TargetId,
};

use crate::plain::{Bench, ask, bound, late};

#[test]
fn round_robin_keeps_its_order_whatever_is_busy() {
    let mut bench = Bench::with(3, Policy::default(), Box::new(BaselineRoundRobin));
    let places: Vec<u16> = (0..7)
        .map(|request| {
            bench
                .bind(request, &ask(request, 1 + request * 500))
                .terms
                .target
                .0
        })
        .collect();
    assert_eq!(places, [0, 1, 2, 0, 1, 2, 0]);
}

/// A clock that has always gone on by a microsecond.
fn hurried_ns() -> u64 {
    static NS: AtomicU64 = AtomicU64::new(0);
    NS.fetch_add(1_000, Ordering::Relaxed)
}

#[test]
fn a_decision_over_its_budget_falls_back_and_is_counted() {
    for (ns_max, overruns, held) in [(10_000, 0, 100), (0, 1, 0)] {
        let mut bench = Bench::new(64, Policy::default());
        let blocks = || [BlockHash(1)].into();
        bench.bind(
            0,
            &Ask {
                blocks: blocks(),
                ..ask(0, 100)
            },
        );
        bench.scratch.budget = Some(Budget {
            clock_ns: hurried_ns,
            ns_max,
        });
        let again = Ask {
            blocks: blocks(),
            ..ask(1, 400)
        };
        // In time it goes where its prompt is; else where there is nothing else.
        let booking = bench.bind(50_000, &again);
        assert_eq!(booking.terms.cached_tokens, held);
        assert_eq!(booking.terms.prefill_us, (400 - held) * 1_000);
        assert_eq!(bench.router.overruns(), overruns);
    }
}

#[test]
fn what_others_send_to_a_target_counts_in_the_queue() {
    let mut bench = Bench::new(2, late());
    bench.bind(0, &ask(0, 2_000));
    bench.snapshot.targets[1].foreign_us = 1_400_000;
    assert_eq!(
        bench.offer(0, &ask(1, 100)),
        Outcome::Wait {
            look_again_us: u64::MAX
        },
        "only the target can say when others are done"
    );
    assert_eq!(bench.step(0, Event::Tick), [Effect::WakeAt(1_500_000)]);
    bench.snapshot.targets[1].foreign_us = 0;
    assert_eq!(bound(&bench.step(1, Event::Tick)), [(1, 1)]);
}

#[test]
fn what_a_target_holds_draws_until_its_queue_is_longer() {
    let mut bench = Bench::new(2, Policy::default());
    let with = |request, tokens| Ask {
        blocks: [BlockHash(1), BlockHash(2)].into(),
        ..ask(request, tokens)
    };
    assert_eq!(bench.bind(0, &with(0, 300)).terms.target, TargetId(0));
    // 300 ms of queue there against 200 ms of prefill more here.
    assert_eq!(bench.bind(0, &with(1, 300)).terms.target, TargetId(1));
    // Both hold it now, and the first is free first.
    let third = bench.bind(100_000, &with(2, 300));
    assert_eq!(
        (third.terms.target, third.terms.cached_tokens),
        (TargetId(0), 200)
    );
    assert_eq!(third.terms.queued_us, 200_000);
}

#[test]
fn nobody_is_bound_behind_a_long_backlog() {
    let mut bench = Bench::new(1, late());
    let first = bench.bind(0, &ask(0, 2_000));
    let waits = bench.offer(0, &ask(1, 100));
    assert_eq!(
        waits,
        Outcome::Wait {
            look_again_us: 1_500_000
        }
    );
    assert_eq!(bench.router.waiting(), 1);
    // Too early, then the backlog is half a second.
    let early = bench.step(1_400_000, Event::Tick);
    assert_eq!(early, [Effect::WakeAt(1_500_000)]);
    assert_eq!(bound(&bench.step(1_500_000, Event::Tick)), [(1, 0)]);
    assert_eq!(bench.router.waiting(), 0);
    assert_eq!(bench.finish(2_000_000, first), []);
}

#[test]
fn the_shortest_prefill_goes_first_or_who_came_first() {
    for (order, expected) in [
        (Order::ShortestPrefill, [(3, 0), (2, 0), (1, 0)]),
        (Order::Fifo, [(1, 0), (2, 0), (3, 0)]),
    ] {
        let late = Late {
            order,
            backlog_us_max: 0,
            ..Late::default()
        };
        let policy = Policy {
            late: Some(late),
            refuse_hopeless: false,
        };
        let mut bench = Bench::new(1, policy);
        let mut running = bench.bind(0, &ask(0, 1_000));
        for (request, tokens) in [(1, 900), (2, 600), (3, 300)] {
            assert!(matches!(
                bench.offer(0, &ask(request, tokens)),
                Outcome::Wait { .. }
            ));
        }
        let mut now_us = 1_000_000;
        for next in expected {
            let effects = bench.step(now_us, Event::FirstToken(&mut running));
            assert_eq!(bound(&effects), [next], "{order:?}");
            running = effects
                .iter()
                .find_map(|effect| match effect {
                    Effect::Bind(booking) => Some(*booking),
                    Effect::Refuse(..) | Effect::WakeAt(_) => None,
                })
                .unwrap();
            now_us += running.terms.prefill_us;
        }
    }
}

#[test]
fn a_long_prompt_is_not_passed_by_for_ever() {
    let policy = Policy {
        late: Some(Late::default()),
        refuse_hopeless: false,
    };
    let mut bench = Bench::new(1, policy);
    let mut running = bench.bind(0, &ask(0, 1_000));
    assert!(matches!(
        bench.offer(0, &ask(1, 3_000)),
        Outcome::Wait { .. }
    ));
    let mut now_us = 0;
    // A shorter one always waits beside it, and the target never rests.
    for request in 2..200 {
        assert!(matches!(
            bench.offer(now_us, &ask(request, 1_000)),
            Outcome::Wait { .. }
        ));
        now_us += 1_000_000;
        let effects = bench.step(now_us, Event::FirstToken(&mut running));
        let Some(Effect::Bind(next)) = effects.first() else {
            panic!("{effects:?}")
        };
        if next.request == RequestId(1) {
            assert!((10..30).contains(&request), "after {request} others");
            return;
        }
        running = *next;
    }
    panic!("it starves");
}

#[test]
fn the_hopeless_are_refused_with_a_time_to_come_back() {
    let mut bench = Bench::new(2, late());
    let due = |request, tokens, deadline_us| Ask {
        deadline_us,
        ..ask(request, tokens)
    };
    for request in [0, 1] {
        bench.bind(0, &due(request, 4_000, 4_000_000));
    }
    let Outcome::Reject(refusal) = bench.offer(0, &due(2, 1_000, 4_999_999)) else {
        panic!("it would be a microsecond late")
    };
    assert_eq!(
        refusal.reason,
        Reason::DeadlineMissed {
            predicted_us: 5_000_000,
            deadline_us: 4_999_999
        }
    );
    assert_eq!(refusal.retry_after_us, 4_000_000, "when both have drained");
    // In time as it looks now; then another takes its place.
    let waits = bench.offer(0, &due(3, 1_000, 5_000_000));
    assert!(matches!(waits, Outcome::Wait { .. }));
    let waits = bench.offer(0, &due(4, 500, 5_100_000));
    assert!(matches!(waits, Outcome::Wait { .. }));
    bench.snapshot.targets[1].usable = false;
    let effects = bench.step(3_600_000, Event::Tick);
    assert_eq!(bound(&effects), [(4, 0)]);
    let refused = effects.iter().any(|effect| {
        matches!(effect, Effect::Refuse(RequestId(3), refusal)
            if matches!(refusal.reason, Reason::DeadlineMissed { .. }))
    });
    assert!(refused, "{effects:?}");
    assert_eq!(bench.router.waiting(), 0);
}

#[test]
fn the_queue_is_bounded() {
    let policy = Policy {
        late: Some(Late {
            queue_max: 2,
            ..Late::default()
        }),
        refuse_hopeless: false,
    };
    let mut bench = Bench::new(1, policy);
    bench.bind(0, &ask(0, 6_000));
    for request in [1, 2] {
        assert!(matches!(
            bench.offer(0, &ask(request, 3_000)),
            Outcome::Wait { .. }
        ));
    }
    let Outcome::Reject(refusal) = bench.offer(0, &ask(3, 3_000)) else {
        panic!("a third one waits")
    };
    assert_eq!(refusal.reason, Reason::QueueFull { queue_max: 2 });
    assert_eq!(
        refusal.retry_after_us, 12_000_000,
        "what runs and what waits"
    );
    // Who goes away makes room.
    assert!(bench.step(0, Event::Gone(RequestId(1))).len() <= 1);
    assert!(matches!(
        bench.offer(0, &ask(4, 3_000)),
        Outcome::Wait { .. }
    ));
}

#[test]
fn without_a_usable_target_everything_is_refused() {
    let mut bench = Bench::new(1, late());
    bench.bind(0, &ask(0, 9_000));
    assert!(matches!(bench.offer(0, &ask(1, 10)), Outcome::Wait { .. }));
    bench.snapshot.targets.clear();
    let Outcome::Reject(refusal) = bench.offer(1, &ask(2, 10)) else {
        panic!("there is nowhere to go")
    };
    assert_eq!(
        (refusal.reason, refusal.retry_after_us),
        (Reason::NoTarget, 1_000_000)
    );
    let effects = bench.step(1, Event::Tick);
    assert!(
        matches!(effects[..], [Effect::Refuse(RequestId(1), _)]),
        "{effects:?}"
    );
}

#[test]
fn what_comes_together_is_ordered_together() {
    let mut bench = Bench::new(1, late());
    let asks = [ask(0, 3_000), ask(1, 2_000), ask(2, 1_000)];
    let mut effects = Vec::new();
    bench
        .router
        .offer_all(0, &bench.snapshot, &asks, &mut bench.scratch, &mut effects);
    assert_eq!(bound(&effects), [(2, 0)]);
    assert_eq!(bench.router.waiting(), 2);
}

#[test]
fn a_target_that_is_late_is_not_sent_more() {
    let mut bench = Bench::new(1, late());
    // Predictions turn out to be half of the truth.
    let mut now_us = 0;
    for request in 0..30 {
        let booking = bench.bind(now_us, &ask(request, 1_000));
        now_us += 2_000_000;
        bench.finish(now_us, booking);
    }
    let running = bench.bind(now_us, &ask(100, 1_000));
    assert!(matches!(
        bench.offer(now_us, &ask(101, 10)),
        Outcome::Wait { .. }
    ));
    // As predicted it would have been done by now, but who believes that.
    assert_eq!(bound(&bench.step(now_us + 1_000_000, Event::Tick)), []);
    let backlog = bench
        .router
        .ledger()
        .backlog(TargetId(0), now_us + 1_500_000);
    assert!(
        backlog.expected_us > 0 && backlog.doubt_us > 500_000,
        "{backlog:?}"
    );
    assert_eq!(bench.finish(now_us + 2_000_000, running), [(101, 0)]);
}

#[test]
fn what_waits_knows_what_its_target_was_sent_meanwhile() {
    let mut bench = Bench::new(1, late());
    let with = |request, tokens| Ask {
        blocks: (0..10).map(BlockHash).collect(),
        ..ask(request, tokens)
    };
    let first = bench.bind(0, &ask(0, 2_000));
    for (request, tokens) in [(1, 3_000), (2, 1_000)] {
        assert!(matches!(
            bench.offer(0, &with(request, tokens)),
            Outcome::Wait { .. }
        ));
    }
    assert_eq!(bound(&bench.step(1_500_000, Event::Tick)), [(2, 0)]);
    assert_eq!(bench.finish(2_000_000, first), []);
    let effects = bench.step(2_500_000, Event::Tick);
    let Some(Effect::Bind(booking)) = effects.first() else {
        panic!("{effects:?}")
    };
    assert_eq!(
        (booking.request, booking.terms.cached_tokens),
        (RequestId(1), 1_000)
    );
}
