//! Virtual environments: built once per deps digest, shared by all attempts.
//!
//! An environment holds absolute paths, so it is built where it stays, under a
//! lock, and is complete when its marker is there, which is written last. A
//! half-built one is removed by whoever comes next. The warm path is one read under
//! a shared lock.
//!
//! [`HeldEnvironments`] removes what no run is planned with. It takes the locks first,
//! asks then who needs what, and removes last: whoever was accepted before the answer
//! is in it, and whoever came after it waits for the lock and builds anew.
//!
//! They lie beside the objects, not among the caches: a job that runs needs its
//! environment to the end, and caches may vanish at any moment.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use mlmesh_model::{Cause, DepsDigest, ResolvedEnvironment, StartError};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::interpreter::{self, Found};
use crate::record::{Durable, read_record, write_record};

/// Where they are, below the data directory.
const ENVIRONMENTS: &str = "data/objects/environments";
/// Ending of an environment that is being removed.
const REMOVED: &str = "removed";
const MARKER: &str = "mlmesh-environment.json";
const SCHEMA: &str = "mlmesh.environment/2";
/// Lines of the installer's output that a refusal shows.
const LINES_SHOWN: usize = 12;

/// An environment that is ready.
#[derive(Debug, Clone)]
pub(crate) struct Ready {
    pub(crate) prefix: PathBuf,
    pub(crate) found: Found,
    /// `name==version`, sorted.
    pub(crate) packages: Vec<String>,
}

impl Ready {
    /// What of it is recorded.
    pub(crate) fn resolved(self) -> ResolvedEnvironment {
        ResolvedEnvironment {
            interpreter: self.found.interpreter,
            packages: self.packages,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Marker {
    schema: String,
    found: Found,
    /// Listed once, when it was complete.
    packages: Vec<String>,
}

/// The environment of a digest, built if it is not there. `requirements` is only
/// called for a build. With `apart` nothing that comes with a package is executed here:
/// only wheels are installed, and they are listed without being imported.
pub(crate) fn ensure(
    data_dir: &Path,
    deps: DepsDigest,
    python: &str,
    apart: bool,
    requirements: &dyn Fn() -> Result<String, StartError>,
) -> Result<Ready, StartError> {
    let folder = data_dir.join(ENVIRONMENTS);
    let prefix = folder.join(deps.to_string());
    let lock_path = folder.join(format!("{deps}.lock"));
    let system = |what: &str, error: io::Error| {
        io_failed(format!("{what} `{}`: {error}", prefix.display()), &error)
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&folder)
        .map_err(|error| system("make room for", error))?;
    let shared = Locked::wait(&lock_path, FlockOperation::LockShared)
        .map_err(|error| system("lock", error))?;
    if let Some(ready) = complete(&prefix) {
        return Ok(ready);
    }
    drop(shared);
    let packages_of = match apart {
        true => interpreter::packages_unrun,
        false => interpreter::packages,
    };
    let found = interpreter::find(python).ok_or_else(|| {
        failed(format!(
            "no Python {python} on this machine\nhint: install it so that `python{python}` is on the \
             daemon's PATH, or name another version in `environment: {{python: …}}`"
        ))
    })?;
    let _lock = Locked::wait(&lock_path, FlockOperation::LockExclusive)
        .map_err(|error| system("lock", error))?;
    // Somebody else may have built it while we waited.
    if let Some(ready) = complete(&prefix) {
        return Ok(ready);
    }
    if prefix.join(MARKER).exists()
        && let Some(packages) = packages_of(&prefix)
    {
        // The same version was installed anew at the same place.
        return finish(&prefix, found, packages);
    }
    match fs::remove_dir_all(&prefix) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(system("remove the half-built", error));
        }
        _ => {}
    }
    let built = build(&prefix, &found, &requirements()?, apart);
    if built.is_err() {
        drop(fs::remove_dir_all(&prefix));
    }
    built?;
    let packages = packages_of(&prefix)
        .ok_or_else(|| failed(format!("`{}` does not list its packages", prefix.display())))?;
    finish(&prefix, found, packages)
}

fn failed(message: String) -> StartError {
    StartError {
        cause: Cause::EnvironmentFailed,
        message,
    }
}

fn io_failed(message: String, error: &io::Error) -> StartError {
    StartError::of(Cause::EnvironmentFailed, message, Some(error))
}

fn complete(prefix: &Path) -> Option<Ready> {
    let marker: Marker = read_record(&prefix.join(MARKER)).ok()??;
    (marker.schema == SCHEMA && marker.found.is_current()).then(|| Ready {
        prefix: prefix.to_owned(),
        found: marker.found,
        packages: marker.packages,
    })
}

fn finish(prefix: &Path, found: Found, packages: Vec<String>) -> Result<Ready, StartError> {
    let marker = Marker {
        schema: SCHEMA.to_owned(),
        found,
        packages,
    };
    write_record(&prefix.join(MARKER), &marker, Durable::Power)
        .map_err(|error| StartError::of(Cause::EnvironmentFailed, error.to_string(), error.io()))?;
    Ok(Ready {
        prefix: prefix.to_owned(),
        found: marker.found,
        packages: marker.packages,
    })
}

/// An environment's lock. It is given up explicitly: a child between fork and exec
/// still has the descriptor and would hold it on.
#[derive(Debug)]
struct Locked(File);

impl Locked {
    /// Waits for the lock, and for the one that has come in its place when whoever had
    /// it removed the file.
    fn wait(path: &Path, operation: FlockOperation) -> io::Result<Self> {
        loop {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)?;
            flock(&file, operation)?;
            let locked = Self(file);
            let held = locked.0.metadata()?.ino();
            if fs::metadata(path).is_ok_and(|there| there.ino() == held) {
                return Ok(locked);
            }
        }
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Closing the file would do it, later.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Environments that nobody builds or looks up now, and nobody can while this lives.
#[derive(Debug)]
pub struct HeldEnvironments {
    folder: PathBuf,
    held: Vec<(DepsDigest, Locked)>,
}

impl HeldEnvironments {
    /// Takes the lock of each environment that is free.
    pub fn hold(data_dir: &Path) -> io::Result<Self> {
        let folder = data_dir.join(ENVIRONMENTS);
        let mut held = Vec::new();
        let listing = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            listing => Some(listing?),
        };
        for entry in listing.into_iter().flatten() {
            let name = entry?.file_name();
            let Some(digest) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let path = folder.join(format!("{}.lock", DepsDigest(digest)));
            match Locked::wait(&path, FlockOperation::NonBlockingLockExclusive) {
                Ok(lock) => held.push((DepsDigest(digest), lock)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { folder, held })
    }

    /// Those that are not needed, in order.
    pub fn spare(&self, needed: &HashSet<DepsDigest>) -> Vec<DepsDigest> {
        let digests = self.held.iter().map(|(digest, _)| *digest);
        let mut spare: Vec<_> = digests.filter(|digest| !needed.contains(digest)).collect();
        spare.sort_unstable();
        spare
    }

    /// Removes those that are not needed, and what an earlier removal has left over.
    /// They lose their names under the lock; emptying the folders takes longer.
    pub fn remove_spare(self, needed: &HashSet<DepsDigest>) -> io::Result<Vec<DepsDigest>> {
        let spare = self.spare(needed);
        for digest in &spare {
            let prefix = self.folder.join(digest.to_string());
            fs::rename(&prefix, prefix.with_extension(REMOVED))?;
            fs::remove_file(prefix.with_extension("lock"))?;
        }
        drop(self.held);
        let listing = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(spare),
            listing => listing?,
        };
        for entry in listing {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == REMOVED) {
                match fs::remove_dir_all(path) {
                    // Another prune was faster.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    removed => removed?,
                }
            }
        }
        Ok(spare)
    }
}

fn build(prefix: &Path, found: &Found, requirements: &str, apart: bool) -> Result<(), StartError> {
    let python = &found.interpreter.path;
    let mut venv = Command::new(python);
    venv.args(["-m", "venv", "--without-pip"]).arg(prefix);
    run("make a virtual environment", &mut venv)?;
    let any = requirements
        .lines()
        .map(str::trim)
        .any(|line| !line.is_empty() && !line.starts_with('#'));
    if !any {
        return Ok(());
    }
    let file = prefix.join("requirements.txt");
    fs::write(&file, requirements)
        .map_err(|error| io_failed(format!("write `{}`: {error}", file.display()), &error))?;
    // A lock with hashes lists everything there is; one without may not.
    let pinned: &[&str] = if requirements.contains("--hash=") {
        &["--require-hashes", "--no-deps"]
    } else {
        &[]
    };
    // Building a package runs what its author wrote.
    let wheels: &[&str] = match apart {
        true => &["--only-binary", ":all:"],
        false => &[],
    };
    let own_python = prefix.join("bin/python");
    let mut uv = Command::new("uv");
    uv.args(["pip", "install", "--quiet", "--python"])
        .arg(&own_python)
        .args(pinned)
        .args(wheels)
        .arg("-r")
        .arg(&file);
    match uv.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => return Ok(()),
        // What it has installed already must not be run by another try.
        Ok(output) if apart => {
            let said = tail(&output);
            return Err(failed(format!(
                "install the packages: {}\n{said}",
                output.status
            )));
        }
        Ok(output) => {
            // uv reads other settings than pip; pip has the last word.
            tracing::warn!(output = %tail(&output), "uv did not install the environment, pip is tried");
        }
        Err(_) => {}
    }
    let mut ensure_pip = Command::new(&own_python);
    ensure_pip.args(["-I", "-m", "ensurepip", "--default-pip"]);
    run("put pip into the environment", &mut ensure_pip)?;
    let mut pip = Command::new(&own_python);
    pip.args([
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-input",
    ])
    .args(pinned)
    .args(wheels)
    .arg("-r")
    .arg(&file);
    run("install the packages", &mut pip)
}

fn run(what: &str, command: &mut Command) -> Result<(), StartError> {
    // What the daemon's user has set for another Python must not reach this one.
    for name in [
        "PYTHONPATH",
        "PYTHONHOME",
        "VIRTUAL_ENV",
        "PIP_TARGET",
        "PIP_USER",
    ] {
        command.env_remove(name);
    }
    let output = command.stdin(Stdio::null()).output().map_err(|error| {
        let message = format!("{what}: start `{:?}`: {error}", command.get_program());
        io_failed(message, &error)
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = tail(&output);
    let mut error = failed(format!("{what}: {}\n{said}", output.status));
    if FULL_DISK_SAID.iter().any(|words| said.contains(words)) {
        error.cause = Cause::NodeFault;
    }
    Err(error)
}

/// How Python and its installers say that the disk is full: all that is known of an
/// error that another program met.
const FULL_DISK_SAID: [&str; 2] = ["[Errno 28]", "os error 28"];

/// The last lines of what a program said.
fn tail(output: &Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")
}
