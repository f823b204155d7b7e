//! What a daemon costs that does nothing, and a supervisor whose job does nothing.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Pid;
use serde_json::Value;

use super::Row;
use crate::mesh::Mesh;
use crate::meter::{process, resident};
use crate::step;
use crate::workspace::Workspace;

const SETTLE: Duration = Duration::from_secs(2);
const WATCH: Duration = Duration::from_secs(20);
const START_MAX: Duration = Duration::from_secs(10);

pub(super) fn run(workspace: &Workspace) -> Result<Vec<Row>> {
    let mesh = Mesh::new(workspace, "release")?;
    let daemon = mesh.up()?;
    thread::sleep(SETTLE);
    let before = process(daemon)?;
    thread::sleep(WATCH);
    let share = (process(daemon)? - before) / WATCH.as_secs_f64() * 100.0;
    let mebibytes = resident(daemon)? / (1024 * 1024);
    let supervisor = resident(supervisor(&mesh)?)? / 1024;
    step::quiet(&mut mesh.ml(&["down", "--stop-jobs"]))?;
    Ok(vec![
        Row::alone(
            "idle daemon",
            format!("{mebibytes} MiB, {share:.2} % of a CPU"),
            "< 50 MB, < 1 %",
        ),
        Row::alone("supervisor", format!("{supervisor} KiB"), "< 5 MB"),
    ])
}

/// Starts a job that sleeps; the process of its supervisor.
fn supervisor(mesh: &Mesh) -> Result<Pid> {
    let recipe = mesh.folder().join("sleep.yaml");
    fs::write(
        &recipe,
        "experiment:\n  name: sleep\n  command: [sleep, \"600\"]\n",
    )?;
    let words = ["queue", "sleep.yaml", "-q", "--repro-policy", "relaxed"];
    let run = step::read(mesh.ml(&words).current_dir(mesh.folder()))?;
    let journal = mesh.data().join("data/experiments").join(run.trim());
    let journal = journal.join("attempt-1/journal");
    let deadline = Instant::now() + START_MAX;
    while Instant::now() < deadline {
        let lines = fs::read_to_string(&journal).unwrap_or_default();
        let entries: Vec<Value> = lines
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let begun = entries
            .iter()
            .find_map(|entry| entry["begun"]["pid"].as_i64());
        if let Some(pid) = begun
            && entries.iter().any(|entry| !entry["started"].is_null())
        {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            return pid.context("a process has a number above zero");
        }
        thread::sleep(Duration::from_millis(20));
    }
    bail!("the job that sleeps did not start within {START_MAX:?}")
}
