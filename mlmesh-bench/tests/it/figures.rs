//! Each figure from time stamps made by hand.

use mlmesh_bench::{Fault, Report, Run, Sample, Stamps, Usage};

use crate::client::plan;

/// A request with chunks at these instants.
struct Made<'a> {
    intended_us: u64,
    late_us: u64,
    chunks_us: &'a [u64],
    tokens: Option<u64>,
    fault: Option<Fault>,
}

fn run(made: &[Made<'_>]) -> Run {
    let (mut samples, mut stamps) = (Vec::new(), Stamps::default());
    for (index, made) in made.iter().enumerate() {
        let first = stamps.at_us.len();
        stamps.at_us.extend_from_slice(made.chunks_us);
        stamps.tokens.resize(stamps.at_us.len(), 0);
        let started_us = made.intended_us + made.late_us;
        samples.push(Sample {
            index: index as u64,
            intended_us: made.intended_us,
            started_us,
            sent_us: Some(started_us + 10),
            first_byte_us: made.chunks_us.first().copied(),
            last_byte_us: made.chunks_us.last().map(|last| last + 1000),
            chunks: first..stamps.at_us.len(),
            usage: made.tokens.map(|completion_tokens| Usage {
                prompt_tokens: 100,
                completion_tokens,
                cached_tokens: Some(40),
            }),
            fault: made.fault,
            status: Some(200),
            retry_after_s: None,
            prompt_chars: 400,
            output_tokens_max: 8,
            group: None,
            reused: false,
        });
    }
    Run {
        samples,
        stamps,
        wall_us: 2_000_000,
        cpu_us: 100_000,
        connections: 2,
        waited: 0,
        said: Default::default(),
        interrupted: false,
    }
}

const GOOD: Made<'static> = Made {
    intended_us: 1_000_000,
    late_us: 500,
    chunks_us: &[1_050_000, 1_060_000, 1_080_000],
    tokens: Some(3),
    fault: None,
};

fn near(value: Option<f64>, expected: f64) {
    let value = value.expect("a value");
    assert!(
        (value - expected).abs() < 1e-6,
        "{value} instead of {expected}"
    );
}

#[test]
fn latencies_count_from_the_intended_instant() {
    let report = Report::new(&plan("http://x", 1), None, &run(&[GOOD]));
    let latency = &report.latency_ms;
    near(latency.ttft.mean, 50.0);
    near(latency.ttft_from_sent.mean, 49.49);
    near(latency.e2e.mean, 81.0);
    near(latency.e2e_from_sent.mean, 80.49);
    near(latency.tpot.mean, 15.0);
    near(latency.itl_chunk.mean, 15.0);
    near(latency.itl_chunk.max, 20.0);
    near(latency.itl_token.max, 20.0);
    assert_eq!((latency.itl_chunk.count, latency.itl_token.count), (2, 2));
    assert_eq!(
        (
            latency.itl_token_exact_requests,
            latency.itl_token_spread_requests
        ),
        (1, 0)
    );
    near(report.client.schedule_delay_ms.max, 0.5);
    near(report.client.cpu_us_per_request, 100_000.0);
    near(report.client.cpu_share, 0.05);
    assert!(report.validity.valid);
}

#[test]
fn tokens_between_chunks_are_spread_and_said_so() {
    let chunky = Made {
        tokens: Some(6),
        ..GOOD
    };
    let report = Report::new(&plan("http://x", 1), None, &run(&[chunky]));
    let latency = &report.latency_ms;
    near(latency.tpot.mean, 6.0);
    assert_eq!(latency.itl_chunk.count, 2);
    assert_eq!(latency.itl_token.count, 4, "two tokens in each later chunk");
    near(latency.itl_token.min, 5.0);
    near(latency.itl_token.max, 10.0);
    assert_eq!(
        (
            latency.itl_token_exact_requests,
            latency.itl_token_spread_requests
        ),
        (0, 1)
    );
}

#[test]
fn tokens_that_the_engine_counts_each_chunk_are_taken() {
    let mut run = run(&[Made {
        tokens: Some(6),
        ..GOOD
    }]);
    run.stamps.tokens = vec![1, 2, 6];
    let report = Report::new(&plan("http://x", 1), None, &run);
    let latency = &report.latency_ms;
    assert_eq!(latency.itl_token.count, 5);
    near(latency.itl_token.max, 10.0);
    near(latency.itl_token.min, 5.0);
    assert_eq!(latency.itl_token_exact_requests, 1);
}

#[test]
fn without_usage_there_is_no_token_figure() {
    let silent = Made {
        tokens: None,
        ..GOOD
    };
    let slo = "tpot=1s".parse().unwrap();
    let report = Report::new(&plan("http://x", 1), Some(slo), &run(&[GOOD, silent]));
    assert_eq!(
        (
            report.tokens.prompt,
            report.tokens.completion,
            report.tokens.cached
        ),
        (None, None, None)
    );
    assert_eq!(report.throughput.output_tokens_per_s, None);
    assert!(report.tokens.absent.is_some());
    assert_eq!(
        report.latency_ms.tpot.count, 1,
        "of the one that was counted"
    );
    let goodput = report.goodput.unwrap();
    assert!(goodput.good.is_none() && goodput.absent.is_some());
}

#[test]
fn goodput_counts_faults_and_bounds_are_reached_at_their_value() {
    let failed = Made {
        chunks_us: &[],
        tokens: None,
        fault: Some(Fault::Status(500)),
        ..GOOD
    };
    for (slo, good) in [
        ("ttft=50ms", 1),
        ("ttft=49ms", 0),
        ("tpot=15ms", 1),
        ("tpot=14ms", 0),
        ("e2e=81ms", 1),
        ("e2e=80ms", 0),
        ("ttft=1s,tpot=1s,e2e=1ms", 0),
    ] {
        let slo = Some(slo.parse().unwrap());
        let report = Report::new(
            &plan("http://x", 1),
            slo,
            &run(&[GOOD, failed_copy(&failed)]),
        );
        let goodput = report.goodput.unwrap();
        assert_eq!(goodput.good, Some(good), "{slo:?}");
        near(goodput.share, good as f64 / 2.0);
    }
}

#[test]
fn an_answer_of_one_token_has_no_time_per_token_and_one_without_text_no_first() {
    let (single, silent) = (
        Made {
            chunks_us: &[1_050_000],
            tokens: Some(1),
            ..GOOD
        },
        Made {
            chunks_us: &[],
            tokens: Some(1),
            ..GOOD
        },
    );
    for (slo, good) in [("tpot=1us", 2), ("ttft=1s", 1)] {
        let run = run(&[failed_copy(&single), failed_copy(&silent)]);
        let report = Report::new(&plan("http://x", 1), Some(slo.parse().unwrap()), &run);
        assert_eq!(report.goodput.unwrap().good, Some(good), "{slo}");
        assert_eq!(report.latency_ms.tpot.count, 0);
        assert_eq!(report.latency_ms.ttft.count, 1);
    }
}

fn failed_copy(made: &Made<'static>) -> Made<'static> {
    Made {
        chunks_us: made.chunks_us,
        ..*made
    }
}

#[test]
fn the_warm_up_is_in_no_figure_and_the_window_begins_behind_it() {
    let cold = Made {
        intended_us: 0,
        late_us: 0,
        chunks_us: &[900_000],
        tokens: Some(1),
        fault: None,
    };
    let mut plan = plan("http://x", 2);
    plan.warmup_us = 1_000_000;
    let report = Report::new(&plan, None, &run(&[cold, GOOD]));
    assert_eq!(
        (
            report.counts.requests,
            report.counts.warmup,
            report.counts.counted
        ),
        (2, 1, 1)
    );
    near(report.latency_ms.ttft.max, 50.0);
    near(Some(report.throughput.window_s), 0.081);
    near(report.throughput.requests_per_s, 1.0 / 0.081);
    near(report.throughput.output_tokens_per_s, 3.0 / 0.081);
    assert_eq!(report.tokens.completion, Some(3));
}

#[test]
fn a_late_client_is_said_to_be_the_bottleneck() {
    let late = Made {
        late_us: 10_500,
        ..GOOD
    };
    let report = Report::new(&plan("http://x", 1), None, &run(&[late]));
    assert!(!report.validity.valid);
    assert!(
        report.validity.reasons[0].contains("10.5 ms"),
        "{:?}",
        report.validity.reasons
    );
}
