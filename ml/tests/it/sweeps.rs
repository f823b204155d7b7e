//! Sweeps: one recipe, several runs, one code.

use serde_json::Value;

use crate::mesh::Mesh;

fn recipe(mesh: &Mesh) -> String {
    mesh.recipe(
        "sweep",
        &["exit", "${code}"],
        "params: {code: 0}\nsweep: {code: [0, 3, 2]}",
    )
}

#[test]
fn a_sweep_ends_with_the_highest_code_and_lists_its_points() {
    let mesh = Mesh::up();
    let answer = mesh.ml(&["queue", "--wait", "-q", &recipe(&mesh)]).exits(3);
    let id = answer.stdout.trim();
    let points = mesh.ml(&["list", "--parent", id, "--json"]).exits(0).json();
    let codes: Vec<&Value> = points["runs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| &run["exit_code"])
        .collect();
    assert_eq!(codes, [0, 3, 2]);
    let table = mesh.ml(&["list", "--parent", id]).exits(0).stdout;
    assert!(
        table.contains("sweep #1") && table.contains("exit 3  code=3"),
        "{table}"
    );
    let all = mesh.ml(&["list"]).exits(0).stdout;
    assert!(all.contains("sweep ×3"), "{all}");
    let status = mesh.ml(&["status", "--json"]).exits(0).json();
    assert_eq!(
        (&status["counts"]["completed"], &status["counts"]["failed"]),
        (&1.into(), &2.into())
    );
    assert!(status["prewarm"].is_null());
    let refused = mesh.ml(&["logs", id, "--json"]).exits(2);
    assert!(
        refused.error()["hint"]
            .as_str()
            .unwrap()
            .contains("--parent")
    );
}

#[test]
fn failed_points_are_put_back_and_watched_to_their_end() {
    let mesh = Mesh::up();
    let answer = mesh.ml(&["run", &recipe(&mesh)]).exits(3);
    assert!(
        answer.stderr.contains("1 completed, 2 failed"),
        "{}",
        answer.stderr
    );
    let retried = mesh
        .ml(&["retry", "@last", "--failed", "--json"])
        .exits(0)
        .json();
    assert_eq!(retried["schema"], "mlmesh.changed_runs/1");
    assert_eq!(retried["runs"].as_array().unwrap().len(), 2);
    let watched = mesh.ml(&["watch", "@last"]).exits(0);
    let ends = watched
        .stdout
        .lines()
        .filter(|line| line.contains("failed (exit), attempt 2"));
    assert_eq!(ends.count(), 2, "{}", watched.stdout);
}

#[test]
fn a_run_waits_for_another() {
    let mesh = Mesh::up();
    let gate = mesh.place.path("gate");
    let first = mesh.queue(&mesh.recipe("first", &["wait", gate.to_str().unwrap()], ""));
    let second = mesh.recipe("second", &["ok"], "");
    let answer = mesh
        .ml(&["queue", "-q", &second, "--after", &first])
        .exits(0);
    let second = answer.stdout.trim().to_owned();
    mesh.wait_for_phase(&first, "running");
    assert_eq!(
        mesh.ml(&["info", &second, "--json"]).json()["phase"],
        "queued"
    );
    std::fs::write(&gate, "").unwrap();
    mesh.wait_for_phase(&second, "completed");
}
