//! What travels when files become a commit.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use mlmesh_testkit::place::noise;
use serde_json::Value;

use crate::mesh::Mesh;

fn sync(mesh: &Mesh) -> Value {
    let synced = mesh.ml(&["sync", "--json"]).exits(0).json();
    let keys: Vec<&String> = synced.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["bytes_sent", "commit", "files", "schema"]);
    assert_eq!(synced["schema"], "mlmesh.sync/1");
    synced
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
        mesh.place.write("new/deep/file.txt", number.to_string());
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

#[test]
fn damage_is_named_with_what_needs_it_and_a_sync_after_a_restart_mends_it() {
    let mesh = Mesh::up();
    let content = noise(60_000);
    std::fs::write(mesh.place.project().join("weights.bin"), &content).unwrap();
    let recipe = mesh.recipe("needs", &["ok"], "");
    let run = mesh.ml(&["queue", "-q", "--wait", &recipe]).exits(0).stdout;
    let commit = mesh.ml(&["info", "--json"]).exits(0).json()["commit"].clone();
    let whole = mesh.ml(&["doctor", "--objects"]).exits(0).stdout;
    assert!(whole.ends_with(": all as written\n"), "{whole}");

    let packs = std::fs::read_dir(mesh.place.data().join("data/objects/packs")).unwrap();
    let pack = packs
        .map(|file| file.unwrap().path())
        .find(|path| path.extension().is_some_and(|ending| ending == "pack"))
        .unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    let at = bytes
        .windows(content.len())
        .position(|window| window == content)
        .unwrap();
    bytes[at + 5] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    let found = mesh.ml(&["doctor", "--objects", "--json"]).exits(1).json();
    assert_eq!(
        (&found["schema"], &found["defects_total"]),
        (&"mlmesh.scrub/1".into(), &1.into())
    );
    let defect = &found["defects"][0];
    assert_eq!(
        (&defect["kind"], &defect["commits"], &defect["runs"]),
        (
            &"object".into(),
            &serde_json::json!([commit]),
            &serde_json::json!([run.trim()])
        )
    );
    let object = defect["object"].as_str().unwrap();
    let words = mesh.ml(&["doctor", "--objects"]).exits(1);
    assert!(words.stdout.contains(object), "{}", words.stdout);
    let audit = mesh.ml(&["audit", "list"]).exits(0).stdout;
    assert!(audit.contains("objects.scrub"), "{audit}");

    // The mark outlives the daemon: the same files are sent again without a scrub.
    mesh.kill();
    mesh.ml(&["up", "--port", "0"]).exits(0);
    let synced = sync(&mesh);
    assert_eq!(synced["commit"], commit);
    assert!(synced["bytes_sent"].as_u64().unwrap() > 60_000, "{synced}");
    assert_eq!(sync(&mesh)["bytes_sent"], 0);
    mesh.ml(&["doctor", "--objects"]).exits(0);
}
