//! A daemon, a project and a folder in which jobs and tests meet: what the fault
//! tests break.
//!
//! Nothing sleeps: jobs wait for files that the test makes, the test waits for what
//! `ml` says. At the end every process that names the data directory is ended.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mlmesh_testkit::daemon::{Daemon, Start, program};
use mlmesh_testkit::kill::{processes_naming, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits, in a job's script, until the test has made a file.
pub(crate) const WAIT_FOR_GO: &str = "while [ ! -e \"$W/go\" ]; do sleep 0.02; done\n";

/// A daemon with everything around it. The daemon ends first, the folder goes last.
pub(crate) struct Site {
    daemon: Option<Daemon>,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
    disk: Option<Disk>,
    home: tempfile::TempDir,
}

/// What a command of `ml` gave.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Site {
    /// A site whose daemon runs.
    pub(crate) fn up() -> Self {
        let mut site = Self::new();
        site.start();
        site
    }

    /// A site without a daemon yet.
    pub(crate) fn new() -> Self {
        let home = tempfile::Builder::new().prefix("mlmesh-fault-").tempdir();
        let site = Self {
            daemon: None,
            environment: Vec::new(),
            arguments: Vec::new(),
            disk: None,
            home: home.expect("a temporary folder"),
        };
        for folder in ["project", "w", "data"] {
            std::fs::create_dir(site.path(folder)).expect("a folder");
        }
        site.write("mlmesh.toml", "[client]\nrepro_policy = \"relaxed\"\n");
        site
    }

    /// Puts the data directory on a small disk of its own; `None` where this user
    /// may not mount one.
    pub(crate) fn on_disk_of(mebibytes: u32) -> Option<Self> {
        Self::with_disk_at("data", mebibytes)
    }

    /// Puts the folders of runs alone on a small disk of their own.
    pub(crate) fn with_runs_on_disk_of(mebibytes: u32) -> Option<Self> {
        Self::with_disk_at("data/data/experiments", mebibytes)
    }

    /// Puts the daemon's caches alone on a small disk of their own.
    pub(crate) fn with_cache_on_disk_of(mebibytes: u32) -> Option<Self> {
        Self::with_disk_at("data/data/cache", mebibytes)
    }

    /// Puts the folder `out` on a small disk of its own.
    pub(crate) fn with_out_on_disk_of(mebibytes: u32) -> Option<Self> {
        Self::with_disk_at("out", mebibytes)
    }

    fn with_disk_at(place: &str, mebibytes: u32) -> Option<Self> {
        let mut site = Self::new();
        let place = site.path(place);
        std::fs::create_dir_all(&place).expect("a folder");
        site.disk = Some(Disk::mount(&place, mebibytes)?);
        Some(site)
    }

    /// The small disk.
    pub(crate) fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("a disk of its own")
    }

    /// Sets a variable for the daemon and for every later `ml`.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<String>) {
        self.environment.push((name.to_owned(), value.into()));
    }

    /// Adds an argument of the daemon.
    pub(crate) fn argue(&mut self, argument: impl Into<String>) {
        self.arguments.push(argument.into());
    }

    pub(crate) fn start(&mut self) {
        self.start_through(&[]);
    }

    /// Starts the daemon through another program.
    pub(crate) fn start_through(&mut self, through: &[&str]) {
        self.kill_daemon();
        let environment: Vec<_> = self
            .environment
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let arguments: Vec<_> = self.arguments.iter().map(String::as_str).collect();
        let start = Start {
            arguments: &arguments,
            environment: &environment,
            through,
        };
        self.daemon = Some(Daemon::start_in(&self.data_dir(), &start));
    }

    pub(crate) fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("a daemon that was started")
    }

    pub(crate) fn kill_daemon(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill();
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.path("data")
    }

    /// Writes a file of the project.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path("project").join(name), content).expect("a file is written");
    }

    /// Writes a recipe that runs a shell script, which finds the meeting place in
    /// `$W`; `more` are lines of the recipe.
    pub(crate) fn recipe(&self, name: &str, script: &str, more: &str) -> String {
        self.write(&format!("{name}.sh"), script);
        let more: String = more.lines().map(|line| format!("  {line}\n")).collect();
        let recipe = format!(
            "experiment:\n  name: {name}\n  command: [sh, {name}.sh]\n  seed: none\n  resources: {{cpus: 0.1}}\n  \
             env: {{W: \"{}\"}}\n{more}",
            self.path("w").display()
        );
        let file = format!("{name}.yaml");
        self.write(&file, recipe);
        file
    }

    /// `ml` with these arguments, in the project.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("ml"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .env("MLMESH_DATA_DIR", self.data_dir())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.path("project"))
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn ml(&self, arguments: &[&str]) -> Answer {
        let output = self.command(arguments).output().expect("`ml` is executed");
        Answer {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// What `ml … --json` says, which must succeed.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let arguments = [arguments, &["--json"]].concat();
        let answer = self.ml(&arguments).exits(0);
        serde_json::from_str(&answer.stdout).expect("JSON")
    }

    /// Queues and gives the id.
    pub(crate) fn queue(&self, recipe: &str) -> String {
        self.queue_with(&["queue", "-q", recipe])
    }

    pub(crate) fn queue_with(&self, arguments: &[&str]) -> String {
        let answer = self.ml(arguments).exits(0);
        answer.stdout.trim().to_owned()
    }

    pub(crate) fn info(&self, run: &str) -> Value {
        self.json(&["info", run])
    }

    /// Waits until a run is in a phase, and gives what is known of it then.
    pub(crate) fn wait_for_phase(&self, run: &str, phase: &str) -> Value {
        let mut info = Value::Null;
        let reached = wait_until(PATIENCE, || {
            info = self.info(run);
            info["phase"] == phase
        });
        assert!(
            reached,
            "run {run} is not `{phase}` but {} (cause {}, {})",
            info["phase"], info["cause"], info["message"]
        );
        info
    }

    /// Waits until a job has written a line at the meeting place.
    pub(crate) fn wait_for_file(&self, name: &str) -> String {
        let path = self.path("w").join(name);
        // One that was just made has no line yet.
        let has_line =
            |path: &Path| std::fs::read_to_string(path).is_ok_and(|text| text.ends_with('\n'));
        wait("a file of the job", || has_line(&path));
        let text = std::fs::read_to_string(&path).expect("a file of the job");
        text.trim().to_owned()
    }

    /// Lets the jobs go that wait for it.
    pub(crate) fn go(&self) {
        std::fs::write(self.path("w/go"), "").expect("a file is written");
    }

    /// Number of runs in a phase.
    pub(crate) fn count(&self, phase: &str) -> u64 {
        let status = self.json(&["status"]);
        status["counts"][phase].as_u64().expect("a count")
    }

    /// Processes of an attempt: job and supervisor.
    pub(crate) fn processes_of(&self, run: &str) -> Vec<i32> {
        processes_naming(run.as_bytes())
    }

    /// The supervisor of a run.
    pub(crate) fn supervisor_of(&self, run: &str) -> i32 {
        let is_supervisor = |pid: &i32| {
            std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                let mut words = line.split(|byte| *byte == 0);
                words.any(|word| word == b"attempt-starter")
            })
        };
        let mut found = self.processes_of(run);
        found.retain(is_supervisor);
        assert_eq!(found.len(), 1, "supervisors of {run}: {found:?}");
        found[0]
    }

    /// Waits until no process of a run is left.
    pub(crate) fn no_process_left(&self, run: &str) {
        wait("the end of the run's processes", || {
            self.processes_of(run).is_empty()
        });
    }

    /// `logs/app.log`, which must never tell of a panic.
    pub(crate) fn app_log(&self) -> String {
        let text = std::fs::read_to_string(self.data_dir().join("logs/app.log"));
        let text = text.expect("the daemon's log");
        assert!(!text.contains("panicked"), "{text}");
        text
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.kill_daemon();
        let data_dir = self.data_dir();
        let needle = data_dir.as_os_str().as_encoded_bytes();
        wait_until(Duration::from_secs(10), || {
            let left = processes_naming(needle);
            for pid in &left {
                kill(*pid, Signal::KILL);
            }
            left.is_empty()
        });
    }
}

impl Answer {
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        self
    }

    /// The error that `--json` prints.
    #[track_caller]
    pub(crate) fn error(&self) -> Value {
        let error = serde_json::from_str(&self.stderr);
        error.unwrap_or_else(|_| panic!("an error in JSON and nothing else: {}", self.stderr))
    }
}

/// A file system in memory, unmounted at the end.
pub(crate) struct Disk(PathBuf);

impl Disk {
    /// Fills it with a file until nothing more fits, then leaves `free` bytes.
    pub(crate) fn fill(&self, free: u64) {
        let ballast = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.ballast())
            .expect("a file is made");
        for size in [1 << 20, 4096] {
            let block = vec![0x5a; size];
            while (&ballast).write_all(&block).is_ok() {}
        }
        let length = ballast.metadata().expect("its length").len();
        let shorter = length.checked_sub(free).expect("a large enough disk");
        ballast.set_len(shorter).expect("it is cut");
    }

    /// Gives the space back.
    pub(crate) fn free(&self) {
        std::fs::remove_file(self.ballast()).expect("the ballast goes");
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Makes it read-only, or writable again.
    pub(crate) fn set_read_only(&self, read_only: bool) {
        let options = if read_only {
            "remount,ro"
        } else {
            "remount,rw"
        };
        let mounted = Command::new("mount")
            .args(["-o", options])
            .arg(&self.0)
            .output()
            .expect("`mount` is executed");
        assert!(mounted.status.success(), "{mounted:?}");
    }

    fn mount(place: &Path, mebibytes: u32) -> Option<Self> {
        let options = format!("size={mebibytes}m,mode=700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "mlmesh-test"])
            .arg(place)
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(place.to_owned())),
            Ok(output) => {
                skipped(&format!(
                    "no small disk can be mounted: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                ));
                None
            }
            Err(error) => {
                skipped(&format!("no `mount`: {error}"));
                None
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a file that is still open goes with its process.
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// Raises a flag at the end of a scope, also when that panics: threads of the
/// scope that go by it then end.
pub(crate) struct RaiseAtEnd<'a>(pub(crate) &'a AtomicBool);

impl Drop for RaiseAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits for a condition that must come true.
#[track_caller]
pub(crate) fn wait(what: &str, condition: impl FnMut() -> bool) {
    assert!(wait_until(PATIENCE, condition), "waited for {what}");
}

/// Sends a signal; the process may have ended.
pub(crate) fn kill(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

/// Says that a test did not run. In CI every part must be there.
#[expect(clippy::print_stdout, reason = "a test says what it leaves out")]
pub(crate) fn skipped(reason: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{reason}");
    println!("skipped: {reason}");
}
