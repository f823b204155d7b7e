//! A home, a project, a data directory and a daemon for one test.

use std::ffi::OsStr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use mlmesh_testkit::daemon::program;
pub(crate) use mlmesh_testkit::place::{Answer, answer, noise, wait};
use serde_json::Value;

/// Goes away with its daemon at the end of a test.
pub(crate) struct Place(mlmesh_testkit::place::Place);

impl Deref for Place {
    type Target = mlmesh_testkit::place::Place;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Place {
    /// A place whose daemon is up.
    pub(crate) fn up() -> Self {
        let place = Self::down();
        place.ml(&["up", "--port", "0"]).exits(0);
        place
    }

    /// A place without a daemon. The project has an empty lock, which pins that
    /// nothing but Python's own library is there.
    pub(crate) fn down() -> Self {
        let place = Self(mlmesh_testkit::place::Place::new(program("ml")));
        place.write("mlmesh.toml", "");
        place.write("requirements.lock", "");
        place
    }

    /// Writes `NAME.yaml`, which runs `NAME.py`, seeded and in the locked
    /// environment; `more` are further lines of it.
    pub(crate) fn strict(&self, name: &str, code: &str, more: &str) -> String {
        let environment = format!("environment: {{python: \"{}\"", python_version());
        let more = format!("seed: 7\n{environment}, lock: requirements.lock}}\n{more}");
        self.bare(name, code, &more)
    }

    /// The same without seed and environment.
    pub(crate) fn bare(&self, name: &str, code: &str, more: &str) -> String {
        self.write(&format!("{name}.py"), code);
        self.recipe(name, &format!("command: [python3, {name}.py]\n{more}"))
    }

    /// Writes `NAME.yaml` with these lines of an experiment.
    pub(crate) fn recipe(&self, name: &str, lines: &str) -> String {
        let lines: String = lines.lines().map(|line| format!("  {line}\n")).collect();
        let file = format!("{name}.yaml");
        self.write(&file, format!("experiment:\n  name: {name}\n{lines}"));
        file
    }

    /// `ml ARGUMENTS --json` to an end with code 0: its data.
    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let arguments = [arguments, &["--json"]].concat();
        self.ml(&arguments).exits(0).json()
    }

    /// Queues a recipe and waits for its end, however that is: `ml info --json`.
    #[track_caller]
    pub(crate) fn ended(&self, recipe: &str, options: &[&str]) -> Value {
        let arguments = [&["queue", "-q", "--wait", recipe], options].concat();
        let queued = self.ml(&arguments);
        let id = queued.stdout.strip_suffix('\n').unwrap_or_default();
        assert_eq!(id.len(), 12, "{}\n{}", queued.stdout, queued.stderr);
        self.json(&["info", id])
    }

    /// Runs a recipe to completion: `ml info --json` and its output.
    #[track_caller]
    pub(crate) fn completed(&self, recipe: &str, options: &[&str]) -> (Value, String) {
        let info = self.ended(recipe, options);
        let id = info["id"].as_str().unwrap();
        let logs = self.ml(&["logs", id]);
        assert_eq!(info["phase"], "completed", "{info:#}\n{}", logs.stderr);
        (info, logs.stdout)
    }

    /// The process of the daemon.
    pub(crate) fn daemon_pid(&self) -> u64 {
        let file = std::fs::read(self.data().join("meshd.json")).unwrap();
        let file: Value = serde_json::from_slice(&file).unwrap();
        file["pid"].as_u64().unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let down = self.ml(&["down", "--stop-jobs"]);
        if down.code != 0 && !std::thread::panicking() {
            panic!("{}", down.stderr);
        }
    }
}

/// What a refusal says.
pub(crate) trait Refusals {
    /// Codes of a refusal's reasons; each has a message and a hint.
    fn refusals(&self) -> Vec<String>;
}

impl Refusals for Answer {
    #[track_caller]
    fn refusals(&self) -> Vec<String> {
        let error = self.error();
        let refusals = error["details"]["refusals"].as_array();
        codes(refusals.unwrap_or_else(|| panic!("{error:#}")))
    }
}

/// The words of reasons or refusals; each says what is wrong and what to do.
#[track_caller]
pub(crate) fn codes(reasons: &[Value]) -> Vec<String> {
    let text = |reason: &Value, key: &str| {
        let text = reason[key].as_str().unwrap_or_default().to_owned();
        assert!(!text.is_empty(), "no {key}: {reason}");
        text
    };
    reasons
        .iter()
        .map(|reason| {
            text(reason, "message");
            text(reason, "hint");
            text(reason, "code")
        })
        .collect()
}

/// What a piece of Python prints, the last line's end apart.
#[track_caller]
pub(crate) fn python<S: AsRef<OsStr>>(code: &str, arguments: &[S]) -> String {
    let mut command = Command::new("python3");
    let answer = answer(command.arg("-c").arg(code).args(arguments)).exits(0);
    answer.stdout.trim_end().to_owned()
}

/// The version of `python3` here, as a recipe names it.
pub(crate) fn python_version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| {
        let code = "import sys; print('%d.%d' % sys.version_info[:2])";
        python::<&str>(code, &[])
    })
}

/// Every file below a folder that holds these bytes.
pub(crate) fn files_with(folder: &Path, bytes: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                let content = std::fs::read(&path).unwrap_or_default();
                if content.windows(bytes.len()).any(|window| window == bytes) {
                    found.push(path);
                }
            }
        }
    }
    found
}
