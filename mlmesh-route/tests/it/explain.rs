//! What is known of a decision afterwards.

use mlmesh_route::{
    Ask, BlockHash, Change, Decided, Enough, Explanations, Kept, Later, Outcome, Policy, Reason,
    RequestId, TERMS_MAX, TargetId,
};

use crate::plain::{Bench, ask, late};

/// Offers and writes down what came of it.
fn offer(bench: &mut Bench, told: &Explanations, now_us: u64, ask: &Ask) -> Outcome<()> {
    let outcome = bench.offer(now_us, ask);
    told.note(now_us, &bench.snapshot, ask, &outcome, &bench.scratch);
    outcome
}

#[test]
fn a_decision_says_what_it_was_made_of_and_what_would_turn_it() {
    let mut bench = Bench::new(4, Policy::default());
    let told = Explanations::default();
    let with = |request, tokens| Ask {
        blocks: [BlockHash(1), BlockHash(2)].into(),
        ..ask(request, tokens)
    };
    bench.snapshot.at_us = 40_000;
    bench.snapshot.targets[2].penalty_us = 400_000;
    bench.snapshot.targets[3].usable = false;
    offer(&mut bench, &told, 50_000, &with(1, 300));
    // 250 ms of queue and 100 of prefill there, 300 of prefill here.
    offer(&mut bench, &told, 100_000, &with(2, 300));
    let one = told.find(RequestId(2)).unwrap();
    assert_eq!((one.at_us, one.age_us), (100_000, 60_000));
    assert_eq!((one.compared, one.left_out), (3, 1));
    assert_eq!(one.decided, Decided::Bound);
    let costs: Vec<(u16, u64)> = one
        .terms()
        .map(|term| (term.known.target.0, term.cost))
        .collect();
    assert_eq!(costs, [(1, 300_000), (0, 350_000), (2, 700_000)]);
    let change = |target, behind, enough| Change {
        target: TargetId(target),
        behind,
        enough,
    };
    let changes = [
        change(0, 50_000, Enough::ShorterQueue(50_001)),
        change(2, 400_000, Enough::Several),
    ];
    assert_eq!(one.changes(), changes);
    // With its prompt there, or without its penalty, another one would do.
    bench.snapshot.targets[2].penalty_us = 100_000;
    offer(&mut bench, &told, 10_000_000, &ask(3, 400));
    let enough: Vec<Enough> = told
        .find(RequestId(3))
        .unwrap()
        .changes()
        .iter()
        .map(|one| one.enough)
        .collect();
    assert_eq!(enough[1], Enough::MoreCached(101));
    assert_eq!(told.find(RequestId(4)), None);
}

#[test]
fn a_refusal_says_by_how_much_it_was_too_late() {
    let mut bench = Bench::new(1, late());
    let told = Explanations::default();
    let due = Ask {
        deadline_us: 900_000,
        ..ask(7, 1_000)
    };
    let outcome = offer(&mut bench, &told, 0, &due);
    assert!(matches!(outcome, Outcome::Reject(_)));
    let one = told.kept()[0];
    assert_eq!((one.request, one.kept), (RequestId(7), Some(Kept::Refused)));
    assert_eq!(one.short_by_us(), Some(100_000));
    // One that waits first is told of when its word comes.
    bench.bind(0, &ask(8, 3_000));
    assert!(matches!(
        offer(&mut bench, &told, 0, &ask(9, 10)),
        Outcome::Wait { .. }
    ));
    assert_eq!(told.kept().len(), 1);
    let refusal = mlmesh_route::Refusal {
        reason: Reason::NoTarget,
        retry_after_us: 1,
    };
    told.later(5, RequestId(9), Later::Refused(refusal));
    let one = told.kept()[0];
    assert_eq!((one.request, one.refused), (RequestId(9), Some(refusal)));
    assert_eq!(one.decided, Decided::Waits);
}

#[test]
fn what_is_hedged_failed_or_slow_is_kept_and_a_sample_of_the_rest() {
    let mut bench = Bench::new(64, Policy::default());
    let told = Explanations::default();
    let mut now_us = 0;
    for request in 1..=1_000 {
        now_us += 1_000_000;
        let Outcome::Bind(booking) = offer(&mut bench, &told, now_us, &ask(request, 100)) else {
            panic!("nothing waits")
        };
        let id = RequestId(request);
        let mut first_us = now_us + 100_000;
        match request {
            10 => told.later(now_us, id, Later::Hedged(TargetId(5))),
            20 => told.later(now_us, id, Later::Failed(TargetId(6))),
            30 => first_us += 200_000,
            // Twice as long is not worth a word when that is short.
            40 => first_us += 100_000,
            _ => {}
        }
        told.later(first_us, id, Later::FirstToken);
        bench.finish(now_us, booking);
    }
    let kept = told.kept();
    let why = |request| {
        let one = kept.iter().find(|one| one.request == RequestId(request));
        one.and_then(|one| one.kept)
    };
    assert_eq!(why(10), Some(Kept::Hedged));
    assert_eq!(why(20), Some(Kept::Failed));
    assert_eq!(why(30), Some(Kept::Slow));
    assert_eq!(why(40), None);
    assert_eq!(why(640), Some(Kept::Sampled));
    assert_eq!(kept.len(), 3 + 1_000 / 64);
    assert!(kept.iter().all(|one| one.first_token_us.is_some()));
    assert!(
        kept.iter()
            .all(|one| one.terms().count() == TERMS_MAX && one.compared == 64)
    );
    assert_eq!(kept[0].request, RequestId(960), "the newest first");
    assert_eq!(told.retention_s(now_us), 990.0, "since the tenth");
    assert_eq!(told.lost(), 0);
}

#[test]
fn the_rings_stay_as_long_as_they_are_under_many_threads() {
    let told = Explanations::default();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let told = &told;
            scope.spawn(move || {
                let mut bench = Bench::new(2, Policy::default());
                for step in 0..5_000 {
                    let one = ask(step * 4 + thread, 100);
                    let outcome = bench.offer(step, &one);
                    told.note(step, &bench.snapshot, &one, &outcome, &bench.scratch);
                    told.later(step, one.request, Later::Failed(TargetId(1)));
                }
            });
        }
    });
    let kept = told.kept();
    assert!((900..=1_024).contains(&kept.len()), "{}", kept.len());
    assert!(kept.iter().all(|one| one.kept == Some(Kept::Failed)));
}
