//! One run from its recipe to its outputs, and what its end exits with.

use crate::golden;
use crate::mesh::Mesh;
use crate::shape::shape;

const OUTPUTS: &str = "outputs: [model.txt, \"plots/*.svg\"]";

#[test]
fn a_run_goes_its_way_and_every_verb_says_so_in_json() {
    let mesh = Mesh::up();
    let recipe = mesh.recipe(
        "small",
        &["${word}"],
        &format!("params: {{word: ok}}\n{OUTPUTS}"),
    );
    let explained = mesh.ml(&["explain", &recipe, "--json"]).exits(0).json();
    let queued = mesh.ml(&["queue", &recipe, "--json"]).exits(0).json();
    let id = queued["id"].as_str().unwrap();
    mesh.ml(&["watch", id]).exits(0);
    let info = mesh.ml(&["info", &id[..6], "--json"]).exits(0).json();
    assert_eq!(info["id"], *id);
    assert_eq!(info["plan_sha256"], explained["experiment"]["plan_sha256"]);
    assert_eq!(info["plan_sha256"], queued["plan_sha256"]);
    assert_eq!(info["commit"], explained["experiment"]["commit"]);
    assert!(info["manifest"].is_object(), "{info:#}");

    let mut text = String::new();
    let mut add = |verb: &str, value: &serde_json::Value| {
        text.push_str(&format!("$ ml {verb} --json\n{:#}\n\n", shape(value)));
    };
    add("explain", &explained);
    add("queue", &queued);
    add("info", &info);
    for verb in [
        "list",
        "status",
        "outputs @last",
        "compare @last @last",
        "reproduce @last",
        "doctor --objects",
        "down",
    ] {
        let arguments: Vec<&str> = verb.split(' ').chain(["--json"]).collect();
        add(verb, &mesh.ml(&arguments).exits(0).json());
    }
    golden::check("json.txt", &text);
}

#[test]
fn outputs_logs_and_metrics_are_what_the_job_made() {
    let mesh = Mesh::up();
    let recipe = mesh.recipe("made", &["ok"], OUTPUTS);
    let run = mesh.ml(&["run", &recipe]).exits(0);
    assert_eq!(run.stdout, "out ok\n");
    assert!(run.stderr.contains("\nerr ok\n"), "{}", run.stderr);
    let logs = mesh.ml(&["logs"]).exits(0);
    assert_eq!(
        (logs.stdout.as_str(), logs.stderr.as_str()),
        ("out ok\n", "err ok\n")
    );
    let lines = mesh.ml(&["logs", "@last", "-f", "--json"]).exits(0).stdout;
    let mut streams: Vec<(String, String)> = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .inspect(|line| assert_eq!(line["schema"], "mlmesh.log_line/1"))
        .map(|line| {
            let text = |key: &str| line[key].as_str().unwrap().to_owned();
            (text("stream"), text("text"))
        })
        .collect();
    streams.sort();
    let pair = |stream: &str, text: &str| (stream.to_owned(), text.to_owned());
    assert_eq!(
        streams,
        [pair("stderr", "err ok\n"), pair("stdout", "out ok\n")]
    );
    let loss = &mesh.ml(&["info", "--json"]).json()["metrics"]["loss"];
    assert_eq!(
        *loss,
        serde_json::json!({"last": 0.75, "min": 0.25, "max": 0.75, "steps": 3})
    );
    let table = mesh.ml(&["info"]).exits(0).stdout;
    assert!(table.contains("loss    0.75  0.25  0.75  3"), "{table}");

    let saved = mesh
        .ml(&["outputs", "@last", "-o", "got", "--json"])
        .exits(0)
        .json();
    let paths: Vec<&str> = saved["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["path"].as_str().unwrap())
        .collect();
    assert_eq!(paths, ["model.txt", "plots/a.svg"]);
    let got = mesh.place.project().join("got");
    assert_eq!(
        std::fs::read_to_string(got.join("model.txt")).unwrap(),
        "ok"
    );
    assert_eq!(
        std::fs::read_to_string(got.join("plots/a.svg")).unwrap(),
        "<svg/>"
    );
    assert_eq!(
        std::fs::read_dir(&got).unwrap().count(),
        2,
        "no part is left"
    );
}

#[test]
fn the_end_of_a_job_is_the_exit_code() {
    let mesh = Mesh::up();
    let cases = [
        ("code", ["exit", "7"].as_slice(), "", 7, ""),
        ("signal", &["signal", "9"], "", 137, ""),
        ("time", &["forever"], "resources: {time: 1s}", 124, ""),
        (
            "missing",
            &["ok"],
            "outputs: [absent.bin]",
            125,
            "output_missing",
        ),
    ];
    let runs: Vec<_> = cases
        .iter()
        .map(|(name, words, more, ..)| {
            let recipe = mesh.recipe(name, words, more);
            mesh.place
                .command(&["queue", "--wait", "-q", &recipe])
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for (run, (name, _, _, code, word)) in runs.into_iter().zip(cases) {
        let output = run.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{name}: {stderr}");
        assert_eq!(output.stdout.len(), 13, "{name}");
        let last = stderr.lines().last().unwrap_or_default();
        let error: serde_json::Value = serde_json::from_str(last).unwrap_or_default();
        assert_eq!(
            error["code"].as_str().unwrap_or_default(),
            word,
            "{name}: {stderr}"
        );
    }
    let absent = "experiment:\n  name: absent\n  command: [no-such-program]\n  seed: none\n";
    mesh.place.write("absent.yaml", absent);
    let answer = mesh.ml(&["run", "absent.yaml", "--json"]).exits(125);
    assert_eq!(answer.error()["code"], "command_not_found");
}

#[test]
fn what_cannot_reach_l3_is_refused_with_its_reasons() {
    let mesh = Mesh::up();
    let recipe = mesh.recipe(
        "loose",
        &["ok"],
        "datasets: [{name: digits, version: \"1\"}]",
    );
    let strict = ["--repro-policy", "strict"];
    let queue = |verb: &str| mesh.ml(&[verb, &recipe, "--json", strict[0], strict[1]]);
    let explained = queue("explain").exits(3);
    let explanation: serde_json::Value = explained.json();
    assert_eq!(explanation["admitted"], false);
    assert_eq!(explained.error()["code"], "refused");
    let error = queue("queue").exits(3).error();
    let codes: Vec<&str> = error["details"]["refusals"]
        .as_array()
        .unwrap()
        .iter()
        .map(|refusal| refusal["code"].as_str().unwrap())
        .collect();
    assert!(codes.contains(&"environment_absent"), "{codes:?}");
    assert!(
        error["message"].as_str().unwrap().contains("checksum"),
        "{error:#}"
    );
    assert_eq!(queue("run").exits(125).error()["code"], "refused");
    let text = mesh
        .ml(&["explain", &recipe, strict[0], strict[1]])
        .exits(3);
    for group in [
        "experiment",
        "environment",
        "snapshot",
        "datasets",
        "resources",
        "image",
    ] {
        assert!(
            text.stdout.contains(&format!("{group}\n")),
            "{group}: {}",
            text.stdout
        );
    }
    assert!(text.stderr.contains("hint: "), "{}", text.stderr);
    let relaxed = mesh.ml(&["queue", &recipe, "--json"]).exits(3);
    assert!(
        relaxed.error()["message"]
            .as_str()
            .unwrap()
            .contains("checksum")
    );
    assert_eq!(
        mesh.ml(&["list", "--json"]).json()["runs"],
        serde_json::json!([])
    );
}

#[test]
fn a_plan_that_moved_is_refused() {
    let mesh = Mesh::up();
    let recipe = mesh.recipe("moving", &["ok"], "");
    let explanation = mesh.ml(&["explain", &recipe, "--json"]).exits(0).json();
    let plan = explanation["experiment"]["plan_sha256"]
        .as_str()
        .unwrap()
        .to_owned();
    let plan = format!("sha256:{plan}");
    mesh.ml(&["queue", "--wait", "--plan", &plan, &recipe])
        .exits(0);
    mesh.place.write("job.py", "print('other')\n");
    let answer = mesh
        .ml(&["queue", "--plan", &plan, &recipe, "--json"])
        .exits(3);
    assert!(
        answer.error().to_string().contains("plan"),
        "{}",
        answer.stderr
    );
}

#[test]
fn a_plan_that_moved_says_which_groups_did() {
    let mesh = Mesh::up();
    let recipe = mesh.recipe("moving", &["${word}"], "params: {word: ok}");
    let explained = mesh.ml(&["explain", &recipe, "--json"]).exits(0);
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("plan.json");
    std::fs::write(&file, &explained.stdout).unwrap();
    let plan = ["--plan", file.to_str().unwrap()];
    let queue = |more: &[&str]| {
        let words = [&["queue", &recipe, "--json"], &plan[..], more].concat();
        mesh.ml(&words)
    };
    let moved = |error: &serde_json::Value| -> Vec<String> {
        let moved = error["details"]["moved"].as_array().unwrap().iter();
        let place = |key: &str, of: &serde_json::Value| of[key].as_str().unwrap().to_owned();
        moved
            .map(|moved| format!("{} {}", place("group", moved), place("path", moved)))
            .collect()
    };
    queue(&["--wait"]).exits(0);

    let error = queue(&["--set", "word=other"]).exits(3).error();
    assert_eq!(
        moved(&error),
        ["experiment argv[2]", "experiment params.word"]
    );
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("moved: experiment.params.word: `ok` before, `other` now"),
        "{message}"
    );
    mesh.place.write("job.py", "print('other')\n");
    let error = queue(&[]).exits(3).error();
    assert_eq!(
        moved(&error),
        ["experiment commit", "snapshot id", "snapshot sha256"]
    );
    let words = [&["explain", &recipe, "--json"], &plan[..]].concat();
    assert_eq!(moved(&mesh.ml(&words).exits(3).error()), moved(&error));

    std::fs::write(&file, "{\"schema\": \"mlmesh.accepted/1\"}").unwrap();
    let refused = queue(&[]).exits(2).error();
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("no explanation")
    );
}

#[test]
fn runs_are_named_by_prefix_and_last_and_unknown_ones_are_not_found() {
    let mesh = Mesh::up();
    for verb in [
        ["info", "@last"],
        ["logs", "aaaaaaaaaaaa"],
        ["cancel", "zzz"],
        ["retry", "@last"],
    ] {
        let arguments: Vec<&str> = verb.into_iter().chain(["--json"]).collect();
        let answer = mesh.ml(&arguments).exits(4);
        assert_eq!(answer.error()["code"], "not_found", "{verb:?}");
    }
    let first = mesh.queue(&mesh.recipe("first", &["ok"], ""));
    let second = mesh.queue(&mesh.recipe("second", &["ok"], ""));
    assert_eq!(mesh.ml(&["info", "--json"]).exits(0).json()["id"], *second);
    assert_eq!(
        mesh.ml(&["info", &first[..11], "--json"]).exits(0).json()["id"],
        *first
    );
    let page = mesh.ml(&["list", "--limit", "1", "--json"]).exits(0).json();
    let cursor = page["next_cursor"].to_string();
    let rest = mesh
        .ml(&["list", "--cursor", &cursor, "--json"])
        .exits(0)
        .json();
    assert_eq!(rest["runs"][0]["id"], *first);
}

#[test]
fn secrets_reach_the_job_and_nothing_else() {
    let mesh = Mesh::up();
    let recipe = mesh.recipe(
        "secret",
        &["environment"],
        "secrets: [TOKEN]\nenv: {PLAIN: \"1\"}",
    );
    let mut command = mesh.place.command(&["run", &recipe]);
    let answer = crate::program::answer(command.env("TOKEN", "hunter2-hunter2").env("OTHER", "x"));
    let answer = answer.exits(0);
    let environment: serde_json::Value =
        serde_json::from_str(answer.stdout.lines().last().unwrap()).unwrap();
    assert!(environment["TOKEN"].is_string(), "{environment:#}");
    assert_eq!(environment["PLAIN"], "1");
    assert!(environment["OTHER"].is_null());
    assert!(!(answer.stdout + &answer.stderr).contains("hunter2"));
    let info = mesh.ml(&["info", "--json"]).exits(0);
    assert!(!info.stdout.contains("hunter2"));
    assert_eq!(info.json()["plan"]["secrets"], serde_json::json!(["TOKEN"]));
}

#[test]
fn the_callers_environment_is_taken_as_it_is() {
    let mesh = Mesh::up();
    let venv = mesh.place.path("venv");
    let mut make = std::process::Command::new("python3");
    crate::program::answer(make.args(["-m", "venv", "--without-pip"]).arg(&venv)).exits(0);
    let site = std::fs::read_dir(venv.join("lib"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let info = site.join("site-packages/Some_Pack.age-1.5.dist-info");
    std::fs::create_dir(&info).unwrap();
    std::fs::write(
        info.join("METADATA"),
        "Metadata-Version: 2.1\nName: Some_Pack.age\nVersion: 1.5\n",
    )
    .unwrap();
    let recipe = mesh.recipe("current", &["ok"], "environment: current");
    let queue = |venv: Option<&std::path::Path>| {
        let mut command = mesh.place.command(&["explain", &recipe, "--json"]);
        if let Some(venv) = venv {
            command.env("VIRTUAL_ENV", venv);
        }
        crate::program::answer(&mut command)
    };
    let explanation = queue(Some(&venv)).exits(0).json();
    assert_eq!(explanation["deps"]["name"], "current");
    let digest = explanation["deps"]["sha256"].clone();
    std::fs::write(
        info.join("METADATA"),
        "Metadata-Version: 2.1\nName: some-pack-age\nVersion: 1.6\n",
    )
    .unwrap();
    assert_ne!(queue(Some(&venv)).exits(0).json()["deps"]["sha256"], digest);
    queue(None).exits(3);
    let broken = queue(Some(&mesh.place.path("absent"))).exits(3);
    assert_eq!(broken.error()["code"], "current_environment_unusable");
}
