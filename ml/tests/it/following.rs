//! Following a run while things happen to it and to the daemon.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use crate::mesh::Mesh;

fn start(mesh: &Mesh, arguments: &[&str]) -> Child {
    mesh.place
        .command(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn a_killed_daemon_does_not_end_the_waiting() {
    let mesh = Mesh::up();
    let gate = mesh.place.path("gate");
    let recipe = mesh.recipe("patient", &["wait", gate.to_str().unwrap()], "");
    let mut run = start(&mesh, &["run", &recipe]);
    let mut stdout = BufReader::new(run.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "out wait\n", "the log is followed while the job runs");
    let wait = start(&mesh, &["watch", "@last"]);
    mesh.kill();
    mesh.ml(&["status"]).exits(5);
    std::fs::write(&gate, "").unwrap();
    mesh.ml(&["up"]).exits(0);
    let ended = run.wait_with_output().unwrap();
    let stderr = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("err wait\n"), "{stderr}");
    let watched = wait.wait_with_output().unwrap();
    assert_eq!(watched.status.code(), Some(0));
    assert_eq!(mesh.ml(&["info", "--json"]).json()["attempts"], 1);
}

#[test]
fn a_cancelled_run_exits_with_its_signal() {
    let mesh = Mesh::up();
    let mut run = start(&mesh, &["run", &mesh.recipe("long", &["forever"], "")]);
    let mut line = String::new();
    BufReader::new(run.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let cancelled = mesh.ml(&["cancel", "@last", "--json"]).exits(0).json();
    assert_eq!(cancelled["runs"].as_array().unwrap().len(), 1);
    let ended = run.wait_with_output().unwrap();
    assert_eq!(
        ended.status.code(),
        Some(143),
        "{}",
        String::from_utf8_lossy(&ended.stderr)
    );
    let info = mesh.ml(&["info", "--json"]).json();
    assert_eq!(
        (&info["phase"], &info["cause"]),
        (&"cancelled".into(), &"cancelled".into())
    );
    let again = mesh.ml(&["cancel", "@last", "--json"]);
    assert!(matches!(again.code, 0 | 3), "{}", again.stderr);
}

#[test]
fn an_attempt_that_is_not_there_is_not_found() {
    let mesh = Mesh::up();
    mesh.ml(&["queue", "--wait", &mesh.recipe("one", &["ok"], "")])
        .exits(0);
    for arguments in [
        ["logs", "--attempt", "2"].as_slice(),
        &["logs", "-f", "--attempt", "2"],
    ] {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        assert_eq!(mesh.ml(&arguments).exits(4).error()["code"], "not_found");
    }
}

#[test]
fn events_go_on_where_a_reader_stopped() {
    let mesh = Mesh::up();
    mesh.ml(&["queue", "--wait", &mesh.recipe("one", &["ok"], "")])
        .exits(0);
    let read = |after: &str| -> Vec<serde_json::Value> {
        let text = mesh
            .ml(&["events", "--json", "--after", after])
            .exits(0)
            .stdout;
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let all = read("0");
    let phases: Vec<&str> = all
        .iter()
        .filter(|event| event["event"]["type"] == "run_phase")
        .map(|event| event["event"]["phase"].as_str().unwrap())
        .collect();
    assert_eq!(
        phases,
        ["queued", "starting", "running", "finishing", "completed"]
    );
    let middle = all[all.len() / 2]["seq"].to_string();
    assert_eq!(read(&middle), all[all.len() / 2 + 1..]);
    let mut follower = start(&mesh, &["events", "-f", "--json", "--after", &middle]);
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let first: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(first, all[all.len() / 2 + 1]);
    follower.kill().unwrap();
    follower.wait().unwrap();
}

#[test]
fn the_monitor_prints_each_state() {
    let mesh = Mesh::up();
    let mut monitor = start(&mesh, &["monitor", "--json"]);
    let mut lines = BufReader::new(monitor.stdout.take().unwrap()).lines();
    let mut completed = || -> u64 {
        let line = lines.next().unwrap().unwrap();
        let status: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(status["schema"], "mlmesh.status/1");
        status["counts"]["completed"].as_u64().unwrap()
    };
    assert_eq!(completed(), 0);
    mesh.queue(&mesh.recipe("one", &["ok"], ""));
    while completed() == 0 {}
    monitor.kill().unwrap();
    monitor.wait().unwrap();
}

#[test]
fn a_run_that_had_ended_is_one_line_for_scripts() {
    let mesh = Mesh::up();
    let recipe = mesh.recipe("short", &["exit", "7"], "");
    let run = mesh.queue(&recipe);
    mesh.wait_for_phase(&run, "failed");
    let watched = mesh.ml(&["watch", &run, "--json"]).exits(0).json();
    let expected = serde_json::json!({
        "schema": "mlmesh.state/1", "run": run, "name": "short", "phase": "failed",
        "cause": "exit", "attempt": 1,
    });
    assert_eq!(watched, expected);
}
