//! `ml sim`, which needs no daemon.

use serde_json::Value;

use crate::program::place;

/// Two conversations of two turns each, and one long prompt that holds them up.
const TRACE: &str = r#"{"timestamp": 0, "input_length": 60000, "output_length": 9, "hash_ids": IDS}
{"timestamp": 0, "input_length": 600, "output_length": 9, "hash_ids": [0, 1]}
{"timestamp": 3000, "input_length": 700, "output_length": 9, "hash_ids": [0, 2]}
{"timestamp": 3000, "input_length": 1100, "output_length": 9, "hash_ids": [0, 1, 3]}
{"timestamp": 6000, "input_length": 1200, "output_length": 9, "hash_ids": [0, 2, 4]}
"#;

fn trace() -> String {
    let ids: Vec<u64> = std::iter::once(0).chain(100..217).collect();
    TRACE.replace("IDS", &format!("{ids:?}"))
}

#[test]
fn strategies_are_compared_as_numbers_and_as_a_page() {
    let place = place();
    place.write("trace.jsonl", trace());
    let arguments = [
        "sim",
        "compare",
        "--trace",
        "trace.jsonl",
        "--format",
        "mooncake",
        "--engines",
        "2",
        "--strategies",
        "baseline_rr,hybrid_mesh,floor",
        "--seeds",
        "3",
        "--json",
        "-o",
        "report",
    ];
    let compared = place.ml(&arguments).exits(0).json();
    assert_eq!(compared["schema"], "mlmesh.sim_compare/1");
    let rows = compared["strategies"].as_array().unwrap();
    let names: Vec<&Value> = rows.iter().map(|row| &row["strategy"]).collect();
    assert_eq!(names, ["baseline_rr", "hybrid_mesh", "floor"]);
    for row in rows {
        for time in ["ttft_s", "e2e_s"] {
            for field in ["mean", "p50", "p90", "p99", "ci95"] {
                assert!(row[time][field].is_f64(), "{time} {field} of {row}");
            }
        }
        for field in ["cached_ratio", "gpu_s", "imbalance", "goodput"] {
            assert!(row[field].is_f64(), "{field} of {row}");
        }
        assert_eq!(row.as_object().unwrap().len(), 7, "{row}");
    }
    let mean = |row: &Value| row["ttft_s"]["mean"].as_f64().unwrap();
    assert!(mean(&rows[1]) < mean(&rows[0]), "{compared}");
    assert!(mean(&rows[2]) < mean(&rows[1]), "{compared}");
    let report = place.project().join("report");
    let kept = std::fs::read_to_string(report.join("compare.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&kept).unwrap(), compared);
    let page = std::fs::read_to_string(report.join("compare.html")).unwrap();
    assert!(page.contains("<svg") && !page.contains("http"), "{page}");
}

#[test]
fn what_cannot_be_simulated_is_refused() {
    let place = place();
    place.write("broken.jsonl", "{\"timestamp\": 0}\n");
    let compare = |trace: &str, strategies: &str| {
        let arguments = [
            "sim",
            "compare",
            "--trace",
            trace,
            "--engines",
            "2",
            "--strategies",
            strategies,
            "--json",
        ];
        place.ml(&arguments)
    };
    let error = compare("broken.jsonl", "random").exits(1).error();
    assert_eq!(error["code"], "trace_invalid");
    assert!(
        error["message"].as_str().unwrap().contains("line 1"),
        "{error}"
    );
    assert!(
        error["hint"].as_str().unwrap().contains("input_length"),
        "{error}"
    );
    compare("nowhere.jsonl", "random").exits(1);
    let error = compare("broken.jsonl", "fastest").exits(2).error();
    assert!(
        error["message"].as_str().unwrap().contains("hybrid_mesh"),
        "{error}"
    );
}

const SCENARIO: &str = "\
schema: mlmesh.sim_scenario/1
name: two engines
engines: 2
profile: small.yaml
workload:
  trace: {file: trace.jsonl, format: mooncake, time_scale: 0.5}
strategies: [baseline_rr, hybrid_mesh, floor]
rtt_ms: 2
seeds: 2
";

#[test]
fn a_scenario_finds_its_files_beside_it() {
    let place = place();
    let profile = include_str!("../../../mlmesh-sim/profiles/reference.yaml");
    std::fs::create_dir(place.project().join("sub")).unwrap();
    place.write("sub/trace.jsonl", trace());
    place.write("sub/small.yaml", profile.replace("slots: 32", "slots: 2"));
    place.write("sub/scenario.yaml", SCENARIO);
    let run = |more: &[&str]| {
        let mut arguments = vec!["sim", "run", "sub/scenario.yaml", "--json"];
        arguments.extend(more);
        place.ml(&arguments)
    };
    let ran = run(&["-o", "report"]).exits(0).json();
    let rows = ran["strategies"].as_array().unwrap();
    assert_eq!(rows.len(), 3);
    for row in rows {
        assert!(row["tpot_s"]["mean"].as_f64().unwrap() >= 0.005, "{row}");
        let times = [&row["e2e_s"]["p50"], &row["ttft_s"]["p50"]];
        assert!(times[0].as_f64() > times[1].as_f64(), "{row}");
    }
    let page = place.project().join("report/compare.html");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("two engines (simulated)"), "{page}");

    place.write("sub/scenario.yaml", SCENARIO.replace("seeds", "seed"));
    let error = run(&[]).exits(2).error();
    assert_eq!(error["code"], "scenario_invalid");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("sub/scenario.yaml:9: "), "{error}");
    place.write(
        "sub/scenario.yaml",
        SCENARIO.replace("small.yaml", "none.yaml"),
    );
    run(&[]).exits(1);
}

#[test]
fn whole_engines_can_be_compared_on_a_trace() {
    let place = place();
    place.write("trace.jsonl", trace());
    let arguments = [
        "sim",
        "compare",
        "--trace",
        "trace.jsonl",
        "--engines",
        "2",
        "--engine",
        "a100x8-70b",
        "--strategies",
        "least_ttft,floor",
        "--json",
    ];
    let compared = place.ml(&arguments).exits(0).json();
    for row in compared["strategies"].as_array().unwrap() {
        // An iteration reads all weights once.
        assert!(row["tpot_s"]["p50"].as_f64().unwrap() > 0.0146, "{row}");
    }
}

#[test]
fn a_profile_is_fitted_to_a_run_and_can_be_served() {
    let place = place();
    // One at a time: 100 ms for 200 tokens of prompt, then 20 ms a token.
    let mut table =
        String::from("input_toks,output_toks,arrival_s,queued_s,first_token_s,last_token_s\n");
    for number in 0..24 {
        let (at, prompt, output) = (10 * number, 100 + 40 * (number % 6), 11 + number % 5);
        let first = f64::from(at) + f64::from(prompt) * 5e-4;
        let last = first + f64::from(output - 1) * 0.02;
        table += &format!("{prompt},{output},{at},{at},{first},{last}\n");
    }
    place.write("run.csv", &table);
    let arguments = [
        "sim",
        "calibrate",
        "run.csv",
        "--base",
        "rtx4090-8b",
        "--first",
        "12",
        "--score",
        "run.csv",
        "-o",
        "mine.yaml",
        "--json",
    ];
    let fitted = place.ml(&arguments).exits(0).json();
    assert_eq!(fitted["schema"], "mlmesh.sim_calibration/1");
    let scores = fitted["scores"].as_array().unwrap();
    assert_eq!(scores.len(), 3);
    for score in scores {
        for time in ["ttft", "tpot", "e2e"] {
            let off = score["off"][time]["mean"].as_f64().unwrap();
            assert!(off.abs() < 0.02, "{time} of {score}");
        }
    }
    let text = std::fs::read_to_string(place.project().join("mine.yaml")).unwrap();
    assert!(
        text.contains("name: \"rtx4090-8b-fitted\"") && text.contains("slots: 256"),
        "{text}"
    );
    let said = place
        .ml(&["sim", "calibrate", "run.csv", "--base", "mine.yaml"])
        .exits(0);
    assert!(
        said.stdout.contains("schema: mlmesh.sim_engine/1") && said.stdout.contains("TPOT"),
        "{said:?}"
    );

    place.write("other.csv", "a,b\n");
    let error = place.ml(&[
        "sim",
        "calibrate",
        "other.csv",
        "--base",
        "reference",
        "--json",
    ]);
    assert_eq!(error.exits(1).error()["code"], "run_invalid");
}
