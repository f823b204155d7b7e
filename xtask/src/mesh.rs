//! A daemon of our own in a temporary directory, driven through `ml` as a person would.
//!
//! The daemon and its directory go away with this value, also when this process is
//! killed: a shell in a process group of its own reads a pipe that only we hold open,
//! and cleans up when the pipe closes.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use serde_json::Value;
use tempfile::TempDir;

use crate::step;
use crate::workspace::Workspace;

const DEATH_WAIT_MAX: Duration = Duration::from_secs(10);
const DEATH_POLL: Duration = Duration::from_millis(5);

/// Stops the daemon whose data directory is `$2` and removes the folder `$3`. An
/// installer that is on its way out may still write there, so that is looked at again.
const CLEAN_UP: &str = r#"
trap '' INT TERM HUP
read -r _
pid=$(sed -n 's/.*"pid" *: *\([0-9][0-9]*\).*/\1/p' "$2/meshd.json" 2>/dev/null)
"$1" down --stop-jobs --data-dir "$2" || { [ -n "$pid" ] && kill -9 "$pid"; }
for _ in 1 2 3 4 5 6 7 8 9 10; do
  rm -rf "$3"
  sleep 0.2
  [ -e "$3" ] || break
done
"#;

/// A data directory of its own and the programs that use it.
#[derive(Debug)]
pub struct Mesh {
    ml: PathBuf,
    folder: PathBuf,
    cleaner: Child,
}

impl Mesh {
    /// Prepares a directory; nothing runs yet. `profile` is `debug` or `release`.
    pub fn new(workspace: &Workspace, profile: &str) -> Result<Mesh> {
        let ml = workspace.program(profile, "ml");
        if !ml.is_file() {
            bail!("{} is not there\nhint: `cargo build --bins`", ml.display());
        }
        // The cleaner removes the folder, so that a killed process leaves nothing behind.
        let folder = TempDir::with_prefix("mlmesh-")
            .context("make a temporary directory")?
            .keep();
        let data = folder.join("data");
        let cleaner = Command::new("sh")
            .args(["-c", CLEAN_UP, "sh"])
            .args([&ml, &data, &folder])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("start `sh`, which cleans up")?;
        Ok(Mesh {
            ml,
            folder,
            cleaner,
        })
    }

    /// A place for other files that go away with the daemon.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The daemon's data directory.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// `ml WORDS`, for this daemon.
    pub fn ml(&self, words: &[&str]) -> Command {
        self.ml_through(&[], words)
    }

    /// The same, started by another program such as `taskset -c 0`.
    pub fn ml_through(&self, through: &[&str], words: &[&str]) -> Command {
        let mut command = match through {
            [] => Command::new(&self.ml),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(&self.ml);
                command
            }
        };
        command
            .args(words)
            .env("MLMESH_DATA_DIR", self.data())
            .env("MLMESH_CONFIG_DIR", self.folder.join("config"));
        command
    }

    /// What `ml WORDS --json` prints.
    pub fn json(&self, words: &[&str]) -> Result<Value> {
        let text = step::read(self.ml(words).arg("--json"))?;
        serde_json::from_str(&text)
            .with_context(|| format!("`ml {} --json` printed `{text}`", words.join(" ")))
    }

    /// Starts the daemon and returns its process id.
    pub fn up(&self) -> Result<Pid> {
        step::quiet(&mut self.ml(&["up", "--port", "0"]))?;
        self.pid()
    }

    /// Stops the daemon and what it runs.
    pub fn down(&self) -> Result<()> {
        step::quiet(&mut self.ml(&["down", "--stop-jobs"]))?;
        Ok(())
    }

    /// Kills the daemon as a power cut would, and waits until it is gone.
    pub fn kill(&self) -> Result<Pid> {
        let pid = self.pid()?;
        rustix::process::kill_process(pid, Signal::KILL)
            .with_context(|| format!("kill the daemon, process {}", pid.as_raw_nonzero()))?;
        let start = Instant::now();
        while is_running(pid) {
            if start.elapsed() > DEATH_WAIT_MAX {
                bail!(
                    "process {} is still there {DEATH_WAIT_MAX:?} after SIGKILL",
                    pid.as_raw_nonzero()
                );
            }
            thread::sleep(DEATH_POLL);
        }
        Ok(pid)
    }

    /// The daemon's process id, as it wrote it down.
    pub fn pid(&self) -> Result<Pid> {
        let path = self.data().join("meshd.json");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let value: Value = serde_json::from_str(&text)
            .with_context(|| format!("{} is not JSON", path.display()))?;
        value["pid"]
            .as_i64()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw)
            .with_context(|| format!("{} has no `pid`", path.display()))
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        drop(self.cleaner.stdin.take());
        drop(self.cleaner.wait());
    }
}

/// A process that is dead and not yet waited for does not run any more.
fn is_running(pid: Pid) -> bool {
    let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
    fs::read_to_string(path).is_ok_and(|stat| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A workspace whose `ml` notes what it was called with.
    fn with_fake_ml() -> (TempDir, Workspace) {
        use std::os::unix::fs::PermissionsExt;
        let target = tempfile::tempdir().unwrap();
        let ml = target.path().join("debug/ml");
        fs::create_dir_all(ml.parent().unwrap()).unwrap();
        let script = format!(
            "#!/bin/sh\necho \"$@\" >> {}\necho '{{\"a\": 1}}'\n",
            target.path().join("calls").display()
        );
        fs::write(&ml, script).unwrap();
        fs::set_permissions(&ml, fs::Permissions::from_mode(0o755)).unwrap();
        let workspace = Workspace {
            root: target.path().to_owned(),
            target: target.path().to_owned(),
        };
        (target, workspace)
    }

    #[test]
    fn the_daemon_and_its_directory_go_away() {
        let (target, workspace) = with_fake_ml();
        let mesh = Mesh::new(&workspace, "debug").unwrap();
        let folder = mesh.folder().to_owned();
        let data = mesh.data();
        assert!(folder.is_dir());
        drop(mesh);
        assert!(!folder.exists());
        let calls = fs::read_to_string(target.path().join("calls")).unwrap();
        assert_eq!(
            calls.trim(),
            format!("down --stop-jobs --data-dir {}", data.display())
        );
    }

    #[test]
    fn json_is_parsed_and_the_process_id_is_checked() {
        let (_target, workspace) = with_fake_ml();
        let mesh = Mesh::new(&workspace, "debug").unwrap();
        assert_eq!(mesh.json(&["status"]).unwrap()["a"], 1);
        assert!(mesh.pid().is_err());
        fs::create_dir_all(mesh.data()).unwrap();
        fs::write(mesh.data().join("meshd.json"), "{\"pid\": 0}").unwrap();
        assert!(mesh.pid().is_err());
        fs::write(mesh.data().join("meshd.json"), "{\"pid\": 4194304}").unwrap();
        assert_eq!(mesh.pid().unwrap(), Pid::from_raw(4_194_304).unwrap());
    }

    #[test]
    fn a_process_that_ended_does_not_run() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = Pid::from_child(&child);
        child.wait().unwrap();
        assert!(!is_running(pid));
        assert!(is_running(rustix::process::getpid()));
    }
}
