//! What a job is given: its environment, its arguments, its secrets; and what nobody
//! else sees of them.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use super::place::{Answer, Place, answer, files_with, wait};
use serde_json::{Value, json};

/// Prints the environment as the kernel has it, before Python could touch it.
const ENVIRONMENT: &str = r#"
import json
pairs = open("/proc/self/environ", "rb").read().decode().rstrip("\0").split("\0")
print(json.dumps(dict(pair.split("=", 1) for pair in pairs)))
"#;

/// `ml ARGUMENTS` with variables that nobody but `ml` is to see, and a secret.
fn foreign(place: &Place, arguments: &[&str]) -> Answer {
    let mut command = place.command(arguments);
    let foreign = [
        ("FOO", "leak"),
        ("LD_LIBRARY_PATH", "/leak"),
        ("PYTHONPATH", "/leak"),
    ];
    answer(command.envs(foreign).env("TOKEN", "value-of-token"))
}

#[test]
fn a_job_s_environment_is_what_the_contract_lists() {
    let place = Place::down();
    foreign(&place, &["up", "--port", "0"]).exits(0);
    let more = "env: {PLAIN: \"a b\", OMP_NUM_THREADS: \"1\"}\nsecrets: [TOKEN]";
    let recipe = place.strict("environment", ENVIRONMENT, more);
    for policy in ["strict", "relaxed"] {
        let answer = foreign(&place, &["run", &recipe, "--repro-policy", policy]).exits(0);
        let seen = answer.json();
        let names: Vec<&String> = seen.as_object().unwrap().keys().collect();
        let mut expected = vec![
            "HOME",
            "LANG",
            "MLFLOW_RUN_ID",
            "MLFLOW_TRACKING_URI",
            "MLMESH_ATTEMPT",
            "MLMESH_CHECKPOINT_DIR",
            "MLMESH_OUTPUT_DIR",
            "MLMESH_RUN_ID",
            "MLMESH_SEED",
            "OMP_NUM_THREADS",
            "PATH",
            "PLAIN",
            "TOKEN",
        ];
        // On the machine's network others could log to the run.
        expected.extend((policy == "relaxed").then_some("MLFLOW_TRACKING_TOKEN"));
        expected.sort();
        assert_eq!(names, expected, "{policy}");
        let info = place.json(&["info"]);
        assert_eq!(seen["MLMESH_RUN_ID"], info["id"]);
        assert_eq!(
            (&seen["MLMESH_ATTEMPT"], &seen["MLMESH_SEED"]),
            (&json!("1"), &json!("7"))
        );
        assert_eq!(seen["PLAIN"], "a b");
        let path = seen["PATH"].as_str().unwrap();
        let first = path.split(':').next().unwrap();
        // The environment's own comes before the system's.
        let system = ["/usr", "/bin", "/sbin"];
        assert!(
            first.ends_with("/bin") && !system.iter().any(|start| first.starts_with(start)),
            "{path}"
        );
        let home = place.path("home").display().to_string();
        assert!(
            policy == "relaxed" || seen["HOME"] != home,
            "HOME is private"
        );
    }
    let more = "params: {lr: 1}\nsweep: {lr: [1, 2]}";
    let recipe = place.strict("swept", ENVIRONMENT, more);
    let sweep = place
        .ml(&["queue", "-q", "--wait", &recipe])
        .exits(0)
        .stdout;
    let list = place.json(&["list", "--parent", sweep.trim_end()]);
    for run in list["runs"].as_array().unwrap() {
        let logs = place.ml(&["logs", run["id"].as_str().unwrap()]).exits(0);
        assert_eq!(logs.json()["MLMESH_SWEEP_ID"], sweep.trim_end());
    }
}

#[test]
fn arguments_reach_the_job_as_they_are_written() {
    let place = Place::up();
    let words = [
        "$HOME",
        "$(id)",
        "`id`",
        "; touch x",
        "*",
        "a  b",
        "\"q\"",
        "'s'",
        "\\",
        "\\n",
        "|",
        "&&",
        ">x",
        "#",
        "~",
        "--",
        "",
        "$lr",
        "$$",
        "{lr}",
        "%s",
        "ü€",
    ];
    let code = "import json, sys; print(json.dumps(sys.argv[1:]))";
    place.write("words.py", code);
    let command: Vec<Value> = ["python3", "words.py"]
        .into_iter()
        .chain(words)
        .chain(["<${lr}>", "${seed}"])
        .map(Value::from)
        .collect();
    let lines = format!(
        "command: {}\nseed: 7\nparams: {{lr: 1}}",
        Value::from(command)
    );
    let recipe = place.recipe("words", &lines);
    // What is substituted is not looked at again.
    let set = "lr=$(id) ${seed} *";
    let run = ["run", &recipe, "--repro-policy", "relaxed", "--set", set];
    let seen = place.ml(&run).exits(0).json();
    let expected: Vec<&str> = words
        .into_iter()
        .chain(["<$(id) ${seed} *>", "7"])
        .collect();
    assert_eq!(seen, json!(expected));
    assert!(!place.project().join("x").exists());
}

/// Says its secret whole, in two halves, on both streams and as a line of a longer
/// text; then waits to be let go.
const SECRETIVE: &str = r#"
import os, sys, time
value = os.environ["TOKEN"]
print("whole", value, flush=True)
print("whole", value, file=sys.stderr, flush=True)
sys.stdout.write("half " + value[:9]); sys.stdout.flush()
time.sleep(0.1)
sys.stdout.write(value[9:] + " half\n"); sys.stdout.flush()
print("key", os.environ["PEM"].splitlines()[1], flush=True)
while not os.path.exists(os.environ["MLMESH_CHECKPOINT_DIR"] + "/go"): time.sleep(0.01)
"#;
const TOKEN: &str = "hunter2-Zq9x-hunter2";
const PEM_LINE: &str = "MIIEpAIBAAKCAQEAzz91";

#[test]
fn a_secret_is_seen_by_its_job_and_by_nobody_else() {
    let place = Place::up();
    let recipe = place.strict("secretive", SECRETIVE, "secrets: [TOKEN, PEM]");
    let pem = format!("-----BEGIN X-----\n{PEM_LINE}\n-----END X-----\n");
    let mut command = place.command(&["queue", "-q", "--wait", &recipe]);
    command.env("TOKEN", TOKEN).env("PEM", &pem);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = child.spawn().unwrap();
    let logs = || place.ml(&["logs", "@last"]);
    wait("the job to have said all", || logs().stdout.contains("key"));
    let id = place.json(&["info", "@last"])["id"].clone();
    let run = place
        .data()
        .join("data/experiments")
        .join(id.as_str().unwrap());

    let kept = run.join("secrets.json");
    let mode = std::fs::metadata(&kept).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(
        files_with(&place.data(), TOKEN.as_bytes()),
        std::slice::from_ref(&kept)
    );
    assert_eq!(command_lines_with(TOKEN), Vec::<String>::new());

    std::fs::write(run.join("checkpoints/go"), "").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{:?}", output);
    assert!(!kept.exists(), "values are removed at the end");
    let logs = logs().exits(0);
    assert_eq!(
        (logs.stdout.as_str(), logs.stderr.as_str()),
        (
            "whole [redacted]\nhalf [redacted] half\nkey [redacted]\n",
            "whole [redacted]\n"
        )
    );
    let info = place.ml(&["info", "@last", "--json"]).exits(0);
    assert!(!info.stdout.contains(TOKEN) && !info.stdout.contains(PEM_LINE));
    assert_eq!(info.json()["plan"]["secrets"], json!(["PEM", "TOKEN"]));
    place.ml(&["down"]).exits(0);
    for value in [TOKEN, PEM_LINE] {
        assert_eq!(
            files_with(&place.data(), value.as_bytes()),
            Vec::<std::path::PathBuf>::new()
        );
    }
}

#[test]
fn a_failed_job_leaves_its_outputs_and_its_manifest() {
    let place = Place::up();
    let code = "import os, pathlib\n\
                pathlib.Path('half.txt').write_text('half')\n\
                pathlib.Path(os.environ['MLMESH_OUTPUT_DIR'], 'trace.txt').write_text('why')\n\
                raise SystemExit(3)\n";
    let recipe = place.bare("fails", code, "outputs: [half.txt]");
    let run = place.ended(&recipe, &["--repro-policy", "relaxed"]);
    assert_eq!(
        (&run["phase"], &run["cause"]),
        (&json!("failed"), &json!("exit"))
    );
    assert_eq!(run["manifest"]["exit_code"], 3, "{}", run["manifest"]);
    let into = place.path("got");
    let id = run["id"].as_str().unwrap();
    place
        .ml(&["outputs", id, "-o", into.to_str().unwrap()])
        .exits(0);
    let read = |name: &str| std::fs::read_to_string(into.join(name)).unwrap();
    assert_eq!(read("half.txt"), "half");
    assert_eq!(read("outputs/trace.txt"), "why");
}

#[test]
fn the_owner_s_key_stands_in_no_command_line_and_no_log() {
    let place = Place::up();
    let key = std::fs::read_to_string(place.data().join("owner.key")).unwrap();
    let key = key.trim();
    let recipe = place.strict("keyless", "print(1)", "");
    place.completed(&recipe, &[]);
    assert_eq!(command_lines_with(key), Vec::<String>::new());
    let holders = files_with(&place.data(), key.as_bytes());
    assert_eq!(holders, [place.data().join("owner.key")]);
    // A key that others can read is refused, by client and daemon.
    let path = place.data().join("owner.key");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    let refused = place.ml(&["status", "--json"]);
    assert_eq!(refused.error()["code"], "key_mode");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// Command lines of this machine's processes that hold a text.
fn command_lines_with(text: &str) -> Vec<String> {
    let folders = std::fs::read_dir("/proc").unwrap().flatten();
    folders
        .filter_map(|folder| std::fs::read(folder.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .filter(|line| line.contains(text))
        .collect()
}
