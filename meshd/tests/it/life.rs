//! Starts, ends, and what is there in between.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use mlmesh_api::{DaemonFile, IdempotencyKey, StopRequestDto};
use mlmesh_model::{Cause, Phase};
use mlmesh_testkit::daemon::{Daemon, Start, refused_start};
use serde_json::Value;

use crate::wire::{client, request, request_with, store_tree, submission, until, until_ended};

#[test]
fn a_second_daemon_on_one_directory_is_refused() {
    let daemon = Daemon::start();
    let (status, words) = refused_start(daemon.data_dir(), &Start::default());
    assert_eq!(status.code(), Some(1));
    assert!(
        words.contains(&format!("process {}", daemon.pid())),
        "{words}"
    );
    assert!(
        words.lines().any(|line| line.starts_with("hint: ")),
        "{words}"
    );
    client(&daemon).status().unwrap();
}

#[test]
fn sigterm_drains_and_leaves_nothing_that_points_to_the_daemon() {
    let mut daemon = Daemon::start();
    client(&daemon).status().unwrap();
    daemon.terminate();
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!daemon.data_dir().join(DaemonFile::NAME).exists());
}

#[test]
fn stop_answers_first_and_then_goes_down() {
    let mut daemon = Daemon::start();
    let stop = client(&daemon)
        .stop(&StopRequestDto { stop_jobs: false })
        .unwrap();
    assert_eq!(stop.pid, daemon.pid());
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!daemon.data_dir().join(DaemonFile::NAME).exists());
}

#[test]
fn a_killed_daemons_file_is_replaced_and_port_and_key_stay() {
    let mut daemon = Daemon::start();
    let (url, key, pid) = (daemon.url(), daemon.key(), daemon.pid());
    daemon.kill_and_restart(&Start::default());
    assert_ne!(daemon.pid(), pid);
    assert_eq!(daemon.file()["pid"], daemon.pid());
    assert_eq!((daemon.url(), daemon.key()), (url, key));
    client(&daemon).status().unwrap();
}

#[test]
fn runs_survive_the_death_of_the_daemon() {
    let mut daemon = Daemon::start();
    let gate = daemon.data_dir().parent().unwrap().join("gate");
    let here = client(&daemon);
    let commit = store_tree(&here, b"print(1)");
    let line = format!(
        "echo begun; until [ -e '{}' ]; do sleep 0.05; done; echo done",
        gate.display()
    );
    let accepted = here
        .submit(
            &submission(commit, &line),
            &IdempotencyKey::random().unwrap(),
        )
        .unwrap();
    let id = accepted.id.to_string();
    until("the run runs", || {
        (here.run(&id).unwrap().phase == Phase::Running).then_some(())
    });

    daemon.kill_and_restart(&Start::default());
    let here = client(&daemon);
    assert_eq!(here.run(&id).unwrap().phase, Phase::Running);
    std::fs::write(&gate, b"").unwrap();
    let ended = until_ended(&here, &id);
    assert_eq!(
        (ended.phase, ended.exit_code, ended.attempts),
        (Phase::Completed, Some(0), 1)
    );
    assert!(ended.manifest.is_some());
    let log = here
        .logs(&id, None, 0, None, std::time::Duration::ZERO)
        .unwrap();
    let text: String = log.lines.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(text, "begun\ndone\n");
}

#[test]
fn stop_jobs_cancels_what_is_live() {
    let mut daemon = Daemon::start();
    let here = client(&daemon);
    let commit = store_tree(&here, b"print(1)");
    let accepted = here
        .submit(
            &submission(commit, "sleep 600"),
            &IdempotencyKey::random().unwrap(),
        )
        .unwrap();
    let id = accepted.id.to_string();
    until("the run runs", || {
        (here.run(&id).unwrap().phase == Phase::Running).then_some(())
    });
    here.stop(&StopRequestDto { stop_jobs: true }).unwrap();
    assert_eq!(daemon.wait().code(), Some(0));
    let data_dir = daemon.data_dir().to_owned();
    let again = Daemon::start_in(&data_dir, &Start::default());
    let run = client(&again).run(&id).unwrap();
    assert_eq!(
        (run.phase, run.cause),
        (Phase::Cancelled, Some(Cause::Shutdown))
    );
}

#[test]
fn a_daemon_whose_directory_is_gone_ends_and_leaves_its_jobs_alone() {
    let mut daemon = Daemon::start();
    let outer = daemon.data_dir().parent().unwrap().to_owned();
    let (gate, done) = (outer.join("gate"), outer.join("done"));
    let here = client(&daemon);
    let commit = store_tree(&here, b"print(1)");
    let line = format!(
        "until [ -e '{}' ]; do sleep 0.05; done; echo > '{}'",
        gate.display(),
        done.display()
    );
    let key = IdempotencyKey::random().unwrap();
    let accepted = here.submit(&submission(commit, &line), &key).unwrap();
    let id = accepted.id.to_string();
    until("the run runs", || {
        (here.run(&id).unwrap().phase == Phase::Running).then_some(())
    });

    let data_dir = daemon.data_dir().to_owned();
    std::fs::rename(&data_dir, outer.join("moved away")).unwrap();
    // Another one in its place is not its own.
    std::fs::create_dir(&data_dir).unwrap();
    std::fs::write(data_dir.join("daemon.lock"), "{}").unwrap();
    std::fs::write(data_dir.join(DaemonFile::NAME), "another's").unwrap();
    assert_eq!(daemon.wait().code(), Some(1));
    let words = daemon.last_words();
    assert!(
        words.contains("was removed or replaced") && words.contains("\nhint: "),
        "{words}"
    );
    let others = std::fs::read_to_string(data_dir.join(DaemonFile::NAME)).unwrap();
    assert_eq!(others, "another's");
    std::fs::write(&gate, b"").unwrap();
    until("the job ends by itself", || done.exists().then_some(()));
}

#[test]
fn a_key_that_others_may_read_keeps_the_daemon_from_starting() {
    let mut daemon = Daemon::start();
    daemon.terminate();
    daemon.wait();
    let path = daemon.data_dir().join("owner.key");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (status, words) = refused_start(daemon.data_dir(), &Start::default());
    assert_eq!(status.code(), Some(1));
    assert!(words.contains("0644") && words.contains("0600"), "{words}");
}

#[test]
fn settings_are_refused_with_the_right_ones_named() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("d");
    let file = folder.path().join("mlmesh.toml");
    std::fs::write(&file, "[daemon]\nlog_levle = \"info\"\n").unwrap();
    let config = file.to_str().unwrap();
    for (arguments, environment, expected) in [
        (&["--config", config][..], &[][..], "daemon.log_level"),
        (&["--store", "mysql://x"], &[], "`sqlite`"),
        (&["--listen", "localhost"], &[], "an IP address"),
        (&[], &[("MLMESH_STOP_GRACE", "5")], "MLMESH_STOP_GRACE"),
    ] {
        let (status, words) = refused_start(
            &data_dir,
            &Start {
                arguments,
                environment,
                ..Start::default()
            },
        );
        assert_eq!(status.code(), Some(1), "{words}");
        assert!(words.contains(expected), "{words}");
    }
}

#[test]
fn logs_are_json_lines_and_tell_who_asked_what() {
    let mut daemon = Daemon::start();
    client(&daemon).status().unwrap();
    assert_eq!(request(&daemon, "GET", "/v1/runs/nope", None).status, 404);
    daemon.terminate();
    daemon.wait();
    let logs = daemon.data_dir().join("logs");
    let access = lines(&logs.join("access.log"));
    let refused = access
        .iter()
        .find(|line| line["path"] == "/v1/runs/nope")
        .unwrap();
    assert_eq!(
        (
            &refused["status"],
            &refused["code"],
            &refused["key"],
            &refused["method"]
        ),
        (
            &404.into(),
            &"not_found".into(),
            &"owner".into(),
            &"GET".into()
        )
    );
    let messages: Vec<Value> = lines(&logs.join("app.log"))
        .into_iter()
        .map(|line| line["fields"]["message"].clone())
        .collect();
    assert!(messages.contains(&"daemon is ready".into()), "{messages:?}");
    assert!(
        messages.contains(&"daemon has ended".into()),
        "{messages:?}"
    );
    let audit = lines(&logs.join("audit.log"));
    let actions: Vec<&Value> = audit.iter().map(|row| &row["action"]).collect();
    assert_eq!(actions[..2], ["user.add", "key.put"]);
}

/// Bounds before the key, the key before what it may do, both before the work; and
/// every request is recorded, whatever stopped it.
#[test]
fn each_request_passes_the_front_step_by_step() {
    let mut daemon = Daemon::start_with(&Start {
        environment: &[("MLMESH_LOG_LEVEL", "debug")],
        ..Start::default()
    });
    let long = format!("/v1/runs?owner={}", "a".repeat(20_000));
    let wrong = "Authorization: Bearer mlmesh_wrong\r\n";
    let cases: [(_, &[&str]); 5] = [
        (
            request(&daemon, "GET", "/v1/status", None),
            &["bound", "authenticate", "authorise", "handle", "record"],
        ),
        (
            request_with(&daemon, "GET", "/v1/status", None, wrong),
            &["bound", "record"],
        ),
        (
            request_with(&daemon, "GET", "/v1/status", None, ""),
            &["bound", "record"],
        ),
        (
            request_with(&daemon, "GET", "/health/live", None, ""),
            &["bound", "handle", "record"],
        ),
        (request(&daemon, "GET", &long, None), &["record"]),
    ];
    daemon.terminate();
    daemon.wait();
    let app = lines(&daemon.data_dir().join("logs/app.log"));
    for (answer, expected) in cases {
        let id = answer
            .head
            .lines()
            .find_map(|line| line.strip_prefix("x-request-id: "));
        let id = id.expect("every answer names its request");
        let steps: Vec<&str> = app
            .iter()
            .map(|line| &line["fields"])
            .filter(|fields| fields["request"] == id)
            .filter_map(|fields| fields["step"].as_str())
            .collect();
        assert_eq!(steps, expected, "{}", answer.head);
    }
}

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}
