//! Whole engines under a router: theory where there is one, and what holds of every run.

use mlmesh_sim::engine::{Cost, Prefill, Profile};
use mlmesh_sim::{
    Comparison, Contender, Fleet, FleetRun, Lengths, Replayed, Row, Scenario, Shared, Slo,
    Telemetry, Trace, compare, half_width, poisson, shared_prefixes,
};

const SEEDS: u64 = 20;
/// Student's t for 99 % and 19 degrees of freedom.
const T_99: f64 = 2.861;
const MEAN_US: u64 = 100_000;

/// Engines that work a microsecond for each token, and on nothing but prompts.
fn prefill_only(count: usize) -> Fleet {
    let profile = Profile {
        prefill: Prefill::Separate,
        slots: 1 << 16,
        batched_tokens_max: 1 << 24,
        memory_blocks: 1 << 31,
        cost: Cost {
            prefill_token_us: 1.0,
            ..Cost::default()
        },
        ..Profile::named("reference").unwrap()
    };
    Fleet {
        engines: vec![profile; count],
        rtt_us: 0,
        telemetry: None,
        slo: Slo::default(),
    }
}

/// Small engines that lack memory, far away, of which little is heard.
fn harsh() -> Fleet {
    let profile = Profile {
        prefill: Prefill::Mixed,
        slots: 12,
        batched_tokens_max: 1_024,
        memory_blocks: 260,
        cached_blocks_max: None,
        cost: Cost {
            iteration_us: 4_000.0,
            sequence_us: 50.0,
            context_token_ns: 100.0,
            prefill_us: 1_000.0,
            prefill_token_us: 50.0,
            prefill_pair_ns: 2.0,
        },
        ..Profile::named("reference").unwrap()
    };
    let slow = profile.slower(3.0);
    Fleet {
        engines: vec![profile.clone(), profile.clone(), profile, slow],
        rtt_us: 3_001,
        telemetry: Some(Telemetry {
            every_us: 50_000,
            age_us: 100_000,
            loss: 0.2,
        }),
        slo: Slo {
            ttft_us: 1_000_000,
            cold_prefills: 2.0,
            tpot_us: Some(30_000),
        },
    }
}

fn requests(seed: u64) -> Trace {
    let shared = Shared {
        requests: 600,
        rate: 40.0,
        prefixes: 12,
        prefix_tokens: 1_024,
        unique_tokens: 200,
        output_tokens: 60,
    };
    shared_prefixes(&shared, seed)
}

fn run(fleet: &Fleet, trace: &Trace, name: &str, seed: u64) -> Replayed {
    let contender = Contender::parse(name).unwrap();
    Fleet::run(FleetRun {
        trace,
        fleet,
        strategy: contender.strategy(0, seed),
        policy: contender.policy(),
        learns: name.contains("learnt"),
        sigma: 0.0,
        seed,
    })
}

fn rows(fleet: Fleet, trace: &Trace, names: &[&str]) -> Vec<Row> {
    let contenders = names.iter().map(|name| Contender::parse(name).unwrap());
    let comparison = Comparison {
        engines: fleet.engines.len() as u16,
        contenders: contenders.collect(),
        seeds: vec![1, 2],
        sigma: 0.0,
        fleet: Some(fleet),
        leave_out_us: 0,
    };
    compare(trace, &comparison).strategies
}

/// Mean waits in terms of the mean service, one for each seed.
fn waits(load: f64, lengths: Lengths, count: usize) -> Vec<f64> {
    let fleet = prefill_only(1);
    let one = |seed| {
        let trace = poisson(count, (MEAN_US as f64 / load) as u64, lengths, seed);
        let replayed = run(&fleet, &trace, "least_work", seed);
        let served = trace.requests.iter().zip(&replayed.served);
        let waited_us =
            served.map(|(request, served)| served.unwrap().ttft_us - request.prompt_tokens.max(1));
        waited_us.sum::<u64>() as f64 / count as f64 / MEAN_US as f64
    };
    (0..SEEDS).map(one).collect()
}

#[test]
fn one_engine_waits_as_theory_says_from_low_to_high_load() {
    let mut before = 0.0;
    for percent in [10, 30, 50, 80, 95] {
        let load = f64::from(percent) / 100.0;
        let count = if percent < 80 { 8_000 } else { 60_000 };
        let constant = waits(load, Lengths::Constant(MEAN_US), count);
        let exponential = waits(load, Lengths::Exponential(MEAN_US), count);
        for (name, waits, theory) in [
            ("M/D/1", &constant, load / (1.0 - load) / 2.0),
            ("M/M/1", &exponential, load / (1.0 - load)),
        ] {
            let mean = waits.iter().sum::<f64>() / waits.len() as f64;
            let half = half_width(waits, T_99);
            assert!(
                (mean - theory).abs() <= half,
                "{name} at {percent} %: {mean} ± {half}, theory {theory}"
            );
        }
        let mean = exponential.iter().sum::<f64>() / SEEDS as f64;
        assert!(mean > before, "waits rise with load: {mean} after {before}");
        before = mean;
    }
}

#[test]
fn every_request_ends_once_and_presence_is_the_sum_of_all_times() {
    let fleet = harsh();
    for seed in 0..10 {
        let trace = requests(seed);
        let mut preempted = 0;
        for name in [
            "baseline_rr",
            "least_ttft",
            "hybrid_mesh",
            "hybrid_mesh+learnt",
        ] {
            let replayed = run(&fleet, &trace, name, seed);
            let served: Vec<_> = replayed.served.iter().flatten().collect();
            assert_eq!(
                served.len() + replayed.refused,
                trace.requests.len(),
                "{name}, seed {seed}"
            );
            preempted += replayed.preempted;
            for one in &served {
                assert!(one.ttft_us >= fleet.rtt_us && one.e2e_us > one.ttft_us);
            }
            // Who is refused is there, too, if it has waited.
            let times: u128 = served.iter().map(|one| u128::from(one.e2e_us)).sum();
            match replayed.refused {
                0 => assert_eq!(replayed.presence_us, times, "{name}, seed {seed}"),
                _ => assert!(replayed.presence_us >= times, "{name}, seed {seed}"),
            }
        }
        assert!(preempted > 0, "seed {seed}: memory is to be short");
    }
}

#[test]
fn nobody_beats_the_floor_and_one_seed_gives_one_answer() {
    let trace = requests(7);
    let names = [
        "floor",
        "baseline_rr",
        "random",
        "least_queue",
        "power_of_two",
        "least_work",
        "block_affinity",
        "prefix_hash",
        "least_ttft",
        "hybrid_mesh",
        "hybrid_mesh+learnt",
    ];
    let all = rows(harsh(), &trace, &names);
    let (floor, others) = all.split_first().unwrap();
    for row in others {
        for (ours, least) in [(&row.ttft_s, &floor.ttft_s), (&row.e2e_s, &floor.e2e_s)] {
            // The floor rounds once, and an engine each pass.
            let slack = 1e-5;
            assert!(ours.mean >= least.mean - slack, "{}", row.strategy);
            assert!(
                ours.p50 >= least.p50 - slack && ours.p99 >= least.p99 - slack,
                "{}",
                row.strategy
            );
        }
        let tpot = [row, floor].map(|row| row.tpot_s.unwrap().mean);
        assert!(tpot[0] >= tpot[1] - 1e-6, "{}: {tpot:?}", row.strategy);
        assert!(row.cached_ratio <= floor.cached_ratio, "{}", row.strategy);
    }
    let text = |rows: &[Row]| serde_json::to_string(rows).unwrap();
    assert_eq!(text(&all), text(&rows(harsh(), &trace, &names)));
    let other = rows(harsh(), &requests(8), &names);
    assert_ne!(text(&all), text(&other));
}

#[test]
fn reports_that_never_come_change_nothing_and_others_do() {
    let trace = requests(3);
    let with = |telemetry: Option<Telemetry>| {
        let mut fleet = harsh();
        fleet.telemetry = telemetry;
        let row = rows(fleet, &trace, &["least_ttft"]);
        serde_json::to_string(&row).unwrap()
    };
    let telemetry = harsh().telemetry.unwrap();
    let lost = Telemetry {
        loss: 1.0,
        ..telemetry
    };
    assert_eq!(with(None), with(Some(lost)));
    assert_ne!(with(None), with(Some(telemetry)));
}

const SCENARIO: &str = "\
schema: mlmesh.sim_scenario/1
name: shared prefixes
engines: 4
profile: reference
slow: [{engine: 3, factor: 3}]
workload:
  shared: {requests: 1500, rate: 100, prefixes: 32, prefix_tokens: 2048, unique_tokens: 256, output_tokens: 32}
strategies: [baseline_rr, hybrid_mesh, floor]
rtt_ms: 0.5
telemetry: {every_ms: 100, age_ms: 100, loss: 0.01}
slo: {ttft_ms: 200, tpot_ms: 20}
seeds: 2
leave_out_s: 4
";

#[test]
fn a_scenario_is_run_as_it_is_written() {
    let scenario = Scenario::read(SCENARIO, "s.yaml").unwrap();
    let profile = Profile::named(&scenario.profile).unwrap();
    let compared = scenario.run(&profile, None);
    // 100 a second for 15 seconds, of which the first four are left out.
    assert!(
        (900..1_300).contains(&compared.requests),
        "{}",
        compared.requests
    );
    let [round_robin, hybrid, floor] = &compared.strategies[..] else {
        panic!("three take part");
    };
    assert!(
        hybrid.ttft_s.p50 < round_robin.ttft_s.p50 / 10.0,
        "{compared:?}"
    );
    assert!(
        hybrid.goodput > 0.9 && round_robin.goodput < 0.5,
        "{compared:?}"
    );
    // 256 tokens at 50 µs and half a millisecond of network.
    assert_eq!(floor.ttft_s.p50, 0.0133);
}

#[test]
fn what_is_wrong_about_a_scenario_is_told_with_its_line() {
    for (from, to, expected) in [
        ("rtt_ms", "rtt", "s.yaml:9: "),
        ("loss: 0.01", "lost: 0.01", "s.yaml:10: "),
        ("hybrid_mesh", "fastest", "s.yaml:8: "),
        ("rate: 100, ", "", "s.yaml:7: "),
        ("engines: 4", "engines: many", "s.yaml:3: "),
        ("sim_scenario/1", "sim_scenario/2", "sim_scenario/2"),
        ("engine: 3", "engine: 4", "`engine` is 4"),
        ("loss: 0.01", "loss: 2", "`loss` is 2"),
        ("prefix_tokens: 2048", "prefix_tokens: 2000", "whole blocks"),
        ("seeds: 2", "seeds: 0", "`seeds` is 0"),
    ] {
        assert!(SCENARIO.contains(from));
        let error = Scenario::read(&SCENARIO.replacen(from, to, 1), "s.yaml").unwrap_err();
        let error = error.to_string();
        assert!(error.contains(expected), "{from} as {to}: {error}");
    }
}
