//! `cargo xtask demo`: from nothing to a page about nine runs, with a kill in between, the
//! best run executed once more, and handed on to a second daemon as one signed file.
//!
//! ```text
//!   digits.csv.gz ─► ml data add ─┐
//!   examples/digits ─► ml queue ──┴─► watch ─► SIGKILL ─► ml up ─► watch
//!      ─► ml compare, ml reproduce ─► ml export, --verify ─► table, page
//!   a second data directory: ml import ─► ml reproduce
//! ```
//!
//! The daemon lives in a temporary directory and is gone at the end, whatever happens.
//! What stays is under the target directory: the downloaded data and the page.

mod again;
mod chart;
mod digits;
mod handed_on;
pub mod page;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::mesh::Mesh;
use crate::workspace::Workspace;
use crate::{parts, step};
use page::{Curve, Kill, Page, Reason, Run};

const POLL: Duration = Duration::from_millis(100);
/// A sweep that is worth a page.
const RUNS_MIN: usize = 9;
const RUNS_MAX_WAIT: Duration = Duration::from_secs(300);
/// The daemon is killed when so many runs are done and others are under way.
const DONE_BEFORE_KILL: u64 = 3;

/// Runs the demo. The last line on stdout is the path of the page.
pub fn run(workspace: &Workspace) -> Result<()> {
    let missing = parts::ensure(|part| parts::DEMO_PACKAGES.contains(&part.package))?;
    ensure!(missing.is_empty(), "the demo needs {}", missing.join(", "));
    step::run(
        "build",
        &mut step::cargo(&workspace.root, &["build", "--bin", "ml", "--bin", "meshd"]),
    )?;
    let start = Instant::now();
    let cache = workspace.target.join("demo");
    let data = digits::fetch(&cache)?;
    let page_path = cache.join("digits.html");
    let mesh = Mesh::new(workspace, "debug")?;

    let pid = mesh.up()?;
    step::say(format_args!(
        "daemon: process {}, data in {}",
        pid.as_raw_nonzero(),
        mesh.data().display()
    ));
    let checksum = register(&mesh, &data)?;
    let project = digits::project(
        &workspace.root.join("examples/digits"),
        &mesh.folder().join("digits"),
        &checksum,
    )?;
    let sweep = step::read(
        mesh.ml(&["queue", "train.yaml", "-q"])
            .current_dir(&project),
    )?;
    let children = children(&mesh, &sweep)?;
    step::say(format_args!(
        "queued: sweep {sweep} of {} runs, policy strict",
        children.len()
    ));

    let total = u64::try_from(children.len())?;
    let kill = watch_and_kill(&mesh, total)?;
    watch(&mesh, total, |counts| counts.ended() >= total)?;
    let mut runs = children
        .iter()
        .map(|id| read_run(&mesh, id))
        .collect::<Result<Vec<Run>>>()?;
    let again = again::run(&mesh, &mut runs)?;
    let handed_on = handed_on::run(workspace, &mesh, &again.best, &data)?;
    mesh.down()?;

    let page = Page {
        again,
        handed_on,
        checksum,
        source: digits::SOURCE.to_owned(),
        kill,
        seconds: start.elapsed().as_secs_f64(),
        runs,
    };
    step::say(page::table(&page));
    step::say(digits::SOURCE);
    fs::write(&page_path, page::html(&page))
        .with_context(|| format!("write {}", page_path.display()))?;
    let bad: Vec<&str> = page
        .runs
        .iter()
        .filter(|run| run.phase != "completed")
        .map(|run| run.id.as_str())
        .collect();
    ensure!(
        bad.is_empty(),
        "runs that did not complete: {}",
        bad.join(", ")
    );
    ensure!(
        page.runs
            .iter()
            .all(|run| run.trust == "L3" || run.id == page.again.best),
        "a run under the strict policy has a level other than L3"
    );
    step::say(format_args!(
        "{:.1} s after the build",
        start.elapsed().as_secs_f64()
    ));
    step::say(page_path.display());
    Ok(())
}

/// Registers the file in place and returns its checksum.
fn register(mesh: &Mesh, data: &Path) -> Result<String> {
    let path = data
        .to_str()
        .context("the target directory's path is not UTF-8")?;
    let added = mesh.json(&["data", "add", "digits", "1", path])?;
    let checksum = added["checksum"]
        .as_str()
        .with_context(|| format!("`ml data add --json` has no `checksum`: {added}"))?;
    Ok(format!("sha256:{}", checksum.trim_start_matches("sha256:")))
}

fn children(mesh: &Mesh, sweep: &str) -> Result<Vec<String>> {
    let list = mesh.json(&["list", "--parent", sweep])?;
    let ids: Vec<String> = list["runs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|run| run["id"].as_str())
        .map(str::to_owned)
        .collect();
    ensure!(
        ids.len() >= RUNS_MIN,
        "sweep {sweep} has {} runs, expected at least {RUNS_MIN}: {list}",
        ids.len()
    );
    Ok(ids)
}

/// How many runs stand in each phase.
struct Counts(BTreeMap<String, u64>);

impl Counts {
    fn read(mesh: &Mesh) -> Result<Counts> {
        let status = mesh.json(&["status"])?;
        let counts = status["counts"]
            .as_object()
            .with_context(|| format!("`ml status --json` has no `counts`: {status}"))?;
        Ok(Counts(
            counts
                .iter()
                .map(|(phase, count)| (phase.clone(), count.as_u64().unwrap_or_default()))
                .collect(),
        ))
    }

    fn of(&self, phases: &[&str]) -> u64 {
        phases.iter().filter_map(|phase| self.0.get(*phase)).sum()
    }

    fn ended(&self) -> u64 {
        self.of(&["completed", "failed", "cancelled", "interrupted"])
    }

    fn live(&self) -> u64 {
        self.of(&["starting", "running", "finishing"])
    }
}

/// Shows progress until `done` holds. On a terminal one line is written over and
/// over; elsewhere a line appears when something has changed.
fn watch(mesh: &Mesh, total: u64, done: impl Fn(&Counts) -> bool) -> Result<Counts> {
    let start = Instant::now();
    let terminal = io::stdout().is_terminal();
    let mut shown = String::new();
    loop {
        let counts = Counts::read(mesh)?;
        let line = format!(
            "runs: {} of {total} ended, {} under way, {} queued",
            counts.ended(),
            counts.live(),
            counts.of(&["queued"])
        );
        if line != shown {
            if terminal {
                drop(write!(io::stdout(), "\r\x1b[2K{line}").and_then(|()| io::stdout().flush()));
            } else {
                step::say(&line);
            }
            shown = line;
        }
        if done(&counts) {
            if terminal {
                step::say("");
            }
            return Ok(counts);
        }
        if start.elapsed() > RUNS_MAX_WAIT {
            bail!("{shown} after {RUNS_MAX_WAIT:?}; {}", mesh.data().display());
        }
        thread::sleep(POLL);
    }
}

fn watch_and_kill(mesh: &Mesh, total: u64) -> Result<Kill> {
    let counts = watch(mesh, total, |counts| {
        (counts.ended() >= DONE_BEFORE_KILL && counts.of(&["running"]) > 0)
            || counts.ended() >= total
    })?;
    ensure!(
        counts.ended() < total,
        "all runs ended before the daemon could be killed"
    );
    let killed = mesh.kill()?;
    step::say(format_args!(
        "SIGKILL: daemon {} with {} runs under way",
        killed.as_raw_nonzero(),
        counts.live()
    ));
    let now = mesh.up()?;
    step::say(format_args!(
        "daemon: process {}, goes on",
        now.as_raw_nonzero()
    ));
    Ok(Kill {
        ended: counts.ended(),
        live: counts.live(),
        queued: counts.of(&["queued"]),
    })
}

/// Everything that the page shows of one run.
fn read_run(mesh: &Mesh, id: &str) -> Result<Run> {
    let info = mesh.json(&["info", id])?;
    let text = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let params = info["plan"]["params"]
        .as_object()
        .with_context(|| format!("`ml info {id} --json` has no `plan.params`"))?;
    let reasons = info["trust"]["reasons"].as_array().into_iter().flatten();
    let outputs = mesh.folder().join("outputs").join(id);
    let folder = outputs
        .to_str()
        .context("the temporary directory's path is not UTF-8")?;
    let curves = match info["phase"].as_str() {
        Some("completed") => {
            step::quiet(&mut mesh.ml(&["outputs", id, "-o", folder]))?;
            read_curves(&outputs.join("metrics.jsonl"))?
        }
        _ => BTreeMap::new(),
    };
    Ok(Run {
        id: id.to_owned(),
        phase: text(&info["phase"]),
        params: params
            .iter()
            .map(|(name, value)| (name.clone(), text(value)))
            .collect(),
        accuracy: info["metrics"]["accuracy"]["last"].as_f64(),
        loss: info["metrics"]["loss"]["last"].as_f64(),
        plan: text(&info["plan_sha256"]),
        trust: text(&info["trust"]["level"]),
        reasons: reasons
            .map(|reason| Reason {
                level: text(&reason["level"]),
                message: text(&reason["message"]),
            })
            .collect(),
        curves,
    })
}

/// The points of each metric, in the order in which the job wrote them.
fn read_curves(path: &Path) -> Result<BTreeMap<String, Curve>> {
    let lines = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let mut curves: BTreeMap<String, Curve> = BTreeMap::new();
    for line in lines.lines() {
        let point: Value = serde_json::from_str(line)
            .with_context(|| format!("{} has a line `{line}`", path.display()))?;
        if let (Some(name), Some(step), Some(value)) = (
            point["name"].as_str(),
            point["step"].as_f64(),
            point["value"].as_f64(),
        ) {
            curves
                .entry(name.to_owned())
                .or_default()
                .push((step, value));
        }
    }
    Ok(curves)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_read_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        fs::write(&path, "{\"name\":\"loss\",\"value\":2.5,\"step\":1,\"time\":0}\n{\"name\":\"accuracy\",\"value\":0.5,\"step\":1}\n{\"name\":\"loss\",\"value\":2,\"step\":2}\n").unwrap();
        let curves = read_curves(&path).unwrap();
        assert_eq!(curves["loss"], [(1.0, 2.5), (2.0, 2.0)]);
        assert_eq!(curves["accuracy"], [(1.0, 0.5)]);
        fs::write(&path, "no json").unwrap();
        assert!(read_curves(&path).is_err());
    }
}
