//! What every executor must do. The functions know the port only; `process.rs`
//! runs them on the process executor.

use std::collections::BTreeMap;

use mlmesh_model::*;

use crate::support::*;

pub(crate) async fn a_command_runs_and_its_end_is_told(bench: &Bench, executor: &dyn Executor) {
    let spec = bench.spec_in(
        &["sh", "-c", "cat hello.txt; echo oops >&2; exit 3"],
        &[("hello.txt", "hello\n")],
    );
    let (started, ended) = run(executor, &spec).await;
    assert_eq!(ended.exit, Some(Exit::Code(3)));
    assert_eq!(ended.cause, Some(Cause::Exit));
    assert_eq!(ended.started_at, Some(started.time));
    assert!(ended.ended_at >= started.time);
    assert_eq!(stdout(executor, spec.attempt).await, "hello\n");
    assert_eq!(
        log(executor, spec.attempt, LogStream::Stderr).await,
        "oops\n"
    );
    // The end can be asked for again.
    assert_eq!(executor.wait(spec.attempt).await.unwrap(), ended);
}

pub(crate) async fn success_has_no_cause(bench: &Bench, executor: &dyn Executor) {
    let (_, ended) = run(executor, &bench.spec(&["true"])).await;
    assert_eq!((ended.exit, ended.cause), (Some(Exit::Code(0)), None));
    assert_eq!(ended.message, "");
}

pub(crate) async fn a_signal_is_told_apart(bench: &Bench, executor: &dyn Executor) {
    let (_, ended) = run(executor, &bench.spec(&["sh", "-c", "kill -TERM $$"])).await;
    assert_eq!(ended.exit, Some(Exit::Signal(15)));
    assert_eq!(ended.cause, Some(Cause::Signal));
}

pub(crate) async fn an_absent_command_is_no_start(bench: &Bench, executor: &dyn Executor) {
    let spec = bench.spec(&["no-such-program-anywhere"]);
    let error = executor.start(spec.clone()).await.unwrap_err();
    assert_eq!(error.cause, Cause::CommandNotFound);
    assert!(
        error.message.contains("no-such-program-anywhere"),
        "{error}"
    );
    // A later daemon learns the same.
    let Reattached::Ended(ended, _) = executor.reattach(spec.attempt).await.unwrap() else {
        panic!("the refusal is recorded");
    };
    assert_eq!(ended.cause, Some(Cause::CommandNotFound));
    assert_eq!(ended.started_at, None);
}

/// The whole tree ends, also what has left the process group and the session.
pub(crate) async fn stop_ends_the_whole_tree(bench: &Bench, executor: &dyn Executor) {
    let script = "trap '' TERM; setsid sh -c 'trap \"\" TERM; echo $$ > grandchild; while :; do sleep 1; done' & \
                  while :; do sleep 1; done";
    let mut spec = bench.spec(&["sh", "-c", script]);
    spec.grace_ms = 50;
    executor.start(spec.clone()).await.unwrap();
    let grandchild = line_in(&bench.work(spec.attempt).join("grandchild")).await;
    let inside = alive(&grandchild);
    executor
        .stop(spec.attempt, Cause::Cancelled, 50)
        .await
        .unwrap();
    let ended = executor.wait(spec.attempt).await.unwrap();
    assert_eq!(ended.cause, Some(Cause::Cancelled));
    assert_eq!(ended.exit, Some(Exit::Signal(9)));
    assert!(inside && !alive(&grandchild), "the grandchild lives on");
}

/// 143 of our own making is never a failure.
pub(crate) async fn a_polite_end_keeps_its_cause(bench: &Bench, executor: &dyn Executor) {
    let script = "trap 'echo bye; exit 0' TERM; echo up > up; while :; do sleep 0.01; done";
    for cause in [Cause::Cancelled, Cause::Shutdown] {
        let spec = bench.spec(&["sh", "-c", script]);
        executor.start(spec.clone()).await.unwrap();
        line_in(&bench.work(spec.attempt).join("up")).await;
        executor.stop(spec.attempt, cause, 20_000).await.unwrap();
        let ended = executor.wait(spec.attempt).await.unwrap();
        assert_eq!(ended.cause, Some(cause));
        assert_eq!(ended.exit, Some(Exit::Code(0)));
        assert_eq!(stdout(executor, spec.attempt).await, "bye\n");
    }
}

pub(crate) async fn a_stop_before_the_start_is_kept(bench: &Bench, executor: &dyn Executor) {
    let spec = bench.spec(&["sh", "-c", "echo ran > ran"]);
    executor
        .stop(spec.attempt, Cause::Cancelled, 0)
        .await
        .unwrap();
    let error = executor.start(spec.clone()).await.unwrap_err();
    assert_eq!(error.cause, Cause::Cancelled);
    assert!(!bench.work(spec.attempt).join("ran").exists());
}

pub(crate) async fn time_is_up(bench: &Bench, executor: &dyn Executor) {
    let mut spec = bench.spec(&["sleep", "1000"]);
    edit_plan(&mut spec, |plan| plan.resources.time_s = Some(1));
    let (started, ended) = run(executor, &spec).await;
    assert_eq!(ended.cause, Some(Cause::Timeout));
    assert_eq!(ended.exit, Some(Exit::Signal(15)));
    assert!(ended.ended_at.since(started.time) >= 1_000_000);
    let time = started
        .isolation
        .limits
        .iter()
        .find(|limit| limit.name == "time");
    let time = time.unwrap();
    assert_eq!((time.held, time.by.as_str()), (Some(1), "supervisor"));
}

/// What is started in the background ends with the command.
pub(crate) async fn nothing_outlives_the_command(bench: &Bench, executor: &dyn Executor) {
    let script = "setsid sleep 1000 & echo $! > background; echo done";
    let spec = bench.spec(&["sh", "-c", script]);
    let (_, ended) = run(executor, &spec).await;
    assert_eq!(ended.cause, None);
    let pid = line_in(&bench.work(spec.attempt).join("background")).await;
    assert!(!alive(&pid));
    assert_eq!(stdout(executor, spec.attempt).await, "done\n");
}

pub(crate) async fn an_attempt_starts_once(bench: &Bench, executor: &dyn Executor) {
    let spec = bench.spec(&["sh", "-c", "echo ran >> $MLMESH_CHECKPOINT_DIR/count; cat"]);
    run(executor, &spec).await;
    let error = executor.start(spec.clone()).await.unwrap_err();
    assert_eq!(error.cause, Cause::PrepareFailed);
    // The refusal leaves the first one's files alone.
    assert!(bench.work(spec.attempt).is_dir());
    let mut again = spec.clone();
    again.attempt.number = AttemptNumber(2);
    run(executor, &again).await;
    let count = bench
        .attempt_dir(spec.attempt)
        .with_file_name("checkpoints/count");
    assert_eq!(std::fs::read_to_string(count).unwrap(), "ran\nran\n");
}

pub(crate) async fn what_never_started_never_will(bench: &Bench, executor: &dyn Executor) {
    let spec = bench.spec(&["true"]);
    for _ in 0..2 {
        let seen = executor.reattach(spec.attempt).await.unwrap();
        assert_eq!(seen, Reattached::NeverStarted);
    }
    let error = executor.start(spec.clone()).await.unwrap_err();
    assert_eq!(error.cause, Cause::PrepareFailed);
    let error = executor.wait(spec.attempt).await.unwrap_err();
    assert!(matches!(error, ExecError::NoAttempt(_)), "{error}");
}

pub(crate) async fn outputs_and_metrics_are_collected(bench: &Bench, executor: &dyn Executor) {
    let script = r#"
        mkdir plots; echo m > model.npz; echo a > plots/a.svg; echo b > plots/b.txt
        echo o > "$MLMESH_OUTPUT_DIR/o.txt"
        echo '{"name":"loss","value":2,"step":1}' > metrics.jsonl
        echo '{"name":"loss","value":NaN}' >> metrics.jsonl
        echo '{"name":"acc","value":0.5}' > "$MLMESH_OUTPUT_DIR/metrics.jsonl"
        printf '{"name":"loss","va' >> metrics.jsonl
        ln -s /etc/passwd outputs/link
        exit 1"#;
    let mut spec = bench.spec(&["sh", "-c", script]);
    edit_plan(&mut spec, |plan| {
        plan.outputs = ["model.npz", "plots/*.svg", "absent"]
            .map(str::to_owned)
            .into();
    });
    run(executor, &spec).await;
    for _ in 0..2 {
        let collected = executor
            .collect(spec.attempt, spec.plan.clone())
            .await
            .unwrap();
        assert_eq!(collected.missing, ["absent"]);
        assert_eq!(collected.files.len(), 4);
        let outputs = collected.outputs.unwrap();
        assert_eq!(bench.snapshots.output(outputs, "plots/a.svg"), "a\n");
        assert_eq!(bench.snapshots.output(outputs, "outputs/o.txt"), "o\n");
        let loss = &collected.metrics["loss"];
        assert_eq!((loss.steps, loss.min.0), (2, 2.0));
        assert!(loss.last.0.is_nan());
        assert_eq!(collected.metrics["acc"].last, MetricValue(0.5));
    }
    let points = bench
        .dir
        .path()
        .join("data/tracking")
        .join(spec.attempt.run.to_string());
    let points = std::fs::read_to_string(points.join("metrics-1.jsonl")).unwrap();
    assert_eq!(points.lines().count(), 3);
    assert!(points.contains(r#""value":"nan","step":2"#), "{points}");
    executor.discard(spec.attempt).await.unwrap();
    assert!(!bench.work(spec.attempt).exists());
    // The log and the record stay.
    assert!(
        executor
            .read_log(spec.attempt, 0, 1)
            .await
            .unwrap()
            .complete
    );
    executor.wait(spec.attempt).await.unwrap();
}

pub(crate) async fn logs_and_metrics_are_followed_live(bench: &Bench, executor: &dyn Executor) {
    let script = r#"printf 'no end of line'; echo '{"name":"a","value":1}' > metrics.jsonl
        while [ ! -e go ]; do sleep 0.01; done; echo; echo last"#;
    let spec = bench.spec(&["sh", "-c", script]);
    executor.start(spec.clone()).await.unwrap();
    let page = eventually("a live line", || async {
        let page = executor.read_log(spec.attempt, 0, 1000).await.unwrap();
        (!page.lines.is_empty()).then_some(page)
    })
    .await;
    assert_eq!(page.lines[0].bytes, b"no end of line");
    assert!(!page.complete);
    eventually("a live metric", || async {
        let metrics = executor.metrics(spec.attempt).await.unwrap();
        metrics.contains_key("a").then_some(())
    })
    .await;
    // A live attempt keeps its files.
    assert!(executor.discard(spec.attempt).await.is_err());
    std::fs::write(bench.work(spec.attempt).join("go"), "").unwrap();
    executor.wait(spec.attempt).await.unwrap();
    let rest = executor
        .read_log(spec.attempt, page.next, 1 << 20)
        .await
        .unwrap();
    let texts: Vec<&[u8]> = rest
        .lines
        .iter()
        .map(|line| line.bytes.as_slice())
        .collect();
    assert_eq!(texts, [b"\n".as_slice(), b"last\n"]);
    assert!(rest.complete);
}

pub(crate) async fn secrets_are_given_and_hidden(bench: &Bench, executor: &dyn Executor) {
    let secret = "correct-horse-battery";
    let script = r#"echo "key $WANDB_API_KEY"; printf 'correct-horse'; sleep 0.2; printf -- '-battery\n' ; printf 'correct-ho'"#;
    let mut spec = bench.spec(&["sh", "-c", script]);
    spec.secrets = BTreeMap::from([("WANDB_API_KEY".to_owned(), SecretText(secret.to_owned()))]);
    run(executor, &spec).await;
    let text = stdout(executor, spec.attempt).await;
    assert_eq!(text, "key [redacted]\n[redacted]\ncorrect-ho");
    let mut open = vec![bench.attempt_dir(spec.attempt)];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.is_file() {
                let text = std::fs::read(&path).unwrap();
                let found = text
                    .windows(secret.len())
                    .any(|part| part == secret.as_bytes());
                assert!(!found, "the secret lies in {}", path.display());
            }
        }
    }
}

/// Exactly what the contract lists, nothing of the daemon's own.
pub(crate) async fn the_environment_is_exact(bench: &Bench, executor: &dyn Executor) {
    let mut spec = bench.spec(&["env"]);
    spec.sweep = Some(RunId::from_random(9));
    spec.secrets = BTreeMap::from([("TOKEN".to_owned(), SecretText("s3cr3t-value".to_owned()))]);
    edit_plan(&mut spec, |plan| {
        plan.env = BTreeMap::from([
            ("OMP_NUM_THREADS".to_owned(), "1".to_owned()),
            ("MLMESH_ATTEMPT".to_owned(), "not this".to_owned()),
        ]);
    });
    run(executor, &spec).await;
    let text = stdout(executor, spec.attempt).await;
    let all: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    let names: Vec<&str> = all
        .keys()
        .copied()
        .filter(|name| *name != "CUDA_VISIBLE_DEVICES")
        .collect();
    let expected = [
        "HOME",
        "LANG",
        "MLFLOW_RUN_ID",
        "MLFLOW_TRACKING_TOKEN",
        "MLFLOW_TRACKING_URI",
        "MLMESH_ATTEMPT",
        "MLMESH_CHECKPOINT_DIR",
        "MLMESH_OUTPUT_DIR",
        "MLMESH_RUN_ID",
        "MLMESH_SEED",
        "MLMESH_SWEEP_ID",
        "OMP_NUM_THREADS",
        "PATH",
        "TOKEN",
    ];
    assert_eq!(names, expected);
    assert_eq!(all["MLMESH_RUN_ID"], spec.attempt.run.to_string());
    assert_eq!(all["MLMESH_SWEEP_ID"], RunId::from_random(9).to_string());
    assert_eq!((all["MLMESH_ATTEMPT"], all["MLMESH_SEED"]), ("1", "7"));
}

pub(crate) async fn a_dataset_is_where_its_mount_says(bench: &Bench, executor: &dyn Executor) {
    let (dataset, path) = bench.dataset("digits", "1 2 3\n");
    let mut spec = bench.spec(&["cat", "data/digits"]);
    add_dataset(&mut spec, &dataset, "data/digits");
    let (started, ended) = run(executor, &spec).await;
    assert_eq!(ended.cause, None);
    assert_eq!(started.datasets_verified, ["digits"]);
    assert_eq!(stdout(executor, spec.attempt).await, "1 2 3\n");
    std::fs::write(&path, "changed").unwrap();
    let mut again = spec.clone();
    again.attempt.number = AttemptNumber(2);
    let error = executor.start(again.clone()).await.unwrap_err();
    assert_eq!(error.cause, Cause::DatasetChanged);
    assert!(error.message.contains(path.to_str().unwrap()), "{error}");
    again.attempt.number = AttemptNumber(3);
    std::fs::write(&path, "1 2 3\n").unwrap();
    edit_plan(&mut again, |plan| plan.datasets[0].mount = "../out".into());
    let error = executor.start(again).await.unwrap_err();
    assert_eq!(error.cause, Cause::PrepareFailed);
}
