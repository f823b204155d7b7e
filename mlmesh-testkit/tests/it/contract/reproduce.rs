//! L4: what a run once more proves, with real jobs in the sandbox.

use std::fs;

use serde_json::{Value, json};

use super::place::{Answer, Place, wait};

/// A job that always leaves the same output and metric.
fn job(place: &Place, name: &str, more: &str) -> String {
    place.strict(
        name,
        "import json, os\n\
         open('made.txt', 'w').write('the result\\n' * 3)\n\
         open('metrics.jsonl', 'w').write(json.dumps({'name': 'accuracy', 'value': 0.9}))\n",
        &format!("outputs: [made.txt]\n{more}"),
    )
}

fn id(run: &Value) -> &str {
    run["id"].as_str().unwrap()
}

#[track_caller]
fn reproduced(place: &Place, run: &str, code: i32) -> Value {
    let answer = place.ml(&["reproduce", run, "--json"]).exits(code);
    let found = answer.json();
    assert_eq!(found["schema"], "mlmesh.reproduction/1");
    assert_eq!(found["original"], run);
    found
}

#[test]
fn a_result_to_the_bit_is_l4_wherever_it_is_shown() {
    let place = Place::up();
    let (run, _) = place.completed(&job(&place, "same", ""), &[]);
    let found = reproduced(&place, id(&run), 0);
    assert_eq!(found["judgement"]["verdict"], "bit_identical");
    assert_eq!(found["trust"]["level"], "L4");
    assert_eq!(found["judgement"]["outputs_compared"], 1);
    let second = place.json(&["info", found["run"].as_str().unwrap()]);
    assert_eq!(second["plan_sha256"], run["plan_sha256"]);
    assert_ne!(second["id"], run["id"]);
    assert_eq!(second["placement"]["reproduces"], run["id"]);
    assert_eq!(second["trust"]["level"], "L3");
    let judgement = &found["judgement"];
    assert_eq!(judgement["manifest_sha256"], second["manifest_sha256"]);
    assert_eq!(
        judgement["original_manifest_sha256"],
        run["manifest_sha256"]
    );
    let badge = "L4 reproduced (bit-identical)";
    for verb in [&["info", id(&run)][..], &["list"], &["status"]] {
        let shown = place.ml(verb).exits(0).stdout;
        assert_eq!(shown.matches(badge).count(), 1, "{verb:?}\n{shown}");
    }
    let key = place.ml(&["key", "show"]).exits(0).stdout;
    let by = json!({"by": found["run"], "how": "bit-identical", "signer": key.trim()});
    assert_eq!(place.json(&["info", id(&run)])["trust"]["reproduced"], by);
    let shown = place.ml(&["info", id(&run)]).exits(0).stdout;
    assert!(
        shown.contains(&format!("signed by {}", key.trim())),
        "{shown}"
    );
    for run in [id(&run), id(&second)] {
        place.ml(&["validate", "--task", run]).exits(0);
    }
    // Both differ in nothing, and a restart changes nothing.
    let compared = place.json(&["compare", id(&run), id(&second)]);
    assert_eq!(compared["differences"], json!([]));
    place.ml(&["down"]).exits(0);
    place.ml(&["up"]).exits(0);
    assert_eq!(place.json(&["info", id(&run)])["trust"]["level"], "L4");
    place.ml(&["audit", "verify"]).exits(0);
}

#[test]
fn another_result_is_exit_1_and_names_the_first_byte() {
    let place = Place::up();
    let code = "import os\nopen('made.bin', 'wb').write(b'always ' + os.urandom(8))\n";
    let (run, _) = place.completed(&place.strict("drawn", code, "outputs: [made.bin]"), &[]);
    let found = reproduced(&place, id(&run), 1);
    let difference = &found["judgement"]["differences"][0];
    assert_eq!(difference["name"], "made.bin");
    assert!(difference["first_byte"].as_u64().unwrap() >= 7, "{found:#}");
    assert_eq!(found["trust"]["level"], "L3");
    assert_eq!(found["trust"]["reasons"][0]["code"], "reproduction_differs");
    let told: Answer = place.ml(&["reproduce", id(&run)]).exits(1);
    assert!(
        told.stdout
            .starts_with("differs, 1 output and 0 metrics compared\n"),
        "{}",
        told.stdout
    );
    assert!(
        told.stdout.contains("  made.bin differs from byte "),
        "{}",
        told.stdout
    );
}

#[test]
fn a_tolerance_is_met_or_not_and_shown() {
    let place = Place::up();
    // Each run draws a value near 0.9.
    let code = "import json, os\n\
         value = 0.9 + int.from_bytes(os.urandom(6), 'big') / 2**48 * 1e-3\n\
         open('made.bin', 'wb').write(os.urandom(8))\n\
         open('metrics.jsonl', 'w').write(json.dumps({'name': 'accuracy', 'value': value}))\n";
    let recipe = |name: &str, bound: &str| {
        let more = format!("outputs: [made.bin]\ntolerance: {{accuracy: {{abs: {bound}}}}}");
        place.strict(name, code, &more)
    };
    let (run, _) = place.completed(&recipe("near", "0.01"), &[]);
    let found = reproduced(&place, id(&run), 0);
    assert_eq!(found["judgement"]["verdict"], "within_tolerance");
    assert_eq!(
        found["trust"]["reproduced"]["how"],
        "accuracy within abs 0.01"
    );
    let shown = place.ml(&["info", id(&run)]).exits(0).stdout;
    assert!(
        shown.contains("L4 reproduced (accuracy within abs 0.01)"),
        "{shown}"
    );
    let (run, _) = place.completed(&recipe("strict", "1e-15"), &[]);
    let found = reproduced(&place, id(&run), 1);
    let first = &found["judgement"]["differences"][0];
    assert_eq!(
        (&first["name"], &first["kind"]),
        (&json!("accuracy"), &json!("metric"))
    );
    assert!(first["original"].is_string() && first["repeated"].is_string());
}

#[test]
fn nothing_to_compare_stays_l3_with_the_reason() {
    let place = Place::up();
    let (run, _) = place.completed(&place.strict("mute", "pass\n", ""), &[]);
    let found = reproduced(&place, id(&run), 1);
    assert_eq!(found["judgement"]["verdict"], "not_compared");
    assert_eq!(found["trust"]["level"], "L3");
    assert_eq!(found["trust"]["reasons"][0]["code"], "reproduction_empty");
}

#[test]
fn data_that_changed_are_refused_before_and_fail_after() {
    let place = Place::up();
    let data = place.path("digits.csv");
    fs::write(&data, "1,2\n").unwrap();
    let added = place.json(&["data", "add", "digits", "1", data.to_str().unwrap()]);
    let checksum = added["checksum"]
        .as_str()
        .unwrap()
        .trim_start_matches("sha256:");
    let more =
        format!("datasets: [{{name: digits, version: \"1\", checksum: \"sha256:{checksum}\"}}]");
    let (run, _) = place.completed(&job(&place, "fed", &more), &[]);

    // It waits in the queue while the data change.
    let gate = place.path("gate");
    let cpus = std::thread::available_parallelism().unwrap();
    let holder = place.bare(
        "holder",
        &format!(
            "import os, time\nwhile not os.path.exists({:?}): time.sleep(0.01)",
            gate.display().to_string()
        ),
        &format!("resources: {{cpus: {cpus}}}"),
    );
    let holder = place
        .ml(&["queue", "-q", "--repro-policy", "relaxed", &holder])
        .exits(0)
        .stdout;
    wait("the holder to run", || {
        place.json(&["info", holder.trim_end()])["phase"] == "running"
    });
    let queued = place.json(&["reproduce", id(&run), "--no-wait"]);
    let second = id(&queued).to_owned();
    fs::write(&data, "another\n").unwrap();
    fs::write(&gate, "").unwrap();
    place.ml(&["watch", &second]);
    let ended = place.json(&["info", &second]);
    assert_eq!(
        (&ended["phase"], &ended["cause"]),
        (&json!("failed"), &json!("dataset_changed"))
    );
    assert!(
        ended["message"].as_str().unwrap().contains("digits.csv"),
        "{ended:#}"
    );
    wait("the judgement", || {
        place.json(&["info", id(&run)])["trust"]["reasons"][0]["code"] == "reproduction_incomplete"
    });
    assert_eq!(place.json(&["info", id(&run)])["trust"]["level"], "L3");

    let refused = place.ml(&["reproduce", id(&run), "--json"]).exits(3);
    assert_eq!(
        refused.error()["details"]["refusals"][0]["code"],
        "dataset_changed"
    );
    assert!(refused.stderr.contains("digits.csv"), "{}", refused.stderr);
}

#[test]
fn a_daemon_that_is_killed_in_between_judges_once_when_it_is_back() {
    let place = Place::up();
    let gate = place.path("gate");
    fs::write(&gate, "").unwrap();
    let code = format!(
        "import os, time\nwhile not os.path.exists({:?}): time.sleep(0.01)\n\
         open('made.txt', 'w').write('the result')\n",
        gate.display().to_string()
    );
    // Relaxed: it has to see the gate. That is below L3, and judged all the same.
    let recipe = place.bare("slow", &code, "outputs: [made.txt]\nseed: none");
    let (run, _) = place.completed(&recipe, &["--repro-policy", "relaxed"]);
    fs::remove_file(&gate).unwrap();
    let second = place.json(&["reproduce", id(&run), "--no-wait"]);
    wait("the repetition to run", || {
        place.json(&["info", id(&second)])["phase"] == "running"
    });
    let pid = i32::try_from(place.daemon_pid()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    fs::write(&gate, "").unwrap();
    place.ml(&["up"]).exits(0);
    place.ml(&["watch", id(&second)]).exits(0);
    let code =
        |run: &Value| run["trust"]["reasons"].as_array().unwrap().last().unwrap()["code"].clone();
    wait("the judgement", || {
        code(&place.json(&["info", id(&run)])) == "reproduction_below_l3"
    });
    let rows = place.ml(&["audit", "list", "--json"]).exits(0).stdout;
    assert_eq!(rows.matches("run.judge").count(), 1, "{rows}");
}

#[test]
fn what_ran_elsewhere_is_run_again_here_and_stays_l0() {
    let there = Place::up();
    let data = there.path("digits.csv");
    fs::write(&data, "1,2\n").unwrap();
    let added = there.json(&["data", "add", "digits", "1", data.to_str().unwrap()]);
    let more = format!(
        "datasets: [{{name: digits, version: \"1\", checksum: \"sha256:{}\"}}]",
        added["checksum"].as_str().unwrap()
    );
    let (run, _) = there.completed(&job(&there, "fed", &more), &[]);
    let file = there.project().join("x.zip");
    let file = file.to_str().unwrap();
    there.ml(&["export", id(&run), "-o", file]).exits(0);

    let here = Place::up();
    let imported = here.json(&["import", file]);
    let command = "ml data add digits 1 PATH";
    assert_eq!(imported["datasets_missing"][0]["command"], command);
    let refused = || {
        let refused = here.ml(&["reproduce", id(&run), "--json"]).exits(3);
        refused.error()["details"]["refusals"][0].clone()
    };
    let unknown = refused();
    assert_eq!(unknown["code"], "dataset_unknown");
    assert!(
        unknown["hint"].as_str().unwrap().contains(command),
        "{unknown}"
    );
    let copy = here.path("copy.csv");
    let copy_path = copy.to_str().unwrap();
    fs::write(&copy, "1,3\n").unwrap();
    here.json(&["data", "add", "digits", "1", copy_path]);
    assert_eq!(refused()["code"], "dataset_checksum_differs");
    here.json(&["data", "remove", "digits", "1"]);
    fs::copy(&data, &copy).unwrap();
    here.json(&["data", "add", "digits", "1", copy_path]);

    let found = reproduced(&here, id(&run), 0);
    assert_eq!(found["judgement"]["verdict"], "bit_identical");
    assert_eq!(found["trust"]["level"], "L0", "{found:#}");
    assert_eq!(
        found["judgement"]["denied"]["code"],
        "reproduction_below_l3"
    );
    let original = here.json(&["info", id(&run)]);
    assert_eq!(original["trust"]["level"], "L0");
    assert_eq!(original["trust"]["reasons"][0]["code"], "imported");
    let second = here.json(&["info", found["run"].as_str().unwrap()]);
    assert_eq!(second["trust"]["level"], "L3");
    assert_eq!(second["plan_sha256"], run["plan_sha256"]);
    // What ran here can be L4 here, and is exported under the name of who ran it.
    let again = reproduced(&here, id(&second), 0);
    assert_eq!(again["trust"]["level"], "L4");
    let file = here.project().join("y.zip");
    let file = file.to_str().unwrap();
    here.ml(&["export", id(&second), "-o", file]).exits(0);
    here.ml(&["export", "--verify", file]).exits(0);
}
