//! Strategies that are tried beside the one that is used.

use mlmesh_route::{
    Arm, Ask, BaselineRoundRobin, BlockHash, Compared, LeastPredictedTtft, Policy, Random, Router,
    Shadow, Trial, mixed,
};

use crate::plain::{Bench, Plain, ask};

#[test]
fn a_split_is_what_was_asked_for_and_sessions_stay() {
    for percent in [0, 1, 10, 50, 90, 100] {
        for key in 0..5 {
            let trial = Trial::new(Box::new(Random), percent, key);
            let is_other = |one: &Ask| trial.arm(one) == Arm::Other;
            let others = (0..20_000).filter(|request| is_other(&ask(*request, 1)));
            let seen = others.count() as f64 / 200.0;
            let away = (seen - f64::from(percent)).abs();
            assert!(away < 1.0, "{seen} % instead of {percent}");
            for session in 0..100 {
                let with = |request| Ask {
                    session: Some(session),
                    ..ask(request, 1)
                };
                let first = trial.arm(&with(0));
                assert!((1..20).all(|request| trial.arm(&with(request)) == first));
            }
        }
    }
}

/// Of a hundred trials of strategies that are the same, about five see a difference.
#[test]
fn an_interval_holds_the_truth_as_often_as_it_says() {
    for (better_us, least, most) in [(0, 88, 100), (20_000, 88, 100)] {
        let mut holds = 0;
        let mut in_time = 0;
        for seed in 0..100_u64 {
            let trial = Trial::new(Box::new(Random), 50, seed);
            for request in 0..2_000 {
                let one = ask(request, 1);
                let drawn = mixed(seed << 32 | request);
                // Exponential, with a mean of 200 ms.
                let share = (drawn >> 11) as f64 / (1_u64 << 53) as f64;
                let took_us = (-(1.0 - share).ln() * 200_000.0) as u64;
                let (arm, plus_us) = match trial.arm(&one) {
                    Arm::Own => (Arm::Own, better_us),
                    Arm::Other => (Arm::Other, 0),
                };
                trial.told(arm, took_us + plus_us, !mixed(drawn).is_multiple_of(10));
            }
            let standing = trial.standing().unwrap();
            assert_eq!(standing.own + standing.other, 2_000);
            let truth = -(better_us as f64) / 1e6;
            let within = |low: f64, high: f64, truth: f64| u32::from(low <= truth && truth <= high);
            holds += within(standing.ttft_s.low, standing.ttft_s.high, truth);
            in_time += within(standing.in_time.low, standing.in_time.high, 0.0);
        }
        println!("{holds} and {in_time} of 100");
        assert!((least..=most).contains(&holds) && (least..=most).contains(&in_time));
    }
    let trial = Trial::new(Box::new(Random), 50, 1);
    trial.told(Arm::Own, 1, true);
    assert_eq!(trial.standing(), None);
}

#[test]
fn a_trial_gets_its_requests_and_no_others() {
    let strategy = Box::new(LeastPredictedTtft {
        name: "least_ttft",
        copy_percent: 0,
    });
    let trial = Trial::new(Box::new(BaselineRoundRobin), 50, 3);
    let router = Router::new(strategy, Policy::default(), Plain::default()).with_trial(trial);
    let mut bench = Bench::new(4, Policy::default());
    bench.router = router;
    // The first target holds everything, which only one of the two knows.
    let with = |request| Ask {
        blocks: (0..9).map(BlockHash).collect(),
        ..ask(request, 1_000)
    };
    let first = bench.bind(0, &with(0));
    bench.finish(0, first);
    let mut elsewhere = [0, 0];
    for request in 1..400 {
        let one = with(request);
        let booking = bench.bind(request * 10_000_000, &one);
        bench.finish(request * 10_000_000, booking);
        let arm = bench.router.trial().unwrap().arm(&one);
        elsewhere[usize::from(arm == Arm::Other)] += u32::from(booking.terms.target.0 > 0);
    }
    assert!(elsewhere[0] <= 1 && elsewhere[1] > 100, "{elsewhere:?}");
}

#[test]
fn a_shadow_is_counted_and_changes_nothing() {
    let run = |shadow: Option<Shadow>| {
        let mut bench = Bench::new(3, Policy::default());
        if let Some(shadow) = shadow {
            bench.router = bench.router.with_shadow(shadow);
        }
        let mut targets = Vec::new();
        for request in 0..300 {
            let now_us = request * 400_000;
            let one = Ask {
                blocks: [BlockHash(mixed(request) % 7)].into(),
                ..ask(request, 200 + mixed(request) % 900)
            };
            let booking = bench.bind(now_us, &one);
            targets.push(booking.terms.target);
            if request % 2 == 0 {
                bench.finish(now_us, booking);
            }
        }
        (targets, bench.router.shadow().map(Shadow::compared))
    };
    let (alone, _) = run(None);
    let (beside, compared) = run(Some(Shadow::new(Box::new(BaselineRoundRobin))));
    assert_eq!(beside, alone);
    let compared = compared.unwrap();
    let Compared {
        same,
        better,
        worse,
        ..
    } = compared;
    assert_eq!(same + better + worse, 300, "{compared:?}");
    assert!(better == 0 && worse > 100, "{compared:?}");
    let least = || {
        Box::new(LeastPredictedTtft {
            name: "least_ttft",
            copy_percent: 0,
        })
    };
    let (_, same) = run(Some(Shadow::new(least())));
    assert_eq!(same.unwrap().same, 300, "it is the strategy that is used");
}
