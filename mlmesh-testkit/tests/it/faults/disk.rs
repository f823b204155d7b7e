//! The disk is full, or cannot be written at all.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use mlmesh_cas::ObjectStore;
use mlmesh_testkit::daemon::{Start, refused_start};
use mlmesh_testkit::place::noise;
use serde_json::json;

use crate::site::{Site, WAIT_FOR_GO, wait};

/// For this long nothing fits: longer than a few tries take.
const FULL: Duration = Duration::from_secs(6);

#[test]
fn a_full_disk_while_syncing_is_told_and_costs_nothing() {
    let Some(mut site) = Site::on_disk_of(32) else {
        return;
    };
    site.start();
    site.write("first.bin", "first");
    let recipe = site.recipe("before", "cksum *.bin\n", "");
    let before = site.queue(&recipe);
    site.wait_for_phase(&before, "completed");
    // One that is stored alone, and many that are packed together.
    site.write("large.bin", noise(3 << 20));
    for place in 0..40 {
        site.write(&format!("{place}.bin"), [place; 50_000]);
    }
    site.disk().fill(256 << 10);
    for _ in 0..3 {
        let answer = site.ml(&["sync", "--json"]).exits(1);
        let error = answer.error();
        assert_eq!(error["code"], "no_space", "{error}");
        assert_ne!(error["hint"], "", "{error}");
    }
    assert_eq!(site.info(&before)["phase"], "completed", "reading goes on");
    site.disk().free();
    site.json(&["sync"]);
    let after = site.queue(&recipe);
    site.wait_for_phase(&after, "completed");
    let said = site.ml(&["logs", &after]).exits(0).stdout;
    assert_eq!(said.lines().count(), 42, "{said}");
    site.app_log();
    objects_are_sound(&mut site);
}

/// Ends the daemon, and finds nothing damaged in its content store.
#[track_caller]
fn objects_are_sound(site: &mut Site) {
    site.kill_daemon();
    let objects = ObjectStore::open(&site.data_dir().join("data/objects")).unwrap();
    let damaged = objects.scrub(&mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(damaged, []);
}

#[test]
fn a_full_disk_while_logging_does_not_hold_up_the_job() {
    let Some(mut site) = Site::on_disk_of(16) else {
        return;
    };
    site.start();
    let script = format!(
        "echo before\necho x >\"$W/runs\"\n{WAIT_FOR_GO}\
         i=0; while [ $i -lt 300 ]; do printf '%05000d\\n' $i; i=$((i+1)); done\n\
         echo x >\"$W/printed\"\nwhile [ ! -e \"$W/free\" ]; do sleep 0.02; done\n\
         echo after\nexit 5\n"
    );
    let run = site.queue(&site.recipe("chatty", &script, ""));
    site.wait_for_file("runs");
    site.wait_for_phase(&run, "running");
    site.disk().fill(0);
    site.go();
    site.wait_for_file("printed");
    assert_eq!(site.info(&run)["phase"], "running");
    site.disk().free();
    std::fs::write(site.path("w/free"), "").unwrap();
    let info = site.wait_for_phase(&run, "failed");
    assert_eq!(
        (&info["cause"], &info["exit_code"]),
        (&json!("exit"), &json!(5))
    );
    let dropped = info["manifest"]["log_bytes_dropped"].as_u64().unwrap();
    let log = site.ml(&["logs", &run]).exits(0);
    let kept = log.stdout.len() as u64;
    let printed = "before\nafter\n".len() as u64 + 300 * 5001;
    assert!(dropped > 0);
    assert_eq!(kept + dropped, printed, "what is not there is counted");
    assert!(log.stdout.starts_with("before\n"));
    assert!(log.stdout.ends_with("after\n"), "the log goes on");
    assert!(
        log.stderr.contains(&format!("{dropped} bytes"))
            && log.stderr.contains("could not be written"),
        "{}",
        log.stderr
    );
    site.app_log();
}

#[test]
fn a_full_disk_while_committing_loses_no_run_and_no_result() {
    // Too small for the length that the log would have: it grows with each commit.
    let Some(mut site) = Site::on_disk_of(12) else {
        return;
    };
    site.start();
    let script = format!(
        "head -c 600000 /dev/urandom >result.bin\ncksum <result.bin\necho x >\"$W/runs\"\n{WAIT_FOR_GO}echo end\n"
    );
    let run = site.queue(&site.recipe("result", &script, "outputs: [result.bin]"));
    let quick = site.recipe("quick", "echo quick\n", "");
    let ended = site.queue(&quick);
    site.wait_for_phase(&ended, "completed");
    site.wait_for_file("runs");
    // What the job wrote is in its log, or would not be for want of room.
    wait("the log's first line", || {
        site.ml(&["logs", &run]).exits(0).stdout.ends_with('\n')
    });
    site.disk().fill(0);
    site.go();
    // New work is refused in words, whatever is tried, as long as nothing fits.
    let full_at = Instant::now();
    let mut refused = 0;
    while refused < 3 || full_at.elapsed() < FULL {
        let answer = site.ml(&["queue", "-q", &quick, "--json"]);
        assert_eq!(
            (answer.code, answer.stdout.as_str()),
            (Some(1), ""),
            "{}",
            answer.stderr
        );
        let error = answer.error();
        assert!(
            error["code"] == "no_space" || error["code"] == "unavailable",
            "{error}"
        );
        refused += 1;
    }
    assert_eq!(site.info(&ended)["phase"], "completed", "reading goes on");
    site.disk().free();
    let info = site.wait_for_phase(&run, "completed");
    assert_eq!(
        (&info["exit_code"], &info["attempts"]),
        (&json!(0), &json!(1))
    );
    let folder = site.path("out");
    site.ml(&["outputs", &run, "-o", folder.to_str().unwrap()])
        .exits(0);
    let sum = std::process::Command::new("cksum")
        .stdin(std::fs::File::open(folder.join("result.bin")).unwrap())
        .output()
        .unwrap();
    let said = site.ml(&["logs", &run]).exits(0).stdout;
    let sum = String::from_utf8_lossy(&sum.stdout).into_owned();
    assert!(said.starts_with(&sum), "{said} and {sum}");
    let later = site.queue(&quick);
    site.wait_for_phase(&later, "completed");
    assert_eq!(site.count("completed"), 3, "what was refused is not there");
    site.ml(&["audit", "verify"]).exits(0);
    site.app_log();
}

#[test]
fn a_run_that_finds_no_space_to_begin_in_waits_for_it() {
    let Some(mut site) = Site::with_runs_on_disk_of(16) else {
        return;
    };
    site.start();
    site.write("large.bin", noise(3 << 20));
    let recipe = site.recipe("large", "cksum large.bin\necho x >>\"$W/runs\"\n", "");
    site.disk().fill(1 << 20);
    let run = site.queue(&recipe);
    let mut info = json!(null);
    wait("an attempt that found no space", || {
        info = site.info(&run);
        info["attempts"].as_u64() > Some(0) && info["phase"] == "queued"
    });
    assert_eq!(info["cause"], "node_fault", "{info}");
    let said = site.ml(&["info", &run]).exits(0).stdout;
    assert!(said.contains("No space left on device"), "{said}");
    assert_eq!(site.json(&["status"])["counts"]["queued"], 1);
    site.disk().free();
    let info = site.wait_for_phase(&run, "completed");
    assert_eq!(info["exit_code"], 0);
    assert_eq!(site.wait_for_file("runs"), "x", "its command began once");
    site.app_log();
}

/// A run with 6 MiB of outputs.
fn with_outputs(site: &Site) -> String {
    let script = "head -c 6291456 /dev/urandom >result.bin\n";
    let run = site.queue(&site.recipe("result", script, "outputs: [result.bin]"));
    site.wait_for_phase(&run, "completed");
    run
}

#[test]
fn an_export_onto_a_full_disk_leaves_nothing_and_is_repeated() {
    let Some(mut site) = Site::with_out_on_disk_of(12) else {
        return;
    };
    site.start();
    let run = with_outputs(&site);
    let file = site.path("out/x.zip");
    let file = file.to_str().unwrap();
    site.disk().fill(3 << 20);
    let error = site.ml(&["export", &run, "-o", file, "--json"]).exits(1);
    let error = error.stderr.lines().last().unwrap().to_owned();
    assert!(error.contains("\"disk_full\""), "{error}");
    let left: Vec<_> = std::fs::read_dir(site.path("out")).unwrap().collect();
    assert_eq!(left.len(), 1, "the ballast alone: {left:?}");
    site.disk().free();
    site.json(&["export", &run, "-o", file]);
    site.json(&["export", "--verify", file]);
    site.app_log();
}

#[test]
fn an_import_into_a_full_disk_records_nothing_and_is_repeated() {
    let Some(mut site) = Site::on_disk_of(32) else {
        return;
    };
    site.start();
    let there = Site::up();
    let run = with_outputs(&there);
    let file = site.path("x.zip");
    let file = file.to_str().unwrap();
    there.json(&["export", &run, "-o", file]);
    site.disk().fill(3 << 20);
    for _ in 0..2 {
        let error = site.ml(&["import", file, "--json"]).exits(1).error();
        assert_eq!(error["code"], "no_space", "{error}");
        site.ml(&["info", &run]).exits(4);
    }
    site.disk().free();
    assert_eq!(site.json(&["import", file])["fresh"], true);
    site.ml(&["validate", "--task", &run]).exits(0);
    assert_eq!(site.count("completed"), 1);
    site.app_log();
}

/// Data outside of the project: a file that is stored alone, and many that are packed
/// together.
fn data(site: &Site) -> String {
    let folder = site.path("tides");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("large.bin"), noise(6 << 20)).unwrap();
    for place in 0..40 {
        std::fs::write(folder.join(format!("{place}.bin")), [place; 50_000]).unwrap();
    }
    folder.to_str().unwrap().to_owned()
}

#[test]
fn a_copy_of_data_into_a_full_disk_registers_nothing_and_goes_on_when_there_is_room() {
    let Some(mut site) = Site::on_disk_of(40) else {
        return;
    };
    site.start();
    let folder = data(&site);
    let large = format!("{folder}/large.bin");
    let add = |name, path| ["data", "add", name, "1", path, "--copy", "--json"];
    for free in [3 << 20, 0] {
        site.disk().fill(free);
        for words in [add("folder", &folder), add("file", &large)] {
            let error = site.ml(&words).exits(1).error();
            assert_eq!(error["code"], "no_space", "{error}");
            assert_ne!(error["hint"], "", "{error}");
            assert_eq!(site.json(&["data", "list"])["datasets"], json!([]));
        }
        site.disk().free();
    }
    for words in [add("folder", &folder), add("file", &large)] {
        site.ml(&words).exits(0);
    }
    std::fs::remove_dir_all(&folder).unwrap();
    for name in ["folder", "file"] {
        site.ml(&["data", "verify", name, "1"]).exits(0);
    }
    let rows = site.ml(&["audit", "list", "--json"]).exits(0).stdout;
    assert_eq!(rows.matches("dataset.register").count(), 2, "{rows}");
    site.app_log();
    objects_are_sound(&mut site);
}

/// What `ml` remembers of a copy is a cache. What jobs read of it is one, too, and a job
/// waits for it.
#[test]
fn a_cache_on_a_full_disk_stops_no_copy_and_the_run_that_needs_it_waits() {
    let Some(mut site) = Site::with_cache_on_disk_of(16) else {
        return;
    };
    site.start();
    let folder = data(&site);
    site.disk().fill(2 << 20);
    let added = site.json(&["data", "add", "tides", "1", &folder, "--copy"]);
    let reference = format!(
        "datasets: [{{name: tides, version: \"1\", checksum: {}}}]",
        added["checksum"]
    );
    let script = "cat data/tides/*.bin | wc -c >result\necho x >>\"$W/runs\"\n";
    let run = site.queue(&site.recipe("reads", script, &format!("{reference}\noutputs: [result]")));
    let mut info = json!(null);
    wait("an attempt that found no space", || {
        info = site.info(&run);
        info["attempts"].as_u64() > Some(0) && info["phase"] == "queued"
    });
    assert_eq!(info["cause"], "node_fault", "{info}");
    let said = site.ml(&["info", &run]).exits(0).stdout;
    assert!(said.contains("No space left on device"), "{said}");
    site.disk().free();
    site.wait_for_phase(&run, "completed");
    assert_eq!(site.wait_for_file("runs"), "x", "its command began once");
    let out = site.path("out");
    site.ml(&["outputs", &run, "-o", out.to_str().unwrap()])
        .exits(0);
    let read = std::fs::read_to_string(out.join("result")).unwrap();
    assert_eq!(read.trim(), ((6 << 20) + 40 * 50_000).to_string());
    site.app_log();
}

#[test]
fn a_read_only_data_directory_is_refused_in_words() {
    let Some(mut site) = Site::on_disk_of(16) else {
        return;
    };
    site.start();
    let run = site.queue(&site.recipe("before", "echo x\n", ""));
    site.wait_for_phase(&run, "completed");
    site.ml(&["down"]).exits(0);
    site.daemon().wait();
    site.disk().set_read_only(true);
    let fresh = site.data_dir().join("fresh");
    for folder in [&site.data_dir(), &fresh] {
        let (status, words) = refused_start(folder, &Start::default());
        assert_eq!(status.code(), Some(1), "{words}");
        for part in [folder.to_str().unwrap(), "Read-only file system", "hint: "] {
            assert!(words.contains(part), "{part} is not in: {words}");
        }
    }
    let answer = site.ml(&["up", "--port", "0", "--json"]).exits(1);
    assert!(
        answer.stderr.contains("Read-only file system"),
        "{}",
        answer.stderr
    );
    site.disk().set_read_only(false);
    site.start();
    assert_eq!(site.info(&run)["phase"], "completed");
}
