//! How near the engine model comes to engines that were measured.

use mlmesh_sim::engine::{Cost, Detail, Engine, Job, PROFILES, Prefill, Profile, What};
use mlmesh_sim::{Lengths, Measured, Off, calibrate, poisson, read_measured, score_profile};

/// An engine of vLLM's with that much room.
fn vllm(slots: u32, memory_blocks: u64) -> Profile {
    Profile {
        slots,
        batched_tokens_max: 2_048,
        prefill: Prefill::Mixed,
        memory_blocks,
        cached_blocks_max: None,
        ..Profile::named("reference").unwrap()
    }
}

fn published(name: &str) -> Vec<Measured> {
    let path = format!("{}/tests/data/vllm/{name}.csv", env!("CARGO_MANIFEST_DIR"));
    read_measured(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Fitted to the first hundred requests, and right about the other two hundred.
#[test]
fn measured_runs_of_vllm_are_foretold_from_their_first_hundred_requests() {
    for (name, base) in [
        ("rtx4090-llama-3.1-8b", vllm(256, 2_588)),
        // Nothing is said about its memory; it never was short.
        ("rtxpro6000-qwen3-32b", vllm(128, 100_000)),
    ] {
        let measured = published(name);
        let calibrated = calibrate(&base, &measured, 100);
        let score = calibrated.scored.unwrap();
        println!(
            "{name}: {:?} {:?} {score:?}",
            calibrated.profile.cost, calibrated.fitted
        );
        assert_eq!(score.requests, 200);
        let within = |off: Off, most: f64| off.mean.abs() <= most;
        assert!(
            within(score.e2e, 0.09) && score.e2e.each <= 0.09,
            "{name}: {score:?}"
        );
        assert!(within(score.tpot, 0.05), "{name}: {score:?}");
        assert!(
            within(score.ttft, 0.18) && score.ttft.each <= 0.18,
            "{name}: {score:?}"
        );
    }
}

#[test]
fn the_profile_that_comes_along_is_what_was_fitted() {
    let score = score_profile(
        &Profile::named("rtx4090-8b").unwrap(),
        &published("rtx4090-llama-3.1-8b"),
    );
    assert!(
        score.e2e.mean.abs() < 0.03 && score.e2e.each < 0.03,
        "{score:?}"
    );
}

/// What an engine of that profile would have been measured to do.
fn measured_on(profile: &Profile, rate: f64, seed: u64) -> Vec<Measured> {
    let trace = poisson(150, (1e6 / rate) as u64, Lengths::Exponential(600), seed);
    let mut engine = Engine::new(profile.clone(), Detail::Ends);
    let mut measured = Vec::new();
    let mut told = Vec::new();
    for (name, request) in trace.requests.iter().enumerate() {
        let prompt_tokens = request.prompt_tokens.max(1);
        let output_tokens = 20 + prompt_tokens % 60;
        measured.push(Measured {
            at_us: request.at_us,
            prompt_tokens,
            cached_tokens: 0,
            output_tokens,
            ttft_us: 0,
            e2e_us: 0,
        });
        while engine
            .next_us()
            .is_some_and(|next_us| next_us <= request.at_us)
        {
            engine.step(&mut told);
        }
        let job = Job {
            name: name as u64,
            prompt_tokens,
            output_tokens,
            blocks: [].into(),
        };
        engine.submit(request.at_us, job).unwrap();
    }
    while engine.next_us().is_some() {
        engine.step(&mut told);
    }
    for one in told {
        let request = &mut measured[one.name as usize];
        match one.what {
            What::FirstToken => request.ttft_us = one.at_us - request.at_us,
            What::Done => request.e2e_us = one.at_us - request.at_us,
            What::Begun { .. } | What::Token | What::Preempted => {}
        }
    }
    measured
}

#[test]
fn an_engine_that_is_measured_at_one_rate_is_known_at_others() {
    let mut real = vllm(16, 4_000);
    real.cost = Cost {
        iteration_us: 9_000.0,
        sequence_us: 120.0,
        context_token_ns: 90.0,
        prefill_us: 2_000.0,
        prefill_token_us: 70.0,
        prefill_pair_ns: 4.0,
    };
    let base = vllm(16, 4_000);
    let calibrated = calibrate(&base, &measured_on(&real, 6.0, 1), 150);
    assert!(calibrated.scored.is_none());
    for (rate, seed) in [(2.0, 2), (10.0, 3), (14.0, 4)] {
        let score = score_profile(&calibrated.profile, &measured_on(&real, rate, seed));
        for off in [score.ttft, score.tpot, score.e2e] {
            assert!(off.mean.abs() < 0.05, "rate {rate}: {score:?}");
        }
    }
    // The same measurement gives the same profile, and that can be written and read.
    let again = calibrate(&base, &measured_on(&real, 6.0, 1), 150);
    assert_eq!(again.profile, calibrated.profile);
    let text = calibrated.profile.to_yaml();
    assert_eq!(
        Profile::read(&text, "written.yaml").unwrap(),
        calibrated.profile
    );
    for (name, _) in PROFILES {
        let profile = Profile::named(name).unwrap();
        assert_eq!(Profile::read(&profile.to_yaml(), name).unwrap(), profile);
    }
}

#[test]
fn both_forms_of_benchmarks_are_read_and_others_refused() {
    let request = |at_us: u64| {
        let (first_us, last_us) = (at_us + 500, at_us + 900);
        format!(
            r#"{{"index": 0, "intended_us": {at_us}, "sent_us": {at_us}, "first_token_us": {first_us},
            "chunks_us": [{first_us}, {last_us}], "error": null,
            "usage": {{"prompt_tokens": 7, "completion_tokens": 3, "cached_tokens": 2}}}}"#
        )
    };
    let mut requests: Vec<String> = (0..10).rev().map(request).collect();
    requests.push(request(50).replace("null", "\"timeout\""));
    let file = format!(
        r#"{{"schema": "mlmesh.bench_llm/1", "requests": [{}]}}"#,
        requests.join(",")
    );
    let measured = read_measured(&file).unwrap();
    assert_eq!(measured.len(), 10);
    let first = Measured {
        at_us: 0,
        prompt_tokens: 7,
        cached_tokens: 2,
        output_tokens: 3,
        ttft_us: 500,
        e2e_us: 900,
    };
    assert_eq!(measured[0], first);
    assert_eq!(measured[0].tpot_us(), Some(200.0));
    let refused = |text: &str| read_measured(text).unwrap_err().to_string();
    assert!(refused(&file.replace("bench_llm/1", "bench_llm/9")).contains("bench_llm/9"));
    assert!(refused(r#"{"schema": "mlmesh.bench_llm/1"}"#).contains("`requests`"));
    assert!(refused("a,b\n1,2\n").contains("`input_toks`"));
    let table =
        "input_toks,output_toks,arrival_s,queued_s,first_token_s,last_token_s\n5,3,0,0,x,2\n";
    assert!(refused(table).contains("line 2: `first_token_s` is `x`"));
    assert!(refused(&table.replace('x', "1")).contains("at least 10"));
}
