//! The simulator against queueing theory, and what holds of every queue.
//!
//! The router is part of what is checked: a queue in front of several engines is the
//! router's own, or engines of which it knows who is free first.

use mlmesh_route::{LeastWork, Policy};
use mlmesh_sim::{
    Contender, Lengths, Replay, Replayed, Service, Trace, half_width, poisson, replay,
};

use crate::trace::mooncake;

const SEEDS: u64 = 20;
/// Student's t for 99 % and 19 degrees of freedom.
const T_99: f64 = 2.861;
const MEAN_US: u64 = 100_000;

fn run(trace: &Trace, engines: u16, policy: Policy, seed: u64) -> Replayed {
    replay(Replay {
        trace,
        engines,
        service: Service::MicrosecondAToken,
        cache_blocks: 0,
        strategy: Box::new(LeastWork),
        policy,
        learns: false,
        sigma: 0.0,
        seed,
    })
}

/// Mean waits in terms of the mean service, one for each seed.
fn waits(engines: u16, load: f64, lengths: Lengths, count: usize, policy: Policy) -> Vec<f64> {
    let gap_us = (MEAN_US as f64 / load / f64::from(engines)) as u64;
    let one = |seed| {
        let trace = poisson(count, gap_us, lengths, seed);
        let replayed = run(&trace, engines, policy, seed);
        let waited_us = trace
            .requests
            .iter()
            .zip(&replayed.served)
            .map(|(request, served)| served.unwrap().ttft_us - request.prompt_tokens);
        waited_us.sum::<u64>() as f64 / count as f64 / MEAN_US as f64
    };
    (0..SEEDS).map(one).collect()
}

/// The probability that all are busy, times the mean wait of who then waits (Erlang C).
fn erlang_wait(engines: u16, load: f64) -> f64 {
    let offered = f64::from(engines) * load;
    let mut blocked = 1.0;
    for busy in 1..=engines {
        blocked = offered * blocked / (f64::from(busy) + offered * blocked);
    }
    let waits = blocked / (1.0 - load * (1.0 - blocked));
    waits / (f64::from(engines) * (1.0 - load))
}

fn agrees(name: &str, waits: &[f64], theory: f64, part: f64) {
    let mean = waits.iter().sum::<f64>() / waits.len() as f64;
    let half = half_width(waits, T_99);
    assert!(
        (mean - theory).abs() <= half,
        "{name}: {mean} ± {half}, theory {theory}"
    );
    assert!(
        (mean / theory - 1.0).abs() <= part,
        "{name}: {mean}, theory {theory}"
    );
}

#[test]
fn one_engine_with_exponential_times_waits_as_theory_says() {
    for (load, count) in [(0.5, 15_000), (0.8, 60_000)] {
        let lengths = Lengths::Exponential(MEAN_US);
        let waits = waits(1, load, lengths, count, Policy::default());
        agrees(
            &format!("M/M/1 at {load}"),
            &waits,
            load / (1.0 - load),
            0.02,
        );
    }
}

#[test]
fn one_engine_with_constant_times_waits_half_as_long() {
    for (load, count) in [(0.5, 8_000), (0.8, 30_000)] {
        let lengths = Lengths::Constant(MEAN_US);
        let waits = waits(1, load, lengths, count, Policy::default());
        agrees(
            &format!("M/D/1 at {load}"),
            &waits,
            load / (1.0 - load) / 2.0,
            0.02,
        );
    }
}

#[test]
fn four_engines_wait_as_theory_says_with_either_queue() {
    let central = Contender::parse("least_work+fifo").unwrap().policy();
    for (load, count) in [(0.5, 30_000), (0.8, 30_000)] {
        for (name, policy) in [("immediate", Policy::default()), ("late", central)] {
            let lengths = Lengths::Exponential(MEAN_US);
            let waits = waits(4, load, lengths, count, policy);
            let name = format!("M/M/4 at {load}, {name}");
            agrees(&name, &waits, erlang_wait(4, load), 0.02);
        }
    }
}

#[test]
fn waits_follow_theory_over_the_whole_range_of_load() {
    let mut before = 0.0;
    for percent in [10, 20, 30, 40, 50, 60, 70, 80, 90, 95] {
        let load = f64::from(percent) / 100.0;
        let lengths = Lengths::Exponential(MEAN_US);
        let waits = waits(1, load, lengths, 4_000, Policy::default());
        agrees(&format!("{percent} %"), &waits, load / (1.0 - load), 0.5);
        let mean = waits.iter().sum::<f64>() / SEEDS as f64;
        assert!(mean > before, "more load, longer waits");
        before = mean;
    }
}

/// Whoever is there is there because of one request, whose time counts once.
#[test]
fn presence_is_the_sum_of_all_times() {
    for engines in [1, 3] {
        let trace = poisson(20_000, 40_000, Lengths::Exponential(MEAN_US), 7);
        let replayed = run(&trace, engines, Policy::default(), 7);
        let times = replayed
            .served
            .iter()
            .map(|served| u128::from(served.unwrap().ttft_us));
        assert_eq!(replayed.presence_us, times.sum::<u128>(), "Little's law");
    }
}

#[test]
fn every_request_ends_once_and_work_is_neither_lost_nor_made() {
    let names = [
        "random",
        "prefix_hash",
        "least_ttft+refuse",
        "least_work+fifo",
        "hybrid_mesh",
    ];
    for name in names {
        let contender = Contender::parse(name).unwrap();
        let replayed = replay(Replay {
            trace: mooncake(),
            engines: 12,
            service: Service::Reference,
            cache_blocks: 1_000,
            strategy: contender.strategy(1, 3),
            policy: contender.policy(),
            learns: false,
            sigma: 0.3,
            seed: 3,
        });
        let served = replayed.served.iter().flatten().count();
        assert_eq!(
            served + replayed.refused,
            mooncake().requests.len(),
            "{name}"
        );
        let refuses = name.ends_with("refuse") || name == "hybrid_mesh";
        assert_eq!(replayed.refused > 0, refuses, "{name}");
        let mut work = [0; 12];
        for (request, served) in mooncake().requests.iter().zip(&replayed.served) {
            if let Some(one) = served {
                let cost_us = mlmesh_sim::prefill_us(request.prompt_tokens, one.cached_tokens);
                work[usize::from(one.engine)] += cost_us;
                assert!(one.ttft_us >= cost_us, "{name}: before it was worked on");
            }
        }
        assert_eq!(work.as_slice(), replayed.busy_us, "{name}");
    }
}
