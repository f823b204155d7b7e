//! What is recorded of runs holds, and what was done to it by hand is found.

use std::fs;

use serde_json::{Value, json};

use super::place::Place;

fn validated(place: &Place, run: &str, code: i32) -> Value {
    let answer = place.ml(&["--json", "validate", "--task", run]).exits(code);
    let found = answer.json();
    assert_eq!(found["schema"], "mlmesh.validation/1");
    found
}

#[test]
fn runs_of_every_end_are_whole() {
    let place = Place::up();
    let strict = place.strict(
        "good",
        "open('made.txt', 'w').write('1')\n",
        "outputs: [made.txt]",
    );
    let (run, _) = place.completed(&strict, &[]);
    assert_eq!(
        validated(&place, run["id"].as_str().unwrap(), 0)["defects"],
        json!([])
    );
    let commit = run["commit"].as_str().unwrap();
    let whole = place.ml(&["validate", commit]).exits(0).stdout;
    assert_eq!(whole, format!("{commit} is whole\n"));
    let manifest = &run["manifest"];
    assert_eq!(manifest["outputs"]["listed"][0]["path"], "made.txt");
    assert!(
        manifest["host"]["kernel"]
            .as_str()
            .is_some_and(|kernel| !kernel.is_empty())
    );
    assert_eq!(manifest["environment"]["packages"], json!([]));
    let relaxed = ["--repro-policy", "relaxed"];
    for (name, code) in [
        ("fails", "raise SystemExit(3)\n"),
        ("dies", "import os\nos.kill(os.getpid(), 9)\n"),
    ] {
        let run = place.ended(&place.bare(name, code, ""), &relaxed);
        assert_eq!(run["phase"], "failed");
        validated(&place, run["id"].as_str().unwrap(), 0);
    }
    let sweep = place.bare("sweep", "pass\n", "params: {a: 0}\nsweep: {a: [1, 2]}");
    let run = place.ended(&sweep, &relaxed);
    validated(&place, run["id"].as_str().unwrap(), 0);
    let absent = place.ml(&["validate", &"0".repeat(64)]).exits(1);
    assert!(
        absent.stdout.starts_with("commit_absent "),
        "{}",
        absent.stdout
    );
    let schema = place.ml(&["validate", "--schema"]).exits(0).json();
    assert_eq!(schema["$id"], "urn:mlmesh:run_manifest:1");
}

#[test]
fn a_manifest_that_was_changed_by_hand_is_found() {
    let place = Place::up();
    let recipe = place.bare("one", "pass\n", "");
    let run = place.ended(&recipe, &["--repro-policy", "relaxed"]);
    let id = run["id"].as_str().unwrap();
    let file = place
        .data()
        .join("data/experiments")
        .join(id)
        .join("run_manifest.json");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("\"exit_code\": 0", "\"exit_code\": 1")).unwrap();
    let found = validated(&place, id, 1);
    let codes: Vec<&str> = found["defects"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|defect| defect["code"].as_str())
        .collect();
    assert_eq!(
        codes,
        [
            "manifest_digest",
            "record_differs",
            "exit_code",
            "exit_code"
        ]
    );
    fs::remove_file(&file).unwrap();
    let said = place.ml(&["validate", "--task", id]).exits(1).stdout;
    assert!(
        said.starts_with("manifest_absent run_manifest.json: "),
        "{said}"
    );
}
