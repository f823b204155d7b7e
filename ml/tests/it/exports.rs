//! Exports as files that somebody else holds: what verifies, and what each change of
//! them is called.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::mesh::Mesh;
use crate::program::answer;

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

/// The key that signed is in the export: lost or replaced, it is not missed.
#[test]
fn an_export_outlives_the_key_that_signed_it() {
    let mesh = Mesh::up();
    let (id, file) = exported(&mesh);
    let first = mesh.ml(&["key", "show"]).exits(0).stdout;
    let first = first.trim();
    let key = mesh.place.path("home/config/signing.key");
    fs::remove_file(&key).unwrap();
    let signed_by = |signer: &str, code: i32| {
        mesh.ml(&["export", "--verify", "x.zip", "--signer", signer])
            .exits(code)
    };
    signed_by(first, 0);
    assert!(!key.exists(), "whoever verifies needs no key");
    // Another one takes its place.
    let made = mesh.ml(&["export", &id, "-o", "y.zip"]).exits(0);
    let second = mesh.ml(&["key", "show"]).exits(0).stdout;
    let second = second.trim();
    assert!(made.stderr.contains(second), "{}", made.stderr);
    assert_ne!(first, second);
    signed_by(first, 0);
    signed_by(second, 1);
    fs::rename(mesh.place.project().join("y.zip"), &file).unwrap();
    signed_by(second, 0);
    signed_by(first, 1);
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

/// Says that a program is not there, which continuous integration does not accept.
#[expect(clippy::print_stdout, reason = "a skipped test says so")]
fn may_be_missing(what: &str) {
    assert!(std::env::var_os("CI").is_none(), "{what} is missing");
    println!("skipped: {what} is missing");
}

#[test]
fn a_reviewer_checks_an_export_by_hand_as_the_document_says() {
    let mesh = Mesh::up();
    let (_, file) = exported(&mesh);
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/export.md");
    let document = fs::read_to_string(document).unwrap();
    let (_, script) = document.split_once("```python\n").unwrap();
    let (script, _) = script.split_once("```").unwrap();
    let check = || {
        Command::new("python3")
            .args(["-c", script])
            .arg(&file)
            .current_dir(mesh.place.project())
            .output()
            .unwrap()
    };
    if Command::new("openssl").arg("version").output().is_err() {
        return may_be_missing("openssl");
    }
    let said = check();
    let words = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.success(), "{words}");
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.windows(6).position(|part| part == b"sha256").unwrap();
    bytes[at] ^= 1;
    fs::write(&file, &bytes).unwrap();
    assert!(!check().status.success());
}

#[test]
fn rocrate_validator_accepts_the_crate_offline() {
    let python = std::env::var_os("MLMESH_TEST_PYTHON").map(PathBuf::from);
    let validator = |python: &PathBuf| python.with_file_name("rocrate-validator").is_file();
    let Some(python) = python.filter(validator) else {
        return may_be_missing("rocrate-validator");
    };
    let mesh = Mesh::up();
    let more = "outputs: [model.txt]\nparams: {word: ok}\nsweep: {word: [ok, \"a b\"]}";
    let sweep = mesh.queue(&mesh.recipe("grid", &["${word}"], more));
    mesh.wait_for_phase(&sweep, "completed");
    let (run, _) = exported(&mesh);
    let (reproduced, _) = crate::reproductions::reproduced(&mesh);
    for id in [run, sweep, reproduced] {
        mesh.ml(&["export", &id, "-o", "x.zip"]).exits(0);
        let crate_folder = mesh.place.path(&id);
        let unpack = "import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extractall(sys.argv[2])";
        let unpacked = Command::new(&python)
            .args(["-c", unpack])
            .arg(mesh.place.project().join("x.zip"))
            .arg(&crate_folder)
            .status();
        assert!(unpacked.unwrap().success());
        let check = |folder: &PathBuf| {
            Command::new(&python)
                .arg(concat!(
                    env!("CARGO_MANIFEST_DIR"),
                    "/tests/rocrate/offline.py"
                ))
                .arg(folder)
                .output()
                .unwrap()
        };
        let said = check(&crate_folder);
        let words = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.status.success(), "{words}");
        let path = crate_folder.join("ro-crate-metadata.json");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"instrument\"", "\"tool\"")).unwrap();
        assert!(!check(&crate_folder).status.success());
    }
}

#[test]
fn an_import_that_is_cut_is_repeated() {
    let mesh = Mesh::up();
    let (id, file) = exported(&mesh);
    let points = [
        "cas.pack.append",
        "cas.journal.torn",
        "cas.commit.write",
        "cas.commit.rename",
        "store.submit.rows_written",
        "store.submit.before_commit",
        "store.submit.after_commit",
    ];
    for point in points {
        let other = Mesh::up();
        other.ml(&["down"]).exits(0);
        fs::copy(&file, other.place.project().join("x.zip")).unwrap();
        let mut up = other.place.command(&["up", "--port", "0"]);
        up.env("MLMESH_CRASH_AT", point);
        answer(&mut up).exits(0);
        assert_ne!(other.ml(&["import", "x.zip"]).code, 0, "{point}");
        other.ml(&["up", "--port", "0"]).exits(0);
        let again = other.ml(&["import", "x.zip", "--json"]).exits(0).json();
        assert_eq!(again["fresh"], !point.ends_with("after_commit"), "{point}");
        other.ml(&["validate", "--task", &id]).exits(0);
        let listed = other.ml(&["list", "--json"]).exits(0).json();
        assert_eq!(listed["runs"].as_array().unwrap().len(), 1, "{point}");
    }
}

#[test]
fn an_export_that_is_killed_leaves_a_whole_file_or_none() {
    let mesh = Mesh::up();
    let (id, file) = exported(&mesh);
    let mut whole = 0;
    for delay in 0..12_u64 {
        drop(fs::remove_file(&file));
        let mut command = mesh.place.command(&["export", &id, "-o", "x.zip"]);
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let due = Instant::now() + Duration::from_millis(10 * delay);
        while Instant::now() < due {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if file.exists() {
            whole += 1;
            mesh.ml(&["export", "--verify", "x.zip"]).exits(0);
        }
    }
    assert!(whole < 12, "none was killed early enough");
    mesh.ml(&["export", &id, "-o", "x.zip"]).exits(0);
}

/// What an export leaves beside its file while it is written.
fn parts(mesh: &Mesh) -> usize {
    let entries = fs::read_dir(mesh.place.project()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".part")).count()
}

/// A run with an output that takes a while to pass on.
fn large(mesh: &Mesh) -> String {
    mesh.place.write(
        "large.yaml",
        "experiment:\n  name: large\n  seed: none\n  outputs: [large.bin]\n  \
         command: [python3, -c, \"import random; open('large.bin', 'wb').write(random.Random(1).randbytes(40000000))\"]\n",
    );
    let id = mesh.queue("large.yaml");
    mesh.wait_for_phase(&id, "completed");
    id
}

#[test]
fn what_a_killed_export_left_goes_with_the_next_one_beside_it() {
    let mesh = Mesh::up();
    let id = large(&mesh);
    mesh.ml(&["key", "show"]).exits(0);
    let mut command = mesh.place.command(&["export", &id, "-o", "x.zip"]);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    mesh.wait("the part", || parts(&mesh) == 1);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(parts(&mesh), 1, "it was killed in between");
    assert!(!mesh.place.project().join("x.zip").exists());
    mesh.ml(&["export", &id, "-o", "y.zip"]).exits(0);
    assert_eq!(parts(&mesh), 0);
    mesh.ml(&["export", "--verify", "y.zip"]).exits(0);
}

#[test]
fn an_import_whose_client_is_killed_is_repeated() {
    let mesh = Mesh::up();
    let id = large(&mesh);
    mesh.ml(&["export", &id, "-o", "x.zip"]).exits(0);
    let other = Mesh::up();
    let file = mesh.place.project().join("x.zip");
    fs::copy(file, other.place.project().join("x.zip")).unwrap();
    let mut cut = 0;
    for delay in 1..=8_u64 {
        let mut command = other.place.command(&["import", "x.zip"]);
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let due = Instant::now() + Duration::from_millis(150 * delay);
        while Instant::now() < due && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        cut += u32::from(!child.wait().unwrap().success());
    }
    assert!(cut > 0, "none was killed early enough");
    other.ml(&["import", "x.zip"]).exits(0);
    other.ml(&["validate", "--task", &id]).exits(0);
    let listed = other.ml(&["list", "--json"]).exits(0).json();
    assert_eq!(listed["runs"].as_array().unwrap().len(), 1);
}

#[test]
fn an_import_beside_prunes_loses_nothing() {
    let mesh = Mesh::up();
    let other = Mesh::up();
    let ids: Vec<String> = (0..5)
        .map(|place| {
            let recipe = mesh.recipe("word", &[&format!("word {place}")], "outputs: [model.txt]");
            let id = mesh.queue(&recipe);
            mesh.wait_for_phase(&id, "completed");
            let file = other.place.project().join(format!("{place}.zip"));
            mesh.ml(&["export", &id, "-o", file.to_str().unwrap()])
                .exits(0);
            id
        })
        .collect();
    let done = std::sync::atomic::AtomicBool::new(false);
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    let prunes = std::thread::scope(|scope| {
        let pruner = scope.spawn(|| {
            let mut prunes = 0;
            while !done.load(relaxed) {
                other.ml(&["prune"]).exits(0);
                prunes += 1;
            }
            prunes
        });
        for place in 0..ids.len() {
            other.ml(&["import", &format!("{place}.zip")]).exits(0);
        }
        done.store(true, relaxed);
        pruner.join().unwrap()
    });
    assert!(prunes > 1, "{prunes} prunes");
    other.ml(&["prune"]).exits(0);
    for id in &ids {
        other.ml(&["validate", "--task", id]).exits(0);
    }
}
