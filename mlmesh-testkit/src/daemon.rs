//! A real daemon for tests: the built `meshd`, a data directory of its own, a port
//! that it chooses itself.
//!
//! Nothing here sleeps for a fixed time: a start waits for `meshd.json` of the very
//! process, an end for the process.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long a daemon may take to become ready, or to end, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// A daemon that ends with the test.
#[derive(Debug)]
pub struct Daemon {
    data_dir: PathBuf,
    child: Child,
    _own_folder: Option<tempfile::TempDir>,
}

/// How a daemon is started.
#[derive(Debug, Clone, Default)]
pub struct Start<'a> {
    /// Arguments after `run --data-dir DIR --port 0`.
    pub arguments: &'a [&'a str],
    /// Variables beside those of the test.
    pub environment: &'a [(&'a str, &'a str)],
    /// A program that becomes the daemon by executing its arguments; its process
    /// stays the same.
    pub through: &'a [&'a str],
}

impl Daemon {
    /// Starts a daemon in a folder of its own.
    pub fn start() -> Self {
        Self::start_with(&Start::default())
    }

    /// Starts a daemon in a folder of its own, with arguments and variables.
    pub fn start_with(start: &Start<'_>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data_dir = folder.path().join("data dir");
        let mut daemon = Self::start_in(&data_dir, start);
        daemon._own_folder = Some(folder);
        daemon
    }

    /// Starts a daemon on a data directory and waits until `meshd.json` is its own.
    /// Panics with the daemon's last words when it ends instead.
    pub fn start_in(data_dir: &Path, start: &Start<'_>) -> Self {
        let mut child = spawn(data_dir, start);
        let begun = Instant::now();
        loop {
            let is_ready = daemon_file(data_dir)
                .is_some_and(|file| file["pid"].as_u64() == Some(u64::from(child.id())));
            if is_ready {
                return Self {
                    data_dir: data_dir.to_owned(),
                    child,
                    _own_folder: None,
                };
            }
            let ended = child.try_wait().expect("the state of the daemon");
            assert!(
                ended.is_none() && begun.elapsed() < PATIENCE,
                "the daemon is not ready ({ended:?}): {}",
                last_words(&mut child)
            );
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `meshd.json`.
    pub fn file(&self) -> Value {
        daemon_file(&self.data_dir).expect("`meshd.json` of a daemon that is up")
    }

    /// Where its API answers.
    pub fn url(&self) -> String {
        let file = self.file();
        file["urls"]["api"].as_str().expect("a URL").to_owned()
    }

    /// The port of its API.
    pub fn port(&self) -> u16 {
        let url = self.url();
        let port = url.rsplit(':').next().expect("a port");
        port.parse().expect("a port")
    }

    /// The owner's key.
    pub fn key(&self) -> String {
        let key = std::fs::read_to_string(self.data_dir.join("owner.key"));
        key.expect("`owner.key`").trim().to_owned()
    }

    /// Kills it with SIGKILL and starts another one on the same data directory.
    pub fn kill_and_restart(&mut self, start: &Start<'_>) {
        self.kill();
        let mut next = Self::start_in(&self.data_dir, start);
        std::mem::swap(&mut self.child, &mut next.child);
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end with SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Stops it where it is.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on after [`Self::pause`].
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// Whether it has not ended.
    pub fn is_alive(&mut self) -> bool {
        let ended = self.child.try_wait().expect("the state of the daemon");
        ended.is_none()
    }

    /// What it has said on stderr, once it has ended.
    pub fn last_words(&mut self) -> String {
        last_words(&mut self.child)
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a process"), signal).expect("a signal is sent");
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the state of the daemon") {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "the daemon does not end");
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts `meshd run` on a data directory that it cannot have; returns how it ended
/// and what it said.
pub fn refused_start(data_dir: &Path, start: &Start<'_>) -> (ExitStatus, String) {
    let output = command(data_dir, start)
        .output()
        .expect("`meshd` is executed");
    (
        output.status,
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// A program of this workspace, beside the test that asks for it.
pub fn program(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("the test's own path");
    let folder = this
        .parent()
        .and_then(Path::parent)
        .expect("`target/<profile>/deps/TEST`");
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "`{}` is not built; run `cargo build --workspace --bins` first",
        path.display()
    );
    path
}

fn spawn(data_dir: &Path, start: &Start<'_>) -> Child {
    command(data_dir, start)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("`meshd` is executed")
}

fn command(data_dir: &Path, start: &Start<'_>) -> Command {
    let mut command = match start.through {
        [] => Command::new(program("meshd")),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(program("meshd"));
            command
        }
    };
    command
        .arg("run")
        .arg("--data-dir")
        .arg(data_dir)
        .args(["--port", "0"])
        .args(start.arguments)
        // Settings of the person who runs the tests are not the tests'.
        .env("MLMESH_CONFIG_DIR", data_dir.join("no-config"))
        .envs(start.environment.iter().copied());
    command
}

fn daemon_file(data_dir: &Path) -> Option<Value> {
    let text = std::fs::read(data_dir.join("meshd.json")).ok()?;
    serde_json::from_slice(&text).ok()
}

fn last_words(child: &mut Child) -> String {
    // What it has not written yet is lost with it.
    let _ = child.kill();
    let mut text = String::new();
    if let Some(mut words) = child.stderr.take() {
        let _ = words.read_to_string(&mut text);
    }
    text
}
