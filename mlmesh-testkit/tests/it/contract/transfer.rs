//! What makes a commit, and what travels for it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt as _, PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;

use super::place::{Place, answer, noise};
use serde_json::{Value, json};

const LARGE_BYTES: usize = 64 << 20;

#[test]
fn one_changed_byte_of_a_large_file_costs_little_and_no_change_nothing() {
    let place = Place::up();
    let path = place.write("weights.bin", noise(LARGE_BYTES));
    let first = place.json(&["sync"]);
    let sent = |synced: &Value| synced["bytes_sent"].as_u64().unwrap();
    assert!(sent(&first) as usize >= LARGE_BYTES, "{first}");
    let same = place.json(&["sync"]);
    assert_eq!((sent(&same), &same["commit"]), (0, &first["commit"]));
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"!", LARGE_BYTES as u64 / 2 + 7).unwrap();
    let changed = place.json(&["sync"]);
    assert!(sent(&changed) < 1 << 20, "{changed}");
    assert_ne!(changed["commit"], first["commit"]);
    // What was put together there is what lies here: a job sees these bytes.
    let digest =
        "import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())";
    let here = super::place::python(digest, &[&path]);
    let code =
        "import hashlib; print(hashlib.sha256(open('weights.bin', 'rb').read()).hexdigest())";
    let (_, there) = place.completed(&place.strict("digest", code, ""), &[]);
    assert_eq!(there.trim_end(), here);
}

#[test]
fn the_same_tree_has_the_same_id_wherever_it_lies() {
    let place = Place::up();
    let away = Place::up();
    let fill = |root: &Path, mode: u32, order: &[&str]| {
        for name in order {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, name).unwrap();
            let mode = if name.ends_with(".sh") {
                mode | 0o100
            } else {
                mode
            };
            fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        }
        symlink("b/c.txt", root.join("link")).unwrap();
    };
    fill(&place.project(), 0o600, &["a.txt", "b/c.txt", "run.sh"]);
    fill(&away.project(), 0o664, &["run.sh", "b/c.txt", "a.txt"]);
    // None of these is a part of a tree.
    fill(
        &away.project().join("__pycache__"),
        0o644,
        &["x.pyc", "b/c.txt"],
    );
    fs::create_dir_all(away.project().join(".git/objects")).unwrap();
    away.write(".git/HEAD", "ref: refs/heads/main\n");
    away.write("venv/pyvenv.cfg", "home = /usr/bin\n");
    away.write("venv/lib/x.py", "");
    fs::create_dir(away.project().join("empty")).unwrap();
    let here = place.json(&["sync"]);
    let there = away.json(&["sync"]);
    assert_eq!(here["commit"], there["commit"]);
    assert_eq!(here["files"], 6, "{here}");
    fs::set_permissions(
        away.project().join("a.txt"),
        PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    assert_ne!(away.json(&["sync"])["commit"], there["commit"]);
}

#[test]
fn what_looks_like_a_secret_stays_here_unless_it_is_let_through() {
    let place = Place::up();
    let private = "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\n";
    for (name, text) in [
        (".env", "A=1\n"),
        ("keys/id_ed25519", "x"),
        ("server.key", "x"),
        ("notes.txt", private),
    ] {
        let path = place.write(name, text);
        let recipe = place.bare("secret", "print(1)", "seed: 1");
        for verb in [
            &["sync"][..],
            &["queue", &recipe, "--repro-policy", "relaxed"],
        ] {
            let error = place.ml(&[verb, &["--json"]].concat()).exits(3).error();
            assert_eq!(error["code"], "secrets_in_tree", "{name}");
            assert_eq!(error["details"]["paths"], json!([name]));
        }
        place.write(".mlignore", format!("!{name}\n"));
        place.json(&["sync"]);
        fs::remove_file(path).unwrap();
        fs::remove_file(place.project().join(".mlignore")).unwrap();
    }
    let with = place.json(&["sync"])["files"].clone();
    place.write(".env", "A=1\n");
    place.write(".gitignore", ".env\n");
    let without = place.json(&["sync"])["files"].clone();
    assert_eq!(
        without,
        with.as_u64().unwrap() + 1,
        "only .gitignore came in"
    );
}

#[test]
fn an_edit_becomes_a_commit_while_a_sync_watches() {
    let place = Place::up();
    let mut watch = place.command(&["sync", "--watch", "--json"]);
    let mut watch = watch.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut commit = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let first = commit();
    place.write("new/file.txt", "1");
    let second = commit();
    assert_eq!(second["files"], first["files"].as_u64().unwrap() + 1);
    fs::remove_dir_all(place.project().join("new")).unwrap();
    assert_eq!(commit()["commit"], first["commit"]);
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn caches_may_vanish_at_any_time() {
    let place = Place::up();
    let recipe = place.strict("cached", "print('same')", "");
    let (first, _) = place.completed(&recipe, &[]);
    for folder in ["data/cache", "data/.prewarm"] {
        // It may not be there yet.
        let _ = fs::remove_dir_all(place.data().join(folder));
    }
    let (second, output) = place.completed(&recipe, &[]);
    assert_eq!(output, "same\n");
    for key in ["commit", "plan_sha256", "trust"] {
        assert_eq!(first[key], second[key], "{key}");
    }
    let mut outside = place.command(&["sync", "--json"]);
    let outside = answer(outside.current_dir(place.path("home")));
    assert!(outside.code == 0 || !outside.stderr.is_empty());
}
