//! What the programs exit with and print: exit codes, errors, ids, shapes of JSON.

use std::process::Stdio;

use super::place::{Place, answer, python, wait};
use serde_json::{Value, json};

#[test]
fn a_recipe_with_a_typo_exits_2_and_names_place_and_nearest_key() {
    let place = Place::down();
    place.write(
        "typo.yaml",
        "experiment:\n  name: typo\n  command: [python3, a.py]\n  outptus: [a]\n",
    );
    for verb in [&["recipe", "check"][..], &["queue"], &["explain"]] {
        let text = place.ml(&[verb, &["typo.yaml"]].concat()).exits(2);
        for part in ["typo.yaml:4:3", "`outptus`", "`outputs`", "hint: "] {
            assert!(
                text.stderr.contains(part),
                "{verb:?} {part}: {}",
                text.stderr
            );
        }
        assert_eq!(text.stdout, "", "{verb:?}");
    }
    for verb in ["queue", "explain"] {
        let error = place.ml(&[verb, "typo.yaml", "--json"]).exits(2).error();
        assert_eq!(error["code"], "recipe_unknown_key", "{error}");
        let said = error.to_string();
        assert!(
            said.contains("typo.yaml:4:3") && said.contains("`outputs`"),
            "{said}"
        );
    }
    // Inside `ml run` every failure of ours is 125.
    let error = place.ml(&["run", "typo.yaml", "--json"]).exits(125).error();
    assert_eq!(error["code"], "recipe_unknown_key");
    for (lines, code) in [
        (
            "command: [a]\nparams: {a: 1}\nparams: {a: 2}",
            "recipe_duplicate_key",
        ),
        ("command: [\"${nothing}\"]", "recipe_unknown_parameter"),
        ("command: [a]\nseed: many", "recipe_invalid_value"),
        ("seed: 1", "recipe_missing_key"),
    ] {
        let recipe = place.recipe("wrong", lines);
        let error = place.ml(&["explain", &recipe, "--json"]).exits(2).error();
        assert_eq!(error["code"], code, "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("wrong.yaml:"), "{message}");
    }
}

#[test]
fn a_daemon_that_is_away_is_5_and_bad_usage_2() {
    let place = Place::down();
    let recipe = place.bare("away", "print(1)", "seed: 1");
    for verb in [
        &["queue", &recipe][..],
        &["status"],
        &["info", "@last"],
        &["list"],
        &["sync"],
        &["audit", "verify"],
    ] {
        let error = place.ml(&[verb, &["--json"]].concat()).exits(5).error();
        assert!(!error["hint"].as_str().unwrap().is_empty(), "{error}");
    }
    place.ml(&["run", &recipe, "--json"]).exits(125).error();
    place
        .ml(&["queue", "--wait", &recipe, "--json"])
        .exits(125)
        .error();
    let usage = place
        .ml(&["queue", "--unheard", &recipe, "--json"])
        .exits(2);
    assert_eq!(usage.error()["code"], "usage");
    place.ml(&["down"]).exits(0);
    place.ml(&["up", "--port", "0"]).exits(0);
    // A second `ml up` says so, a second `meshd` refuses.
    let pid = place.daemon_pid();
    place.ml(&["up"]).exits(0);
    assert_eq!(place.daemon_pid(), pid);
    let second = mlmesh_testkit::daemon::refused_start(&place.data(), &Default::default());
    assert_eq!(second.0.code(), Some(1), "{}", second.1);
    // Killed, it is away as well.
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid as i32).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    wait("the daemon to be away", || {
        place.ml(&["status", "--json"]).code == 5
    });
}

#[test]
fn what_is_not_there_is_4() {
    let place = Place::up();
    for verb in [
        &["info", "@last"][..],
        &["info", "aaaaaaaaaaaa"],
        &["logs", "zz"],
        &["outputs", "zz"],
        &["cancel", "zz"],
        &["retry", "zz"],
        &["watch", "zz"],
        &["data", "show", "unheard"],
        &["data", "verify", "unheard", "1"],
        &["data", "remove", "unheard", "1"],
        &["list", "--parent", "zz"],
    ] {
        let error = place.ml(&[verb, &["--json"]].concat()).exits(4).error();
        assert!(
            error["code"].as_str().unwrap().ends_with("not_found"),
            "{error}"
        );
    }
}

const JOB: &str = r#"
import os, sys, time
word, *rest = sys.argv[1:]
print("started", flush=True)
if word == "exit": sys.exit(int(rest[0]))
if word == "signal": os.kill(os.getpid(), int(rest[0]))
if word == "sleep": time.sleep(600)
"#;

#[test]
fn the_job_s_own_code_comes_through() {
    let place = Place::up();
    place.write("job.py", JOB);
    let cases: [(&str, &str, &str, i32, &str, &str); 7] = [
        ("zero", "exit, 0", "", 0, "completed", ""),
        ("seven", "exit, 7", "", 7, "failed", "exit"),
        ("killed", "signal, 9", "", 137, "failed", ""),
        ("stopped", "signal, 15", "", 143, "failed", ""),
        (
            "late",
            "sleep",
            "resources: {time: 1s}",
            124,
            "failed",
            "timeout",
        ),
        (
            "without",
            "exit, 0",
            "outputs: [absent]",
            125,
            "failed",
            "output_missing",
        ),
        ("own125", "exit, 125", "", 125, "failed", "exit"),
    ];
    let recipes = cases.map(|(name, words, more, ..)| {
        let command = format!("command: [python3, job.py, {words}]\nseed: 1\n{more}");
        place.recipe(name, &command)
    });
    let relaxed = ["--repro-policy", "relaxed"];
    let started: Vec<_> = recipes
        .iter()
        .flat_map(|recipe| {
            [&["run", recipe][..], &["queue", "-q", "--wait", recipe]].map(|verb| {
                let mut command = place.command(&[verb, &relaxed].concat());
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
                command.spawn().unwrap()
            })
        })
        .collect();
    for (index, child) in started.into_iter().enumerate() {
        let (name, _, _, code, phase, cause) = cases[index / 2];
        let output = child.wait_with_output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{name}: {stderr}");
        if index % 2 == 0 {
            assert_eq!(stdout, "started\n", "{name}");
            continue;
        }
        let id = stdout.strip_suffix('\n').unwrap();
        let info = place.json(&["info", id]);
        assert_eq!(info["phase"], phase, "{name}");
        if !cause.is_empty() {
            assert_eq!(info["cause"], cause, "{name}");
        }
        // Ours and the job's 125 are told apart by the JSON on stderr.
        let ours = serde_json::from_str::<Value>(stderr.lines().last().unwrap_or(""));
        assert_eq!(ours.is_ok(), name == "without", "{name}: {stderr}");
    }
}

#[test]
fn quiet_is_one_line_that_is_there_before_the_end_and_wait_ends_with_the_manifest() {
    use std::io::{BufRead, BufReader};
    let place = Place::up();
    let gate = place.path("gate").display().to_string();
    let code = format!(
        "import os, time\nprint(os.environ['MLMESH_RUN_ID'])\nwhile not os.path.exists({gate:?}): time.sleep(0.01)\nopen('model.txt', 'w').write('m')"
    );
    let recipe = place.bare("gated", &code, "seed: 1\noutputs: [model.txt]");
    let queue = [
        "queue",
        "-q",
        "--wait",
        &recipe,
        "--repro-policy",
        "relaxed",
    ];
    let mut child = place
        .command(&queue)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let id = lines.next().unwrap().unwrap();
    assert_eq!(id.len(), 12);
    // The line was there while the job is held.
    assert_eq!(place.json(&["info", &id])["manifest"], Value::Null);
    std::fs::write(&gate, "").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(lines.next().is_none(), "one line and nothing else");
    let file = place.data().join("data/experiments").join(&id);
    let file = file.join("run_manifest.json");
    let manifest: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let info = place.json(&["info", "@last"]);
    assert_eq!((&info["id"], &info["manifest"]), (&json!(id), &manifest));
    let digest =
        "import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())";
    assert_eq!(info["manifest_sha256"], python(digest, &[file]));
    assert_eq!(place.ml(&["logs", &id]).exits(0).stdout, format!("{id}\n"));
    let outputs = place.path("out").display().to_string();
    place.ml(&["outputs", &id, "-o", &outputs]).exits(0);
    assert_eq!(std::fs::read(place.path("out/model.txt")).unwrap(), b"m");
}

#[test]
fn status_and_sync_have_the_documented_shape() {
    let place = Place::up();
    place
        .ml(&[
            "run",
            &place.bare("one", "print(1)", "seed: 1"),
            "--repro-policy",
            "relaxed",
        ])
        .exits(0);
    let status = place.json(&["status"]);
    assert_eq!(keys(&status), ["counts", "prewarm", "runs", "schema"]);
    assert_eq!(
        keys(&status["counts"]),
        [
            "cancelled",
            "completed",
            "failed",
            "finishing",
            "interrupted",
            "queued",
            "running",
            "starting"
        ]
    );
    assert_eq!(
        (&status["prewarm"], &status["counts"]["completed"]),
        (&Value::Null, &json!(1))
    );
    let sync = place.json(&["sync"]);
    assert_eq!(keys(&sync), ["bytes_sent", "commit", "files", "schema"]);
    let info = place.json(&["info"]);
    for key in ["phase", "plan_sha256", "trust", "metrics", "manifest"] {
        assert!(!info[key].is_null(), "{key}");
    }
    let file: Value =
        serde_json::from_slice(&std::fs::read(place.data().join("meshd.json")).unwrap()).unwrap();
    assert_eq!(keys(&file), ["ca", "pid", "schema", "urls"]);
    let mode = std::fs::metadata(place.data().join("owner.key"))
        .unwrap()
        .permissions();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
        0o600
    );
}

#[test]
fn a_run_is_named_by_its_beginning_when_that_is_one_run_s() {
    let place = Place::up();
    // Of 33 ids two begin alike: there are 32 letters.
    let points: Vec<String> = (0..33).map(|point| point.to_string()).collect();
    let points = points.join(", ");
    let recipe = place.recipe(
        "many",
        &format!(
            "command: [\"true\", \"${{n}}\"]\nseed: 1\nparams: {{n: 0}}\nsweep: {{n: [{points}]}}"
        ),
    );
    let queue = [
        "queue",
        "-q",
        "--wait",
        &recipe,
        "--repro-policy",
        "relaxed",
    ];
    let sweep = place.ml(&queue).exits(0).stdout.trim_end().to_owned();
    let list = place.json(&["list", "--parent", &sweep, "--limit", "100"]);
    let mut ids: Vec<&str> = list["runs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| run["id"].as_str().unwrap())
        .chain([sweep.as_str()])
        .collect();
    assert_eq!(ids.len(), 34);
    ids.sort();
    let pair = ids
        .windows(2)
        .find(|pair| pair[0][..1] == pair[1][..1])
        .unwrap();
    let shared = pair[0]
        .bytes()
        .zip(pair[1].bytes())
        .take_while(|(a, b)| a == b)
        .count();
    let ambiguous = place.ml(&["info", &pair[0][..shared], "--json"]);
    let error = ambiguous.exits(2).error();
    assert_eq!(error["code"], "ambiguous_id", "{error}");
    let unique = &pair[0][..shared + 1];
    if ids.iter().filter(|id| id.starts_with(unique)).count() == 1 {
        assert_eq!(place.json(&["info", unique])["id"], pair[0]);
    }
    assert_eq!(
        place.json(&["info", &sweep])["children_counts"]["completed"],
        33
    );
    let counts = &place.json(&["status"])["counts"]["completed"];
    assert_eq!(*counts, 33, "a parent stands in no count");
}

#[test]
fn a_cancelled_run_is_told_from_a_failed_one() {
    let place = Place::up();
    place.write("job.py", JOB);
    let recipe = place.recipe("asleep", "command: [python3, job.py, sleep]\nseed: 1");
    let queue = |more: &[&str]| {
        let options = ["queue", "-q", &recipe, "--repro-policy", "relaxed"];
        place
            .ml(&[&options, more].concat())
            .exits(0)
            .stdout
            .trim_end()
            .to_owned()
    };
    let first = queue(&[]);
    let second = queue(&["--after", &first]);
    wait("the job", || {
        place.ml(&["logs", &first]).stdout == "started\n"
    });
    place.ml(&["cancel", &second]).exits(0);
    place.ml(&["cancel", &first]).exits(0);
    place.ml(&["watch", &first, &second]).exits(0);
    let first = place.json(&["info", &first]);
    assert_eq!(
        (&first["phase"], &first["cause"]),
        (&json!("cancelled"), &json!("cancelled"))
    );
    let second = place.json(&["info", &second]);
    assert_eq!(second["phase"], "cancelled");
    assert_eq!(second["trust"]["level"], "L0", "it never started");
    assert_eq!(second["manifest"]["trust"], second["trust"]);
}

#[test]
fn a_closed_pipe_is_no_error_of_ours() {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "\"$0\" recipe schema | head -c 1"]);
    command.arg(mlmesh_testkit::daemon::program("ml"));
    let closed = answer(&mut command).exits(0);
    assert_eq!((closed.stdout.as_str(), closed.stderr.as_str()), ("{", ""));
}

fn keys(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}
