//! A campaign that kills the daemon under load and counts what was lost.
//!
//! Submitters queue small jobs through `ml` without pause. The daemon is killed
//! again and again: with SIGKILL at a random moment, or by itself at a named
//! write point (`MLMESH_CRASH_AT`). Each job writes one line to a witness file
//! when its command starts, so a command that was executed twice is seen, whatever
//! the store says. After the last kill a daemon without faults must finish
//! everything; then the books are compared.
//!
//! ```text
//!   submitters ── ml queue -q ──► daemon ─┬─ killed, started again, n times
//!        │ acknowledged ids       ▲       └─ jobs ──► witness file
//!        │        chores ─────────┘                      │
//!        └──── compared with store, events, logs, outputs, /proc ──┘
//! ```
//!
//! One seed derives every random choice; it is printed, and kept with a failure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use chores::Chores;

mod chores;

/// What a campaign does.
#[derive(Debug, Clone)]
pub struct Campaign {
    /// How often the daemon dies.
    pub kills: u32,
    /// Derives every random choice.
    pub seed: u64,
    /// Value for `meshd run --store`; none means SQLite in the data directory.
    pub store: Option<String>,
    /// Named write points; every second death is at one of them, in turn.
    pub points: Vec<&'static str>,
    /// The programs.
    pub programs: Programs,
}

/// Where `ml` and `meshd` are.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The command line.
    pub ml: PathBuf,
    /// The daemon.
    pub meshd: PathBuf,
}

/// What a campaign saw.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Acknowledged submissions.
    pub acknowledged: usize,
    /// Deaths by SIGKILL from outside.
    pub killed: u32,
    /// Deaths at a named point, by point.
    pub died_at: BTreeMap<String, u32>,
    /// Daemons that were asked to die at a point and did not come to it.
    pub points_missed: u32,
}

const SUBMITTERS: usize = 3;
/// Submitters pause while this many acknowledged jobs have not started.
const BACKLOG_MAX: usize = 60;
const READY_TIMEOUT: Duration = Duration::from_secs(20);
const FINISH_TIMEOUT: Duration = Duration::from_secs(180);
/// A daemon that is to die at a point gets this long before it is killed.
const POINT_TIMEOUT: Duration = Duration::from_millis(2000);
/// Lines that each job writes to each stream.
const LOG_LINES: usize = 20;

/// Runs the campaign; an error is a law that did not hold.
pub fn run(campaign: &Campaign) -> Result<Report> {
    let site = Site::new(campaign)?;
    let mut random = Random(campaign.seed);
    let mut report = Report::default();
    let acknowledged = Mutex::new(BTreeSet::new());
    let stop = AtomicBool::new(false);
    let serial = AtomicU64::new(0);
    let chores = Chores::new(&site)?;
    let outcome = std::thread::scope(|scope| {
        for _ in 0..SUBMITTERS {
            scope.spawn(|| site.submit_until(&stop, &serial, &acknowledged));
        }
        scope.spawn(|| chores.do_until(&site, &stop));
        let killing = (0..campaign.kills).try_for_each(|kill| {
            let aim = (kill % 2 == 1 && !campaign.points.is_empty())
                .then(|| campaign.points[(kill / 2) as usize % campaign.points.len()]);
            chores.aim_at(aim.unwrap_or_default());
            site.one_life(kill, aim, &mut random, &mut report)
        });
        stop.store(true, Ordering::Relaxed);
        killing
    });
    outcome.with_context(|| site.last_words())?;
    let acknowledged = acknowledged
        .into_inner()
        .map_err(|_| anyhow::anyhow!("a submitter panicked"))?;
    report.acknowledged = acknowledged.len();
    let mut daemon = site.start(None)?;
    let checked = site
        .settle()
        .and_then(|()| site.compare_books(&acknowledged))
        .and_then(|()| chores.compare(&site));
    let stopped = site.stop(&mut daemon);
    checked.with_context(|| site.last_words())?;
    stopped?;
    site.no_process_left()?;
    Ok(report)
}

/// The data directory, the project and the witness of one campaign.
struct Site {
    programs: Programs,
    store: Option<String>,
    /// Removed at the end, also when a law did not hold.
    home: tempfile::TempDir,
}

impl Site {
    fn new(campaign: &Campaign) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("mlmesh-kill-").tempdir()?;
        let project = home.path().join("project");
        std::fs::create_dir(&project)?;
        let witness = home.path().join("witness");
        std::fs::write(&witness, "")?;
        std::fs::write(project.join("mlmesh.toml"), "")?;
        std::fs::write(project.join("job.sh"), JOB)?;
        std::fs::write(
            project.join("train.yaml"),
            format!(
                "experiment:\n  name: witness\n  command: [sh, job.sh, \"${{n}}\"]\n  params: {{n: 0}}\n  seed: none\n  \
                 resources: {{cpus: 0.1}}\n  outputs: [out.txt]\n  env: {{WITNESS: \"{}\"}}\n",
                witness.display()
            ),
        )?;
        Ok(Self {
            programs: campaign.programs.clone(),
            store: campaign.store.clone(),
            home,
        })
    }

    fn data_dir(&self) -> PathBuf {
        self.home.path().join("data")
    }

    fn ml(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.programs.ml);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .env("MLMESH_DATA_DIR", self.data_dir())
            .current_dir(self.home.path().join("project"))
            .stdin(Stdio::null());
        command
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.ml(arguments).output()?;
        ensure!(
            output.status.success(),
            "ml {}: {}: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Starts a daemon and waits until it is ready, or dead at its point.
    fn start(&self, crash_at: Option<&str>) -> Result<Child> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.home.path().join("daemon.out"))?;
        let mut command = Command::new(&self.programs.meshd);
        command
            .args(["run", "--port", "0", "--data-dir"])
            .arg(self.data_dir())
            .env("HOME", self.home.path())
            .env_remove("MLMESH_DATA_DIR")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if let Some(store) = &self.store {
            command.arg("--store").arg(store);
        }
        if let Some(point) = crash_at {
            command.env("MLMESH_CRASH_AT", point);
        }
        let mut child = command
            .spawn()
            .with_context(|| format!("start {}", self.programs.meshd.display()))?;
        let deadline = Instant::now() + READY_TIMEOUT;
        while !self.names(child.id()) {
            if let Some(status) = child.try_wait()? {
                if crash_at.is_some() {
                    return Ok(child);
                }
                bail!("the daemon ended before it was ready: {status}");
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                bail!("the daemon was not ready within {READY_TIMEOUT:?}");
            }
            pause();
        }
        Ok(child)
    }

    /// Whether `meshd.json` names this process.
    fn names(&self, pid: u32) -> bool {
        std::fs::read(self.data_dir().join("meshd.json"))
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
            .is_some_and(|file| file["pid"] == pid)
    }

    /// One daemon from its start to its death.
    fn one_life(
        &self,
        kill: u32,
        point: Option<&'static str>,
        random: &mut Random,
        report: &mut Report,
    ) -> Result<()> {
        let Some(point) = point else {
            let mut daemon = self.start(None)?;
            let life = Duration::from_millis(20 + random.below(350));
            wait_until(life, || {
                daemon.try_wait().is_ok_and(|status| status.is_some())
            });
            if let Some(status) = daemon.try_wait()? {
                bail!("kill {kill}: the daemon ended by itself: {status}");
            }
            daemon.kill()?;
            daemon.wait()?;
            report.killed += 1;
            return Ok(());
        };
        let passed = if Chores::is_rare(point) { 1 } else { 4 };
        let armed = format!("{point}:{}", 1 + random.below(passed));
        let mut daemon = self.start(Some(&armed))?;
        let mut status = None;
        wait_until(POINT_TIMEOUT, || {
            status = daemon.try_wait().ok().flatten();
            status.is_some()
        });
        if status.is_some() {
            *report.died_at.entry(point.to_owned()).or_default() += 1;
        } else {
            daemon.kill()?;
            daemon.wait()?;
            report.points_missed += 1;
        }
        Ok(())
    }

    fn submit_until(
        &self,
        stop: &AtomicBool,
        serial: &AtomicU64,
        acknowledged: &Mutex<BTreeSet<String>>,
    ) {
        while !stop.load(Ordering::Relaxed) {
            let accepted = acknowledged.lock().map_or(0, |ids| ids.len());
            if accepted > self.witnessed().map_or(0, |lines| lines.len()) + BACKLOG_MAX {
                pause();
                continue;
            }
            let value = format!("n={}", serial.fetch_add(1, Ordering::Relaxed));
            let arguments = [
                "queue",
                "train.yaml",
                "-q",
                "--repro-policy",
                "relaxed",
                "--set",
                &value,
            ];
            // Without a daemon the call fails, and nothing was acknowledged.
            if let Ok(output) = self.ml(&arguments).stderr(Stdio::null()).output() {
                let text = String::from_utf8_lossy(&output.stdout);
                if let (Some(id), Ok(mut ids)) =
                    (text.split_whitespace().next(), acknowledged.lock())
                {
                    ids.insert(id.to_owned());
                } else {
                    pause();
                }
            }
        }
    }

    /// Waits until nothing is queued or live.
    fn settle(&self) -> Result<()> {
        let mut counts = Value::Null;
        let settled = wait_until(FINISH_TIMEOUT, || {
            let Ok(status) = self.json(&["status", "--json"]) else {
                return false;
            };
            counts = status["counts"].clone();
            ["queued", "starting", "running", "finishing"]
                .iter()
                .all(|phase| counts[*phase] == 0)
        });
        ensure!(
            settled,
            "runs were still open after {FINISH_TIMEOUT:?}: {counts}"
        );
        Ok(())
    }

    /// Lines of the witness: run and attempt of each command that was executed.
    fn witnessed(&self) -> Result<Vec<(String, u32)>> {
        let text = std::fs::read_to_string(self.home.path().join("witness"))?;
        text.lines()
            .map(|line| {
                let (run, attempt) = line
                    .split_once(' ')
                    .with_context(|| format!("torn witness line `{line}`"))?;
                Ok((run.to_owned(), attempt.parse()?))
            })
            .collect()
    }

    fn compare_books(&self, acknowledged: &BTreeSet<String>) -> Result<()> {
        // What this daemon has not touched is spared only when a run refers to it.
        let pruned = self.ml(&["prune"]).output()?;
        ensure!(
            pruned.status.success(),
            "ml prune: {}",
            String::from_utf8_lossy(&pruned.stderr)
        );
        let witnessed = self.witnessed()?;
        let mut executed = BTreeMap::<&str, u32>::new();
        for (run, _) in &witnessed {
            *executed.entry(run).or_default() += 1;
        }
        let twice: Vec<_> = executed.iter().filter(|(_, times)| **times > 1).collect();
        ensure!(
            twice.is_empty(),
            "commands that were executed more than once: {twice:?}"
        );
        let lost: Vec<_> = acknowledged
            .iter()
            .filter(|id| !executed.contains_key(id.as_str()))
            .collect();
        ensure!(
            lost.is_empty(),
            "acknowledged runs whose command was never executed: {lost:?}"
        );
        let completed = self.completions()?;
        for (run, times) in &completed {
            ensure!(*times == 1, "run {run} was committed {times} times");
        }
        for run in executed.keys() {
            ensure!(
                completed.contains_key(*run),
                "run {run} was executed and never completed: {}",
                self.describe(run)
            );
            self.check_log(run)?;
            self.check_output(run)?;
        }
        let counts = self.json(&["status", "--json"])?["counts"].clone();
        ensure!(
            counts["completed"] == executed.len(),
            "{} commands were executed, the store counts {counts}",
            executed.len()
        );
        Ok(())
    }

    fn describe(&self, run: &str) -> String {
        self.json(&["info", run, "--json"]).map_or_else(
            |error| error.to_string(),
            |info| {
                format!(
                    "phase {} cause {} message {}",
                    info["phase"], info["cause"], info["message"]
                )
            },
        )
    }

    /// How often each run became `completed`, by the events.
    fn completions(&self) -> Result<BTreeMap<String, u32>> {
        let output = self.ml(&["events", "--after", "0", "--json"]).output()?;
        ensure!(
            output.status.success(),
            "ml events: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let mut completed = BTreeMap::new();
        for line in String::from_utf8(output.stdout)?.lines() {
            let event: Value = serde_json::from_str(line)?;
            if event["event"]["phase"] == "completed" {
                let run = event["run"].as_str().context("an event without its run")?;
                *completed.entry(run.to_owned()).or_default() += 1;
            }
        }
        Ok(completed)
    }

    fn check_log(&self, run: &str) -> Result<()> {
        let output = self.ml(&["logs", run]).output()?;
        for (stream, bytes, word) in [
            ("stdout", &output.stdout, "line"),
            ("stderr", &output.stderr, "err"),
        ] {
            let seen = String::from_utf8_lossy(bytes);
            let expected: String = (0..LOG_LINES)
                .map(|line| format!("{word} {line}\n"))
                .collect();
            ensure!(
                seen == expected,
                "the {stream} of run {run} is not complete:\n{seen}"
            );
        }
        Ok(())
    }

    /// The run's output is there; `ml` compares it with its digest.
    fn check_output(&self, run: &str) -> Result<()> {
        let folder = self.home.path().join("outputs").join(run);
        let output = self
            .ml(&["outputs", run, "-o"])
            .arg(&folder)
            .stderr(Stdio::piped())
            .output()?;
        ensure!(
            output.status.success() && folder.join("out.txt").is_file(),
            "the output of run {run} is not there: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    fn stop(&self, daemon: &mut Child) -> Result<()> {
        let output = self.ml(&["down"]).output()?;
        if !output.status.success() {
            daemon.kill()?;
            daemon.wait()?;
            bail!("ml down: {}", String::from_utf8_lossy(&output.stderr));
        }
        daemon.wait()?;
        Ok(())
    }

    /// No process of the campaign is left: none names its data directory.
    fn no_process_left(&self) -> Result<()> {
        let needle = self.data_dir().into_os_string().into_encoded_bytes();
        let mut left = Vec::new();
        let gone = wait_until(Duration::from_secs(5), || {
            left = processes_naming(&needle);
            left.is_empty()
        });
        ensure!(gone, "processes that outlived their run: {left:?}");
        Ok(())
    }

    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(self.home.path().join("daemon.out")).unwrap_or_default();
        let tail: Vec<_> = text.lines().rev().take(20).collect();
        let lines: Vec<_> = tail.into_iter().rev().collect();
        format!("the daemon's last words:\n{}", lines.join("\n"))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // A campaign that failed may leave a daemon and jobs behind.
        for pid in processes_naming(self.data_dir().as_os_str().as_encoded_bytes()) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

const JOB: &str = r#"printf '%s %s\n' "$MLMESH_RUN_ID" "$MLMESH_ATTEMPT" >>"$WITNESS"
i=0
while [ $i -lt 20 ]; do echo "line $i"; echo "err $i" >&2; i=$((i+1)); done
echo "$1" >out.txt
"#;

/// Processes whose arguments, environment or folder contain `needle`, ourselves apart.
pub fn processes_naming(needle: &[u8]) -> Vec<i32> {
    let own = std::process::id().to_string();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()) && *name != own)
        .filter(|pid| {
            let folder = Path::new("/proc").join(pid);
            let names = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
            let works_in = std::fs::read_link(folder.join("cwd"));
            works_in.is_ok_and(|path| names(path.as_os_str().as_encoded_bytes()))
                || ["cmdline", "environ"]
                    .iter()
                    .any(|file| std::fs::read(folder.join(file)).is_ok_and(|bytes| names(&bytes)))
        })
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// Waits for a condition; false when it did not come true in time.
pub fn wait_until(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        pause();
    }
}

/// Gives way between two looks at a condition.
fn pause() {
    std::thread::park_timeout(Duration::from_millis(3));
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// The seed of this test run: `MLMESH_SEED`, or one drawn and printed.
pub fn seed() -> Result<u64> {
    if let Ok(text) = std::env::var("MLMESH_SEED") {
        return text
            .parse()
            .with_context(|| format!("MLMESH_SEED `{text}` is not a number"));
    }
    let mut bytes = [0_u8; 8];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_le_bytes(bytes) >> 16)
}
