//! Each adapter reads a page of its runtime, and says what it does not find.

use std::collections::BTreeSet;

use mlmesh_telemetry::adapter::{Figure, Missing, Signal, adapter, adapters, recognised};
use mlmesh_telemetry::exposition::Page;

fn page(runtime: &str) -> String {
    let path = format!("{}/tests/pages/{runtime}.txt", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

fn timing(seconds: f64, count: f64) -> Figure {
    Figure::Timing { seconds, count }
}

#[test]
fn each_signal_is_there_or_is_absent_for_a_reason() {
    let names: BTreeSet<&str> = adapters().iter().map(|it| it.runtime.as_str()).collect();
    assert_eq!(names.len(), 11, "{names:?}");
    for adapter in adapters() {
        for signal in Signal::ALL {
            let known = adapter.signals.contains_key(&signal);
            let absent = adapter.absent.get(&signal);
            let expected = signal.about() == adapter.about;
            let place = (&adapter.runtime, signal);
            assert_eq!(known || absent.is_some(), expected, "{place:?}");
            assert!(!(known && absent.is_some()), "{place:?}");
            assert!(absent.is_none_or(|reason| reason.len() > 10), "{place:?}");
        }
    }
}

#[test]
fn each_page_is_read_by_the_adapter_that_recognises_it() {
    use Figure::{Now, Total};
    use Signal::*;
    for (runtime, subject, expected) in [
        (
            "vllm",
            "tiny",
            &[
                (Waiting, Now(7.0)),
                (Running, Now(5.0)),
                (KvUsage, Now(0.75)),
                (PromptTokens, Total(1200.0)),
                (CachedTokens, Total(400.0)),
                (GeneratedTokens, Total(640.0)),
                (Preemptions, Total(1.0)),
                (Done, Total(20.0)),
                (FirstToken, timing(0.5, 20.0)),
                (BetweenTokens, timing(1.86, 620.0)),
                (PrefillSeconds, Total(0.25)),
            ][..],
        ),
        (
            "sglang",
            "tiny",
            &[
                (Waiting, Now(5.0)),
                (Running, Now(2.0)),
                (KvUsage, Now(0.5)),
                (PromptTokens, Total(90.0)),
                (CachedTokens, Total(30.0)),
                (Queued, timing(1.5, 3.0)),
            ],
        ),
        (
            "llama_cpp",
            "",
            &[
                (Waiting, Now(2.0)),
                (Running, Now(1.0)),
                (PromptTokens, Total(812.0)),
                (GeneratedTokens, Total(64.0)),
                (PrefillSeconds, Total(0.406)),
            ],
        ),
        (
            "triton",
            "echo",
            &[
                (Waiting, Now(3.0)),
                (Done, Total(5.0)),
                (Failed, Total(2.0)),
                (EndToEnd, timing(0.01, 5.0)),
                (Queued, timing(0.0005, 5.0)),
            ],
        ),
        ("triton", "other", &[(Waiting, Now(0.0))]),
        (
            "tgi",
            "",
            &[
                (Waiting, Now(4.0)),
                (Running, Now(8.0)),
                (GeneratedTokens, Total(240.0)),
                (Done, Total(12.0)),
                (EndToEnd, timing(6.0, 12.0)),
            ],
        ),
        (
            "ovms",
            "resnet",
            &[
                (Running, Now(3.0)),
                (Done, Total(8.0)),
                (EndToEnd, timing(4.0, 8.0)),
            ],
        ),
        (
            "torchserve",
            "mnist",
            &[
                (Done, Total(4.0)),
                (EndToEnd, timing(0.002, 4.0)),
                (Queued, timing(0.0004, 4.0)),
            ],
        ),
        (
            "tf_serving",
            "half",
            &[(Done, Total(9.0)), (EndToEnd, timing(0.0045, 9.0))],
        ),
        (
            "mlserver",
            "iris",
            &[
                (Done, Total(6.0)),
                (Failed, Total(1.0)),
                (EndToEnd, timing(0.03, 6.0)),
            ],
        ),
        ("mlserver", "", &[(Running, Now(2.0))]),
        (
            "dcgm_exporter",
            "GPU-0a",
            &[
                (GpuUsage, Now(0.87)),
                (GpuMemoryUsed, Now(1_073_741_824.0)),
                (GpuMemoryFree, Now(2_147_483_648.0)),
                (GpuTemperature, Now(61.0)),
                (GpuThermalSlowdown, Now(1.0)),
                (GpuPowerBrake, Now(0.0)),
                (GpuPower, Now(412.5)),
                (GpuEnergy, Total(5.0)),
                (GpuXid, Now(79.0)),
                (GpuUncorrectable, Total(0.0)),
            ],
        ),
        ("dcgm_exporter", "GPU-1b", &[(GpuTemperature, Now(33.0))]),
        (
            "amd_exporter",
            "0",
            &[
                (GpuUsage, Now(0.5)),
                (GpuMemoryUsed, Now(536_870_912.0)),
                (GpuTemperature, Now(71.0)),
                (GpuPower, Now(300.0)),
                (GpuUncorrectable, Total(1.0)),
            ],
        ),
    ] {
        let text = page(runtime);
        let page = Page::read(&text).unwrap();
        assert_eq!(page.defects, 0, "{runtime}");
        let adapter = recognised(&page).unwrap();
        assert_eq!(adapter.runtime, runtime);
        let state = adapter.state(&page);
        let figures: Vec<(Signal, Figure)> = state.figures[subject]
            .iter()
            .map(|(signal, figure)| (*signal, rounded(*figure)))
            .collect();
        assert_eq!(figures, expected, "{runtime}");
    }
}

/// Without what a scale leaves behind.
fn rounded(figure: Figure) -> Figure {
    let nine = |number: f64| (number * 1e9).round() / 1e9;
    match figure {
        Figure::Now(number) => Figure::Now(nine(number)),
        Figure::Total(number) => Figure::Total(nine(number)),
        Figure::Timing { seconds, count } => timing(nine(seconds), count),
    }
}

#[test]
fn what_is_missing_has_a_reason_and_is_never_a_number() {
    let text = "vllm:num_requests_waiting{model_name=\"a\"} NaN\n\
                vllm:num_requests_running{model_name=\"a\"} -1\n\
                vllm:num_requests_running{model_name=\"b\"} 1\n\
                vllm:time_to_first_token_seconds_sum{model_name=\"a\"} 1\n";
    let page = Page::read(text).unwrap();
    let vllm = adapter("vllm").unwrap();
    let state = vllm.state(&page);
    assert!(state.figures.is_empty(), "{state:?}");
    let said = |signal: Signal| state.missing[&signal].to_string();
    assert_eq!(said(Signal::Waiting), "`vllm:num_requests_waiting` is NaN");
    assert_eq!(said(Signal::Running), "`vllm:num_requests_running` is -1");
    assert!(said(Signal::KvUsage).contains("`vllm:gpu_cache_usage_perc`"));
    assert!(said(Signal::FirstToken).contains("_count`"), "{state:?}");
    assert!(matches!(
        state.missing[&Signal::Failed],
        Missing::NotOffered(_)
    ));
    let empty = Page::read("").unwrap();
    assert!(recognised(&empty).is_none());
    let all = vllm.state(&empty).missing.len();
    assert_eq!(all, vllm.signals.len() + vllm.absent.len());
}
