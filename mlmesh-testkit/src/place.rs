//! A home, a data directory and a project for one test, `ml` in it, and what a call of
//! it left. No variable, folder or setting of the machine reaches the program.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::kill::wait_until;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Folders that go away at the end of a test.
#[derive(Debug)]
pub struct Place {
    folder: TempDir,
    ml: PathBuf,
}

/// What a program left.
#[derive(Debug)]
pub struct Answer {
    /// Exit code; -1 after a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Place {
    /// Empty folders for this `ml`.
    pub fn new(ml: impl Into<PathBuf>) -> Self {
        let folder = tempfile::Builder::new().prefix("ml-it-").tempdir();
        let folder = folder.expect("a folder for temporary files");
        for name in ["home", "project"] {
            std::fs::create_dir(folder.path().join(name)).expect("a folder");
        }
        let ml = ml.into();
        Self { folder, ml }
    }

    /// Something in this place.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.path("data")
    }

    /// The project, where `ml` is called.
    pub fn project(&self) -> PathBuf {
        self.path("project")
    }

    /// Writes a file below the project.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.project().join(name);
        let folder = path.parent().expect("a file is in a folder");
        std::fs::create_dir_all(folder).expect("a folder");
        std::fs::write(&path, text).expect("a file");
        path
    }

    /// `ml ARGUMENTS`, in the project.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(&self.ml);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path("home"))
            .env("MLMESH_DATA_DIR", self.data())
            .env("MLMESH_CONFIG_DIR", self.path("home/config"))
            .current_dir(self.project())
            .stdin(Stdio::null());
        command
    }

    /// The same to its end.
    pub fn ml<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Answer {
        answer(&mut self.command(arguments))
    }

    /// The text with this place's folder as `PLACE`.
    pub fn redacted(&self, text: &str) -> String {
        let folder: &Path = self.folder.path();
        text.replace(&folder.display().to_string(), "PLACE")
    }
}

/// Whatever a test did: each manifest that its runs left is valid under the published
/// schema, as a validator says that knows nothing of ours. It is the one in the Python
/// environment of the suites (`cargo xtask test` makes it); without it nothing is said.
impl Drop for Place {
    fn drop(&mut self) {
        let experiments = self.data().join("data/experiments");
        let runs = std::fs::read_dir(experiments).into_iter().flatten();
        let manifests: Vec<PathBuf> = runs
            .flatten()
            .map(|run| run.path().join("run_manifest.json"))
            .filter(|path| path.is_file())
            .collect();
        if manifests.is_empty() || std::thread::panicking() {
            return;
        }
        if let Some(said) = broken_manifests(&manifests) {
            panic!("manifests that are not valid under their schema:\n{said}");
        }
    }
}

/// What an independent validator says against these manifests.
fn broken_manifests(manifests: &[PathBuf]) -> Option<String> {
    const CHECK: &str = "\
import json, sys, jsonschema_rs
schema = jsonschema_rs.validator_for(json.load(open(sys.argv[1])))
for path in sys.argv[2:]:
    for error in schema.iter_errors(json.load(open(path))):
        print(path, list(error.instance_path), error.message)
";
    let program = std::env::current_exe().ok()?;
    let folders = program.ancestors();
    let mut pythons = folders.map(|folder| folder.join("pyenv/bin/python"));
    let Some(python) = pythons.find(|python| python.exists()) else {
        assert!(std::env::var_os("CI").is_none(), "no pyenv in CI");
        return None;
    };
    let schema = Path::new(env!("CARGO_MANIFEST_DIR"));
    let schema = schema.join("../mlmesh-proof/schema/run_manifest-1.json");
    let mut check = Command::new(python);
    check.args(["-I", "-c", CHECK]).arg(schema).args(manifests);
    let answer = answer(&mut check);
    let is_whole = answer.code == 0 && answer.stdout.is_empty();
    (!is_whole).then(|| answer.stdout + &answer.stderr)
}

/// Runs a command to its end.
pub fn answer(command: &mut Command) -> Answer {
    let output = command.output().expect("the program is executed");
    Answer {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).expect("text on standard output"),
        stderr: String::from_utf8(output.stderr).expect("text on standard error"),
    }
}

impl Answer {
    /// Asserts the exit code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "\n-- stdout\n{}\n-- stderr\n{}",
            self.stdout, self.stderr
        );
        self
    }

    /// Standard output as one JSON value.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}\n-- stderr\n{}", self.stdout, self.stderr))
    }

    /// Standard error as the one line of JSON that an error is.
    #[track_caller]
    pub fn error(&self) -> Value {
        assert_eq!(self.stderr.lines().count(), 1, "{}", self.stderr);
        let error: Value = serde_json::from_str(&self.stderr).expect("an error in JSON");
        let keys: Vec<&String> = error
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, _)| key)
            .collect();
        assert_eq!(keys, ["code", "details", "hint", "message"]);
        error
    }
}

/// Waits for something that other processes do.
#[track_caller]
pub fn wait(what: &str, reached: impl FnMut() -> bool) {
    assert!(wait_until(PATIENCE, reached), "waited for {what}");
}

/// Bytes that do not repeat, the same in each call.
pub fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}
