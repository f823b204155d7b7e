//! The calendar clock jumps by a day, forward and back, under a daemon that runs.

use std::path::PathBuf;

use serde_json::json;

use crate::site::{Site, WAIT_FOR_GO, skipped};

const DAY_S: i64 = 86_400;

#[test]
fn a_clock_that_jumps_by_a_day_holds_up_nothing() {
    let Some(library) = faketime() else {
        return skipped("no libfaketime; install the package `faketime`");
    };
    let _left = SharedMemory;
    let mut site = Site::new();
    let clock = site.path("clock");
    let step = |seconds: i64| {
        let beside = clock.with_extension("new");
        std::fs::write(&beside, format!("{seconds:+}\n")).unwrap();
        std::fs::rename(&beside, &clock).unwrap();
    };
    step(0);
    site.set("LD_PRELOAD", library.to_str().unwrap());
    site.set("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap());
    site.set("FAKETIME_NO_CACHE", "1");
    // A step of the calendar clock leaves the monotonic one alone.
    site.set("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    site.set("DONT_FAKE_MONOTONIC", "1");
    site.start();
    let holder =
        site.queue(&site.recipe("holder", &format!("echo x >\"$W/runs\"\n{WAIT_FOR_GO}"), ""));
    site.wait_for_file("runs");
    let follower = site.recipe("follower", "echo done\n", "");
    let waiting = site.queue_with(&["queue", "-q", &follower, "--after", &holder]);

    let mut times = vec![queued_at(&site, &holder)];
    for (seconds, name) in [(DAY_S, "forward"), (-DAY_S, "back")] {
        // One that is about to be tried again when the clock jumps.
        let flaky = format!(
            "echo x >\"$W/{name}-$MLMESH_ATTEMPT\"\nwhile [ ! -e \"$W/{name}\" ]; do sleep 0.02; done\n\
             [ $MLMESH_ATTEMPT = 2 ]\n"
        );
        let flaky = site.recipe(name, &flaky, "retries: 1\nretry_on: [exit]");
        let flaky = site.queue(&flaky);
        site.wait_for_file(&format!("{name}-1"));
        step(seconds);
        std::fs::write(site.path("w").join(name), "").unwrap();
        let info = site.wait_for_phase(&flaky, "completed");
        assert_eq!(info["attempts"], 2, "{name}");
        let later = site.queue(&follower);
        site.wait_for_phase(&later, "completed");
        times.push(queued_at(&site, &later));
        assert_eq!(site.info(&holder)["phase"], "running", "{name}");
        assert_eq!(site.info(&waiting)["phase"], "queued", "{name}");
    }
    assert!(
        times[1][..10] > times[0][..10],
        "the clock jumped: {times:?}"
    );
    assert!(
        times[2][..10] < times[0][..10],
        "the clock jumped: {times:?}"
    );

    // A daemon that starts after the jump finds all of it.
    site.start();
    site.go();
    assert_eq!(site.wait_for_phase(&holder, "completed")["attempts"], 1);
    site.wait_for_phase(&waiting, "completed");
    events_are_in_order(&site, &holder);
    site.ml(&["audit", "verify"]).exits(0);
    site.app_log();
}

#[test]
fn a_retry_that_was_due_soon_is_not_put_off_by_a_clock_that_went_back() {
    let Some(library) = faketime() else {
        return skipped("no libfaketime; install the package `faketime`");
    };
    let _left = SharedMemory;
    let mut site = Site::up();
    let script = "echo x >\"$W/try-$MLMESH_ATTEMPT\"\n[ $MLMESH_ATTEMPT = 2 ]\n";
    let run = site.queue(&site.recipe("due", script, "retries: 1\nretry_on: [exit]"));
    site.wait_for_file("try-1");
    let info = site.wait_for_phase(&run, "queued");
    assert_eq!(info["cause"], "exit");
    site.kill_daemon();
    site.set("LD_PRELOAD", library.to_str().unwrap());
    site.set("FAKETIME", format!("{:+}", -DAY_S));
    site.set("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    site.set("DONT_FAKE_MONOTONIC", "1");
    site.start();
    assert_eq!(site.wait_for_phase(&run, "completed")["attempts"], 2);
}

#[test]
fn an_export_that_is_signed_under_a_wrong_clock_verifies() {
    let Some(library) = faketime() else {
        return skipped("no libfaketime; install the package `faketime`");
    };
    let _left = SharedMemory;
    let site = Site::up();
    let run = site.queue(&site.recipe("made", "echo x >made.txt\n", "outputs: [made.txt]"));
    site.wait_for_phase(&run, "completed");
    let file = site.path("x.zip");
    let file = file.to_str().unwrap();
    // Within the time of the daemon's certificate, without which there is no export.
    for wrong in ["-3d", "+20d"] {
        let mut export = site.command(&["export", &run, "-o", file]);
        export.env("LD_PRELOAD", &library).env("FAKETIME", wrong);
        let made = export.output().unwrap();
        let words = String::from_utf8_lossy(&made.stderr).into_owned();
        assert!(made.status.success(), "{words}");
        let found = site.json(&["export", "--verify", file]);
        let signed_at = found["signed_at"].as_str().unwrap();
        assert_ne!(signed_at[..10], queued_at(&site, &run)[..10]);
        assert_eq!(found["holds"], true);
        let shown = site.ml(&["export", "--verify", file]).exits(0).stdout;
        assert!(shown.contains("by the signer's clock"), "{shown}");
    }
}

fn queued_at(site: &Site, run: &str) -> String {
    let info = site.info(run);
    info["queued_at"].as_str().expect("a time").to_owned()
}

/// Numbers rise whatever the clock says, and a run's phases come in their order.
fn events_are_in_order(site: &Site, run: &str) {
    let text = site
        .ml(&["events", "--after", "0", "--json"])
        .exits(0)
        .stdout;
    let events: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let numbers: Vec<_> = events.iter().map(|event| event["seq"].as_u64()).collect();
    assert!(numbers.is_sorted(), "{numbers:?}");
    let phases: Vec<_> = events
        .iter()
        .filter(|event| event["run"] == run)
        .map(|event| event["event"]["phase"].clone())
        .collect();
    let expected = ["queued", "starting", "running", "finishing", "completed"];
    assert_eq!(json!(phases), json!(expected));
}

fn faketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten();
    let mut found = folders.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
    found.find(|path| path.is_file())
}

/// What libfaketime leaves behind of processes that have ended: two files each.
struct SharedMemory;

impl Drop for SharedMemory {
    fn drop(&mut self) {
        let entries = std::fs::read_dir("/dev/shm").into_iter().flatten();
        for entry in entries.flatten() {
            let name = entry.file_name().into_string().unwrap_or_default();
            let pid = ["faketime_shm_", "sem.faketime_sem_"]
                .iter()
                .find_map(|prefix| name.strip_prefix(prefix));
            if pid.is_some_and(|pid| !PathBuf::from("/proc").join(pid).exists()) {
                drop(std::fs::remove_file(entry.path()));
            }
        }
    }
}
