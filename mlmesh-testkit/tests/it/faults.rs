//! Everything dies, and nothing is lost: each test breaks one thing under a real
//! daemon and looks at what became of the runs.
//!
//! Here processes die, the machine restarts, people stop things; the modules have
//! the clock, the disk, the files, and much load.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops where an expectation fails"
)]

mod clock;
mod disk;
mod health;
mod load;
mod store;

use std::time::{Duration, Instant};

use mlmesh_testkit::daemon::{Start, refused_start};
use rustix::process::Signal;
use serde_json::json;

use crate::site::{Site, WAIT_FOR_GO, kill, skipped, wait};

/// Says that it runs, waits, and says that it ends.
fn patient_job() -> String {
    format!("echo begin\necho $MLMESH_ATTEMPT >\"$W/runs\"\n{WAIT_FOR_GO}echo end\n")
}

#[test]
fn a_second_daemon_is_refused_and_told_who_holds_the_directory() {
    let mut site = Site::up();
    let run = site.queue(&site.recipe("busy", &patient_job(), ""));
    site.wait_for_file("runs");
    let (status, words) = refused_start(&site.data_dir(), &Start::default());
    assert_eq!(status.code(), Some(1), "{words}");
    let holder = format!("process {}", site.daemon().pid());
    let folder = site.data_dir().canonicalize().unwrap();
    assert!(
        words.contains(&holder) && words.contains(folder.to_str().unwrap()),
        "{words}"
    );
    // The first one is undisturbed.
    site.go();
    assert_eq!(site.wait_for_phase(&run, "completed")["attempts"], 1);
}

#[test]
fn a_killed_supervisor_ends_its_run_and_leaves_no_process() {
    let site = Site::up();
    let script = "setsid sleep 600 &\nsleep 600 &\necho x >\"$W/runs\"\nwait\n";
    let run = site.queue(&site.recipe("orphans", script, ""));
    site.wait_for_file("runs");
    assert!(site.processes_of(&run).len() >= 4);
    kill(site.supervisor_of(&run), Signal::KILL);
    let info = site.wait_for_phase(&run, "interrupted");
    assert_eq!(
        (&info["cause"], &info["attempts"]),
        (&json!("lost"), &json!(1))
    );
    site.no_process_left(&run);
}

#[test]
fn a_run_whose_supervisor_was_killed_is_tried_again_if_the_recipe_says_so() {
    let site = Site::up();
    let script = format!(
        "echo attempt $MLMESH_ATTEMPT\necho $MLMESH_ATTEMPT >>\"$MLMESH_CHECKPOINT_DIR/tries\"\n\
         cat \"$MLMESH_CHECKPOINT_DIR/tries\"\necho x >\"$W/runs-$MLMESH_ATTEMPT\"\n{WAIT_FOR_GO}"
    );
    let run = site.queue(&site.recipe("again", &script, "retries: 1"));
    site.wait_for_file("runs-1");
    kill(site.supervisor_of(&run), Signal::KILL);
    site.wait_for_file("runs-2");
    site.go();
    let info = site.wait_for_phase(&run, "completed");
    assert_eq!(
        (&info["cause"], &info["attempts"]),
        (&json!(null), &json!(2))
    );
    let said = site.ml(&["logs", &run]).exits(0).stdout;
    assert_eq!(said, "attempt 2\n1\n2\n", "checkpoints survive");
    site.no_process_left(&run);
}

#[test]
fn a_supervisor_that_dies_while_no_daemon_is_there_is_found_out() {
    let mut site = Site::up();
    let run = site.queue(&site.recipe("unseen", &patient_job(), ""));
    site.wait_for_file("runs");
    // What the supervisor has read is in the log; what lies in the pipe dies with it.
    wait("the first line", || {
        site.ml(&["logs", &run]).stdout == "begin\n"
    });
    site.kill_daemon();
    kill(site.supervisor_of(&run), Signal::KILL);
    site.start();
    assert_eq!(site.wait_for_phase(&run, "interrupted")["cause"], "lost");
    site.no_process_left(&run);
    assert_eq!(
        site.ml(&["logs", &run]).exits(0).stdout,
        "begin\n",
        "what it said before is there"
    );
}

#[test]
fn a_killed_grandchild_is_the_jobs_own_affair() {
    let site = Site::up();
    // The shell in the middle reports how the process below it ended.
    let script = "sh -c 'sleep 600 & echo $! >\"$W/grandchild\"; wait $!; echo $?'\nexit 3\n";
    let run = site.queue(&site.recipe("family", script, ""));
    let grandchild = site.wait_for_file("grandchild").parse().unwrap();
    kill(grandchild, Signal::KILL);
    let info = site.wait_for_phase(&run, "failed");
    assert_eq!(
        (&info["cause"], &info["exit_code"]),
        (&json!("exit"), &json!(3))
    );
    assert_eq!(site.ml(&["logs", &run]).exits(0).stdout, "137\n");
    site.no_process_left(&run);
}

#[test]
fn cancel_ends_a_whole_tree_that_ignores_sigterm() {
    let site = Site::up();
    let script = "trap '' TERM\n\
        setsid sh -c 'trap \"\" TERM; sleep 600 & wait; sleep 600' &\n\
        (setsid sh -c 'sleep 600; :' &)\n\
        echo x >\"$W/runs\"\nwhile :; do sleep 600; done\n";
    let run = site.queue(&site.recipe("stubborn", script, "retries: 3"));
    site.wait_for_file("runs");
    wait("the whole tree", || site.processes_of(&run).len() >= 6);
    let asked = Instant::now();
    site.ml(&["cancel", &run]).exits(0);
    let info = site.wait_for_phase(&run, "cancelled");
    site.no_process_left(&run);
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(10), "it took {took:?}");
    assert_eq!(
        (&info["cause"], &info["attempts"]),
        (&json!("cancelled"), &json!(1))
    );
}

#[test]
fn another_boot_id_stands_for_a_reboot_and_interrupts_what_ran() {
    let mut site = Site::up();
    let job = "echo x >\"$W/$1-$MLMESH_ATTEMPT\"\n";
    let script = format!("set -- once\n{job}{WAIT_FOR_GO}");
    let once = site.queue(&site.recipe("once", &script, ""));
    let script = format!("set -- again\n{job}{WAIT_FOR_GO}");
    let again = site.queue(&site.recipe("again", &script, "retries: 1"));
    site.wait_for_file("once-1");
    site.wait_for_file("again-1");
    // A restart takes everything at once, and gives the machine another boot id.
    let doomed = [site.processes_of(&once), site.processes_of(&again)].concat();
    site.kill_daemon();
    doomed.iter().for_each(|pid| kill(*pid, Signal::KILL));
    site.no_process_left(&once);
    site.no_process_left(&again);
    let boot_id = site.path("boot_id");
    std::fs::write(&boot_id, "00000000-0000-4000-8000-000000000002\n").unwrap();
    let mounting = format!(
        "mount --bind '{}' /proc/sys/kernel/random/boot_id && exec \"$@\"",
        boot_id.display()
    );
    let namespace = match rustix::process::geteuid().is_root() {
        true => "-m",
        false => "-rm",
    };
    let through = ["unshare", namespace, "sh", "-c", &mounting, "sh"];
    if !is_possible(&through) {
        return skipped("no boot id can be put in the place of the machine's");
    }
    site.start_through(&through);
    let info = site.wait_for_phase(&once, "interrupted");
    assert_eq!(
        (&info["cause"], &info["attempts"]),
        (&json!("reboot"), &json!(1))
    );
    site.wait_for_file("again-2");
    site.go();
    let info = site.wait_for_phase(&again, "completed");
    assert_eq!(info["attempts"], 2);
    let attempts = info["manifest"]["attempts"].as_array().unwrap();
    assert_eq!(attempts[0]["cause"], "reboot", "{attempts:?}");
    assert_ne!(attempts[0]["boot_id"], attempts[1]["boot_id"]);
}

fn is_possible(through: &[&str]) -> bool {
    let tried = std::process::Command::new(through[0])
        .args(&through[1..])
        .arg("true")
        .output();
    tried.is_ok_and(|output| output.status.success())
}

#[test]
fn jobs_go_on_through_a_sigterm_of_the_daemon_and_are_attached_again() {
    let mut site = Site::up();
    let running = site.queue(&site.recipe("running", &patient_job(), ""));
    site.wait_for_phase(&running, "running");
    site.wait_for_file("runs");
    let quick = "trap '' TERM\necho x >\"$W/quick\"\nwhile [ ! -e \"$W/quick-go\" ]; do sleep 0.02; done\nexit 7\n";
    let ends_meanwhile = site.queue(&site.recipe("quick", quick, ""));
    site.wait_for_phase(&ends_meanwhile, "running");
    site.wait_for_file("quick");
    let supervisor = site.supervisor_of(&running);
    site.daemon().terminate();
    assert_eq!(site.daemon().wait().code(), Some(0));
    assert!(!site.data_dir().join("meshd.json").exists());
    // One ends while nobody is there, with its exit code.
    std::fs::write(site.path("w/quick-go"), "").unwrap();
    site.no_process_left(&ends_meanwhile);
    assert_eq!(site.supervisor_of(&running), supervisor);
    site.start();
    let ended = site.wait_for_phase(&ends_meanwhile, "failed");
    assert_eq!(ended["exit_code"], 7);
    assert_eq!(site.info(&running)["phase"], "running");
    assert_eq!(site.supervisor_of(&running), supervisor);
    site.go();
    let info = site.wait_for_phase(&running, "completed");
    assert_eq!(info["attempts"], 1);
    assert_eq!(site.ml(&["logs", &running]).exits(0).stdout, "begin\nend\n");
}

#[test]
fn down_with_stop_jobs_cancels_what_lives_and_keeps_what_waits() {
    let mut site = Site::new();
    site.set("MLMESH_CPUS", "1");
    site.set("MLMESH_STOP_GRACE", "200ms");
    site.start();
    let stubborn = format!("trap '' TERM\n{}", patient_job());
    let live = site.queue(&site.recipe("live", &stubborn, "retries: 2"));
    site.wait_for_file("runs");
    // The node has no room for a second one.
    let recipe = site.recipe("waits", "echo $MLMESH_ATTEMPT\n", "");
    let text = std::fs::read_to_string(site.path("project").join(&recipe)).unwrap();
    site.write(&recipe, text.replace("cpus: 0.1", "cpus: 1"));
    let waits = site.queue(&recipe);
    site.ml(&["down", "--stop-jobs"]).exits(0);
    assert_eq!(site.daemon().wait().code(), Some(0));
    site.no_process_left(&live);
    site.start();
    let info = site.info(&live);
    assert_eq!(
        (&info["phase"], &info["cause"]),
        (&json!("cancelled"), &json!("shutdown"))
    );
    assert_eq!(info["attempts"], 1);
    let info = site.wait_for_phase(&waits, "completed");
    assert_eq!(info["attempts"], 1, "it waited, and was never begun before");
}
