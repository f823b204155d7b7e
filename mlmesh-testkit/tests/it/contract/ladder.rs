//! The trust ladder: each level reached by a run, each way to miss one with its word.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use super::place::{Place, Refusals, codes, noise, python_version};
use mlmesh_model::Digest;
use mlmesh_testkit::kill::wait_until;
use serde_json::{Value, json};

/// Level and words of a run's trust, which the manifest repeats.
#[track_caller]
fn trust(info: &Value) -> (String, Vec<(String, String)>) {
    assert_eq!(info["trust"], info["manifest"]["trust"]);
    let reasons = info["trust"]["reasons"].as_array().unwrap();
    let levels = reasons
        .iter()
        .map(|reason| reason["level"].as_str().unwrap().to_owned());
    let level = info["trust"]["level"].as_str().unwrap().to_owned();
    (level, levels.zip(codes(reasons)).collect())
}

/// A way to miss a level: lines of the recipe, and what is said of it.
struct Miss {
    name: &'static str,
    seed: bool,
    environment: Environment,
    more: &'static str,
    level: &'static str,
    reasons: &'static [(&'static str, &'static str)],
}

#[derive(Clone, Copy)]
enum Environment {
    Absent,
    Locked,
    Unhashed,
}

const SANDBOX: &str = "sandbox: true\nnetwork: none";

/// What is run relaxed, and refused under strict for the same reasons.
fn misses() -> Vec<Miss> {
    use Environment::*;
    let miss = |name, level, reasons| Miss {
        name,
        seed: true,
        environment: Locked,
        more: SANDBOX,
        level,
        reasons,
    };
    vec![
        Miss {
            environment: Absent,
            ..miss("no-environment", "L1", &[("L2", "environment_absent")])
        },
        Miss {
            environment: Unhashed,
            ..miss("unhashed", "L1", &[("L2", "environment_unhashed")])
        },
        Miss {
            seed: false,
            ..miss("no-seed", "L2", &[("L3", "seed_absent")])
        },
        Miss {
            more: "sandbox: true\nnetwork: open",
            ..miss("open", "L2", &[("L3", "network_open")])
        },
        Miss {
            seed: false,
            environment: Absent,
            more: "sandbox: true\nnetwork: open",
            ..miss(
                "all",
                "L1",
                &[
                    ("L2", "environment_absent"),
                    ("L3", "seed_absent"),
                    ("L3", "network_open"),
                ],
            )
        },
    ]
}

fn write(place: &Place, miss: &Miss) -> String {
    let mut more = miss.more.to_owned();
    if miss.seed {
        more.push_str("\nseed: none");
    }
    let python = python_version();
    match miss.environment {
        Environment::Absent => {}
        Environment::Locked => more.push_str(&format!(
            "\nenvironment: {{python: \"{python}\", lock: requirements.lock}}"
        )),
        Environment::Unhashed => more.push_str(&format!(
            "\nenvironment: {{python: \"{python}\", lock: unhashed.lock}}"
        )),
    }
    place.bare(miss.name, "print('ran')", &more)
}

#[test]
fn each_way_to_miss_a_level_is_refused_under_strict() {
    let place = Place::up();
    place.write("unhashed.lock", "numpy==2.0.0\n");
    for miss in misses() {
        let recipe = write(&place, &miss);
        let expected: Vec<&str> = miss.reasons.iter().map(|(_, code)| *code).collect();
        for verb in ["queue", "explain"] {
            let answer = place.ml(&[verb, &recipe, "--json"]).exits(3);
            assert_eq!(answer.refusals(), expected, "{verb} {}", miss.name);
            assert_eq!(answer.error()["code"], "refused");
        }
    }
    assert_eq!(place.json(&["list"])["runs"], json!([]));
}

#[test]
fn each_way_to_miss_a_level_is_recorded_under_relaxed() {
    let place = Place::up();
    // For no Python of today, so that nothing has to be fetched.
    let nothing = "numpy==2.0.0 ; python_version < \"3\"\n";
    place.write("unhashed.lock", nothing);
    for miss in misses() {
        let recipe = write(&place, &miss);
        let (info, output) = place.completed(&recipe, &["--repro-policy", "relaxed"]);
        assert_eq!(output, "ran\n");
        let expected: Vec<(String, String)> = miss
            .reasons
            .iter()
            .map(|(level, code)| ((*level).to_owned(), (*code).to_owned()))
            .collect();
        assert_eq!(
            trust(&info),
            (miss.level.to_owned(), expected),
            "{}",
            miss.name
        );
    }
}

#[test]
fn a_run_that_saw_the_machine_is_no_more_than_l2() {
    let place = Place::up();
    let recipe = place.strict("seeing", "print('ran')", "network: none");
    let (info, _) = place.completed(&recipe, &["--repro-policy", "relaxed"]);
    let expected = vec![("L3".to_owned(), "sees_host_files".to_owned())];
    assert_eq!(trust(&info), ("L2".to_owned(), expected));
    assert_eq!(info["isolation"]["sandboxed"], false);
    assert_eq!(info["isolation"]["network_enforced"], true);
}

#[test]
fn an_environment_taken_as_it_is_is_l1_and_relaxed_only() {
    let place = Place::up();
    let venv = place.path("venv");
    super::place::answer(
        std::process::Command::new("python3")
            .args(["-m", "venv", "--without-pip"])
            .arg(&venv),
    )
    .exits(0);
    let recipe = place.bare(
        "current",
        "import sys; print(sys.prefix)",
        "seed: 1\nnetwork: none\nenvironment: current",
    );
    let with = |arguments: &[&str]| {
        super::place::answer(place.command(arguments).env("VIRTUAL_ENV", &venv))
    };
    let refused = with(&["queue", &recipe, "--json"]).exits(3);
    assert_eq!(refused.refusals(), ["environment_current"]);
    let relaxed = ["run", &recipe, "--repro-policy", "relaxed"];
    let answer = with(&relaxed).exits(0);
    assert_eq!(answer.stdout.trim_end(), venv.display().to_string());
    let (level, reasons) = trust(&place.json(&["info"]));
    assert_eq!(level, "L1");
    assert!(
        reasons.contains(&("L2".to_owned(), "environment_current".to_owned())),
        "{reasons:?}"
    );
}

/// Registers a folder; gives its checksum.
fn registered(place: &Place, name: &str, version: &str) -> String {
    let folder = place.path(&format!("data of {name} {version}"));
    std::fs::create_dir_all(folder.join("sub")).unwrap();
    std::fs::write(folder.join("x.csv"), "1,2\n").unwrap();
    std::fs::write(folder.join("sub/y.csv"), format!("{version}\n")).unwrap();
    let folder = folder.display().to_string();
    let dataset = place.json(&["data", "add", name, version, &folder]);
    dataset["checksum"].as_str().unwrap().to_owned()
}

#[test]
fn verified_data_make_l3_and_a_change_between_queue_and_start_is_found() {
    let place = Place::up();
    let checksum = registered(&place, "digits", "1");
    let more = |extra: &str| {
        let checksum = checksum.trim_start_matches("sha256:");
        format!(
            "datasets: [{{name: digits, version: \"1\", checksum: \"sha256:{checksum}\"}}]\n{extra}"
        )
    };
    let read = "print(open('data/digits/x.csv').read(), open('data/digits/sub/y.csv').read())";
    let recipe = place.strict("reading", read, &more(""));
    let (info, output) = place.completed(&recipe, &[]);
    assert_eq!(output, "1,2\n 1\n\n");
    assert_eq!(trust(&info), ("L3".to_owned(), vec![]));
    assert_eq!(info["manifest"]["datasets"][0]["name"], "digits");

    // Another run keeps it in the queue while the data change.
    let (first, gate) = holder(&place);
    let second = place.strict("late", read, &more(&format!("after: [{first}]")));
    let second = place.ml(&["queue", "-q", &second]).exits(0).stdout;
    let file = place.path("data of digits 1").join("sub/y.csv");
    std::fs::write(file, "another\n").unwrap();
    std::fs::write(&gate, "").unwrap();
    place.ml(&["watch", second.trim_end()]);
    let info = place.json(&["info", second.trim_end()]);
    assert_eq!(
        (&info["phase"], &info["cause"]),
        (&json!("failed"), &json!("dataset_changed"))
    );
    let message = info["message"].as_str().unwrap();
    assert!(message.contains("sub/y.csv"), "{message}");
    let never = vec![("L1".to_owned(), "never_started".to_owned())];
    assert_eq!(trust(&info), ("L0".to_owned(), never));
    let logs = place.ml(&["logs", second.trim_end()]);
    assert_eq!(logs.stdout, "", "the command was never started");
}

/// A run that ends when a file is there, for others to wait for.
fn holder(place: &Place) -> (String, PathBuf) {
    let gate = place.path("gate");
    let wait = format!(
        "import os, time\nwhile not os.path.exists({:?}): time.sleep(0.01)",
        gate.display().to_string()
    );
    let holder = place.bare("holder", &wait, "");
    let queued = place.ml(&["queue", "-q", "--repro-policy", "relaxed", &holder]);
    (queued.exits(0).stdout.trim_end().to_owned(), gate)
}

/// What a job reads of copied data comes out of the content store, which is checked on
/// the way.
#[test]
fn copied_data_that_are_damaged_between_queue_and_start_are_refused_with_their_path() {
    let place = Place::up();
    let folder = place.path("copied");
    std::fs::create_dir_all(folder.join("sub")).unwrap();
    std::fs::write(folder.join("sub/large.bin"), noise(300_000)).unwrap();
    std::fs::write(folder.join("small.csv"), "1,2\n").unwrap();
    let file = place.path("single.bin");
    std::fs::write(&file, noise(400_000)).unwrap();
    let (first, gate) = holder(&place);
    let queued = |name: &str, path: &std::path::Path| {
        let path = path.display().to_string();
        let added = place.json(&["data", "add", name, "1", &path, "--copy"]);
        let more = format!(
            "datasets: [{{name: {name}, version: \"1\", checksum: {}}}]\nafter: [{first}]",
            added["checksum"]
        );
        let recipe = place.strict(&format!("reads-{name}"), "print('read')", &more);
        let run = place.ml(&["queue", "-q", &recipe]).exits(0).stdout;
        run.trim_end().to_owned()
    };
    let runs = [
        (queued("folder", &folder), "sub/large.bin"),
        (queued("file", &file), "single.bin"),
    ];
    let loose = |content: &[u8]| {
        let object = Digest::of(content).to_string();
        let loose = place.data().join("data/objects/loose");
        loose.join(&object[..2]).join(&object[2..])
    };
    let damaged = loose(&noise(300_000));
    let mut bytes = std::fs::read(&damaged).unwrap();
    bytes[7] ^= 1;
    std::fs::set_permissions(&damaged, Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&damaged, bytes).unwrap();
    std::fs::remove_file(loose(&noise(400_000))).unwrap();
    std::fs::write(&gate, "").unwrap();
    for (run, path) in runs {
        place.ml(&["watch", &run]);
        let info = place.json(&["info", &run]);
        let end = (&info["phase"], &info["cause"]);
        assert_eq!(
            end,
            (&json!("failed"), &json!("dataset_changed")),
            "{info:#}"
        );
        let message = info["message"].as_str().unwrap();
        assert!(message.contains(path), "{message}");
        assert_eq!(trust(&info).0, "L0");
        assert_eq!(place.ml(&["logs", &run]).stdout, "", "it never started");
    }
}

/// By a relaxed job, which has its user's rights, and by somebody else beside a strict
/// one: the result may rest on other bytes than the digest's.
#[test]
fn data_that_change_during_a_run_are_found_at_its_end() {
    let place = Place::up();
    let checksum = registered(&place, "digits", "1");
    let checksum = checksum.trim_start_matches("sha256:");
    let data =
        format!("datasets: [{{name: digits, version: \"1\", checksum: \"sha256:{checksum}\"}}]\n");
    let file = place.path("data of digits 1").join("x.csv");
    let writes = "open('data/digits/x.csv', 'a').write('3,4\\n')";
    let relaxed = place.bare("writes", writes, &data);
    let (by_itself, _) = place.completed(&relaxed, &["--repro-policy", "relaxed"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "1,2\n3,4\n");
    std::fs::write(&file, "1,2\n").unwrap();

    let gate = place.path("data of digits 1").join("sub/y.csv");
    let waits =
        "import time\nwhile open('data/digits/sub/y.csv').read() == '1\\n': time.sleep(0.01)";
    let strict = place.strict("waits", waits, &data);
    let run = place.ml(&["queue", "-q", &strict]).exits(0).stdout;
    let run = run.trim_end();
    let is_running = || place.json(&["info", run])["phase"] == "running";
    assert!(wait_until(std::time::Duration::from_secs(30), is_running));
    std::fs::write(&gate, "2\n").unwrap();
    place.ml(&["watch", run]).exits(0);
    let from_outside = place.json(&["info", run]);

    for (info, name) in [(by_itself, "x.csv"), (from_outside, "sub/y.csv")] {
        assert_eq!(info["phase"], "completed");
        let message = info["message"].as_str().unwrap();
        let said = message.contains("is not what it was when the run started");
        assert!(said && message.contains(name), "{message}");
        let (level, reasons) = trust(&info);
        assert_ne!(level, "L3");
        let found = reasons.iter().any(|(_, code)| code == "data_unverified");
        assert!(found, "{reasons:?}");
        assert_eq!(info["manifest"]["datasets"][0]["verified"], false);
    }
}

#[test]
fn data_without_or_with_another_checksum_are_refused_whatever_the_policy() {
    let place = Place::up();
    registered(&place, "digits", "1");
    let zeros = "0".repeat(64);
    let cases = [
        (
            "{name: digits, version: \"1\"}".to_owned(),
            "dataset_checksum_missing",
        ),
        ("{name: unheard}".to_owned(), "dataset_checksum_missing"),
        (
            format!("{{name: unheard, checksum: \"sha256:{zeros}\"}}"),
            "dataset_unknown",
        ),
        (
            format!("{{name: digits, version: \"2\", checksum: \"sha256:{zeros}\"}}"),
            "dataset_unknown",
        ),
        (
            format!("{{name: digits, checksum: \"sha256:{zeros}\"}}"),
            "dataset_checksum_differs",
        ),
    ];
    for (reference, code) in cases {
        let recipe = place.strict("data", "print(1)", &format!("datasets: [{reference}]"));
        for policy in ["strict", "relaxed"] {
            for verb in ["queue", "explain"] {
                let answer = place
                    .ml(&[verb, &recipe, "--json", "--repro-policy", policy])
                    .exits(3);
                assert_eq!(answer.refusals(), [code], "{verb} {policy} {reference}");
                let said = answer.error().to_string();
                assert!(
                    code == "dataset_unknown" || said.contains("checksum"),
                    "{said}"
                );
            }
        }
    }
    assert_eq!(place.json(&["list"])["runs"], json!([]));
}

#[test]
fn an_absent_python_and_an_absent_lock_are_refused_with_a_hint() {
    let place = Place::up();
    let python = python_version();
    for (environment, code) in [
        (
            "{python: \"3.99\", lock: requirements.lock}".to_owned(),
            "python_not_found",
        ),
        (
            format!("{{python: \"{python}\", lock: absent.lock}}"),
            "lock_missing",
        ),
    ] {
        let recipe = place.bare(
            "env",
            "print(1)",
            &format!("seed: 1\nenvironment: {environment}"),
        );
        for policy in ["strict", "relaxed"] {
            let queue = ["queue", &recipe, "--json", "--repro-policy", policy];
            assert_eq!(place.ml(&queue).exits(3).refusals(), [code], "{policy}");
        }
    }
}

/// A strict run talks to the host that it declares, and to none besides.
#[test]
fn declared_hosts_are_enforced_and_reach_l3() {
    let place = Place::up();
    let declared = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let (port, other) = (port(&declared), port(&other));
    let host = std::thread::spawn(move || {
        let (mut stream, _) = declared.accept().unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).unwrap();
        stream.write_all(heard.to_uppercase().as_bytes()).unwrap();
    });
    let code = format!(
        "import socket
s = socket.create_connection(('localhost', {port}), 30)
s.sendall(b'louder'); s.shutdown(socket.SHUT_WR)
print(s.recv(100).decode())
for place in [('localhost', {other}), ('192.0.2.1', 443), ('example.org', 443)]:
    try: socket.create_connection(place, 5)
    except OSError: print('denied')
"
    );
    let recipe = place.strict("hosts", &code, &format!("network: [LocalHost:{port}]"));
    let said = place.json(&["explain", &recipe]);
    let forms = json!({"hosts": [format!("localhost:{port}")]});
    assert_eq!(said["points"][0]["plan"]["network"], forms);
    assert_eq!(said["trust"]["level"], "L3");
    let (info, output) = place.completed(&recipe, &[]);
    assert_eq!(output, "LOUDER\ndenied\ndenied\ndenied\n");
    host.join().unwrap();
    assert_eq!(trust(&info), ("L3".to_owned(), vec![]));
    assert_eq!(info["plan_sha256"], said["points"][0]["plan_sha256"]);
    let isolation = &info["isolation"];
    assert_eq!(isolation["network_enforced"], true);
    let traffic = json!([{"host": format!("localhost:{port}"), "connections": 1, "refused": 0, "bytes_sent": 6, "bytes_received": 6}]);
    assert_eq!(isolation["hosts"], traffic);
    assert_eq!(info["manifest"]["isolation"]["hosts"], traffic);
}

#[test]
fn declared_hosts_without_a_sandbox_are_recorded_as_not_enforced() {
    let place = Place::up();
    let recipe = place.strict("hosts", "print(1)", "network: [example.org]");
    let said = place.json(&["explain", &recipe]);
    assert_eq!(
        said["points"][0]["plan"]["network"],
        json!({"hosts": ["example.org:443", "example.org:80"]})
    );
    let (info, _) = place.completed(&recipe, &["--repro-policy", "relaxed"]);
    assert_eq!(info["isolation"]["network_enforced"], false);
    let expected =
        ["network_not_enforced", "sees_host_files"].map(|code| ("L3".to_owned(), code.to_owned()));
    assert_eq!(trust(&info), ("L2".to_owned(), expected.to_vec()));
}

#[test]
fn what_could_never_fit_or_has_no_value_is_refused_whatever_the_policy() {
    let place = Place::up();
    for (more, code) in [
        ("resources: {cpus: 9999}", "resources_never_fit"),
        ("resources: {gpus: 99}", "resources_never_fit"),
        ("resources: {memory: 1000TiB}", "resources_never_fit"),
        ("secrets: [NOBODY_SET_THIS]", "secret_without_value"),
        ("after: [zzzzzzzzzzzz]", "after_unknown"),
    ] {
        let recipe = place.strict("never", "print(1)", more);
        for policy in ["strict", "relaxed"] {
            let queue = ["queue", &recipe, "--json", "--repro-policy", policy];
            assert_eq!(place.ml(&queue).exits(3).refusals(), [code], "{policy}");
        }
    }
}
