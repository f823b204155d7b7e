//! The walls of a strict run, felt from inside by a job that tries to get out.

use std::net::TcpListener;

use super::place::Place;
use serde_json::{Value, json};

/// Tries what it is told to and prints what came of it.
const PROBE: &str = r#"
import json, os, socket, sys
asked = json.loads(sys.argv[1])
def attempt(action):
    try: return action()
    except OSError as error: return "refused: " + type(error).__name__
def read(path):
    if os.path.isdir(path): return sorted(os.listdir(path))
    with open(path, "rb") as file: return file.read(1 << 20).decode("latin-1")
def write(path):
    with open(path, "ab") as file: file.write(b"x")
    return "written"
def connect(port):
    socket.create_connection(("127.0.0.1", port), 2).close()
    return "connected"
print(json.dumps({
    "read": {path: attempt(lambda: read(path)) for path in asked["read"]},
    "write": {path: attempt(lambda: write(path)) for path in asked["write"]},
    "remove": {path: attempt(lambda: os.remove(path)) for path in asked["remove"]},
    "connect": [attempt(lambda: connect(port)) for port in asked["connect"]],
    "outside": attempt(lambda: socket.create_connection(("192.0.2.1", 9), 2).close()),
    "interfaces": [name for _, name in socket.if_nameindex()],
    "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
    "signal": attempt(lambda: os.kill(asked["pid"], 0)),
    "chroot": attempt(lambda: os.chroot("/proc/1/root")),
    "parent": attempt(lambda: read("/proc/1/root" + asked["read"][0])),
    "data": read("data/digits/x.csv"),
    "users": read("/etc/passwd"),
    "prefix": sys.prefix,
}))
"#;

#[test]
fn a_strict_job_cannot_get_out() {
    let place = Place::up();
    // The run of somebody before, with outputs, a log and a checkpoint.
    let other = "import os\nopen('model.txt', 'w').write('m')\nprint('said')\nopen(os.environ['MLMESH_CHECKPOINT_DIR'] + '/c', 'w').write('c')";
    let other = place.strict("other", other, "outputs: [model.txt]");
    let (other, _) = place.completed(&other, &[]);
    let folder = place.path("rows");
    std::fs::create_dir(&folder).unwrap();
    let row = folder.join("x.csv");
    std::fs::write(&row, "1,2\n").unwrap();
    let added = place.json(&["data", "add", "digits", "1", &folder.display().to_string()]);
    let checksum = added["checksum"]
        .as_str()
        .unwrap()
        .trim_start_matches("sha256:")
        .to_owned();
    place.write("kept-out.txt", "of the project, after the sync");

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = |path: &std::path::Path| path.display().to_string();
    let data = place.data();
    let experiments = data.join("data/experiments");
    let file: Value =
        serde_json::from_slice(&std::fs::read(data.join("meshd.json")).unwrap()).unwrap();
    let api: u16 = file["urls"]["api"]
        .as_str()
        .unwrap()
        .rsplit(':')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let hidden = [
        text(&data.join("owner.key")),
        text(&data.join("meshd.db")),
        text(&data.join("meshd.json")),
        text(&data.join("tls/server.key")),
        text(&data.join("logs/app.log")),
        text(&data.join("data/objects")),
        text(&experiments.join(other["id"].as_str().unwrap())),
        text(&experiments),
        text(&place.project()),
        text(&place.path("home")),
        text(&row),
        "/etc/shadow".to_owned(),
        "/var/lib".to_owned(),
        "/home".to_owned(),
        "/run".to_owned(),
    ];
    let asked = json!({
        "read": hidden,
        "write": [
            "data/digits/x.csv", "data/digits/new", "/usr/bin/x", "/etc/x", "/x", "/proc/sys/kernel/hostname",
            "/sys/devices/system/x",
        ],
        "remove": ["data/digits/x.csv"],
        "connect": [listener.local_addr().unwrap().port(), api],
        "pid": place.daemon_pid(),
    });
    place.write("probe.py", PROBE);
    let python = super::place::python_version();
    let recipe = place.recipe(
        "probe",
        &format!(
            "command: {}\nseed: 1\nenvironment: {{python: \"{python}\", lock: requirements.lock}}\ndatasets: [{{name: digits, checksum: \"sha256:{checksum}\"}}]",
            json!(["python3", "probe.py", asked.to_string()])
        ),
    );
    let (info, output) = place.completed(&recipe, &[]);
    let seen: Value = serde_json::from_str(&output).unwrap();

    // Who is who in there is ours to say.
    let users = seen["users"].as_str().unwrap();
    assert!(
        !users.contains("root") && users.lines().count() <= 2,
        "{users}"
    );
    let prefix = seen["prefix"].as_str().unwrap();
    for path in &hidden {
        let seen = &seen["read"][path];
        let refused = seen
            .as_str()
            .is_some_and(|text| text.starts_with("refused"));
        // The way to the environment leads through folders with nothing else in them.
        let next = prefix.strip_prefix(path.as_str()).unwrap_or_default();
        let next: Vec<&str> = next.split('/').filter(|part| !part.is_empty()).collect();
        let is_way = *seen == json!(&next[..next.len().min(1)]);
        assert!(refused || is_way, "{path}: {seen}");
    }
    for kind in ["write", "remove"] {
        for (path, outcome) in seen[kind].as_object().unwrap() {
            let outcome = outcome.as_str().unwrap_or("done");
            assert!(outcome.starts_with("refused"), "{kind} {path}: {outcome}");
        }
    }
    for outcome in seen["connect"]
        .as_array()
        .unwrap()
        .iter()
        .chain([&seen["outside"]])
    {
        assert!(
            outcome
                .as_str()
                .is_some_and(|text| text.starts_with("refused")),
            "{seen:#}"
        );
    }
    assert_eq!(seen["interfaces"], json!(["lo"]));
    let processes = seen["processes"].as_array().unwrap();
    assert!(processes.len() <= 3, "only its own: {processes:?}");
    assert!(
        seen["signal"]
            .as_str()
            .is_some_and(|text| text.starts_with("refused")),
        "{seen:#}"
    );
    let parent = &seen["parent"];
    assert!(
        parent
            .as_str()
            .is_some_and(|text| text.starts_with("refused")),
        "{parent}"
    );
    assert_eq!(seen["data"], "1,2\n");
    assert_eq!(std::fs::read_to_string(&row).unwrap(), "1,2\n");
    assert_eq!(
        (&info["isolation"]["sandboxed"], &info["trust"]["level"]),
        (&json!(true), &json!("L3"))
    );
}

#[test]
fn what_a_job_does_to_its_checkout_stays_there() {
    let place = Place::up();
    let first = "import os\nopen('shared.txt', 'w').write('changed')\nos.remove('gone.txt')\nos.chmod('more.py', 0o777)";
    place.write("shared.txt", "as synced");
    place.write("gone.txt", "there");
    place.write("more.py", "");
    let second = "import os; print(open('shared.txt').read(), os.path.exists('gone.txt'))";
    place.completed(&place.strict("writes", first, ""), &[]);
    let (_, output) = place.completed(&place.strict("reads", second, ""), &[]);
    assert_eq!(output, "as synced True\n");
    assert_eq!(
        std::fs::read_to_string(place.project().join("shared.txt")).unwrap(),
        "as synced"
    );
}

const LIMITED: &str = r#"
import sys
block = []
if sys.argv[1:] == ["hungry"]:
    while True: block.append(bytearray(b"x" * (8 << 20)))
"#;

#[test]
fn limits_are_read_back_and_memory_beyond_them_is_told_from_a_failure() {
    let place = Place::up();
    let more = "resources: {cpus: 0.5, memory: 64MiB, time: 1m}";
    let modest = place.strict("modest", LIMITED, more);
    let (info, _) = place.completed(&modest, &[]);
    let limits = info["isolation"]["limits"].as_array().unwrap().clone();
    let names: Vec<&str> = limits
        .iter()
        .map(|limit| limit["name"].as_str().unwrap())
        .collect();
    for (name, value) in [("cpu", 500), ("memory", 64 << 20), ("time", 60)] {
        let limit = limits.iter().find(|limit| limit["name"] == name);
        let limit = limit.unwrap_or_else(|| panic!("{name} of {names:?}"));
        assert_eq!(limit["asked"], value, "{name}");
        assert!(!limit["by"].as_str().unwrap().is_empty());
        if !limit["held"].is_null() {
            assert_eq!(limit["held"], value, "{name}");
        }
    }
    assert!(names.contains(&"pids"), "{names:?}");
    let memory = limits
        .iter()
        .find(|limit| limit["name"] == "memory")
        .unwrap();
    if memory["held"].is_null() {
        println!(
            "not checked: this host enforces no memory limit ({})",
            memory["by"]
        );
        return;
    }
    place.write("hungry.py", LIMITED);
    let python = super::place::python_version();
    let hungry = place.recipe(
        "hungry",
        &format!("command: [python3, hungry.py, hungry]\nseed: 1\nenvironment: {{python: \"{python}\", lock: requirements.lock}}\n{more}"),
    );
    let info = place.ended(&hungry, &[]);
    assert_eq!(
        (&info["phase"], &info["cause"]),
        (&json!("failed"), &json!("out_of_memory")),
        "{info:#}"
    );
}
