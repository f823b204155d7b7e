//! Exports as files that somebody else holds: what verifies, and what each change of
//! them is called.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::mesh::Mesh;

/// A run that has completed, exported; its id and the file.
fn exported(mesh: &Mesh) -> (String, PathBuf) {
    let id = mesh.queue(&mesh.recipe("digits", &["ok"], "outputs: [plots/*, model.txt]"));
    mesh.wait_for_phase(&id, "completed");
    let file = mesh.place.project().join("x.zip");
    let made = mesh.ml(&["export", &id, "-o", "x.zip"]).exits(0);
    assert!(
        made.stderr.contains("made a signing key"),
        "{}",
        made.stderr
    );
    let again = mesh.ml(&["export", &id, "-o", "x.zip", "--json"]).exits(0);
    assert_eq!(again.stderr, "");
    let made = again.json();
    assert_eq!(made["schema"], "mlmesh.export/1");
    assert_eq!(made["run"], id.as_str());
    (id, file)
}

fn verify(mesh: &Mesh, code: i32) -> Value {
    let answer = mesh.ml(&["export", "--verify", "x.zip", "--json"]);
    let answer = answer.exits(code);
    match answer.stdout.is_empty() {
        true => serde_json::from_str(&answer.stderr).unwrap(),
        false => answer.json(),
    }
}

#[test]
fn an_export_verifies_without_a_daemon_and_names_its_signer() {
    let mesh = Mesh::up();
    let (id, file) = exported(&mesh);
    mesh.ml(&["down"]).exits(0);
    let found = verify(&mesh, 0);
    assert_eq!(found["holds"], true, "{found:#}");
    assert_eq!(found["runs"][0]["run"], id.as_str());
    let signer = found["signer"].as_str().unwrap().to_owned();
    let shown = mesh.ml(&["key", "show"]).exits(0).stdout;
    assert_eq!(shown.trim(), signer);
    mesh.ml(&["export", "--verify", "x.zip", "--signer", &signer])
        .exits(0);
    let other = format!("ed25519:{}", "0".repeat(64));
    let refused = mesh
        .ml(&["export", "--verify", "x.zip", "--signer", &other, "--json"])
        .exits(1);
    assert!(
        refused.stderr.contains("\"export_signer\""),
        "{}",
        refused.stderr
    );

    // One bit of an output.
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes
        .windows(6)
        .rposition(|part| part == b"<svg/>")
        .unwrap();
    bytes[at] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let found = verify(&mesh, 1);
    assert_eq!(found["defects"][0]["code"], "file_changed", "{found:#}");
    assert_eq!(found["defects"][0]["at"], "outputs/plots/a.svg");
    assert_eq!(found["defects"].as_array().unwrap().len(), 1);
    bytes[at] ^= 1;
    bytes.push(0);
    fs::write(&file, &bytes).unwrap();
    assert_eq!(verify(&mesh, 1)["code"], "export_form");
    mesh.ml(&["export", "--verify", "absent.zip"]).exits(4);
}

#[test]
fn what_has_not_ended_is_not_exported() {
    let mesh = Mesh::up();
    let gate = mesh.place.path("gate");
    let id = mesh.queue(&mesh.recipe("slow", &["wait", gate.to_str().unwrap()], ""));
    let refused = mesh.ml(&["export", &id, "-o", "x.zip", "--json"]).exits(3);
    assert!(
        refused.stderr.contains("\"run_not_ended\""),
        "{}",
        refused.stderr
    );
    fs::write(&gate, "").unwrap();
    mesh.wait_for_phase(&id, "completed");
    mesh.ml(&["export", &id, "-o", "x.zip"]).exits(0);
}

#[test]
fn a_sweep_is_one_crate_with_its_runs() {
    let mesh = Mesh::up();
    let more = "outputs: [model.txt]\nparams: {word: one}\nsweep: {word: [one, two, three]}";
    let id = mesh.queue(&mesh.recipe("grid", &["${word}"], more));
    mesh.wait_for_phase(&id, "completed");
    mesh.ml(&["export", &id, "-o", "x.zip"]).exits(0);
    let found = verify(&mesh, 0);
    assert_eq!(found["sweep"], id.as_str());
    assert_eq!(found["runs"].as_array().unwrap().len(), 3);
}

#[test]
fn a_key_that_others_can_read_signs_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let mesh = Mesh::up();
    mesh.ml(&["key", "show"]).exits(0);
    let path = mesh.place.path("home/config/signing.key");
    let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o600);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let refused = mesh.ml(&["key", "show", "--json"]).exits(3);
    assert!(
        refused.stderr.contains("\"key_mode\""),
        "{}",
        refused.stderr
    );
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&path, "no key\n").unwrap();
    let refused = mesh.ml(&["key", "show", "--json"]).exits(1);
    assert!(
        refused.stderr.contains("\"key_form\""),
        "{}",
        refused.stderr
    );
}

#[test]
fn an_import_shows_what_its_signer_says_and_no_trust_of_its_own() {
    let mesh = Mesh::up();
    let (id, file) = exported(&mesh);
    let other = Mesh::up();
    fs::copy(&file, other.place.project().join("x.zip")).unwrap();
    let theirs = mesh.ml(&["key", "show"]).exits(0).stdout.trim().to_owned();
    let nobody = format!("ed25519:{}", "0".repeat(64));
    other.ml(&["import", "x.zip", "--signer", &nobody]).exits(1);
    other.ml(&["info", &id]).exits(4);
    let imported = other.ml(&["import", "x.zip", "--signer", &theirs, "--json"]);
    let imported = imported.exits(0).json();
    assert_eq!(imported["fresh"], true, "{imported:#}");
    assert_eq!(imported["run"], id.as_str());

    let here = other.ml(&["info", &id, "--json"]).exits(0).json();
    let there = mesh.ml(&["info", &id, "--json"]).exits(0).json();
    for key in [
        "plan_sha256",
        "commit",
        "manifest",
        "manifest_sha256",
        "outputs",
        "metrics",
        "phase",
        "attempts",
    ] {
        assert_eq!(here[key], there[key], "{key}");
    }
    assert_eq!(here["trust"]["level"], "L0");
    let reason = &here["trust"]["reasons"][0];
    assert_eq!(reason["code"], "imported");
    let claimed = there["trust"]["level"].as_str().unwrap();
    assert_eq!(
        reason["message"],
        format!("imported: {claimed} as signed by {theirs}")
    );
    other.ml(&["outputs", &id, "-o", "out"]).exits(0);
    let output = fs::read_to_string(other.place.project().join("out/model.txt"));
    assert_eq!(output.unwrap(), "ok");
    let found = other
        .ml(&["validate", "--task", &id, "--json"])
        .exits(0)
        .json();
    assert_eq!(found["defects_total"], 0, "{found:#}");
    other.ml(&["audit", "verify"]).exits(0);

    // Again: nothing changes. Where it ran: it is in the way.
    let again = other.ml(&["import", "x.zip", "--json"]).exits(0).json();
    assert_eq!(again["fresh"], false);
    let taken = mesh.ml(&["import", "x.zip", "--json"]);
    assert!(taken.stderr.contains("\"run_exists\""), "{}", taken.stderr);
    assert_ne!(taken.code, 0);
    // What somebody else signed is neither retried nor signed anew.
    let refused = other.ml(&["export", &id, "-o", "y.zip", "--json"]).exits(3);
    assert!(
        refused.stderr.contains("\"run_imported\""),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_sweep_is_imported_with_its_points() {
    let mesh = Mesh::up();
    let more = "outputs: [model.txt]\nparams: {word: ok}\nsweep: {word: [ok, exit, two]}";
    let id = mesh.queue(&mesh.recipe("grid", &["${word}", "3"], more));
    mesh.wait_for_phase(&id, "failed");
    mesh.ml(&["export", &id, "-o", "x.zip"]).exits(0);
    let other = Mesh::up();
    let file = mesh.place.project().join("x.zip");
    fs::copy(file, other.place.project().join("x.zip")).unwrap();
    other.ml(&["import", "x.zip"]).exits(0);
    let here = other.ml(&["info", &id, "--json"]).exits(0).json();
    let there = mesh.ml(&["info", &id, "--json"]).exits(0).json();
    for key in ["phase", "plan_sha256", "children", "children_counts"] {
        assert_eq!(here[key], there[key], "{key}");
    }
    let points = |mesh: &Mesh| {
        let listed = mesh
            .ml(&["list", "--parent", &id, "--json"])
            .exits(0)
            .json();
        let runs = listed["runs"].as_array().unwrap();
        let facts = runs
            .iter()
            .map(|run| ["id", "phase", "params", "exit_code", "index"].map(|key| run[key].clone()));
        facts.collect::<Vec<_>>()
    };
    assert_eq!(points(&other), points(&mesh));
    let retried = other.ml(&["retry", &id, "--json"]);
    assert!(
        retried.stderr.contains("\"wrong_phase\""),
        "{}",
        retried.stderr
    );
    other.ml(&["validate", "--task", &id]).exits(0);
}
