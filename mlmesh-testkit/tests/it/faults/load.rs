//! Faults while there is much to do.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mlmesh_testkit::postgres::PostgresServer;

use crate::site::{RaiseAtEnd, Site, WAIT_FOR_GO, wait};

#[test]
fn a_restart_of_postgres_under_load_loses_nothing() {
    let Some(mut server) = PostgresServer::start() else {
        return;
    };
    let mut site = Site::new();
    site.argue("--store");
    site.argue(server.new_schema_url().expect("a fresh schema"));
    site.start();
    let pid = site.daemon().pid();
    let recipe = site.recipe("witness", "echo $MLMESH_RUN_ID >>\"$W/witness\"\n", "");
    let long = site.queue(&site.recipe("long", &format!("echo x >\"$W/runs\"\n{WAIT_FOR_GO}"), ""));
    site.wait_for_file("runs");
    let acknowledged = Mutex::new(vec![]);
    let refused = Mutex::new(vec![]);
    let stop = AtomicBool::new(false);
    let count = || acknowledged.lock().unwrap().len();
    std::thread::scope(|scope| {
        let _stop = RaiseAtEnd(&stop);
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let answer = site.ml(&["queue", "-q", &recipe]);
                    match answer.code {
                        Some(0) => acknowledged
                            .lock()
                            .unwrap()
                            .push(answer.stdout.trim().to_owned()),
                        _ => refused.lock().unwrap().push(answer.stderr),
                    }
                }
            });
        }
        for round in 0..3 {
            let before = count();
            wait("load", || count() >= before + 10);
            let gone = refused.lock().unwrap().len();
            match round {
                1 => server.kill().expect("PostgreSQL is killed"),
                _ => server.stop().expect("PostgreSQL stops"),
            }
            wait("a refusal", || refused.lock().unwrap().len() > gone);
            server.run().expect("PostgreSQL starts again");
        }
        let before = count();
        wait("load after the last restart", || count() >= before + 5);
    });
    assert_eq!(site.daemon().pid(), pid);
    assert!(site.daemon().is_alive(), "the daemon went on by itself");
    site.go();
    assert_eq!(completed(&site, &long)["attempts"], 1);
    let acknowledged = acknowledged.into_inner().unwrap();
    for run in &acknowledged {
        // A claim whose answer was lost with the connection is committed; its attempt
        // never began, and the next one is executed.
        let info = completed(&site, run);
        let attempts = info["manifest"]["attempts"].as_array().expect("attempts");
        let (_, earlier) = attempts.split_last().expect("an attempt");
        for attempt in earlier {
            let told = [&attempt["started_at"], &attempt["exit"]];
            assert!(told.iter().all(|fact| fact.is_null()), "{run}: {attempt}");
        }
    }
    wait("the rest", || {
        site.count("completed") > acknowledged.len() as u64
    });
    let witness = std::fs::read_to_string(site.path("w/witness")).unwrap();
    let mut executed = BTreeMap::<&str, u32>::new();
    for run in witness.lines() {
        *executed.entry(run).or_default() += 1;
    }
    let twice: Vec<_> = executed.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert!(
        acknowledged
            .iter()
            .all(|run| executed.contains_key(run.as_str()))
    );
    for words in refused.into_inner().unwrap() {
        assert!(words.contains("hint: "), "{words}");
    }
    site.ml(&["audit", "verify"]).exits(0);
    site.app_log();
}

/// Waits for a run's end. Each of the daemon's readers asks the server again in its
/// own time, so that some answer sooner than others.
fn completed(site: &Site, run: &str) -> serde_json::Value {
    let mut info = serde_json::Value::Null;
    wait("the end of a run", || {
        let answer = site.ml(&["info", run, "--json"]);
        if answer.code != Some(0) {
            assert_eq!(answer.error()["code"], "unavailable");
            return false;
        }
        info = serde_json::from_str(&answer.stdout).expect("JSON");
        info["phase"] == "completed"
    });
    info
}

#[test]
fn ten_thousand_queued_runs_do_not_hold_up_a_start() {
    let mut site = Site::up();
    let holder =
        site.queue(&site.recipe("holder", &format!("echo x >\"$W/runs\"\n{WAIT_FOR_GO}"), ""));
    site.wait_for_file("runs");
    let numbers: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    let numbers = numbers.join(", ");
    let recipe = site.recipe(
        "many",
        "",
        &format!("params: {{a: 0, b: 0}}\nsweep: {{a: [{numbers}], b: [{numbers}]}}"),
    );
    let text = std::fs::read_to_string(site.path("project").join(&recipe)).unwrap();
    site.write(
        &recipe,
        text.replace("many.sh]", "many.sh, \"${a}\", \"${b}\"]"),
    );
    let sweep = site.queue_with(&["queue", "-q", &recipe, "--after", &holder]);
    assert_eq!(site.count("queued"), 10_000);
    site.kill_daemon();
    let begun = Instant::now();
    site.start();
    let ready = begun.elapsed();
    println!("ready with 10,000 queued runs after {ready:?}");
    assert!(ready < Duration::from_secs(10), "ready after {ready:?}");
    assert_eq!(site.count("queued"), 10_000);
    // It does not only say so: new work is done, and the queue is known.
    let new = site.queue(&site.recipe("new", "echo x\n", ""));
    site.wait_for_phase(&new, "completed");
    site.ml(&["cancel", &sweep]).exits(0);
    wait("the end of the sweep", || site.count("cancelled") == 10_000);
    site.go();
    site.wait_for_phase(&holder, "completed");
    site.app_log();
}
