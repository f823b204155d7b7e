//! Limits hold, are read back, and leave nothing behind.

use std::path::Path;

use mlmesh_model::*;

use crate::support::*;

const MIB: u64 = 1 << 20;

fn report<'a>(isolation: &'a Isolation, name: &str) -> &'a LimitReport {
    isolation
        .limits
        .iter()
        .find(|limit| limit.name == name)
        .unwrap()
}

/// Folders of control groups of this run that are still there.
fn groups_of(run: RunId) -> Vec<String> {
    let name = format!("mlmesh-{run}-");
    let mut found = Vec::new();
    let mut open = vec![Path::new("/sys/fs/cgroup").to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().starts_with(&name) {
                    found.push(entry.path().display().to_string());
                }
                open.push(entry.path());
            }
        }
    }
    found
}

#[tokio::test]
async fn limits_are_set_read_back_and_removed() {
    let bench = Bench::new();
    let executor = bench.executor();
    let held = executor.abilities().limits;
    let all = ["cpu", "memory", "pids"]
        .iter()
        .all(|name| held.iter().any(|have| have == name));
    if skip_without(all, "control groups for cpu, memory and pids") {
        return;
    }
    for sandbox in [false, true] {
        let mut spec = bench.spec(&["sh", "-c", "cat /proc/self/cgroup"]);
        spec.placement.sandbox = sandbox && executor.abilities().sandbox;
        spec.placement.limits = LimitsPolicy::Required;
        edit_plan(&mut spec, |plan| {
            plan.resources.cpu_milli = 500;
            plan.resources.memory_bytes = Some(64 * MIB);
        });
        let (started, ended) = run(executor.as_ref(), &spec).await;
        assert_eq!(ended.cause, None, "{}", ended.message);
        assert_eq!(report(&started.isolation, "cpu").held, Some(500));
        assert_eq!(report(&started.isolation, "memory").held, Some(64 * MIB));
        let pids = report(&started.isolation, "pids");
        assert_eq!(pids.held, Some(pids.asked));
        assert!(pids.by.starts_with("cgroup"), "{}", pids.by);
        assert_eq!(ended.isolation, started.isolation);
        let groups = stdout(executor.as_ref(), spec.attempt).await;
        assert!(
            groups.contains(&format!("mlmesh-{}-1", spec.attempt.run)),
            "{groups}"
        );
        assert_eq!(groups_of(spec.attempt.run), Vec::<String>::new());
    }
}

#[tokio::test]
async fn memory_beyond_the_limit_is_told_apart() {
    let bench = Bench::new();
    let executor = bench.executor();
    let memory = executor
        .abilities()
        .limits
        .iter()
        .any(|name| name == "memory");
    if skip_without(memory, "control group for memory") {
        return;
    }
    for sandbox in [false, true] {
        let mut spec = bench.spec(&[
            "sh",
            "-c",
            "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}",
        ]);
        spec.placement.sandbox = sandbox && executor.abilities().sandbox;
        edit_plan(&mut spec, |plan| {
            plan.resources.memory_bytes = Some(32 * MIB);
        });
        let (_, ended) = run(executor.as_ref(), &spec).await;
        assert_eq!(ended.cause, Some(Cause::OutOfMemory), "{ended:?}");
        assert_eq!(ended.exit, Some(Exit::Signal(9)));
    }
}

/// What one finds does not depend on others that look at the same moment.
#[test]
fn executors_that_begin_at_once_find_the_same_limits() {
    let alone = Bench::new().executor().abilities().limits;
    let begin = std::sync::Barrier::new(8);
    std::thread::scope(|scope| {
        let looks = [(); 8].map(|()| {
            scope.spawn(|| {
                let bench = Bench::new();
                begin.wait();
                (0..5).all(|_| bench.executor().abilities().limits == alone)
            })
        });
        assert!(looks.into_iter().all(|look| look.join().unwrap()));
    });
}

/// A limit that cannot be had is recorded, or refused when the recipe requires it.
#[tokio::test]
async fn a_limit_that_does_not_hold_is_said() {
    let bench = Bench::new();
    let executor = bench.executor();
    let cpu = executor.abilities().limits.iter().any(|name| name == "cpu");
    if skip_without(cpu, "control group for cpu") {
        return;
    }
    let mut spec = bench.spec(&["true"]);
    // More than the kernel can count in microseconds of a period.
    edit_plan(&mut spec, |plan| plan.resources.cpu_milli = 1 << 50);
    let (started, ended) = run(executor.as_ref(), &spec).await;
    let cpu = report(&started.isolation, "cpu");
    assert_eq!(cpu.held, None);
    assert!(cpu.by.starts_with("set it in"), "{cpu:?}");
    assert_eq!(ended.cause, None);
    let mut spec = spec.clone();
    spec.attempt.number = AttemptNumber(2);
    spec.placement.limits = LimitsPolicy::Required;
    let error = executor.start(spec.clone()).await.unwrap_err();
    assert_eq!(error.cause, Cause::IsolationFailed);
    assert!(error.message.contains("cpu"), "{error}");
    assert_eq!(groups_of(spec.attempt.run), Vec::<String>::new());
}

#[tokio::test]
async fn processes_are_counted() {
    let bench = Bench::new();
    let executor = bench.executor_limited(12);
    let pids = executor
        .abilities()
        .limits
        .iter()
        .any(|name| name == "pids");
    if skip_without(pids, "control group for pids") {
        return;
    }
    let script = "i=0; while [ $i -lt 40 ]; do sleep 100 & i=$((i+1)); done; echo all";
    let spec = bench.spec(&["sh", "-c", script]);
    let (_, ended) = run(executor.as_ref(), &spec).await;
    assert_ne!(ended.exit, Some(Exit::Code(0)), "{ended:?}");
    assert_eq!(stdout(executor.as_ref(), spec.attempt).await, "");
    assert_eq!(groups_of(spec.attempt.run), Vec::<String>::new());
}
