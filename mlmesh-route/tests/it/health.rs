//! Which targets are left out for what was met there, and which attempts are repeated.

use mlmesh_route::{
    Circuit, Evidence, Health, HealthSettings, NoRetry, Progress, Repeatable, RetryBudget, Rule,
    Snapshot, TargetId, mixed, stalled_after_us,
};

use Evidence::{AttemptOk, ConnectFailed, Reset, Stalled, Status5xx};

const FIRST: TargetId = TargetId(0);
const SECOND_US: u64 = 1_000_000;
/// In the middle of what is drawn.
const MIDDLE: u64 = 1 << 63;

/// So many targets, of which the first has met this, a step apart.
fn met(targets: u16, evidence: &[Evidence], step_us: u64) -> (Health, u64) {
    let health = Health::new(targets, HealthSettings::default());
    let mut now_us = 10 * SECOND_US;
    for one in evidence {
        now_us += step_us;
        health.told(FIRST, *one, now_us, MIDDLE);
    }
    (health, now_us)
}

fn usable(health: &Health, now_us: u64, targets: u16) -> Vec<bool> {
    let mut snapshot = Snapshot::of_equals(targets);
    health.apply(now_us, &mut snapshot);
    snapshot
        .targets
        .iter()
        .map(|target| target.usable)
        .collect()
}

#[test]
fn what_opens_a_target_and_what_does_not() {
    let slow = 2 * SECOND_US;
    let table: &[(&[Evidence], u64, Option<Rule>)] = &[
        (&[ConnectFailed; 4], slow, None),
        (&[ConnectFailed; 5], slow, Some(Rule::Breaker)),
        (&[Status5xx; 5], slow, Some(Rule::Breaker)),
        (
            &[Status5xx, ConnectFailed, Status5xx, Status5xx, Status5xx],
            slow,
            Some(Rule::Breaker),
        ),
        (
            &[
                Status5xx, Status5xx, Status5xx, Status5xx, AttemptOk, Status5xx,
            ],
            slow,
            None,
        ),
        // Only the outlier's rule knows of these.
        (&[Reset; 9], slow, None),
        (&[Stalled; 9], slow, None),
        (&[Reset; 3], 1_000, Some(Rule::Outlier)),
        (&[Stalled; 3], 1_000, Some(Rule::Outlier)),
        (&[Stalled, Reset, ConnectFailed], 1_000, Some(Rule::Outlier)),
        (
            &[Reset, AttemptOk, Reset, AttemptOk, Reset],
            1_000,
            Some(Rule::Outlier),
        ),
        (
            &[
                Reset, AttemptOk, AttemptOk, Reset, AttemptOk, AttemptOk, Reset,
            ],
            1_000,
            None,
        ),
        (&[AttemptOk; 50], 1_000, None),
    ];
    for (evidence, step_us, expected) in table {
        let (health, now_us) = met(4, evidence, *step_us);
        let rule = match health.circuit(FIRST) {
            Circuit::Open { rule, until_us } => {
                assert_eq!(until_us, now_us + SECOND_US, "{evidence:?}");
                Some(rule)
            }
            Circuit::Closed => None,
            other @ Circuit::HalfOpen { .. } => panic!("{other:?}"),
        };
        assert_eq!(rule, *expected, "{evidence:?}");
        assert_eq!(usable(&health, now_us, 4)[0], expected.is_none());
    }
}

#[test]
fn it_comes_back_by_two_probes_one_after_the_other() {
    let (health, now_us) = met(2, &[ConnectFailed; 3], 1_000);
    let mut snapshot = Snapshot::of_equals(2);
    assert_eq!(
        health.apply(now_us, &mut snapshot),
        Some(now_us + SECOND_US)
    );
    let now_us = now_us + SECOND_US;
    for _ in 0..2 {
        assert!(usable(&health, now_us, 2)[0], "it may be probed");
        assert!(health.begun(FIRST));
        assert!(!usable(&health, now_us, 2)[0], "by one at a time");
        assert!(!health.begun(FIRST), "nothing new");
        assert!(health.told(FIRST, AttemptOk, now_us, MIDDLE));
    }
    assert_eq!(health.circuit(FIRST), Circuit::Closed);
    assert_eq!(health.away(), 0);
    // It costs more for a while.
    for (later_us, penalty_us) in [(0, 1_000_000), (5, 500_000), (10, 0), (1_000, 0)] {
        let mut snapshot = Snapshot::of_equals(2);
        health.apply(now_us + later_us * SECOND_US, &mut snapshot);
        assert!(snapshot.targets[0].usable);
        assert_eq!(
            snapshot.targets[0].penalty_us, penalty_us,
            "after {later_us} s"
        );
        assert_eq!(snapshot.targets[1].penalty_us, 0);
    }
}

#[test]
fn a_probe_that_fails_doubles_the_time_and_one_that_says_nothing_does_not() {
    let (health, mut now_us) = met(2, &[ConnectFailed; 3], 1_000);
    for open_s in [1, 2, 4, 8, 16, 32, 60, 60] {
        let Circuit::Open { until_us, .. } = health.circuit(FIRST) else {
            panic!("{:?}", health.circuit(FIRST))
        };
        assert_eq!(until_us, now_us + open_s * SECOND_US);
        now_us = until_us;
        usable(&health, now_us, 2);
        assert!(health.begun(FIRST));
        assert!(health.abandoned(FIRST), "somebody else may probe it");
        assert!(health.begun(FIRST));
        health.told(FIRST, Reset, now_us, MIDDLE);
    }
    // Chance moves the end by a fifth at most.
    for (chance, percent) in [(0, 80), (u64::MAX, 120)] {
        let health = Health::new(2, HealthSettings::default());
        for _ in 0..3 {
            health.told(FIRST, Reset, 0, chance);
        }
        let Circuit::Open { until_us, .. } = health.circuit(FIRST) else {
            panic!("it is closed")
        };
        assert_eq!(until_us.div_ceil(10_000), percent);
    }
}

#[test]
fn half_of_all_stay_whatever_they_do() {
    for (targets, away_max) in [(1, 0), (2, 1), (3, 1), (4, 2), (9, 4)] {
        let health = Health::new(targets, HealthSettings::default());
        for target in (0..targets).map(TargetId) {
            for _ in 0..5 {
                health.told(target, ConnectFailed, 1, MIDDLE);
            }
        }
        let unused = usable(&health, 1, targets)
            .iter()
            .filter(|one| !**one)
            .count();
        assert_eq!((unused, health.away()), (away_max, away_max), "{targets}");
        assert!(health.spared() > 0);
    }
}

/// Whatever happens: no more than half are away, and when all goes well they come back.
#[test]
fn random_evidence_ends_well() {
    for seed in 0..50_u64 {
        println!("seed {seed}");
        let targets = 2 + (seed % 7) as u16;
        let health = Health::new(targets, HealthSettings::default());
        let mut chance = seed;
        let mut draw = |below: u64| {
            chance = mixed(chance);
            chance % below
        };
        let mut now_us = 0;
        for _ in 0..2_000 {
            now_us += draw(300_000);
            let target = TargetId(draw(u64::from(targets)) as u16);
            let all = [AttemptOk, ConnectFailed, Status5xx, Reset, Stalled];
            match draw(8) {
                0 => drop(health.begun(target)),
                1 => drop(health.abandoned(target)),
                _ => drop(health.told(target, all[draw(5) as usize], now_us, draw(u64::MAX))),
            }
            usable(&health, now_us, targets);
            assert!(health.away() <= usize::from(targets) / 2);
        }
        for _ in 0..300 {
            now_us += SECOND_US;
            let is_usable = usable(&health, now_us, targets);
            for (target, is_usable) in (0..targets).map(TargetId).zip(is_usable) {
                if is_usable {
                    health.begun(target);
                    health.told(target, AttemptOk, now_us, draw(u64::MAX));
                } else {
                    health.abandoned(target);
                }
            }
        }
        assert_eq!(health.away(), 0);
        assert_eq!(
            usable(&health, now_us, targets),
            vec![true; usize::from(targets)]
        );
    }
}

#[test]
fn only_what_has_not_started_and_does_no_harm_is_made_again() {
    let none = Repeatable::default();
    let idempotent = Repeatable {
        idempotent: true,
        ..none
    };
    let keyed = Repeatable {
        keyed: true,
        ..none
    };
    let hedgeable = Repeatable {
        hedgeable: true,
        ..none
    };
    for one in [none, idempotent, keyed, hedgeable] {
        assert_eq!(one.allows(Progress::Relayed), Err(NoRetry::Started));
        assert_eq!(one.allows(Progress::NotSent), Ok(()));
    }
    assert_eq!(none.allows(Progress::Sent), Err(NoRetry::NotRepeatable));
    for one in [idempotent, keyed, hedgeable] {
        assert_eq!(one.allows(Progress::Sent), Ok(()));
    }
}

#[test]
fn retries_are_a_tenth_of_the_requests_and_some_a_second() {
    let take = |budget: &RetryBudget, now_us| {
        budget.take(now_us, Repeatable::default(), Progress::NotSent)
    };
    let budget = RetryBudget::default();
    let had = (0..100).filter(|_| take(&budget, 0).is_ok()).count();
    assert_eq!(had, 10, "the floor");
    assert_eq!(take(&budget, 0), Err(NoRetry::OverBudget));
    assert_eq!(take(&budget, SECOND_US), Ok(()));
    let mut had = 0;
    for _ in 0..1_000 {
        budget.request();
        had += u32::from(take(&budget, SECOND_US).is_ok());
    }
    assert_eq!(had, 100);
    // What must not be made again costs nothing.
    budget.request();
    for _ in 0..100 {
        let refused = budget.take(2, Repeatable::default(), Progress::Sent);
        assert_eq!(refused, Err(NoRetry::NotRepeatable));
    }
}

#[test]
fn a_target_stalls_after_three_seconds_or_thrice_its_time() {
    for (predicted_us, after_us) in [
        (0, 3_000_000),
        (1_000_000, 3_000_000),
        (1_000_001, 3_000_003),
        (u64::MAX, u64::MAX),
    ] {
        assert_eq!(stalled_after_us(predicted_us), after_us);
    }
}
