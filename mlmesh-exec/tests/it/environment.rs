//! Environments from locks, with a wheel made here: no index is asked.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use mlmesh_exec::{HeldEnvironments, find_interpreter};
use mlmesh_model::*;

use crate::support::*;

/// `3.11`-like version of a Python that can make environments with pip.
fn python() -> Option<String> {
    let found = find_interpreter("3");
    let version = found.as_ref().map(|found| {
        let mut parts = found.exact.splitn(3, '.');
        format!("{}.{}", parts.next().unwrap(), parts.next().unwrap())
    });
    let works = found.is_some_and(|found| {
        Command::new(found.path)
            .args(["-c", "import venv, ensurepip"])
            .output()
            .is_ok_and(|output| output.status.success())
    });
    let missing = skip_without(works, "python3 with venv and ensurepip");
    version.filter(|_| !missing)
}

/// A wheel with one module, and its SHA-256.
fn wheel(folder: &Path) -> (PathBuf, Digest) {
    let path = folder.join("gadget-1.0-py3-none-any.whl");
    let script = r#"
import sys, zipfile
with zipfile.ZipFile(sys.argv[1], "w") as z:
    z.writestr("gadget.py", "def twice(x):\n    return 2 * x\n")
    info = "gadget-1.0.dist-info/"
    z.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: gadget\nVersion: 1.0\n")
    z.writestr(info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    z.writestr(info + "RECORD", "gadget.py,,\n" + info + "METADATA,,\n" + info + "WHEEL,,\n" + info + "RECORD,,\n")
"#;
    let python = find_interpreter("3").unwrap().path;
    let made = Command::new(python)
        .args(["-c", script])
        .arg(&path)
        .status();
    assert!(made.unwrap().success());
    let digest = Digest::of(&fs::read(&path).unwrap());
    (path, digest)
}

fn locked(bench: &Bench, version: &str, lock: &str, code: &str) -> StartSpec {
    let mut spec = bench.spec_in(&["python", "-c", code], &[("requirements.lock", lock)]);
    edit_plan(&mut spec, |plan| {
        plan.deps = Some(PlanDeps {
            kind: DepsKind::Lock,
            name: "requirements.lock".into(),
            python: version.into(),
            sha256: deps_digest(version, Digest::of(lock.as_bytes())).unwrap(),
        });
    });
    spec
}

#[tokio::test]
async fn an_environment_is_built_once_and_shared() {
    let Some(version) = python() else { return };
    let bench = Bench::new();
    let executor = bench.executor();
    let (wheel, digest) = wheel(bench.dir.path());
    let lock = format!(
        "gadget @ file://{} --hash=sha256:{digest}\n",
        wheel.display()
    );
    let code = "import gadget, sys; print(gadget.twice(21), sys.version_info[0], sys.prefix != sys.base_prefix)";
    let sandbox = executor.abilities().sandbox;
    let specs: Vec<StartSpec> = (0..4)
        .map(|number| {
            let mut spec = locked(&bench, &version, &lock, code);
            spec.placement.sandbox = sandbox && number % 2 == 0;
            spec
        })
        .collect();
    // At once: all wait for one build.
    let mut starts = tokio::task::JoinSet::new();
    for spec in &specs {
        let (executor, spec) = (executor.clone(), spec.clone());
        starts.spawn(async move { executor.start(spec).await });
    }
    while let Some(started) = starts.join_next().await {
        let started = started.unwrap().unwrap_or_else(|error| panic!("{error}"));
        let interpreter = started.environment.unwrap().interpreter;
        assert_eq!(interpreter.version, version);
        assert!(interpreter.exact.starts_with(&version));
    }
    for spec in &specs {
        let ended = executor.wait(spec.attempt).await.unwrap();
        let errors = log(executor.as_ref(), spec.attempt, LogStream::Stderr).await;
        assert_eq!(ended.cause, None, "{errors}");
        assert_eq!(stdout(executor.as_ref(), spec.attempt).await, "42 3 True\n");
    }
    let deps = specs[0].plan.deps.clone().unwrap().sha256;
    let prefix = bench
        .dir
        .path()
        .join("data/objects/environments")
        .join(deps.to_string());
    let marker = prefix.join("mlmesh-environment.json");
    let built = fs::metadata(&marker).unwrap().modified().unwrap();
    let again = locked(&bench, &version, &lock, code);
    run(executor.as_ref(), &again).await;
    assert_eq!(fs::metadata(&marker).unwrap().modified().unwrap(), built);
    // Half-built by somebody who was killed: the result is the same. Nothing is
    // written through `bin/python`, which is a link to the machine's own.
    fs::remove_dir_all(&prefix).unwrap();
    fs::create_dir_all(&prefix).unwrap();
    fs::write(prefix.join("half-built"), "torn").unwrap();
    let last = locked(&bench, &version, &lock, code);
    let (_, ended) = run(executor.as_ref(), &last).await;
    assert_eq!(ended.cause, None);
    assert!(!prefix.join("half-built").exists());
}

#[tokio::test]
async fn what_is_not_needed_goes_and_what_is_looked_up_or_needed_stays() {
    let Some(version) = python() else { return };
    let bench = Bench::new();
    let executor = bench.executor();
    let folder = bench.dir.path().join("data/objects/environments");
    assert!(hold(&bench).spare(&HashSet::new()).is_empty());
    let mut digests = Vec::new();
    for lock in ["# needed\n", "# spare\n"] {
        let spec = locked(&bench, &version, lock, "print(1)");
        assert_eq!(run(executor.as_ref(), &spec).await.1.cause, None);
        digests.push(spec.plan.deps.clone().unwrap().sha256);
    }
    let needed = HashSet::from([digests[0]]);
    let path = |digest: DepsDigest| folder.join(digest.to_string());

    // Somebody builds it or looks it up.
    let lock = fs::File::open(folder.join(format!("{}.lock", digests[1]))).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockShared).unwrap();
    assert!(hold(&bench).remove_spare(&needed).unwrap().is_empty());
    assert!(path(digests[1]).is_dir());
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::Unlock).unwrap();

    // Whoever comes while it goes waits, and makes it anew.
    let held = hold(&bench);
    assert_eq!(held.spare(&needed), [digests[1]]);
    let again = locked(&bench, &version, "# spare\n", "print(2)");
    let (removed, started) = tokio::join!(
        async {
            tokio::task::yield_now().await;
            held.remove_spare(&needed).unwrap()
        },
        run(executor.as_ref(), &again)
    );
    assert_eq!((removed, started.1.cause), (vec![digests[1]], None));
    assert_eq!(stdout(executor.as_ref(), again.attempt).await, "2\n");
    assert!(path(digests[0]).is_dir());

    fs::create_dir(path(digests[0]).with_extension("removed")).unwrap();
    assert_eq!(hold(&bench).remove_spare(&needed).unwrap(), [digests[1]]);
    let names: HashSet<String> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let kept = digests[0].to_string();
    assert_eq!(names, HashSet::from([format!("{kept}.lock"), kept]));
}

fn hold(bench: &Bench) -> HeldEnvironments {
    HeldEnvironments::hold(bench.dir.path()).unwrap()
}

#[tokio::test]
async fn a_wrong_hash_is_no_environment() {
    let Some(version) = python() else { return };
    let bench = Bench::new();
    let executor = bench.executor();
    let (wheel, _) = wheel(bench.dir.path());
    let wrong = Digest::of(b"something else");
    let lock = format!(
        "gadget @ file://{} --hash=sha256:{wrong}\n",
        wheel.display()
    );
    let spec = locked(&bench, &version, &lock, "print(1)");
    let error = executor.start(spec.clone()).await.unwrap_err();
    assert_eq!(error.cause, Cause::EnvironmentFailed);
    assert!(error.message.contains("gadget"), "{error}");
    let prefix = bench.dir.path().join("data/objects/environments");
    let deps = spec.plan.deps.clone().unwrap().sha256;
    assert!(!prefix.join(deps.to_string()).exists());
}

#[tokio::test]
async fn an_absent_version_is_refused_with_a_hint() {
    let bench = Bench::new();
    let executor = bench.executor();
    let spec = locked(&bench, "3.999", "", "print(1)");
    let error = executor.start(spec).await.unwrap_err();
    assert_eq!(error.cause, Cause::EnvironmentFailed);
    assert!(
        error.message.contains("3.999") && error.message.contains("hint:"),
        "{error}"
    );
}

#[tokio::test]
async fn the_callers_environment_is_taken_as_it_is() {
    let Some(version) = python() else { return };
    let bench = Bench::new();
    let executor = bench.executor();
    let prefix = bench.dir.path().join("mine");
    let python = find_interpreter(&version).unwrap().path;
    let made = Command::new(python)
        .args(["-m", "venv", "--without-pip"])
        .arg(&prefix)
        .status();
    assert!(made.unwrap().success());
    let mut spec = bench.spec(&["python", "-c", "import sys; print(sys.prefix)"]);
    spec.placement.current_environment = Some(prefix.display().to_string());
    edit_plan(&mut spec, |plan| {
        plan.deps = Some(PlanDeps {
            kind: DepsKind::Current,
            name: "current".into(),
            python: version,
            sha256: DepsDigest(Digest::of(b"frozen")),
        });
    });
    run(executor.as_ref(), &spec).await;
    let told = stdout(executor.as_ref(), spec.attempt).await;
    assert_eq!(told.trim(), prefix.display().to_string());
    let mut gone = spec.clone();
    gone.attempt.number = AttemptNumber(2);
    gone.placement.current_environment = Some("/no/such/environment".into());
    let error = executor.start(gone).await.unwrap_err();
    assert_eq!(error.cause, Cause::EnvironmentFailed);
}
