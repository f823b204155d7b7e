//! The conformance suite on the process executor, and what only it can show:
//! other daemons, killed supervisors, logs beyond their limit.

use std::fs;

use mlmesh_model::*;

use crate::conformance;
use crate::support::*;

macro_rules! conformance {
    ($($name:ident),* $(,)?) => {$(
        #[tokio::test]
        async fn $name() {
            let bench = Bench::new();
            let executor = bench.executor();
            conformance::$name(&bench, executor.as_ref()).await;
        }
    )*};
}

conformance!(
    a_command_runs_and_its_end_is_told,
    success_has_no_cause,
    a_signal_is_told_apart,
    an_absent_command_is_no_start,
    stop_ends_the_whole_tree,
    a_polite_end_keeps_its_cause,
    a_stop_before_the_start_is_kept,
    time_is_up,
    nothing_outlives_the_command,
    an_attempt_starts_once,
    what_never_started_never_will,
    outputs_and_metrics_are_collected,
    logs_and_metrics_are_followed_live,
    secrets_are_given_and_hidden,
    the_environment_is_exact,
    a_dataset_is_where_its_mount_says,
);

#[tokio::test]
async fn a_later_daemon_takes_over() {
    let bench = Bench::new();
    let spec = bench.spec(&["sh", "-c", "while [ ! -e go ]; do sleep 0.01; done; exit 4"]);
    let first = bench.executor();
    let started = first.start(spec.clone()).await.unwrap();
    let second = bench.executor();
    let seen = second.reattach(spec.attempt).await.unwrap();
    assert_eq!(seen, Reattached::Running(started));
    let waiting = second.wait(spec.attempt);
    fs::write(bench.work(spec.attempt).join("go"), "").unwrap();
    let ended = waiting.await.unwrap();
    assert_eq!(ended.exit, Some(Exit::Code(4)));
    let third = bench.executor();
    assert_eq!(
        third.reattach(spec.attempt).await.unwrap(),
        Reattached::Ended(ended, None)
    );
}

#[tokio::test]
async fn a_later_daemon_can_stop() {
    let bench = Bench::new();
    let spec = bench.spec(&["sleep", "1000"]);
    bench.executor().start(spec.clone()).await.unwrap();
    let second = bench.executor();
    second
        .stop(spec.attempt, Cause::Cancelled, 5_000)
        .await
        .unwrap();
    let ended = second.wait(spec.attempt).await.unwrap();
    assert_eq!(ended.cause, Some(Cause::Cancelled));
    assert_eq!(ended.exit, Some(Exit::Signal(15)));
}

pub(crate) fn supervisor_of(bench: &Bench, attempt: AttemptRef) -> serde_json::Value {
    let journal = fs::read_to_string(bench.attempt_dir(attempt).join("journal")).unwrap();
    let lines = journal.lines();
    lines
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .find_map(|mut entry| Some(entry.get_mut("begun")?.take()))
        .expect("it has begun")
}

pub(crate) fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// What supervisors are copied from may die: those that run go on, and their ends are
/// seen; the next attempt gets another starter.
#[tokio::test]
async fn a_killed_starter_costs_nothing() {
    let bench = Bench::new();
    let executor = bench.executor();
    let mut starters = Vec::new();
    let mut runs = Vec::new();
    for _ in 0..3 {
        let spec = bench.spec(&["sh", "-c", "while [ ! -e go ]; do sleep 0.01; done; exit 3"]);
        executor.start(spec.clone()).await.unwrap();
        let supervisor = supervisor_of(&bench, spec.attempt)["pid"].as_i64().unwrap();
        let starter = parent_of(supervisor);
        assert!(!starters.contains(&starter), "it is another one");
        kill(starter);
        starters.push(starter);
        runs.push(spec);
    }
    for spec in runs {
        let waiting = executor.wait(spec.attempt);
        fs::write(bench.work(spec.attempt).join("go"), "").unwrap();
        assert_eq!(waiting.await.unwrap().exit, Some(Exit::Code(3)));
    }
}

fn parent_of(pid: i64) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, after_name) = stat.rsplit_once(") ").unwrap();
    after_name.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Supervisors end one after another and are waited for: none stays a zombie.
#[tokio::test]
async fn the_starter_reaps_its_copies_and_ends_with_its_daemon() {
    let bench = Bench::new();
    let executor = bench.executor();
    let spec = bench.spec(&["sleep", "1000"]);
    executor.start(spec.clone()).await.unwrap();
    let supervisor = supervisor_of(&bench, spec.attempt)["pid"].as_i64().unwrap();
    let name = fs::read_to_string(format!("/proc/{supervisor}/comm")).unwrap();
    assert_eq!(name.trim(), format!("ml-{}", spec.attempt.run));
    let starter = parent_of(supervisor);
    for _ in 0..5 {
        let spec = bench.spec(&["true"]);
        run(executor.as_ref(), &spec).await;
        let ended = supervisor_of(&bench, spec.attempt)["pid"].as_i64().unwrap();
        eventually("the end of a copy", || async {
            let is_gone = !std::path::Path::new(&format!("/proc/{ended}")).exists();
            is_gone.then_some(())
        })
        .await;
    }
    drop(executor);
    eventually("the end of the starter", || async {
        (!alive(&starter.to_string())).then_some(())
    })
    .await;
    let later = bench.executor();
    later
        .stop(spec.attempt, Cause::Cancelled, 5_000)
        .await
        .unwrap();
    let ended = later.wait(spec.attempt).await.unwrap();
    assert_eq!(ended.cause, Some(Cause::Cancelled));
}

/// Both while somebody waits and when a later daemon looks.
#[tokio::test]
async fn a_killed_supervisor_leaves_no_orphan() {
    let script = "setsid sleep 1000 & echo $! > grandchild; echo said; sleep 1000";
    let bench = Bench::new();
    for later in [false, true] {
        for sandbox in [false, true] {
            let executor = bench.executor();
            if sandbox && skip_without(executor.abilities().sandbox, "sandbox") {
                continue;
            }
            let mut spec = bench.spec(&["sh", "-c", script]);
            spec.placement.sandbox = sandbox;
            executor.start(spec.clone()).await.unwrap();
            eventually("the line", || async {
                let page = executor.read_log(spec.attempt, 0, 100).await.unwrap();
                (!page.lines.is_empty()).then_some(())
            })
            .await;
            let pid = supervisor_of(&bench, spec.attempt)["pid"].as_i64().unwrap();
            let family = processes_of(&bench, &spec, sandbox);
            assert!(family.len() >= 2, "{family:?}");
            let ended = if later {
                kill(pid as i32);
                let second = bench.executor();
                let gone = eventually("the loss", || async {
                    match second.reattach(spec.attempt).await.unwrap() {
                        Reattached::Ended(ended, _) => Some(ended),
                        _ => None,
                    }
                });
                gone.await
            } else {
                let waiting = executor.wait(spec.attempt);
                kill(pid as i32);
                waiting.await.unwrap()
            };
            assert_eq!(ended.cause, Some(Cause::Lost));
            assert_eq!(ended.exit, None);
            assert!(ended.started_at.is_some());
            assert_eq!(stdout(executor.as_ref(), spec.attempt).await, "said\n");
            for pid in family {
                eventually(&format!("the end of {pid}"), || async {
                    (!alive(&pid)).then_some(())
                })
                .await;
            }
        }
    }
}

/// Pids, as the host counts them, of an attempt's processes.
fn processes_of(_bench: &Bench, spec: &StartSpec, _sandbox: bool) -> Vec<String> {
    let mark = format!("MLMESH_RUN_ID={}", spec.attempt.run);
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.parse::<i32>().is_ok())
        .filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/environ"))
                .is_ok_and(|text| text.split('\0').any(|entry| entry == mark))
        })
        .collect()
}

#[tokio::test]
async fn a_restart_of_the_machine_is_told_apart() {
    let bench = Bench::new();
    let executor = bench.executor();
    let spec = bench.spec(&["sleep", "1000"]);
    executor.start(spec.clone()).await.unwrap();
    let supervisor = supervisor_of(&bench, spec.attempt);
    kill(supervisor["pid"].as_i64().unwrap() as i32);
    for pid in processes_of(&bench, &spec, false) {
        kill(pid.parse().unwrap());
    }
    let dir = bench.attempt_dir(spec.attempt);
    let journal = fs::read_to_string(dir.join("journal")).unwrap();
    let boot = supervisor["boot_id"].as_str().unwrap();
    fs::write(
        dir.join("journal"),
        journal.replace(boot, "an earlier boot"),
    )
    .unwrap();
    let ended = executor.wait(spec.attempt).await.unwrap();
    assert_eq!(ended.cause, Some(Cause::Reboot));
}

/// The supervisor looks for the program itself, and must find what the job's own
/// search would find.
#[tokio::test]
async fn a_program_is_found_on_the_jobs_path_and_keeps_its_name() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new();
    let executor = bench.executor();
    let programs = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str, mode: u32| {
        let path = programs.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    put("first/tool", "not executable", 0o644);
    put("second/tool", "#!/bin/sh\necho tool $1\n", 0o755);
    put("second/bare", "echo bare $1\n", 0o755);
    let path = format!(
        "{0}/absent:{0}/first:{0}/second:/usr/bin:/bin",
        programs.path().display()
    );
    for (argv, expected) in [(["tool", "a"], "tool a\n"), (["bare", "b"], "bare b\n")] {
        let mut spec = bench.spec(&argv);
        let plan = std::sync::Arc::make_mut(&mut spec.plan);
        plan.env.insert("PATH".to_owned(), path.clone());
        let (_, ended) = run(executor.as_ref(), &spec).await;
        assert_eq!(ended.cause, None, "{}", ended.message);
        assert_eq!(stdout(executor.as_ref(), spec.attempt).await, expected);
    }
    let named = ["sh", "-c", "cat /proc/$$/cmdline | tr '\\0' ' '"];
    let spec = bench.spec(&named);
    run(executor.as_ref(), &spec).await;
    let said = stdout(executor.as_ref(), spec.attempt).await;
    assert!(said.starts_with("sh -c"), "{said}");
}

#[tokio::test]
async fn a_log_keeps_to_its_limit() {
    let bench = Bench::new();
    let executor = bench.executor_with(10_000);
    let spec = bench.spec(&[
        "sh",
        "-c",
        "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done",
    ]);
    let (_, ended) = run(executor.as_ref(), &spec).await;
    assert_eq!(ended.cause, None);
    assert!(ended.log_bytes_dropped > 0);
    let kept = stdout(executor.as_ref(), spec.attempt).await;
    let total: usize = (0..2000)
        .map(|number| format!("line {number}\n").len())
        .sum();
    assert_eq!(kept.len() as u64 + ended.log_bytes_dropped, total as u64);
    let note = log(executor.as_ref(), spec.attempt, LogStream::Stderr).await;
    assert!(
        note.contains(&ended.log_bytes_dropped.to_string()),
        "{note}"
    );
    assert!(
        fs::metadata(bench.attempt_dir(spec.attempt).join("log"))
            .unwrap()
            .len()
            < 10_300
    );
}

#[tokio::test]
async fn a_supervisor_is_small() {
    let bench = Bench::new();
    let executor = bench.executor();
    let spec = bench.spec(&["sleep", "1000"]);
    executor.start(spec.clone()).await.unwrap();
    let pid = &supervisor_of(&bench, spec.attempt)["pid"];
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let rss = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let kilobytes: u64 = rss.trim().trim_end_matches(" kB").parse().unwrap();
    executor
        .stop(spec.attempt, Cause::Cancelled, 0)
        .await
        .unwrap();
    executor.wait(spec.attempt).await.unwrap();
    println!("a supervisor has {kilobytes} kB");
    assert!(kilobytes < 5 * 1024, "{kilobytes} kB");
}

#[tokio::test]
async fn no_network_is_no_network_without_a_sandbox_too() {
    let bench = Bench::new();
    let executor = bench.executor();
    if skip_without(executor.abilities().network_none, "network namespace") {
        return;
    }
    let mut spec = bench.spec(&["cat", "/proc/net/dev"]);
    edit_plan(&mut spec, |plan| plan.network = PlanNetwork::None);
    let (started, ended) = run(executor.as_ref(), &spec).await;
    assert_eq!(ended.cause, None);
    assert!(started.isolation.network_enforced);
    assert!(started.isolation.namespaces.contains(&"net".to_owned()));
    let devices = stdout(executor.as_ref(), spec.attempt).await;
    assert_eq!(devices.lines().count(), 3, "{devices}");
    assert!(devices.contains("lo:"));
}
