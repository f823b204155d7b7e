//! What travels when files become a commit.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::mesh::Mesh;

fn sync(mesh: &Mesh) -> Value {
    let synced = mesh.ml(&["sync", "--json"]).exits(0).json();
    let keys: Vec<&String> = synced.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["bytes_sent", "commit", "files", "schema"]);
    assert_eq!(synced["schema"], "mlmesh.sync/1");
    synced
}

/// Bytes that do not repeat, the same in each call.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}

#[test]
fn only_what_is_new_travels() {
    let mesh = Mesh::up();
    let mut content = noise(24 << 20);
    let file = mesh.place.project().join("weights.bin");
    std::fs::write(&file, &content).unwrap();
    let first = sync(&mesh);
    assert_eq!(first["files"], 3);
    assert!(first["bytes_sent"].as_u64().unwrap() > 24 << 20, "{first}");
    let same = sync(&mesh);
    assert_eq!(same["commit"], first["commit"]);
    assert_eq!(same["bytes_sent"], 0, "{same}");
    content.insert(12 << 20, b'!');
    std::fs::write(&file, &content).unwrap();
    // A look in between must not cost the knowledge of what is there.
    mesh.ml(&["explain", &mesh.recipe("look", &["ok"], "")])
        .exits(0);
    std::fs::remove_file(mesh.place.project().join("look.yaml")).unwrap();
    let changed = sync(&mesh);
    assert_ne!(changed["commit"], first["commit"]);
    assert!(
        changed["bytes_sent"].as_u64().unwrap() < 1 << 20,
        "{changed}"
    );
}

#[test]
fn caches_may_vanish() {
    let mesh = Mesh::up();
    std::fs::write(mesh.place.project().join("weights.bin"), noise(3 << 20)).unwrap();
    let first = sync(&mesh);
    std::fs::remove_dir_all(mesh.place.data().join("data/cache")).unwrap();
    assert_eq!(sync(&mesh)["commit"], first["commit"]);
}

#[test]
fn the_daemons_own_files_are_no_part_of_a_project() {
    let mesh = Mesh::up();
    let first = sync(&mesh);
    // The same daemon, seen from a project that its data directory lies in.
    let outer = mesh.place.path("");
    std::fs::write(outer.join("mlmesh.toml"), "").unwrap();
    let mut command = mesh.place.command(&["sync", "--json", "."]);
    let answer = crate::program::answer(command.current_dir(&outer))
        .exits(0)
        .json();
    assert_ne!(answer["commit"], first["commit"]);
    assert_eq!(answer["files"], 3, "mlmesh.toml of both, and job.py");
}

#[test]
fn secrets_stay_out_unless_they_are_let_through() {
    let mesh = Mesh::up();
    mesh.place.write(".env", "TOKEN=1\n");
    let refused = mesh.ml(&["sync", "--json"]).exits(3);
    let error = refused.error();
    assert_eq!(error["code"], "secrets_in_tree");
    assert_eq!(error["details"]["paths"], serde_json::json!([".env"]));
    assert!(
        error["hint"].as_str().unwrap().contains(".mlignore"),
        "{error:#}"
    );
    mesh.place.write(".mlignore", "!.env\n");
    assert_eq!(sync(&mesh)["files"], 4);
}

#[test]
fn an_edit_becomes_a_commit_within_two_seconds() {
    let mesh = Mesh::up();
    let mut watch = mesh
        .place
        .command(&["sync", "--watch", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut commit = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(commit()["files"], 2);
    let edited = Instant::now();
    for number in 0..20 {
        mesh.place.write("new/deep/file.txt", &format!("{number}"));
    }
    assert_eq!(commit()["files"], 3);
    assert!(
        edited.elapsed() < Duration::from_secs(2),
        "{:?}",
        edited.elapsed()
    );
    mesh.place.write("new/deep/other.txt", "x");
    let last = commit();
    assert_eq!(last["files"], 4, "a folder that came later is watched too");
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert_eq!(sync(&mesh)["commit"], last["commit"]);
}
