//! What targets report changes where requests go, as long as it can be believed.

use std::sync::Arc;

use mlmesh_route::fusion::{
    Cause, Fusion, KINDS, Kind, Lie, Missing, Own, Reading, Report, Standing, Term,
};
use mlmesh_route::{Outcome, Policy, Snapshot, TargetId, mixed};

use crate::plain::{Bench, ask, late};

const SECOND_US: u64 = 1_000_000;
/// When the second of two reports is there.
const NOW_US: u64 = 10 * SECOND_US;
const WORSE: TargetId = TargetId(0);
const OTHER: TargetId = TargetId(1);

fn report(at_us: u64, own: Own, readings: Vec<(Kind, Reading)>) -> Report {
    Report {
        source: Arc::from("test"),
        at_us,
        delay_us: 0,
        own,
        readings,
        missing: Vec::new(),
    }
}

/// A value as two readings, three seconds apart, between which it is what is now, how
/// much a second, or how many seconds each.
fn readings(kind: Kind, value: f64) -> [(Kind, Reading); 2] {
    use Kind::*;
    let (first, second) = match kind {
        PromptTokens | CachedTokens | GeneratedTokens | Preemptions | Done | Failed
        | PrefillSeconds | GpuEnergy | GpuUncorrectable | GpuReplays => {
            (Reading::Total(7.0), Reading::Total(7.0 + 3.0 * value))
        }
        FirstToken | BetweenTokens | EndToEnd | Queued => {
            let timing = |seconds, count| Reading::Timing { seconds, count };
            (timing(1.0, 5.0), timing(1.0 + 10.0 * value, 15.0))
        }
        _ => (Reading::Now(value), Reading::Now(value)),
    };
    [(kind, first), (kind, second)]
}

fn tell(fusion: &mut Fusion, target: TargetId, own: Own, values: &[(Kind, f64)]) {
    for (place, at_us) in [NOW_US - 3 * SECOND_US, NOW_US].into_iter().enumerate() {
        let values = values.iter();
        let told = values.map(|(kind, value)| readings(*kind, *value)[place]);
        let noted = fusion.take(target, &report(at_us, own, told.collect()));
        assert_eq!(noted.refused, 0);
    }
}

/// Where a request goes.
fn chosen(snapshot: Snapshot) -> TargetId {
    let mut bench = Bench::new(2, Policy::default());
    bench.snapshot = snapshot;
    bench.bind(NOW_US, &ask(1, 100)).terms.target
}

struct Row {
    kind: Kind,
    /// What both targets say beside it.
    beside: &'static [(Kind, f64)],
    own: Own,
    good: f64,
    bad: f64,
}

const NOTHING: Own = Own {
    in_flight: 0,
    backlog_us: 0,
    pace_us: None,
    prompt_tokens: None,
};
const PACED: Own = Own {
    pace_us: Some(100_000),
    ..NOTHING
};
const TOKENS: Own = Own {
    prompt_tokens: Some(1_000),
    ..NOTHING
};

fn row(kind: Kind, good: f64, bad: f64) -> Row {
    beside(kind, good, bad, NOTHING, &[])
}

fn beside(kind: Kind, good: f64, bad: f64, own: Own, beside: &'static [(Kind, f64)]) -> Row {
    Row {
        kind,
        beside,
        own,
        good,
        bad,
    }
}

fn rows() -> Vec<Row> {
    use Kind::*;
    vec![
        beside(Waiting, 0.0, 3.0, PACED, &[]),
        beside(Running, 0.0, 4.0, NOTHING, &[(BetweenTokens, 0.05)]),
        row(KvUsage, 0.5, 0.97),
        beside(
            PromptTokens,
            10_000.0,
            500.0,
            TOKENS,
            &[(Waiting, 4.0), (PrefillSeconds, 0.5)],
        ),
        beside(
            CachedTokens,
            0.0,
            900.0,
            TOKENS,
            &[
                (Waiting, 4.0),
                (PrefillSeconds, 0.5),
                (PromptTokens, 1_000.0),
            ],
        ),
        beside(GeneratedTokens, 400.0, 8.0, NOTHING, &[(Running, 4.0)]),
        row(Preemptions, 0.0, 2.0),
        beside(
            Done,
            10.0,
            1.0,
            NOTHING,
            &[(Waiting, 4.0), (PrefillSeconds, 0.5)],
        ),
        beside(Failed, 0.0, 5.0, NOTHING, &[(Done, 10.0)]),
        beside(FirstToken, 0.05, 0.5, NOTHING, &[(Waiting, 4.0)]),
        beside(BetweenTokens, 0.01, 0.1, NOTHING, &[(Running, 4.0)]),
        beside(EndToEnd, 0.05, 0.5, NOTHING, &[(Waiting, 4.0)]),
        row(Queued, 0.01, 0.4),
        beside(
            PrefillSeconds,
            0.1,
            0.8,
            NOTHING,
            &[(Waiting, 4.0), (Done, 10.0)],
        ),
        beside(
            GpuUsage,
            0.0,
            0.9,
            NOTHING,
            &[(Waiting, 0.0), (Running, 0.0)],
        ),
        beside(GpuMemoryUsed, 9e9, 2e11, NOTHING, &[(GpuMemoryFree, 1e9)]),
        beside(GpuMemoryFree, 1e10, 1e8, NOTHING, &[(GpuMemoryUsed, 1e11)]),
        row(GpuTemperature, 60.0, 90.0),
        row(GpuTemperature, 60.0, 96.0),
        row(GpuThermalSlowdown, 0.0, 1.0),
        row(GpuPowerBrake, 0.0, 1.0),
        row(GpuPower, 300.0, 700.0),
        row(GpuEnergy, 300.0, 700.0),
        row(GpuXid, 0.0, 79.0),
        row(GpuXid, 13.0, 48.0),
        row(GpuUncorrectable, 0.0, 1.0),
        row(GpuReplays, 0.0, 50.0),
        row(GpuReplays, 0.0, 200.0),
        row(RoundTrip, 0.0001, 0.02),
        row(Unreachable, 0.0, 1.0),
        row(Unreachable, 0.0, 2.0),
    ]
}

#[test]
fn each_kind_of_signal_changes_a_decision() {
    let rows = rows();
    let covered: std::collections::BTreeSet<Kind> = rows.iter().map(|row| row.kind).collect();
    assert_eq!(covered.len(), KINDS, "{covered:?}");
    for Row {
        kind,
        beside,
        own,
        good,
        bad,
    } in rows
    {
        let with = |value: f64| {
            let mut fusion = Fusion::new(2);
            for (target, value) in [(WORSE, value), (OTHER, good)] {
                let values: Vec<(Kind, f64)> =
                    beside.iter().copied().chain([(kind, value)]).collect();
                tell(&mut fusion, target, own, &values);
            }
            let (snapshot, facts) = fusion.snapshot(NOW_US);
            (chosen(snapshot), facts)
        };
        assert_eq!(with(good).0, WORSE, "{kind:?} {good}: two equals");
        let (target, facts) = with(bad);
        assert_eq!(target, OTHER, "{kind:?} {bad}: {:?}", facts[0]);
        // What is too old changes nothing, unless something happened.
        let mut fusion = Fusion::new(2);
        let values: Vec<(Kind, f64)> = beside.iter().copied().chain([(kind, bad)]).collect();
        tell(&mut fusion, WORSE, own, &values);
        let late_us = NOW_US + 3_600 * SECOND_US;
        let (snapshot, facts) = fusion.snapshot(late_us);
        if facts[0].standing == Standing::Good {
            let target = &snapshot.targets[0];
            let none = (
                target.rtt_us,
                target.penalty_us,
                target.foreign_us,
                target.decode_us,
            );
            assert_eq!(none, (0, 0, 0, 0), "{kind:?} after an hour");
            assert_eq!(chosen(snapshot), WORSE, "{kind:?} after an hour");
        }
    }
}

#[test]
fn what_we_have_there_ourselves_is_not_the_load_of_others() {
    let loaded = |in_flight: u32| {
        let mut fusion = Fusion::new(1);
        let own = Own { in_flight, ..PACED };
        let said = [(Kind::Waiting, 6.0), (Kind::Running, 4.0)];
        tell(&mut fusion, WORSE, own, &said);
        let target = fusion.snapshot(NOW_US).0.targets[0];
        (target.foreign, target.foreign_us)
    };
    assert_eq!(loaded(0), (10, 600_000));
    assert_eq!(loaded(5), (5, 300_000));
    assert_eq!(loaded(10), (0, 0));
    // What was sent meanwhile is not there yet.
    assert_eq!(loaded(12), (0, 0));
}

#[test]
fn others_load_makes_a_request_wait_here() {
    let mut fusion = Fusion::new(1);
    tell(&mut fusion, WORSE, PACED, &[(Kind::Waiting, 8.0)]);
    let mut bench = Bench::new(1, late());
    assert!(matches!(
        bench.offer(NOW_US, &ask(1, 100)),
        Outcome::Bind(_)
    ));
    bench.snapshot = fusion.snapshot(NOW_US).0;
    let outcome = bench.offer(NOW_US, &ask(2, 100));
    assert!(matches!(outcome, Outcome::Wait { .. }), "{outcome:?}");
}

#[test]
fn a_value_loses_weight_and_its_source_is_late_by_what_it_says() {
    let mut fusion = Fusion::new(1);
    tell(&mut fusion, WORSE, PACED, &[(Kind::Waiting, 8.0)]);
    let foreign_us = |fusion: &mut Fusion, seconds| {
        fusion.snapshot(NOW_US + seconds * SECOND_US).0.targets[0].foreign_us
    };
    assert_eq!(foreign_us(&mut fusion, 0), 800_000);
    assert_eq!(foreign_us(&mut fusion, 2), 400_000);
    assert_eq!(foreign_us(&mut fusion, 4), 200_000);
    assert_eq!(foreign_us(&mut fusion, 11), 0);
    let hot = Report {
        delay_us: 30 * SECOND_US,
        ..report(
            NOW_US,
            NOTHING,
            vec![(Kind::GpuTemperature, Reading::Now(90.0))],
        )
    };
    fusion.take(WORSE, &hot);
    let (_, facts) = fusion.snapshot(NOW_US);
    let fact = &facts[0].facts[Kind::GpuTemperature as usize];
    assert_eq!((fact.age_us, fact.value), (30 * SECOND_US, Some(90.0)));
    assert!(fact.weight < 1.0);
}

#[test]
fn an_engine_that_lies_is_not_believed_and_counted() {
    for (value, lie) in [
        (f64::NAN, Lie::NotANumber),
        (-1.0, Lie::Negative),
        (f64::NEG_INFINITY, Lie::Negative),
        (1e300, Lie::TooLarge),
        (f64::INFINITY, Lie::TooLarge),
    ] {
        for kind in Kind::ALL {
            let mut fusion = Fusion::new(1);
            let [_, (_, reading)] = readings(kind, 0.0);
            let reading = match reading {
                Reading::Now(_) => Reading::Now(value),
                Reading::Total(_) => Reading::Total(value),
                Reading::Timing { .. } => Reading::Timing {
                    seconds: 1.0,
                    count: value,
                },
            };
            let noted = fusion.take(WORSE, &report(NOW_US, PACED, vec![(kind, reading)]));
            assert_eq!(noted.refused, 1, "{kind:?} {value}");
            let (snapshot, facts) = fusion.snapshot(NOW_US);
            let fact = &facts[0].facts[kind as usize];
            assert_eq!(fact.lies[lie as usize], 1, "{kind:?} {value}");
            assert_eq!(fact.value, None);
            let reason = fact.missing.as_ref().unwrap();
            assert_eq!((reason.word, &*reason.text), ("refused", lie.name()));
            assert!(snapshot.targets[0].usable);
        }
    }
    // A form that the kind has not.
    let mut fusion = Fusion::new(1);
    let told = vec![(Kind::Waiting, Reading::Total(1.0))];
    assert_eq!(fusion.take(WORSE, &report(0, PACED, told)).refused, 1);
}

#[test]
fn whatever_is_told_what_comes_out_can_be() {
    let seed = 17_u64;
    println!("seed {seed}");
    let mut state = seed;
    let mut next = || {
        state = mixed(state.wrapping_add(1));
        state
    };
    let mut fusion = Fusion::new(4);
    let mut now_us = 0;
    for _ in 0..20_000 {
        now_us += next() % (2 * SECOND_US);
        let kind = Kind::ALL[(next() % KINDS as u64) as usize];
        // Any bits, or a number of a plausible size.
        let mut number = || match next() % 2 {
            0 => f64::from_bits(next()),
            _ => (next() % 1_000_000) as f64 / 10_f64.powi((next() % 8) as i32),
        };
        let reading = match readings(kind, 0.0)[0].1 {
            Reading::Now(_) => Reading::Now(number()),
            Reading::Total(_) => Reading::Total(number()),
            Reading::Timing { .. } => Reading::Timing {
                seconds: number(),
                count: number(),
            },
        };
        let own = Own {
            in_flight: next() as u32,
            backlog_us: next(),
            pace_us: Some(next()),
            prompt_tokens: Some(next()),
        };
        let target = TargetId((next() % 4) as u16);
        fusion.take(target, &report(now_us, own, vec![(kind, reading)]));
        let (snapshot, facts) = fusion.snapshot(now_us);
        let usable = snapshot.targets.iter().filter(|target| target.usable);
        assert!(usable.count() >= 2, "half of them stay");
        for (target, facts) in snapshot.targets.iter().zip(facts) {
            let minute_us = 60 * SECOND_US;
            for us in [target.rtt_us, target.foreign_us, target.decode_us] {
                assert!(us <= minute_us);
            }
            assert!(target.foreign <= 1_000_000);
            let penalties: u64 = facts.penalties.iter().map(|(_, us)| us).sum();
            assert_eq!(target.penalty_us, penalties);
            for fact in facts.facts {
                assert!(fact.value.is_none_or(f64::is_finite), "{fact:?}");
                assert!((0.0..=1.0).contains(&fact.weight), "{fact:?}");
            }
        }
    }
}

#[test]
fn quarantine_ends_in_probation_and_spares_half() {
    let mut fusion = Fusion::new(2);
    let heat = |fusion: &mut Fusion, target, seconds, degrees| {
        let told = vec![(Kind::GpuTemperature, Reading::Now(degrees))];
        fusion.take(target, &report(seconds * SECOND_US, NOTHING, told));
        fusion.snapshot(seconds * SECOND_US)
    };
    let (snapshot, facts) = heat(&mut fusion, OTHER, 1, 96.0);
    assert!(!snapshot.targets[1].usable);
    assert!(matches!(
        facts[1].standing,
        Standing::Quarantined {
            cause: Cause::Thermal,
            ..
        }
    ));
    // Not cool enough yet.
    assert!(!heat(&mut fusion, OTHER, 20, 91.0).0.targets[1].usable);
    // The other one would leave nobody, and is not worse.
    let (snapshot, facts) = heat(&mut fusion, WORSE, 21, 97.0);
    assert!(snapshot.targets[0].usable && facts[0].is_spared);
    assert!(
        facts[0]
            .penalties
            .iter()
            .any(|(term, _)| *term == Term::Spared)
    );
    assert!(!snapshot.targets[1].usable);
    heat(&mut fusion, WORSE, 22, 60.0);
    let (snapshot, facts) = heat(&mut fusion, OTHER, 40, 80.0);
    assert!(snapshot.targets[1].usable, "{:?}", facts[1].standing);
    assert!(snapshot.targets[1].penalty_us > 0, "on probation");
    assert_eq!(chosen(snapshot), WORSE);
}

#[test]
fn totals_that_go_back_are_another_process() {
    let mut fusion = Fusion::new(1);
    let mut told = |seconds, total| {
        let told = vec![(Kind::Done, Reading::Total(total))];
        let noted = fusion.take(WORSE, &report(seconds * SECOND_US, NOTHING, told));
        let (_, facts) = fusion.snapshot(seconds * SECOND_US);
        (noted.restarted, facts[0].facts[Kind::Done as usize].value)
    };
    assert_eq!(told(1, 100.0), (false, None));
    assert_eq!(told(2, 110.0), (false, Some(10.0)));
    assert_eq!(told(3, 4.0), (true, None));
    assert_eq!(told(4, 9.0), (false, Some(5.0)));
}

#[test]
fn a_signal_that_is_missing_is_missing_with_its_reason() {
    let mut fusion = Fusion::new(1);
    let mut page = report(0, NOTHING, vec![(Kind::Waiting, Reading::Now(1.0))]);
    let none = |text: &str| Missing {
        word: "not_offered",
        text: Arc::from(text),
    };
    page.missing = vec![(Kind::KvUsage, none("it does not say"))];
    fusion.take(WORSE, &page);
    let (_, facts) = fusion.snapshot(0);
    let fact = |kind: Kind| &facts[0].facts[kind as usize];
    assert_eq!(fact(Kind::KvUsage).missing, Some(none("it does not say")));
    assert_eq!(fact(Kind::KvUsage).value, None);
    assert_eq!(fact(Kind::Waiting).value, Some(1.0));
    assert_eq!(fact(Kind::Waiting).source.as_deref(), Some("test"));
    // Another source that has none takes nothing away.
    let mut other = report(SECOND_US, NOTHING, Vec::new());
    other.source = Arc::from("other");
    other.missing = vec![(Kind::Waiting, none("it does not, either"))];
    fusion.take(WORSE, &other);
    let (_, facts) = fusion.snapshot(SECOND_US);
    assert_eq!(facts[0].facts[Kind::Waiting as usize].missing, None);
}
