//! A daemon of a test's own, started and stopped by `ml`.

use std::path::Path;

use crate::program::{Answer, Place, place};

/// A place with a daemon, which goes away with it.
pub(crate) struct Mesh {
    pub(crate) place: Place,
}

/// Prints to both streams, writes metrics and files, then does what it is told.
const JOB: &str = r#"
import json, os, signal, sys, time
word, *rest = sys.argv[1:] or ["ok"]
print("out", word, flush=True)
print("err", word, file=sys.stderr, flush=True)
with open("metrics.jsonl", "w") as f:
    for step, loss in enumerate([0.5, 0.25, 0.75]):
        f.write(json.dumps({"name": "loss", "value": loss, "step": step}) + "\n")
os.makedirs("plots", exist_ok=True)
open("plots/a.svg", "w").write("<svg/>")
open("model.txt", "w").write(word)
if word == "exit":
    sys.exit(int(rest[0]))
if word == "signal":
    os.kill(os.getpid(), int(rest[0]))
if word == "wait":
    while not os.path.exists(rest[0]):
        time.sleep(0.01)
if word == "environment":
    print(json.dumps(dict(os.environ), sort_keys=True))
if word == "forever":
    time.sleep(600)
"#;

impl Mesh {
    /// Starts a daemon on a port that is free.
    pub(crate) fn up() -> Self {
        Self::up_with("", "")
    }

    /// The same with more settings: the project's under `[client]`, and the user's.
    pub(crate) fn up_with(project: &str, user: &str) -> Self {
        let meshd = Path::new(env!("CARGO_BIN_EXE_ml")).with_file_name("meshd");
        assert!(
            meshd.is_file(),
            "{} is not there; hint: `cargo build --bins`",
            meshd.display()
        );
        let mesh = Self { place: place() };
        let settings = format!("[client]\nrepro_policy = \"relaxed\"\n{project}");
        mesh.place.write("mlmesh.toml", settings);
        if !user.is_empty() {
            mesh.place.write("../home/config/mlmesh.toml", user);
        }
        mesh.place.write("job.py", JOB);
        mesh.ml(&["up", "--port", "0"]).exits(0);
        mesh
    }

    pub(crate) fn ml(&self, arguments: &[&str]) -> Answer {
        self.place.ml(arguments)
    }

    /// Writes a recipe that runs the job with these words; `more` are lines of it.
    pub(crate) fn recipe(&self, name: &str, words: &[&str], more: &str) -> String {
        let words = words
            .iter()
            .map(|word| format!(", {}", serde_json::json!(word)));
        let words: String = words.collect();
        let text = format!(
            "experiment:\n  name: {name}\n  command: [python3, job.py{words}]\n  seed: none\n{}",
            more.lines()
                .map(|line| format!("  {line}\n"))
                .collect::<String>()
        );
        let file = format!("{name}.yaml");
        self.place.write(&file, &text);
        file
    }

    /// Queues and gives the id.
    pub(crate) fn queue(&self, recipe: &str) -> String {
        let answer = self.ml(&["queue", "-q", recipe]).exits(0);
        assert_eq!(answer.stderr, "");
        let id = answer.stdout.strip_suffix('\n').unwrap().to_owned();
        assert_eq!(id.len(), 12, "{id}");
        id
    }

    /// Waits until a run is in a phase.
    pub(crate) fn wait_for_phase(&self, id: &str, phase: &str) {
        self.wait(&format!("run {id} to be {phase}"), || {
            self.ml(&["info", id, "--json"]).exits(0).json()["phase"] == phase
        });
    }

    /// Waits for a condition.
    pub(crate) fn wait(&self, what: &str, reached: impl Fn() -> bool) {
        mlmesh_testkit::place::wait(what, reached);
    }

    pub(crate) fn pid(&self) -> i32 {
        let text = std::fs::read_to_string(self.place.data().join("meshd.json")).unwrap();
        let file: serde_json::Value = serde_json::from_str(&text).unwrap();
        file["pid"].as_i64().unwrap() as i32
    }

    /// Kills the daemon as a power cut would.
    pub(crate) fn kill(&self) {
        let pid = rustix::process::Pid::from_raw(self.pid()).unwrap();
        let handle =
            rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let mut ended = [rustix::event::PollFd::new(
            &handle,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut ended, None).unwrap();
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let down = self.ml(&["down", "--stop-jobs"]);
        if down.code != 0 && !std::thread::panicking() {
            panic!("{}", down.stderr);
        }
    }
}
