//! A content store of plain folders, specs with defaults, and waiting.

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mlmesh_exec::{
    LOG_BYTES_MAX_DEFAULT, PIDS_MAX_DEFAULT, ProcessConfig, ProcessExecutor, SystemClock,
};
use mlmesh_model::*;
use rustix::process::{Pid, Signal, kill_process};

/// A data directory and a content store; executors come and go.
pub(crate) struct Bench {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) snapshots: Arc<Folders>,
}

/// A test that fails leaves nothing running: supervisors and jobs stand in its folder.
impl Drop for Bench {
    fn drop(&mut self) {
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let stands = fs::read_link(process.path().join("cwd"));
            let number = process
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            if let (Ok(stands), Some(pid)) = (stands, number.and_then(Pid::from_raw))
                && stands.starts_with(self.dir.path())
            {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// Runs of all tests of this process, since control groups are shared.
static NEXT: AtomicU64 = AtomicU64::new(1);

impl Bench {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Arc::new(Folders {
            root: dir.path().join("store"),
        });
        fs::create_dir(&snapshots.root).unwrap();
        fs::write(dir.path().join("owner.key"), "the owner's key").unwrap();
        Self { dir, snapshots }
    }

    /// An executor as a freshly started daemon has it.
    pub(crate) fn executor(&self) -> Arc<ProcessExecutor> {
        self.executor_with(LOG_BYTES_MAX_DEFAULT)
    }

    pub(crate) fn executor_with(&self, log_bytes_max: u64) -> Arc<ProcessExecutor> {
        self.executor_of(log_bytes_max, PIDS_MAX_DEFAULT)
    }

    pub(crate) fn executor_limited(&self, pids_max: u64) -> Arc<ProcessExecutor> {
        self.executor_of(LOG_BYTES_MAX_DEFAULT, pids_max)
    }

    pub(crate) fn executor_with_program(&self, program: PathBuf) -> Arc<ProcessExecutor> {
        ProcessExecutor::new(ProcessConfig {
            program,
            ..self.config()
        })
    }

    fn executor_of(&self, log_bytes_max: u64, pids_max: u64) -> Arc<ProcessExecutor> {
        ProcessExecutor::new(ProcessConfig {
            log_bytes_max,
            pids_max,
            ..self.config()
        })
    }

    fn config(&self) -> ProcessConfig {
        ProcessConfig {
            data_dir: self.dir.path().to_owned(),
            program: program(),
            snapshots: Arc::clone(&self.snapshots) as Arc<dyn Snapshots>,
            clock: Arc::new(SystemClock),
            log_bytes_max: LOG_BYTES_MAX_DEFAULT,
            pids_max: PIDS_MAX_DEFAULT,
            job_umask: 0o022,
        }
    }

    /// A relaxed run of `argv` with an open network in an empty project.
    pub(crate) fn spec(&self, argv: &[&str]) -> StartSpec {
        self.spec_in(argv, &[])
    }

    /// The same in a project with these files.
    pub(crate) fn spec_in(&self, argv: &[&str], files: &[(&str, &str)]) -> StartSpec {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let random = number << 20 | u64::from(std::process::id());
        StartSpec {
            attempt: AttemptRef {
                run: RunId::from_random(random),
                number: AttemptNumber(1),
                token: FencingToken(1),
            },
            tenant: Tenant::default(),
            sweep: None,
            plan: Arc::new(Plan {
                plan_version: PLAN_VERSION,
                commit: self.snapshots.commit(files),
                argv: argv.iter().map(|text| (*text).to_owned()).collect(),
                params: BTreeMap::new(),
                env: BTreeMap::new(),
                secrets: vec![],
                deps: None,
                datasets: vec![],
                seed: PlanSeed::Value(7),
                outputs: vec![],
                resources: Resources::default(),
                image: None,
                network: PlanNetwork::Open,
                service: None,
            }),
            placement: Placement::default(),
            datasets: vec![],
            secrets: BTreeMap::new(),
            api: None,
            gpus: vec![],
            grace_ms: 2_000,
        }
    }

    pub(crate) fn attempt_dir(&self, attempt: AttemptRef) -> PathBuf {
        let AttemptNumber(number) = attempt.number;
        self.dir
            .path()
            .join(format!("data/experiments/{}/attempt-{number}", attempt.run))
    }

    pub(crate) fn work(&self, attempt: AttemptRef) -> PathBuf {
        self.attempt_dir(attempt).join("work")
    }

    /// A registered dataset of one file.
    pub(crate) fn dataset(&self, name: &str, text: &str) -> (Dataset, PathBuf) {
        let path = self.dir.path().join(format!("dataset-{name}"));
        fs::write(&path, text).unwrap();
        let dataset = Dataset {
            tenant: Tenant::default(),
            owner: "owner".parse().unwrap(),
            name: name.parse().unwrap(),
            version: "1".into(),
            checksum: Digest::of(text.as_bytes()),
            directory: false,
            path: path.to_str().unwrap().into(),
            copied: false,
            about: DatasetAbout::default(),
            bytes: text.len() as u64,
            files: 1,
            registered_at: Micros(0),
        };
        (dataset, path)
    }
}

pub(crate) fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_mlmesh-exec-testbin").into()
}

pub(crate) fn edit_plan(spec: &mut StartSpec, edit: impl FnOnce(&mut Plan)) {
    edit(Arc::make_mut(&mut spec.plan));
}

pub(crate) fn add_dataset(spec: &mut StartSpec, dataset: &Dataset, mount: &str) {
    edit_plan(spec, |plan| {
        plan.datasets.push(PlanDataset {
            name: dataset.name.clone(),
            version: Some(dataset.version.clone()),
            checksum: dataset.checksum,
            mount: mount.into(),
        });
    });
    spec.datasets.push(dataset.clone());
}

/// Runs a spec to its end; the start must succeed.
pub(crate) async fn run(executor: &dyn Executor, spec: &StartSpec) -> (Started, Ended) {
    let started = executor.start(spec.clone()).await.unwrap();
    let ended = executor.wait(spec.attempt).await.unwrap();
    (started, ended)
}

/// Everything a stream has said.
pub(crate) async fn log(executor: &dyn Executor, attempt: AttemptRef, stream: LogStream) -> String {
    let mut text = Vec::new();
    let mut from = 0;
    loop {
        let page = executor.read_log(attempt, from, 1 << 20).await.unwrap();
        for line in page.lines.iter().filter(|line| line.stream == stream) {
            text.extend_from_slice(&line.bytes);
        }
        if page.complete || page.next == from {
            return String::from_utf8(text).unwrap();
        }
        from = page.next;
    }
}

pub(crate) async fn stdout(executor: &dyn Executor, attempt: AttemptRef) -> String {
    log(executor, attempt, LogStream::Stdout).await
}

/// Waits until `look` gives something.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let give_up = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(Instant::now() < give_up, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until a file has a whole line, and returns it.
pub(crate) async fn line_in(path: &Path) -> String {
    eventually(&format!("a line in {}", path.display()), || async {
        let text = fs::read_to_string(path).ok()?;
        text.ends_with('\n').then(|| text.trim().to_owned())
    })
    .await
}

pub(crate) fn alive(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.contains(") Z ") && !stat.contains(") X "))
}

/// In CI an ability that is missing is a failure; elsewhere the test says so.
pub(crate) fn skip_without(ability: bool, what: &str) -> bool {
    if !ability {
        let ci = std::env::var("CI").is_ok_and(|value| value == "true" || value == "1");
        assert!(!ci, "this CI machine lacks: {what}");
        println!("skipped: no {what} here");
    }
    !ability
}

/// Commits are folders; outputs are copied; datasets are files.
pub(crate) struct Folders {
    root: PathBuf,
}

impl Folders {
    pub(crate) fn commit(&self, files: &[(&str, &str)]) -> CommitId {
        let commit = CommitId(Digest::of(format!("{files:?}").as_bytes()));
        let folder = self.root.join(commit.to_string());
        fs::create_dir_all(&folder).unwrap();
        for (path, text) in files {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        commit
    }

    pub(crate) fn output(&self, outputs: ObjectId, path: &str) -> String {
        fs::read_to_string(self.root.join(outputs.to_string()).join(path)).unwrap()
    }
}

fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, target)?;
        } else if entry.file_type()?.is_dir() {
            fs::create_dir_all(&target)?;
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

fn io_failed(action: &str, source: std::io::Error) -> SnapshotsError {
    SnapshotsError::Io {
        action: action.to_owned(),
        source,
    }
}

impl Snapshots for Folders {
    fn has_commit(&self, commit: CommitId) -> Result<bool, SnapshotsError> {
        Ok(self.root.join(commit.to_string()).is_dir())
    }

    fn checkout(&self, commit: CommitId, destination: &Path) -> Result<(), SnapshotsError> {
        let folder = self.root.join(commit.to_string());
        if !folder.is_dir() {
            return Err(SnapshotsError::Missing(commit.to_string()));
        }
        copy_tree(&folder, destination).map_err(|error| io_failed("copy", error))
    }

    fn read_file(
        &self,
        commit: CommitId,
        path: &str,
        _bytes_max: u64,
    ) -> Result<Vec<u8>, SnapshotsError> {
        fs::read(self.root.join(commit.to_string()).join(path))
            .map_err(|error| io_failed("read", error))
    }

    fn store_outputs(&self, root: &Path, files: &[String]) -> Result<ObjectId, SnapshotsError> {
        let id = ObjectId(Digest::of(
            format!("{}{files:?}", root.display()).as_bytes(),
        ));
        for file in files {
            let target = self.root.join(id.to_string()).join(file);
            fs::create_dir_all(target.parent().unwrap())
                .and_then(|()| fs::copy(root.join(file), target))
                .map_err(|error| io_failed("store", error))?;
        }
        Ok(id)
    }

    fn first_difference(&self, _: ObjectId, _: ObjectId) -> Result<Option<u64>, SnapshotsError> {
        Ok(None)
    }

    fn listing(&self, listing: ObjectId) -> Result<Vec<ListedFile>, SnapshotsError> {
        let root = self.root.join(listing.to_string());
        let mut folders = vec![root.clone()];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).map_err(|error| io_failed("list", error))? {
                let path = entry.map_err(|error| io_failed("list", error))?.path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let bytes = fs::read(&path).map_err(|error| io_failed("read", error))?;
                files.push(ListedFile {
                    path: path.strip_prefix(&root).unwrap().display().to_string(),
                    mode: "644".into(),
                    size: bytes.len() as u64,
                    sha256: Digest::of(&bytes),
                });
            }
        }
        files.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(files)
    }

    fn check_object(&self, object: ObjectId) -> Result<u64, SnapshotsError> {
        Err(SnapshotsError::Missing(object.to_string()))
    }

    fn verify_dataset(&self, dataset: &Dataset, _full: bool) -> Result<(), SnapshotsError> {
        let bytes = fs::read(&dataset.path).map_err(|error| io_failed("read", error))?;
        if Digest::of(&bytes) == dataset.checksum {
            return Ok(());
        }
        Err(SnapshotsError::Changed {
            path: dataset.path.clone(),
            detail: "other bytes".into(),
        })
    }

    fn place_dataset(&self, dataset: &Dataset) -> Result<PathBuf, SnapshotsError> {
        self.verify_dataset(dataset, false)?;
        Ok(PathBuf::from(&dataset.path))
    }
}
