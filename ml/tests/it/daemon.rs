//! The daemon's life, its catalog and its audit trail.

use std::net::TcpListener;

use crate::mesh::Mesh;
use crate::program::place;

#[test]
fn up_is_said_once_and_down_ends_the_process() {
    let mesh = Mesh::up();
    let again = mesh.ml(&["up", "--json"]).exits(0).json();
    assert_eq!(
        (&again["schema"], &again["already_running"]),
        (&"mlmesh.up/1".into(), &true.into())
    );
    assert_eq!(again["pid"], mesh.pid());
    let url = again["urls"]["api"].as_str().unwrap();
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    let pid = mesh.pid();
    let down = mesh.ml(&["down", "--json"]).exits(0).json();
    assert_eq!(
        (&down["was_running"], &down["pid"]),
        (&true.into(), &pid.into())
    );
    assert!(!mesh.place.data().join("meshd.json").exists());
    mesh.ml(&["status"]).exits(5);
    let restarted = mesh.ml(&["up", "--json"]).exits(0).json();
    assert_eq!(restarted["urls"]["api"], url, "a chosen port stays");
    mesh.kill();
    let after_kill = mesh.ml(&["up", "--json"]).exits(0).json();
    assert_eq!(after_kill["already_running"], false);
}

#[test]
fn two_starts_at_once_make_one_daemon() {
    let mesh = Mesh::up();
    mesh.ml(&["down"]).exits(0);
    let start = || {
        let mut command = mesh.place.command(&["up", "--json"]);
        command
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let starts = [start(), start(), start()];
    let pids = starts.map(|start| {
        let output = start.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let up: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        up["pid"].clone()
    });
    assert!(pids.iter().all(|pid| *pid == mesh.pid()), "{pids:?}");
}

#[test]
fn a_daemon_that_cannot_start_says_why() {
    let place = place();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let answer = place.ml(&["up", "--port", &port, "--json"]).exits(1);
    let error = answer.error();
    assert_eq!(error["code"], "daemon_not_started");
    assert!(
        error["message"].as_str().unwrap().contains(&port),
        "{error:#}"
    );
    assert_ne!(error["hint"], "");
    assert!(!place.data().join("meshd.json").exists());
}

#[test]
fn a_daemon_whose_key_is_open_to_others_is_not_asked() {
    use std::os::unix::fs::PermissionsExt;
    let mesh = Mesh::up();
    let key = mesh.place.data().join("owner.key");
    let set = |mode| std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
    set(0o644);
    for arguments in [["up", "--json"], ["status", "--json"], ["down", "--json"]] {
        let answer = mesh.ml(&arguments).exits(1);
        assert_eq!(answer.error()["code"], "key_mode", "{arguments:?}");
    }
    set(0o600);
    mesh.ml(&["status"]).exits(0);
}

#[test]
fn jobs_outlive_the_daemon_unless_they_are_stopped() {
    let mesh = Mesh::up();
    let id = mesh.queue(&mesh.recipe("long", &["forever"], ""));
    mesh.wait_for_phase(&id, "running");
    mesh.ml(&["down"]).exits(0);
    mesh.ml(&["up"]).exits(0);
    let info = mesh.ml(&["info", &id, "--json"]).exits(0).json();
    assert_eq!(
        (&info["phase"], &info["attempts"]),
        (&"running".into(), &1.into())
    );
    mesh.ml(&["down", "--stop-jobs"]).exits(0);
    mesh.ml(&["up"]).exits(0);
    let info = mesh.ml(&["info", &id, "--json"]).exits(0).json();
    assert_eq!(
        (&info["phase"], &info["cause"]),
        (&"cancelled".into(), &"shutdown".into())
    );
}

#[test]
fn data_are_registered_shown_verified_and_forgotten() {
    let mesh = Mesh::up();
    let file = mesh.place.path("digits.csv");
    std::fs::write(&file, "1,2\n").unwrap();
    let path = file.to_str().unwrap();
    let added = mesh
        .ml(&["data", "add", "digits", "1", path, "--json"])
        .exits(0)
        .json();
    assert_eq!(added["schema"], "mlmesh.dataset/1");
    let checksum = mlmesh_model::Digest::of(b"1,2\n").to_string();
    assert_eq!(added["checksum"], checksum);
    let shown = mesh.ml(&["data", "show", "digits"]).exits(0).stdout;
    let line = format!("  - {{name: digits, version: \"1\", checksum: \"sha256:{checksum}\"}}\n");
    assert!(shown.ends_with(&line), "{shown}");
    assert!(
        mesh.ml(&["data", "list"])
            .exits(0)
            .stdout
            .contains("digits")
    );
    mesh.ml(&["data", "verify", "digits", "1"]).exits(0);
    std::fs::write(&file, "9,9\n").unwrap();
    let changed = mesh
        .ml(&["data", "verify", "digits", "1", "--json"])
        .exits(1);
    assert_eq!(changed.error()["code"], "dataset_changed");
    let other = mesh
        .ml(&["data", "add", "digits", "1", path, "--json"])
        .exits(3);
    assert_eq!(other.error()["code"], "dataset_exists");
    mesh.ml(&["data", "remove", "digits", "1"]).exits(0);
    mesh.ml(&["data", "show", "digits"]).exits(4);
    mesh.ml(&["data", "remove", "digits", "1"]).exits(4);
}

#[test]
fn the_audit_trail_is_whole_and_names_what_was_done() {
    let mesh = Mesh::up();
    mesh.ml(&["queue", "--wait", &mesh.recipe("one", &["ok"], "")])
        .exits(0);
    let verdict = mesh.ml(&["audit", "verify", "--json"]).exits(0).json();
    assert_eq!(
        (&verdict["schema"], &verdict["ok"]),
        (&"mlmesh.audit_verdict/1".into(), &true.into())
    );
    let rows = mesh.ml(&["audit", "list", "--json"]).exits(0).json();
    let actions: Vec<&str> = rows["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["action"].as_str().unwrap())
        .collect();
    assert!(actions.contains(&"run.submit"), "{actions:?}");
    assert!(
        mesh.ml(&["audit", "list"])
            .exits(0)
            .stdout
            .contains("run.submit")
    );
}

#[test]
fn prune_says_what_would_go_and_removes_it() {
    let mesh = Mesh::up();
    mesh.ml(&["queue", "--wait", &mesh.recipe("old", &["ok"], "")])
        .exits(0);
    let spare = "5".repeat(64);
    let environment = mesh
        .place
        .data()
        .join("data/objects/environments")
        .join(&spare);
    std::fs::create_dir_all(&environment).unwrap();
    let dry = mesh
        .ml(&["prune", "--older-than", "0s", "--dry-run", "--json"])
        .exits(0)
        .json();
    assert_eq!(
        (&dry["schema"], dry["runs"].as_array().unwrap().len()),
        (&"mlmesh.prune/1".into(), 1)
    );
    assert_eq!(dry["environments"], serde_json::json!([spare]));
    assert!(environment.is_dir());
    mesh.ml(&["info"]).exits(0);
    let pruned = mesh.ml(&["prune", "--older-than", "0s"]).exits(0).stdout;
    let expected = format!("removed environment {spare}\nremoved 1 run and ");
    assert!(pruned.starts_with(&expected), "{pruned}");
    assert!(!environment.exists());
    mesh.ml(&["info"]).exits(4);
}

#[test]
fn prune_takes_nothing_that_a_run_or_a_pin_refers_to() {
    let mesh = Mesh::up();
    let outputs = "outputs: [model.txt]";
    let recipe = mesh.recipe("kept", &["ok"], outputs);
    let queue = |recipe: &str| {
        let queued = mesh.ml(&["queue", "-q", "--wait", recipe]).exits(0);
        queued.stdout.trim().to_owned()
    };
    let kept = queue(&recipe);
    let commit = mesh.ml(&["info", &kept, "--json"]).exits(0).json()["commit"].clone();
    let commit = commit.as_str().unwrap().to_owned();
    let gone = queue(&mesh.recipe("gone", &["other"], outputs));

    let pinned = mesh.ml(&["pin", &kept, "--json"]).exits(0).json();
    let commit_pinned = mesh.ml(&["pin", &commit, "--json"]).exits(0).json();
    mesh.ml(&["pin", &kept]).exits(0);
    for unknown in ["aaaaaaaaaaaa", "no-run", &"0".repeat(64)] {
        mesh.ml(&["pin", unknown]).exits(4);
        mesh.ml(&["unpin", unknown]).exits(4);
    }
    let listed = mesh.ml(&["pin", "--json"]).exits(0).json();
    assert_eq!(listed["pins"].as_array().unwrap().len(), 2);
    assert!(mesh.ml(&["list"]).exits(0).stdout.contains("kept (pinned)"));
    assert!(mesh.ml(&["info", &kept]).exits(0).stdout.contains("pinned"));

    let dry = ["prune", "--older-than", "0s", "--dry-run", "--json"];
    let dry = mesh.ml(&dry).exits(0).json();
    assert_eq!(dry["runs"], serde_json::json!([gone]));
    mesh.ml(&["prune", "--older-than", "0s"]).exits(0);
    mesh.ml(&["info", &gone]).exits(4);
    let folder = mesh.place.path("out");
    mesh.ml(&["outputs", &kept, "-o", folder.to_str().unwrap()])
        .exits(0);
    mesh.ml(&["unpin", &kept]).exits(0);
    let unpinned = mesh.ml(&["unpin", &commit, "--json"]).exits(0).json();
    mesh.ml(&["unpin", &commit]).exits(4);
    mesh.ml(&["prune", "--older-than", "0s"]).exits(0);
    mesh.ml(&["info", &kept]).exits(4);
    let trail = mesh.ml(&["audit", "list", "--json"]).exits(0).stdout;
    assert_eq!(trail.matches("\"pin.add\"").count(), 2);
    assert_eq!(trail.matches("\"pin.remove\"").count(), 2);

    let mut text = String::new();
    for (verb, value) in [
        ("pin RUN", &pinned),
        ("pin COMMIT", &commit_pinned),
        ("pin", &listed),
        ("unpin COMMIT", &unpinned),
    ] {
        let shape = crate::shape::shape(value);
        text.push_str(&format!("$ ml {verb} --json\n{shape:#}\n\n"));
    }
    crate::golden::check("pins.txt", &text);
}

#[test]
fn tags_and_notes_stand_on_a_run_and_in_the_manifest_of_their_time() {
    let mesh = Mesh::up();
    let gate = mesh.place.path("gate");
    let run = mesh.queue(&mesh.recipe("held", &["wait", gate.to_str().unwrap()], ""));
    let tagged = mesh
        .ml(&["tag", &run, "team=blue", "keep", "x=a=b", "--json"])
        .exits(0)
        .json();
    assert_eq!(
        tagged["tags"],
        serde_json::json!({"team": "blue", "keep": "", "x": "a=b"})
    );
    std::fs::write(&gate, "").unwrap();
    mesh.ml(&["watch", &run]).exits(0);
    mesh.ml(&["tag", &run, "late", "--remove", "x"]).exits(0);
    let noted = mesh
        .ml(&["note", &run, "looks good", "--json"])
        .exits(0)
        .json();
    let info = mesh.ml(&["info", &run, "--json"]).exits(0).json();
    let now = serde_json::json!({"team": "blue", "keep": "", "late": ""});
    assert_eq!((&info["tags"], &info["note"]), (&now, &"looks good".into()));
    // The file was committed with the run's end and stays as it was.
    let written = &info["manifest"];
    assert_eq!(
        (&written["tags"], &written["note"]),
        (&tagged["tags"], &"".into())
    );
    mesh.ml(&["validate", "--task", &run]).exits(0);
    assert_eq!(
        mesh.ml(&["note", &run]).exits(0).stdout,
        "keep\nlate\nteam=blue\nlooks good\n"
    );
    let shown = mesh.ml(&["info", &run]).exits(0).stdout;
    assert!(
        shown.contains("keep, late, team=blue") && shown.contains("looks good"),
        "{shown}"
    );

    for (bad, code) in [("a b", 2), ("=x", 2)] {
        mesh.ml(&["tag", &run, bad]).exits(code);
    }
    mesh.ml(&["tag", &run, &format!("k={}", "x".repeat(1001))])
        .exits(2);
    mesh.ml(&["note", &run, &"x".repeat(20_000)]).exits(2);
    mesh.ml(&["tag", "aaaaaaaaaaaa", "x"]).exits(4);
    let many: Vec<String> = (0..100).map(|n| format!("t{n}")).collect();
    let many: Vec<&str> = ["tag", &run]
        .into_iter()
        .chain(many.iter().map(String::as_str))
        .collect();
    let refused = mesh.ml(&many);
    assert!(refused.stderr.contains("103 tags"), "{}", refused.stderr);
    let text = [("tag RUN KEY=VALUE", &tagged), ("note RUN TEXT", &noted)]
        .map(|(verb, value)| format!("$ ml {verb} --json\n{:#}\n\n", crate::shape::shape(value)));
    crate::golden::check("labels.txt", &text.concat());
    let trail = mesh.ml(&["audit", "list", "--json"]).exits(0).stdout;
    assert_eq!(trail.matches("\"run.label\"").count(), 3);
}
