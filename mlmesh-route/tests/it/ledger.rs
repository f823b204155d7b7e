//! The books under many threads, and when something is told twice.

use mlmesh_route::{Event, Policy, TargetId};

use crate::plain::{Bench, ask};

#[test]
fn books_are_even_after_many_threads() {
    let bench = Bench::new(4, Policy::default());
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (router, snapshot) = (&bench.router, &bench.snapshot);
            scope.spawn(move || {
                let mut scratch = mlmesh_route::Scratch::default();
                let mut effects = Vec::new();
                for step in 0..500 {
                    let ask = ask(thread * 1_000 + step, 100);
                    let outcome = router.offer(step, snapshot, &ask, &mut scratch);
                    let mlmesh_route::Outcome::Bind(mut booking) = outcome else {
                        panic!("{outcome:?}")
                    };
                    if step % 3 > 0 {
                        router.step(
                            step,
                            snapshot,
                            Event::FirstToken(&mut booking),
                            &mut effects,
                        );
                    }
                    let ended = Event::Ended {
                        booking,
                        cached_tokens: None,
                    };
                    router.step(step, snapshot, ended, &mut effects);
                }
            });
        }
    });
    let ledger = bench.router.ledger();
    let bookings: u64 = (0..4).map(|target| ledger.bookings(TargetId(target))).sum();
    assert_eq!(bookings, 2_000);
    for target in (0..4).map(TargetId) {
        assert_eq!(ledger.in_flight(target), 0);
        assert_eq!(ledger.backlog(target, 1_000).expected_us, 0);
    }
}

#[test]
fn an_end_that_is_told_twice_counts_for_nothing() {
    let mut bench = Bench::new(1, Policy::default());
    let booking = bench.bind(0, &ask(0, 100));
    for now_us in [1, 2] {
        let ended = Event::Ended {
            booking,
            cached_tokens: None,
        };
        bench.step(now_us, ended);
    }
    let ledger = bench.router.ledger();
    assert_eq!(ledger.in_flight(TargetId(0)), 0);
    assert_eq!(ledger.backlog(TargetId(0), 2).expected_us, 0);
    assert_eq!(bench.bind(3, &ask(1, 100)).terms.queued_us, 0);
}

/// Engines that put several prompts into one iteration answer them in one moment.
#[test]
fn prompts_that_are_answered_together_share_the_time() {
    let mut bench = Bench::new(1, Policy::default());
    let mut bookings: Vec<_> = [100, 300, 400]
        .into_iter()
        .enumerate()
        .map(|(number, tokens)| bench.bind(0, &ask(number as u64, tokens)))
        .collect();
    // 800 ms are predicted for all; the first two take 200 ms, the third as much again.
    let mut effects = Vec::new();
    for (booking, now_us) in bookings.iter_mut().zip([200_000, 200_400, 400_400]) {
        let event = Event::FirstToken(booking);
        bench
            .router
            .step(now_us, &bench.snapshot, event, &mut effects);
    }
    let took: Vec<u64> = bookings.iter().map(|booking| booking.took_us).collect();
    // Of the first nothing else was known when it came.
    assert_eq!(took, [200_000, 150_300, 200_000]);
}

/// What is answered as a whole keeps its target busy for the time that was predicted, and
/// no longer than until its answer begins.
#[test]
fn what_is_silent_is_done_when_its_time_has_passed() {
    let mut bench = Bench::new(1, Policy::default());
    let silent = |number| mlmesh_route::Ask {
        is_silent: true,
        ..ask(number, 100)
    };
    let expected = |bench: &Bench, now_us| {
        let backlog = bench.router.ledger().backlog(TargetId(0), now_us);
        (backlog.expected_us, backlog.doubt_us)
    };
    let [first, second] = [0, 1].map(|number| bench.bind(0, &silent(number)));
    assert_eq!(expected(&bench, 0), (200_000, 0));
    assert_eq!(expected(&bench, 150_000), (50_000, 0));
    assert_eq!(expected(&bench, 900_000), (0, 0));
    // One that ends after 30 ms has left 70 of its 100.
    for booking in [first, second] {
        let ended = Event::Ended {
            booking,
            cached_tokens: None,
        };
        bench.step(30_000, ended);
    }
    assert_eq!(expected(&bench, 30_000), (30_000, 0));
    assert_eq!(bench.router.ledger().in_flight(TargetId(0)), 0);
}
