//! `ml reproduce` whose client or whose daemon dies, at each step: one command makes at most
//! one repetition, a repetition is judged once, and the next command goes on to a signed L4.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;

use super::{reproduced, trust};
use crate::mesh::Mesh;
use crate::program::answer;

fn begun(mesh: &Mesh, run: &str) -> Child {
    let mut command = mesh.place.command(&["reproduce", run, "--json"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

fn kill(mut client: Child) {
    client.kill().unwrap();
    client.wait().unwrap();
}

/// Subjects of the audit rows with this action.
fn rows(mesh: &Mesh, action: &str) -> Vec<String> {
    let pages = mesh.ml(&["audit", "list", "--json"]).exits(0).stdout;
    let pages = pages
        .lines()
        .map(|page| serde_json::from_str::<Value>(page).unwrap());
    let rows: Vec<Value> = pages
        .flat_map(|page| page["rows"].as_array().unwrap().clone())
        .collect();
    let rows = rows.iter().filter(|row| row["action"] == action);
    rows.map(|row| row["subject"].as_str().unwrap().to_owned())
        .collect()
}

/// What was queued is judged, each once.
#[track_caller]
fn judged_once(mesh: &Mesh) {
    let counted = || -> BTreeMap<String, u32> {
        let mut counted = BTreeMap::new();
        for run in rows(mesh, "run.judge") {
            *counted.entry(run).or_default() += 1;
        }
        counted
    };
    let queued = rows(mesh, "run.reproduce");
    mesh.wait("the judgements", || counted().len() == queued.len());
    let counted = counted();
    for run in &queued {
        assert_eq!(counted.get(run), Some(&1), "{queued:?} {counted:?}");
    }
}

/// The same command again brings the run to L4, under a signature.
#[track_caller]
fn goes_on(mesh: &Mesh, run: &str) {
    let again = mesh.ml(&["reproduce", run, "--json"]).exits(0).json();
    let reproduced = &trust(mesh, run)["reproduced"];
    assert_eq!(reproduced["by"], again["run"], "{again:#}");
    assert!(reproduced["signer"].is_string(), "{reproduced:#}");
    judged_once(mesh);
}

fn daemon_signal(mesh: &Mesh, signal: Signal) {
    kill_process(Pid::from_raw(mesh.pid()).unwrap(), signal).unwrap();
}

/// Whether a process has a connection.
fn is_connected(client: &Child) -> bool {
    let files = fs::read_dir(format!("/proc/{}/fd", client.id())).into_iter();
    let links = files.flatten().flatten();
    let mut links = links.filter_map(|file| fs::read_link(file.path()).ok());
    links.any(|link| link.as_os_str().as_encoded_bytes().starts_with(b"socket:"))
}

/// A run that has the machine for itself until a file is there.
fn holder(mesh: &Mesh, gate: &Path) -> String {
    let cpus = std::thread::available_parallelism().unwrap();
    let gate = gate.to_str().unwrap();
    let holder = mesh.recipe(
        "holder",
        &["wait", gate],
        &format!("resources: {{cpus: {cpus}}}"),
    );
    let holder = mesh.queue(&holder);
    mesh.wait_for_phase(&holder, "running");
    holder
}

#[test]
fn a_client_that_is_killed_at_any_step_leaves_at_most_one_repetition() {
    let mesh = Mesh::up();
    let (run, _) = reproduced(&mesh);
    let queued = || rows(&mesh, "run.reproduce").len();
    let mut before = queued();
    assert_eq!(before, 1);

    // Before the daemon has heard of it.
    daemon_signal(&mesh, Signal::STOP);
    let client = begun(&mesh, &run);
    mesh.wait("a connection", || is_connected(&client));
    kill(client);
    daemon_signal(&mesh, Signal::CONT);
    assert_eq!(queued(), before, "nothing was asked for");
    goes_on(&mesh, &run);
    before = queued();

    // While the repetition waits for the machine.
    let gate = mesh.place.path("gate");
    let holder = holder(&mesh, &gate);
    let client = begun(&mesh, &run);
    mesh.wait("the repetition", || queued() > before);
    kill(client);
    fs::write(&gate, "").unwrap();
    mesh.wait_for_phase(&holder, "completed");
    judged_once(&mesh);
    assert_eq!(queued(), before + 1);
    goes_on(&mesh, &run);
    before = queued();

    // Between judgement and signature: it waits for its key.
    let key = mesh.place.path("home/config/signing.key");
    let kept = key.with_extension("kept");
    fs::rename(&key, &kept).unwrap();
    let made = Command::new("mkfifo")
        .args(["-m", "600"])
        .arg(&key)
        .status();
    assert!(made.unwrap().success());
    assert_eq!(
        fs::metadata(&key).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let client = begun(&mesh, &run);
    mesh.wait("the judgement", || rows(&mesh, "run.judge").len() > before);
    let attested = rows(&mesh, "run.attest").len();
    kill(client);
    fs::rename(&kept, &key).unwrap();
    judged_once(&mesh);
    assert_eq!(trust(&mesh, &run)["level"], "L4");
    assert_eq!(trust(&mesh, &run)["reproduced"]["signer"], Value::Null);
    assert_eq!(rows(&mesh, "run.attest").len(), attested);
    assert_eq!(queued(), before + 1);
    goes_on(&mesh, &run);
    before = queued();

    // After the signature, before it has said so.
    let attested = rows(&mesh, "run.attest").len();
    let client = begun(&mesh, &run);
    mesh.wait("the signature", || {
        rows(&mesh, "run.attest").len() > attested
    });
    kill(client);
    judged_once(&mesh);
    assert!(trust(&mesh, &run)["reproduced"]["signer"].is_string());
    assert_eq!(queued(), before + 1);
    goes_on(&mesh, &run);
    mesh.ml(&["audit", "verify"]).exits(0);
}

#[test]
fn a_daemon_that_dies_at_any_step_of_a_reproduction_judges_it_once() {
    let mesh = Mesh::up();
    let (run, _) = reproduced(&mesh);
    let points = [
        "store.submit.rows_written",
        "store.submit.before_commit",
        "store.submit.after_commit",
        "control.after_claim",
        "control.after_start",
        "control.after_exit",
        "control.after_collect",
        "control.after_manifest",
        "store.advance.after_commit",
        "store.judge.rows_written",
        "store.judge.before_commit",
        "store.judge.after_commit",
        // The second one in a daemon's life is the signature.
        "store.judge.before_commit:2",
        "store.judge.after_commit:2",
    ];
    for point in points {
        mesh.ml(&["down"]).exits(0);
        let mut up = mesh.place.command(&["up", "--port", "0"]);
        up.env("MLMESH_CRASH_AT", point);
        answer(&mut up).exits(0);
        let before = rows(&mesh, "run.reproduce").len();
        let daemon = Pid::from_raw(mesh.pid()).unwrap();
        let daemon = pidfd_open(daemon, PidfdFlags::empty()).unwrap();
        let mut client = begun(&mesh, &run);
        let mut ended = [rustix::event::PollFd::new(
            &daemon,
            rustix::event::PollFlags::IN,
        )];
        let minute = rustix::event::Timespec {
            tv_sec: 60,
            tv_nsec: 0,
        };
        let died = rustix::event::poll(&mut ended, Some(&minute)).unwrap();
        assert_eq!(died, 1, "the daemon did not come to {point}");
        mesh.ml(&["up", "--port", "0"]).exits(0);
        let code = client.wait().unwrap().code();
        let added = rows(&mesh, "run.reproduce").len() - before;
        match point.starts_with("store.submit") {
            // It may have given up before the next daemon was there.
            true => assert!(matches!((code, added), (Some(0), 1) | (Some(5), 0 | 1))),
            false => assert_eq!((code, added), (Some(0), 1), "{point}"),
        }
        judged_once(&mesh);
        assert_eq!(trust(&mesh, &run)["level"], "L4", "{point}");
    }
    goes_on(&mesh, &run);
    mesh.ml(&["audit", "verify"]).exits(0);
}
