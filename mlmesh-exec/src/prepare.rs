//! Makes everything ready that an attempt needs before its supervisor starts:
//! folders, checkout, environment, datasets, variables, and the spec that says
//! how to launch.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Component, Path, PathBuf};

use mlmesh_model::{
    AttemptNumber, Cause, Dataset, DepsKind, ExecError, LimitsPolicy, PlanNetwork, PlanSeed,
    SnapshotsError, StartError, StartSpec,
};

use crate::cgroup::Base;
use crate::environment::{self, Ready};
use crate::executor::Inner;
use crate::interpreter;
use crate::journal::Journal;
use crate::mlflow;
use crate::outputs::OUTPUT_DIR;
use crate::record::{
    AttemptDir, Durable, Launch, LimitMeans, LimitSpec, SCHEMA, Spec, run_dir, write_atomic,
};
use crate::sandbox::{self, Bind, SandboxSpec};
use crate::serving::{self, Serves, Weights};

/// The variable that names the file of an attempt's token.
pub(crate) const TOKEN_FILE: &str = "MLMESH_TOKEN_FILE";
/// Largest lock file that is read.
const LOCK_BYTES_MAX: u64 = 16 << 20;

/// Prepares a claimed attempt and returns its spec.
pub(crate) fn prepare(
    inner: &Inner,
    start: &StartSpec,
    dir: &AttemptDir,
    checkpoints: &Path,
) -> Result<Spec, StartError> {
    if start.placement.sandbox && !inner.abilities.sandbox {
        let why = inner.abilities.sandbox_missing.clone().unwrap_or_default();
        return Err(StartError {
            cause: Cause::IsolationFailed,
            message: format!("the sandbox is not possible here: {why}"),
        });
    }
    let work = dir.work();
    inner
        .config
        .snapshots
        .checkout(start.plan.commit, &work)
        .map_err(|error| {
            let message = format!("check out {}: {error}", start.plan.commit);
            StartError::of(Cause::PrepareFailed, message, error.io())
        })?;
    make_folder(&work.join(OUTPUT_DIR))?;
    let environment = environment_of(inner, start)?;
    let datasets = place_datasets(inner, start)?;
    let weights = serving::place_weights(inner, start)?;
    write_api(start, dir)?;
    let places = Places::of(start, dir, checkpoints);
    let launch = if start.placement.sandbox {
        Launch::Sandbox(Box::new(sandbox_spec(
            inner,
            start,
            dir,
            checkpoints,
            &datasets,
            weights.as_ref(),
            environment.as_ref(),
        )?))
    } else {
        link_datasets(start, &datasets, &work)?;
        if let Some(weights) = &weights {
            let place = place_for(&work, &weights.mount)?;
            symlink(&weights.file, &place).map_err(|error| io_failed("link", &place, &error))?;
        }
        match start.plan.network {
            PlanNetwork::None if inner.abilities.network_none => Launch::NetworkNone,
            _ => Launch::Plain,
        }
    };
    let network_enforced = match start.plan.network {
        PlanNetwork::None => launch != Launch::Plain,
        PlanNetwork::Hosts(_) => matches!(launch, Launch::Sandbox(_)),
        PlanNetwork::Open => false,
    };
    let serves = Serves::of(start, weights.as_ref())?;
    let mut env = variables(start, &places, environment.as_ref());
    serves.fill_env(start, &mut env);
    Ok(Spec {
        schema: SCHEMA.to_owned(),
        run: start.attempt.run,
        number: start.attempt.number,
        argv: serves.fill_argv(&start.plan.argv),
        directory: places.work.clone(),
        env,
        ports: serves.ports,
        network_enforced,
        launch,
        limits: limits(inner, start),
        limits_required: start.placement.limits == LimitsPolicy::Required,
        log_bytes_max: inner.config.log_bytes_max,
        grace_ms: start.grace_ms,
        umask: inner.config.job_umask,
        tracking: tracks(start),
        datasets_verified: names_of(&start.datasets),
        environment: environment.map(Ready::resolved),
    })
}

pub(crate) fn prepare_failed(message: String) -> StartError {
    StartError {
        cause: Cause::PrepareFailed,
        message,
    }
}

/// The same for what the executor's own files met.
pub(crate) fn exec_failed(error: &ExecError) -> StartError {
    StartError::of(Cause::PrepareFailed, error.to_string(), error.io())
}

/// Makes the attempt's folders; the working directory is what makes it ours.
/// Returns the checkpoint directory.
pub(crate) fn claim(
    inner: &Inner,
    start: &StartSpec,
    dir: &AttemptDir,
) -> Result<PathBuf, StartError> {
    let run = run_dir(&inner.config.data_dir, start.attempt.run);
    let checkpoints = run.join("checkpoints");
    for folder in [dir.path(), &checkpoints] {
        private_folder(folder).map_err(|error| io_failed("create", folder, &error))?;
    }
    let work = dir.work();
    let made = fs::DirBuilder::new().mode(0o700).create(&work);
    let journal = Journal::read(dir).map_err(|error| exec_failed(&error))?;
    match made {
        Ok(()) if journal.marker.is_none() => {}
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(io_failed("create", &work, &error));
        }
        _ => {
            let AttemptNumber(number) = start.attempt.number;
            return Err(prepare_failed(format!(
                "attempt {number} of {} was started or given up before",
                start.attempt.run
            )));
        }
    }
    if start.placement.sandbox {
        for folder in [dir.home(), dir.tmp(), dir.path().join("root")] {
            make_folder(&folder)?;
        }
    }
    Ok(checkpoints)
}

fn private_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

fn make_folder(path: &Path) -> Result<(), StartError> {
    match fs::create_dir(path) {
        Err(_) if path.is_dir() && !path.is_symlink() => Ok(()),
        made => made.map_err(|error| io_failed("create", path, &error)),
    }
}

fn io_failed(what: &str, path: &Path, error: &io::Error) -> StartError {
    let message = format!("{what} `{}`: {error}", path.display());
    StartError::of(Cause::PrepareFailed, message, Some(error))
}

fn environment_of(inner: &Inner, start: &StartSpec) -> Result<Option<Ready>, StartError> {
    let Some(deps) = &start.plan.deps else {
        return Ok(None);
    };
    let failed = |message: String| StartError {
        cause: Cause::EnvironmentFailed,
        message,
    };
    match deps.kind {
        DepsKind::Lock => {
            let requirements = || {
                let bytes = inner
                    .config
                    .snapshots
                    .read_file(start.plan.commit, &deps.name, LOCK_BYTES_MAX)
                    .map_err(|error| failed(format!("read `{}`: {error}", deps.name)))?;
                match mlmesh_recipe::lock::to_requirements(&deps.name, &bytes) {
                    Ok(text) => Ok(text),
                    // Admitted under relaxed only, and of the daemon's owner: the installer
                    // takes it as it is.
                    Err(_) if !start.placement.apart && !deps.name.ends_with("uv.lock") => {
                        Ok(String::from_utf8_lossy(&bytes).into_owned())
                    }
                    Err(refusal) => Err(failed(format!(
                        "{}\nhint: {}",
                        refusal.message, refusal.hint
                    ))),
                }
            };
            environment::ensure(
                &inner.config.data_dir,
                deps.sha256,
                &deps.python,
                start.placement.apart,
                &requirements,
            )
            .map(Some)
        }
        DepsKind::Current => {
            let prefix = start.placement.current_environment.as_deref();
            let prefix = PathBuf::from(prefix.ok_or_else(|| {
                failed("`environment: current` came without the environment's folder".to_owned())
            })?);
            let (found, packages) = interpreter::of_environment(&prefix).ok_or_else(|| {
                failed(format!(
                    "`{}` has no working `bin/python`\nhint: queue from an activated environment \
                     that is still there",
                    prefix.display()
                ))
            })?;
            Ok(Some(Ready {
                prefix,
                found,
                packages,
            }))
        }
    }
}

/// Lays out what the job needs to call the daemon. The token is in no argument and no
/// variable; files go with the attempt.
fn write_api(start: &StartSpec, dir: &AttemptDir) -> Result<(), StartError> {
    let Some(api) = &start.api else {
        return Ok(());
    };
    let folder = dir.api();
    let written = private_folder(&folder)
        .and_then(|()| write_atomic(&dir.token(), api.token.0.as_bytes(), Durable::Process))
        .and_then(|()| fs::read(&api.ca))
        .and_then(|ca| write_atomic(&folder.join("ca.pem"), &ca, Durable::Process));
    written.map_err(|error| io_failed("write what the job needs of the API in", &folder, &error))
}

/// Verifies the datasets and gives the place of each, in the plan's order.
fn place_datasets(inner: &Inner, start: &StartSpec) -> Result<Vec<PathBuf>, StartError> {
    let changed = |message: String| StartError {
        cause: Cause::DatasetChanged,
        message,
    };
    if start.datasets.len() != start.plan.datasets.len() {
        return Err(prepare_failed(format!(
            "the plan names {} datasets, {} are registered",
            start.plan.datasets.len(),
            start.datasets.len()
        )));
    }
    let mut places = Vec::new();
    for (dataset, planned) in start.datasets.iter().zip(&start.plan.datasets) {
        mount_parts(&planned.mount)?;
        if dataset.checksum != planned.checksum {
            return Err(changed(format!(
                "dataset `{}` is registered with checksum {}, the plan says {}",
                dataset.name, dataset.checksum, planned.checksum
            )));
        }
        match inner.config.snapshots.place_dataset(dataset) {
            Ok(place) => places.push(place),
            Err(error @ (SnapshotsError::Changed { .. } | SnapshotsError::Missing(_))) => {
                return Err(changed(format!(
                    "dataset `{}` {}: {error}\nhint: restore the file, or register the new state as \
                     another version with `ml data add`",
                    dataset.name, dataset.version
                )));
            }
            Err(error @ SnapshotsError::Io { .. }) if dataset.copied => {
                let message = format!("dataset `{}` cannot be laid out: {error}", dataset.name);
                return Err(StartError::of(Cause::PrepareFailed, message, error.io()));
            }
            Err(error @ (SnapshotsError::Io { .. } | SnapshotsError::Refused(_))) => {
                return Err(changed(format!(
                    "dataset `{}` cannot be read: {error}",
                    dataset.name
                )));
            }
        }
    }
    Ok(places)
}

fn names_of(datasets: &[Dataset]) -> Vec<String> {
    let names = datasets.iter().map(|dataset| dataset.name.to_string());
    names.collect()
}

/// A mount stays inside the working directory.
fn mount_parts(mount: &str) -> Result<&Path, StartError> {
    let path = Path::new(mount);
    let mut parts = path.components();
    if path.as_os_str().is_empty() || !parts.all(|part| matches!(part, Component::Normal(_))) {
        return Err(prepare_failed(format!(
            "a dataset's mount is a path inside the working directory, `{mount}` is not"
        )));
    }
    Ok(path)
}

/// Makes the folders above a mount; a link in the checkout would lead elsewhere.
fn place_for(work: &Path, mount: &str) -> Result<PathBuf, StartError> {
    let path = mount_parts(mount)?;
    let mut above = work.to_owned();
    for part in path.parent().into_iter().flat_map(Path::components) {
        above.push(part);
        if above.is_symlink() {
            return Err(prepare_failed(format!(
                "the project has a link at `{}`, above the mount `{mount}`",
                above.display()
            )));
        }
        make_folder(&above)?;
    }
    let place = work.join(path);
    if place.is_symlink() {
        return Err(prepare_failed(format!(
            "the project has a link at the mount `{mount}`"
        )));
    }
    Ok(place)
}

/// Without the sandbox a dataset is a link: the job has the user's rights anyway,
/// and the next start notices a change.
fn link_datasets(start: &StartSpec, datasets: &[PathBuf], work: &Path) -> Result<(), StartError> {
    for (dataset, planned) in datasets.iter().zip(&start.plan.datasets) {
        let place = place_for(work, &planned.mount)?;
        if place.exists() {
            return Err(prepare_failed(format!(
                "the project has a file at the mount `{}` of dataset `{}`\nhint: choose another \
                 `mount:`, or add it to `.mlignore`",
                planned.mount, planned.name
            )));
        }
        symlink(dataset, &place).map_err(|error| io_failed("link", &place, &error))?;
    }
    Ok(())
}

fn sandbox_spec(
    inner: &Inner,
    start: &StartSpec,
    dir: &AttemptDir,
    checkpoints: &Path,
    datasets: &[PathBuf],
    weights: Option<&Weights>,
    environment: Option<&Ready>,
) -> Result<SandboxSpec, StartError> {
    let work = dir.work();
    let mut read_only = Vec::new();
    let mut system = Vec::new();
    if let Some(ready) = environment {
        system.extend(
            ready
                .found
                .prefixes
                .iter()
                .flat_map(|prefix| parts_of(prefix)),
        );
        // A managed interpreter is often named through a link beside it.
        let linked = fs::read_link(ready.prefix.join("bin/python")).ok();
        let named = linked.filter(|path| path.is_absolute());
        let named = named.and_then(|path| path.parent()?.parent().map(Path::to_owned));
        system.extend(named.iter().flat_map(|prefix| parts_of(prefix)));
        system.sort();
        system.dedup();
        read_only.push(Bind::new(&ready.prefix, &ready.prefix));
    }
    if start.api.is_some() {
        read_only.push(Bind::new(dir.api(), sandbox::API));
    }
    let all = start.datasets.iter().zip(datasets);
    for ((dataset, path), planned) in all.zip(&start.plan.datasets) {
        let place = place_for(&work, &planned.mount)?;
        if place.exists() && place.is_dir() != dataset.directory {
            return Err(prepare_failed(format!(
                "the project has something else at the mount `{}` of dataset `{}`",
                planned.mount, dataset.name
            )));
        }
        let to = Path::new(sandbox::WORK).join(&planned.mount);
        read_only.push(Bind::new(path, to));
    }
    if let Some(weights) = weights {
        place_for(&work, &weights.mount)?;
        let to = Path::new(sandbox::WORK).join(&weights.mount);
        read_only.push(Bind::new(&weights.file, to));
    }
    let doors = match &start.plan.network {
        PlanNetwork::Hosts(hosts) => {
            sandbox::doors(hosts).map_err(|refusal| prepare_failed(refusal.message))?
        }
        PlanNetwork::None | PlanNetwork::Open => Vec::new(),
    };
    Ok(SandboxSpec {
        root: dir.path().join("root"),
        network_none: start.plan.network != PlanNetwork::Open,
        doors,
        system,
        // Mounts go by where a folder is, not by how it was named.
        hidden: fs::canonicalize(&inner.config.data_dir)
            .unwrap_or_else(|_| inner.config.data_dir.clone()),
        writable: vec![
            Bind::new(dir.tmp(), "/tmp"),
            Bind::new(dir.home(), sandbox::HOME),
            Bind::new(work, sandbox::WORK),
            Bind::new(checkpoints, sandbox::CHECKPOINTS),
        ],
        read_only,
        devices: crate::gpu::device_files(&start.gpus),
    })
}

/// What an interpreter needs of the folder that it lives in. Not the folder itself:
/// somebody's home may be such a folder.
fn parts_of(prefix: &Path) -> impl Iterator<Item = PathBuf> {
    const PARTS: [&str; 6] = ["bin", "lib", "lib64", "include", "share", "ssl"];
    let prefix = prefix.to_owned();
    PARTS
        .into_iter()
        .map(move |part| prefix.join(part))
        .filter(|path| path.is_dir())
}

/// Paths as the job sees them.
struct Places {
    work: PathBuf,
    checkpoints: PathBuf,
    api: PathBuf,
    home: Option<PathBuf>,
    system_path: String,
}

impl Places {
    fn of(start: &StartSpec, dir: &AttemptDir, checkpoints: &Path) -> Self {
        if start.placement.sandbox {
            return Self {
                work: sandbox::WORK.into(),
                checkpoints: sandbox::CHECKPOINTS.into(),
                api: sandbox::API.into(),
                home: Some(sandbox::HOME.into()),
                system_path: sandbox::SYSTEM_PATH.to_owned(),
            };
        }
        let path = std::env::var("PATH").ok().filter(|path| !path.is_empty());
        Self {
            work: dir.work(),
            checkpoints: checkpoints.to_owned(),
            api: dir.api(),
            home: std::env::var_os("HOME").map(PathBuf::from),
            system_path: path.unwrap_or_else(|| sandbox::SYSTEM_PATH.to_owned()),
        }
    }
}

/// Whether the job is to log to its run. A recipe that names a server means that one.
fn tracks(start: &StartSpec) -> bool {
    let elsewhere = start.plan.env.contains_key(mlflow::URI_VARIABLE)
        || start.secrets.contains_key(mlflow::URI_VARIABLE);
    !elsewhere
}

/// The job's environment without secrets: ours are never overridden.
fn variables(
    start: &StartSpec,
    places: &Places,
    environment: Option<&Ready>,
) -> BTreeMap<String, String> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let path = match environment {
        Some(ready) => format!("{}:{}", text(&ready.prefix.join("bin")), places.system_path),
        None => places.system_path.clone(),
    };
    let mut all = BTreeMap::from([
        ("PATH".to_owned(), path),
        ("LANG".to_owned(), "C.UTF-8".to_owned()),
    ]);
    if let Some(home) = &places.home {
        all.insert("HOME".to_owned(), text(home));
    }
    all.extend(start.plan.env.clone());
    let AttemptNumber(number) = start.attempt.number;
    let mut ours = vec![
        ("MLMESH_RUN_ID", start.attempt.run.to_string()),
        ("MLMESH_ATTEMPT", number.to_string()),
        ("MLMESH_OUTPUT_DIR", text(&places.work.join(OUTPUT_DIR))),
        ("MLMESH_CHECKPOINT_DIR", text(&places.checkpoints)),
    ];
    if tracks(start) {
        ours.push((mlflow::RUN_VARIABLE, start.attempt.run.to_string()));
    }
    if let Some(sweep) = start.sweep {
        ours.push(("MLMESH_SWEEP_ID", sweep.to_string()));
    }
    if let Some(api) = &start.api {
        ours.push((TOKEN_FILE, text(&places.api.join("token"))));
        ours.push(("MLMESH_API_URL", api.url.clone()));
        ours.push(("MLMESH_API_CA", text(&places.api.join("ca.pem"))));
    }
    if let PlanSeed::Value(seed) = start.plan.seed {
        ours.push(("MLMESH_SEED", seed.to_string()));
    }
    if let Some(devices) = crate::gpu::visible_devices(&start.gpus) {
        ours.push(("CUDA_VISIBLE_DEVICES", devices));
    }
    all.extend(
        ours.into_iter()
            .map(|(name, value)| (name.to_owned(), value)),
    );
    all
}

fn limits(inner: &Inner, start: &StartSpec) -> Vec<LimitSpec> {
    let resources = &start.plan.resources;
    let asked = [
        ("cpu", Some(resources.cpu_milli).filter(|milli| *milli > 0)),
        ("memory", resources.memory_bytes),
        ("pids", Some(inner.config.pids_max)),
    ];
    let AttemptNumber(number) = start.attempt.number;
    let name = format!("mlmesh-{}-{number}", start.attempt.run);
    let mut limits: Vec<LimitSpec> = asked
        .into_iter()
        .filter_map(|(limit, asked)| {
            let base = inner
                .bases
                .iter()
                .find(|(controller, _)| *controller == limit);
            let by = match base {
                Some((
                    _,
                    Ok(Base {
                        version,
                        folder,
                        home,
                    }),
                )) => LimitMeans::Cgroup {
                    version: *version,
                    path: folder.join(&name),
                    home: home.clone(),
                },
                Some((_, Err(why))) => LimitMeans::Nothing(why.clone()),
                None => LimitMeans::Nothing("no control group for it".to_owned()),
            };
            Some(LimitSpec {
                name: limit.to_owned(),
                asked: asked?,
                by,
            })
        })
        .collect();
    limits.extend(resources.time_s.map(|seconds| LimitSpec {
        name: "time".to_owned(),
        asked: seconds,
        by: LimitMeans::Supervisor,
    }));
    limits
}
