//! The parts around control. The executor's state outlives a control, as the
//! supervisors of attempts outlive a daemon.
//!
//! Commands: `true`; `exit N`; `hold` (until released or stopped); `lose N` (lost
//! in its first N attempts); `miss` (a declared output is not there); `refuse`
//! (does not start); `fault N` (the node cannot prepare its first N attempts); `slow` (its start takes until released).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use mlmesh_control::{
    Caller, Capacity, Changed, Control, ControlConfig, ControlError, Interpreters, Ports,
};
use mlmesh_model::*;
use mlmesh_store::SqliteStore;
use tokio::sync::watch;

/// An executor in this process.
pub(crate) struct Fake {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    pub(crate) abilities: Mutex<Abilities>,
    /// `start` fails as a daemon that dies after the claim does: it never returns.
    pub(crate) hang_before_start: AtomicBool,
}

#[derive(Default)]
struct State {
    attempts: BTreeMap<(RunId, u32), Trial>,
    released: BTreeSet<RunId>,
    stopped: BTreeMap<RunId, Cause>,
    discarded: Vec<(RunId, u32)>,
    /// Attempts of which it was said that they never started: they never will.
    barred: BTreeSet<(RunId, u32)>,
    secrets_seen: BTreeMap<RunId, BTreeMap<String, SecretText>>,
    gpus_seen: BTreeMap<RunId, Vec<String>>,
}

#[derive(Clone)]
struct Trial {
    argv: Vec<String>,
    ended: Option<Ended>,
}

impl Fake {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            changed: watch::Sender::new(0),
            abilities: Mutex::new(Abilities {
                sandbox: true,
                network_none: true,
                limits: vec!["cpu".into(), "memory".into(), "time".into()],
                separates_users: true,
                ..Abilities::default()
            }),
            hang_before_start: AtomicBool::new(false),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn touch(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Lets a `hold` or a `slow` go on.
    pub(crate) fn release(&self, run: RunId) {
        self.state().released.insert(run);
        self.touch();
    }

    /// How often a command of this run was executed.
    pub(crate) fn executions(&self, run: RunId) -> usize {
        let state = self.state();
        state.attempts.keys().filter(|(id, _)| *id == run).count()
    }

    pub(crate) fn all_executions(&self) -> usize {
        self.state().attempts.len()
    }

    pub(crate) fn discarded(&self) -> Vec<(RunId, u32)> {
        self.state().discarded.clone()
    }

    /// Names and values that the newest attempt was given, as `NAME=VALUE`.
    pub(crate) fn secrets_seen(&self, run: RunId) -> Vec<String> {
        let state = self.state();
        let seen = state.secrets_seen.get(&run).into_iter().flatten();
        seen.map(|(name, SecretText(value))| format!("{name}={value}"))
            .collect()
    }

    pub(crate) fn gpus_seen(&self, run: RunId) -> Vec<String> {
        self.state()
            .gpus_seen
            .get(&run)
            .cloned()
            .unwrap_or_default()
    }

    /// Ends a held attempt behind control's back.
    pub(crate) fn end_now(&self, run: RunId, exit: Exit, cause: Option<Cause>) {
        let mut state = self.state();
        for ((id, _), trial) in &mut state.attempts {
            if *id == run && trial.ended.is_none() {
                trial.ended = Some(ended(Some(exit), cause));
            }
        }
        drop(state);
        self.touch();
    }

    /// As if no stop had reached the supervisor.
    pub(crate) fn forget_stops(&self) {
        self.state().stopped.clear();
    }

    /// The executor carried a start out after its daemon had died.
    pub(crate) fn execute_late(&self, run: RunId, attempt: u32, argv: &[&str]) {
        let argv = argv.iter().map(|part| (*part).to_owned()).collect();
        let trial = Trial { argv, ended: None };
        self.state().attempts.insert((run, attempt), trial);
    }

    /// Resolves when the run's command is running.
    pub(crate) async fn executed(&self, run: RunId) {
        let mut changed = self.changed.subscribe();
        changed
            .wait_for(|_| self.executions(run) > 0)
            .await
            .unwrap();
    }

    fn look(&self, attempt: AttemptRef) -> Option<Ended> {
        let mut state = self.state();
        let key = (attempt.run, attempt.number.0);
        let trial = state.attempts.get(&key)?.clone();
        if trial.ended.is_some() {
            return trial.ended;
        }
        let stopped = state.stopped.get(&attempt.run).copied();
        let argv: Vec<&str> = trial.argv.iter().map(String::as_str).collect();
        let end = match argv.as_slice() {
            _ if stopped.is_some() => ended(Some(Exit::Signal(15)), stopped),
            ["hold"] if !state.released.contains(&attempt.run) => return None,
            ["exit", "0"] => ended(Some(Exit::Code(0)), None),
            ["exit", code] => ended(Some(Exit::Code(code.parse().unwrap())), Some(Cause::Exit)),
            ["lose", count] if attempt.number.0 <= count.parse().unwrap() => {
                ended(None, Some(Cause::Lost))
            }
            _ => ended(Some(Exit::Code(0)), None),
        };
        state.attempts.get_mut(&key).unwrap().ended = Some(end.clone());
        Some(end)
    }
}

fn isolation() -> Isolation {
    Isolation {
        namespaces: vec!["user".into(), "net".into()],
        sandboxed: true,
        network_enforced: true,
        limits: vec![],
        hosts: vec![],
    }
}

fn ended(exit: Option<Exit>, cause: Option<Cause>) -> Ended {
    Ended {
        started_at: Some(Micros(1_000)),
        ended_at: Micros(2_000),
        exit,
        cause,
        message: cause
            .map(|cause| format!("ended: {cause}"))
            .unwrap_or_default(),
        isolation: isolation(),
        log_bytes_dropped: 0,
        logged: None,
    }
}

fn started() -> Started {
    Started {
        time: Micros(1_000),
        isolation: isolation(),
        datasets_verified: vec![],
        environment: None,
        ports: BTreeMap::from([("http".to_owned(), 1)]),
    }
}

impl Executor for Fake {
    fn abilities(&self) -> Abilities {
        self.abilities.lock().unwrap().clone()
    }

    fn start(&self, spec: StartSpec) -> BoxFuture<'_, Result<Started, StartError>> {
        Box::pin(async move {
            if self.hang_before_start.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            let run = spec.attempt.run;
            let argv = spec.plan.argv.clone();
            if argv[0] == "refuse" {
                return Err(StartError {
                    cause: Cause::EnvironmentFailed,
                    message: "no such package".into(),
                });
            }
            if let [command, count] = argv.as_slice()
                && command == "fault"
                && spec.attempt.number.0 <= count.parse().unwrap()
            {
                return Err(StartError {
                    cause: Cause::NodeFault,
                    message: "no space left".into(),
                });
            }
            if argv[0] == "slow" {
                let mut changed = self.changed.subscribe();
                changed
                    .wait_for(|_| self.state().released.contains(&run))
                    .await
                    .unwrap();
            }
            let mut state = self.state();
            state.secrets_seen.insert(run, spec.secrets.clone());
            state.gpus_seen.insert(run, spec.gpus.clone());
            if state.barred.contains(&(run, spec.attempt.number.0)) {
                return Err(StartError {
                    cause: Cause::Lost,
                    message: "a later daemon has given the attempt up".into(),
                });
            }
            let trial = Trial { argv, ended: None };
            let before = state.attempts.insert((run, spec.attempt.number.0), trial);
            assert!(before.is_none(), "a command was executed twice");
            drop(state);
            self.touch();
            Ok(started())
        })
    }

    fn wait(&self, attempt: AttemptRef) -> BoxFuture<'_, Result<Ended, ExecError>> {
        Box::pin(async move {
            let mut changed = self.changed.subscribe();
            loop {
                if let Some(ended) = self.look(attempt) {
                    return Ok(ended);
                }
                changed.changed().await.unwrap();
            }
        })
    }

    fn reattach(&self, attempt: AttemptRef) -> BoxFuture<'_, Result<Reattached, ExecError>> {
        Box::pin(async move {
            let mut state = self.state();
            let key = (attempt.run, attempt.number.0);
            if !state.attempts.contains_key(&key) {
                state.barred.insert(key);
            }
            Ok(match state.attempts.get(&key) {
                None => Reattached::NeverStarted,
                Some(Trial {
                    ended: Some(ended), ..
                }) => Reattached::Ended(ended.clone(), None),
                Some(_) => Reattached::Running(started()),
            })
        })
    }

    fn stop(
        &self,
        attempt: AttemptRef,
        cause: Cause,
        _grace_ms: u64,
    ) -> BoxFuture<'_, Result<(), ExecError>> {
        Box::pin(async move {
            self.state().stopped.insert(attempt.run, cause);
            self.touch();
            Ok(())
        })
    }

    fn collect(
        &self,
        attempt: AttemptRef,
        _plan: Arc<Plan>,
    ) -> BoxFuture<'_, Result<Collected, ExecError>> {
        Box::pin(async move {
            let key = (attempt.run, attempt.number.0);
            let misses = self.state().attempts[&key].argv[0] == "miss";
            Ok(Collected {
                outputs: Some(left_listing()),
                files: left(),
                missing: if misses {
                    vec!["model.npz".into()]
                } else {
                    vec![]
                },
                metrics: metrics(),
            })
        })
    }

    fn discard(&self, attempt: AttemptRef) -> BoxFuture<'_, Result<(), ExecError>> {
        Box::pin(async move {
            let mut state = self.state();
            state.discarded.push((attempt.run, attempt.number.0));
            drop(state);
            self.touch();
            Ok(())
        })
    }

    fn read_log(
        &self,
        _attempt: AttemptRef,
        from: u64,
        _bytes_max: u64,
    ) -> BoxFuture<'_, Result<LogPage, ExecError>> {
        Box::pin(async move {
            Ok(LogPage {
                lines: vec![],
                next: from,
                complete: true,
            })
        })
    }

    fn post_metrics(
        &self,
        _: AttemptRef,
        _: Option<String>,
        _: Vec<u8>,
        _: u64,
    ) -> BoxFuture<'_, Result<Posted, ExecError>> {
        Box::pin(async { Ok(Posted::Ended) })
    }

    fn metrics(
        &self,
        _attempt: AttemptRef,
    ) -> BoxFuture<'_, Result<BTreeMap<String, MetricSummary>, ExecError>> {
        Box::pin(async { Ok(metrics()) })
    }

    fn points(
        &self,
        _attempt: AttemptRef,
        _ask: PointsAsk,
    ) -> BoxFuture<'_, Result<Vec<Series>, ExecError>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

/// What every run leaves.
fn left() -> Vec<ListedFile> {
    vec![ListedFile {
        path: "outputs/model.npz".into(),
        mode: "644".into(),
        size: 7,
        sha256: Digest::of(b"weights"),
    }]
}

fn left_listing() -> ObjectId {
    ObjectId(Digest::of(b"listing"))
}

fn metrics() -> BTreeMap<String, MetricSummary> {
    let summary = MetricSummary {
        last: MetricValue(0.5),
        min: MetricValue(0.1),
        max: MetricValue(0.9),
        steps: 3,
    };
    BTreeMap::from([("loss".into(), summary)])
}

/// A content store that has every commit but `absent`.
pub(crate) struct Tree;

pub(crate) fn absent() -> CommitId {
    CommitId(Digest::of(b"absent"))
}

/// The lock of [`Tree`].
pub(crate) const LOCK: &str =
    "numpy==2.0.0 --hash=sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n";

impl Snapshots for Tree {
    fn has_commit(&self, commit: CommitId) -> Result<bool, SnapshotsError> {
        Ok(commit != absent())
    }

    fn checkout(&self, _: CommitId, _: &Path) -> Result<(), SnapshotsError> {
        Ok(())
    }

    fn read_file(&self, _: CommitId, path: &str, _: u64) -> Result<Vec<u8>, SnapshotsError> {
        match path {
            "requirements.lock" => Ok(LOCK.into()),
            other => Err(SnapshotsError::Missing(other.into())),
        }
    }

    fn store_outputs(&self, _: &Path, _: &[String]) -> Result<ObjectId, SnapshotsError> {
        Ok(ObjectId(Digest::of(b"listing")))
    }

    fn listing(&self, listing: ObjectId) -> Result<Vec<ListedFile>, SnapshotsError> {
        match listing {
            known if known == left_listing() => Ok(left()),
            other => Err(SnapshotsError::Missing(other.to_string())),
        }
    }

    fn first_difference(&self, _: ObjectId, _: ObjectId) -> Result<Option<u64>, SnapshotsError> {
        Ok(Some(17))
    }

    fn check_object(&self, object: ObjectId) -> Result<u64, SnapshotsError> {
        Err(SnapshotsError::Missing(object.to_string()))
    }

    fn verify_dataset(&self, _: &Dataset, _: bool) -> Result<(), SnapshotsError> {
        Ok(())
    }

    fn place_dataset(&self, dataset: &Dataset) -> Result<PathBuf, SnapshotsError> {
        Ok(PathBuf::from(&dataset.path))
    }
}

struct NoGpus;

impl Accelerators for NoGpus {
    fn gpus(&self) -> Result<Vec<Gpu>, String> {
        Ok(vec![])
    }

    fn driver(&self) -> Result<String, String> {
        Err("no library in this test".into())
    }
}

struct Python;

impl Interpreters for Python {
    fn find(&self, version: &str) -> Option<Interpreter> {
        self.all()
            .into_iter()
            .find(|found| found.version == version)
    }

    fn all(&self) -> Vec<Interpreter> {
        vec![Interpreter {
            version: "3.11".into(),
            exact: "3.11.2".into(),
            path: "/usr/bin/python3.11".into(),
            sha256: Digest::of(b"python"),
        }]
    }
}

/// A calendar that tests may move, and a monotonic clock that they may not.
pub(crate) struct TestClock {
    origin: Instant,
    pub(crate) calendar_us: AtomicU64,
}

impl Clock for TestClock {
    fn now(&self) -> Micros {
        let calendar = self.calendar_us.load(Ordering::SeqCst) as i64;
        Micros(calendar + self.monotonic_us() as i64)
    }

    fn monotonic_us(&self) -> u64 {
        self.origin.elapsed().as_micros() as u64
    }
}

/// One data directory, its store, and the attempts on its machine.
pub(crate) struct House {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) fake: Arc<Fake>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) capacity: Capacity,
    pub(crate) boot_id: String,
}

impl House {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("meshd.db")).unwrap();
        Self {
            dir,
            fake: Fake::new(),
            store,
            clock: Arc::new(TestClock {
                origin: Instant::now(),
                calendar_us: AtomicU64::new(1_700_000_000_000_000),
            }),
            capacity: Capacity {
                cpu_milli: 4_000,
                memory_bytes: 1 << 30,
                gpus: vec!["GPU-a".into(), "GPU-b".into()],
            },
            boot_id: "boot".into(),
        }
    }

    pub(crate) async fn control(&self) -> Arc<Control> {
        let config = ControlConfig {
            node: "node".parse().unwrap(),
            boot_id: self.boot_id.clone(),
            data_dir: self.dir.path().to_owned(),
            capacity: Some(self.capacity.clone()),
            api: None,
            hook_commands: true,
            grace_ms: 50,
        };
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let ports = Ports {
            store: Arc::clone(&self.store),
            executor: Arc::clone(&self.fake) as Arc<dyn Executor>,
            snapshots: Arc::new(Tree),
            accelerators: Arc::new(NoGpus),
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            interpreters: Arc::new(Python),
            prober: Arc::new(Answers),
            random: Arc::new(|| NEXT.fetch_add(0x1_2345_6789, Ordering::SeqCst)),
        };
        Control::start(config, ports).await.unwrap()
    }

    pub(crate) async fn run(&self, id: RunId) -> Run {
        let tenant = Tenant::default();
        self.store.run(&tenant, id).await.unwrap().unwrap()
    }

    /// Resolves when the run has this phase in the store.
    pub(crate) async fn reaches(&self, id: RunId, phase: Phase) -> Run {
        loop {
            let run = self.run(id).await;
            if run.phase == phase {
                return run;
            }
            tokio::task::yield_now().await;
        }
    }

    /// The run's phases in the order in which they were committed.
    pub(crate) async fn phases(&self, id: RunId) -> Vec<Phase> {
        let tenant = Tenant::default();
        let events = self
            .store
            .events(&tenant, Sequence(0), 10_000)
            .await
            .unwrap();
        events
            .into_iter()
            .filter(|event| event.run == Some(id))
            .filter_map(|event| match event.kind {
                EventKind::RunPhase { phase, .. } => Some(phase),
                _ => None,
            })
            .collect()
    }

    pub(crate) fn manifest(&self, id: RunId) -> serde_json::Value {
        let path = format!("data/experiments/{id}/run_manifest.json");
        serde_json::from_slice(&std::fs::read(self.dir.path().join(path)).unwrap()).unwrap()
    }
}

/// Whatever a test did: each manifest that it left is of the published shape.
impl Drop for House {
    fn drop(&mut self) {
        let runs = std::fs::read_dir(self.dir.path().join("data/experiments"));
        for run in runs.into_iter().flatten().flatten() {
            let path = run.path().join("run_manifest.json");
            let Ok(bytes) = std::fs::read(&path) else {
                continue;
            };
            if !std::thread::panicking() {
                let manifest = serde_json::from_slice(&bytes).unwrap();
                assert_eq!(mlmesh_proof::shape(&manifest), vec![], "{path:?}");
            }
        }
    }
}

pub(crate) fn caller() -> Caller {
    Caller {
        tenant: Tenant::default(),
        owner: "ada".parse().unwrap(),
        key: "owner".into(),
        remote: "local".into(),
        daemon_owner: true,
        role: BuiltIn::Admin.name(),
        permissions: BuiltIn::Admin.permissions(),
    }
}

/// Cancels one run or sweep, without a key.
pub(crate) async fn cancel(
    control: &Control,
    caller: &Caller,
    id: RunId,
) -> Result<Changed, ControlError> {
    let mut outcomes = control.cancel(caller, vec![id], None).await?;
    outcomes.remove(0)
}

/// A relaxed submission of one command.
pub(crate) fn submission(command: &[&str]) -> Submission {
    let experiment = Experiment {
        name: "digits".parse().unwrap(),
        command: command.iter().map(|part| (*part).to_owned()).collect(),
        params: BTreeMap::new(),
        seed: Seed::Value(7),
        sweep: None,
        environment: None,
        datasets: vec![],
        outputs: vec![],
        resources: Resources::default(),
        env: BTreeMap::new(),
        secrets: vec![],
        network: None,
        retries: 0,
        retry_on: vec![],
        tolerance: BTreeMap::new(),
        on_finish: None,
        api: false,
        sandbox: false,
        limits: LimitsPolicy::Recorded,
        after: vec![],
    };
    Submission {
        workload: Workload::Experiment(Box::new(experiment)),
        commit: CommitId(Digest::of(b"tree")),
        recipe_path: "train.yaml".into(),
        git: None,
        lock: None,
        current: None,
        policy: ReproPolicy::Relaxed,
        executor: None,
        priority: 0,
        expected_plan: None,
        secret_values: BTreeMap::new(),
    }
}

/// Changes the experiment of a submission.
pub(crate) fn with(mut submission: Submission, change: impl FnOnce(&mut Experiment)) -> Submission {
    change(submission.workload.job_mut());
    submission
}

/// A sweep over `values` of `x`, which is the command's last argument.
pub(crate) fn sweep(command: &[&str], values: i64) -> Submission {
    with(submission(command), |experiment| {
        experiment.params.insert("x".into(), ParamValue::Int(0));
        experiment.sweep = Some(Sweep::Grid(vec![Axis {
            param: "x".into(),
            values: (0..values).map(ParamValue::Int).collect(),
        }]));
    })
}

/// Services here answer whenever they are asked, and nobody is connected to them.
struct Answers;

impl Prober for Answers {
    fn ask(&self, _: Ask) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn models(&self, _: u16) -> BoxFuture<'_, Result<Vec<EngineModel>, String>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn change_model(&self, _: u16, _: String, _: bool) -> BoxFuture<'_, Result<(), NotChanged>> {
        Box::pin(async { Err(NotChanged::NoRepository) })
    }

    fn connections(&self, _: u16) -> BoxFuture<'_, Result<usize, String>> {
        Box::pin(async { Ok(0) })
    }
}
