//! The daemon's secret store, as a person uses it.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::mesh::Mesh;
use crate::program::Answer;

const VALUE: &str = "hunter2-hunter2";

fn set(mesh: &Mesh, name: &str, value: &str) -> Answer {
    let mut command = mesh.place.command(&["secret", "set", name, "--json"]);
    command.stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut ml = command.spawn().unwrap();
    let mut stdin = ml.stdin.take().unwrap();
    // A call that is refused early does not read.
    let _ = writeln!(stdin, "{value}");
    drop(stdin);
    let output = ml.wait_with_output().unwrap();
    Answer {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Files below `top` that hold the value.
fn holders(top: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(path),
                Ok(kind) if kind.is_file() => {
                    let bytes = std::fs::read(&path).unwrap_or_default();
                    if bytes
                        .windows(VALUE.len())
                        .any(|part| part == VALUE.as_bytes())
                    {
                        found.push(path);
                    }
                }
                _ => {}
            }
        }
    }
    found
}

/// Processes that carry the value in their arguments.
fn carriers() -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let arguments = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    arguments
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .filter(|arguments| arguments.contains(VALUE))
        .collect()
}

#[test]
fn a_stored_secret_serves_runs_and_retries_and_is_nowhere_else() {
    let mesh = Mesh::up();
    let gate = mesh.place.path("gate");
    let words = ["wait", gate.to_str().unwrap()];
    let recipe = mesh.recipe("stored", &words, "secrets: [TOKEN]");
    let refused = mesh.ml(&["queue", &recipe, "--json"]).exits(3);
    assert!(
        refused.stderr.contains("ml secret set TOKEN"),
        "{}",
        refused.stderr
    );

    assert_eq!(set(&mesh, "TOKEN", VALUE).exits(0).json()["name"], "TOKEN");
    let list = mesh.ml(&["secret", "list", "--json"]).exits(0).json();
    assert_eq!(list["schema"], "mlmesh.secrets/1");
    let fields: Vec<&String> = list["secrets"][0].as_object().unwrap().keys().collect();
    assert_eq!(fields, ["name", "owner", "schema", "set_at"]);
    let store = mesh.place.data().join("secrets.json");
    assert_eq!(
        store.metadata().unwrap().permissions().mode() & 0o7777,
        0o600
    );

    let explained = mesh.ml(&["explain", &recipe]).exits(0).stdout;
    assert!(
        explained.contains("TOKEN       from the daemon's store"),
        "{explained}"
    );
    let id = mesh.queue(&recipe);
    mesh.wait_for_phase(&id, "running");
    let ours = std::slice::from_ref(&store);
    assert_eq!(holders(&mesh.place.data()), ours);
    assert_eq!(carriers(), Vec::<String>::new());
    mesh.ml(&["cancel", &id, "--json"]).exits(0);
    mesh.wait_for_phase(&id, "cancelled");

    std::fs::write(&gate, "").unwrap();
    mesh.ml(&["retry", &id, "--json"]).exits(0);
    mesh.wait_for_phase(&id, "completed");
    assert_eq!(holders(&mesh.place.data()), [store]);
    let audit = mesh.ml(&["audit", "list", "--json"]).exits(0).stdout;
    assert!(
        audit.contains("secret.set") && !audit.contains(VALUE),
        "{audit}"
    );

    mesh.ml(&["secret", "remove", "TOKEN"]).exits(0);
    mesh.ml(&["secret", "remove", "TOKEN", "--json"]).exits(4);
    assert_eq!(holders(&mesh.place.data()), Vec::<PathBuf>::new());
}

#[test]
fn what_is_no_secret_is_refused_without_being_quoted() {
    let mesh = Mesh::up();
    for (name, value) in [
        ("TOKEN", ""),
        ("MLMESH_TOKEN", VALUE),
        ("a-b", VALUE),
        ("../x", VALUE),
    ] {
        let refused = set(&mesh, name, value).exits(2);
        assert!(!refused.stderr.contains(VALUE), "{}", refused.stderr);
        assert!(
            refused.stderr.contains("hint"),
            "{name}: {}",
            refused.stderr
        );
    }
    let long = VALUE.repeat(4_000);
    let refused = set(&mesh, "TOKEN", &long).exits(2);
    assert!(refused.stderr.contains("32768"), "{}", refused.stderr);
    let store = mesh.place.data().join("secrets.json");
    assert!(!store.exists());
    set(&mesh, "TOKEN", VALUE).exits(0);
    std::fs::set_permissions(&store, PermissionsExt::from_mode(0o644)).unwrap();
    let refused = mesh.ml(&["secret", "list", "--json"]).exits(1);
    assert!(refused.stderr.contains("key_mode"), "{}", refused.stderr);
    std::fs::set_permissions(&store, PermissionsExt::from_mode(0o600)).unwrap();
    mesh.ml(&["secret", "list"]).exits(0);
}
