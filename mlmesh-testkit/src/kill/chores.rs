//! Chores beside the submissions of a kill campaign, so that a daemon comes to every
//! named write point: trees that change, large files, prunes, datasets, runs that are
//! cancelled and put back, and runs that are repeated.
//!
//! A prune removes what earlier lives of the daemon left (what this life touched is
//! spared), and each round leaves something for a later one. Calls fail while no daemon is
//! there; only what was acknowledged is remembered.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Site, pause, wait_until};

/// A job that ends at once and writes no witness; it is there to be moved about.
const RECIPE: &str = "experiment:\n  name: moved\n  command: [\"false\"]\n  seed: none\n  \
                      resources: {cpus: 0.1}\n";
/// More than what is packed, so that the object is a file of its own.
const LOOSE_BYTES: usize = 130 << 10;
/// Long enough for a list of chunks when it changes.
const CHUNKED_BYTES: usize = 2 << 20;
/// Long enough to travel in pieces.
const PIECES_BYTES: usize = 8 << 20;

/// A prune in so many rounds.
const PRUNE_ROUNDS: u64 = 8;
/// What has ended is judged within this time.
const JUDGED_TIMEOUT: Duration = Duration::from_secs(60);

/// What the chores share with the campaign.
pub(super) struct Chores {
    project: PathBuf,
    /// The write point at which the present daemon is to die; empty for none.
    aim: Mutex<&'static str>,
    /// Acknowledged names.
    datasets: Mutex<BTreeSet<String>>,
    /// Acknowledged repetitions.
    repetitions: Mutex<BTreeSet<String>>,
}

impl Chores {
    pub(super) fn new(site: &Site) -> Result<Self> {
        let project = site.home.path().join("chores");
        fs::create_dir(&project)?;
        fs::write(project.join("mlmesh.toml"), "")?;
        // In the submitters' folder: a run keeps its commit from being pruned.
        fs::write(site.home.path().join("project/moved.yaml"), RECIPE)?;
        Ok(Self {
            project,
            aim: Mutex::new(""),
            datasets: Mutex::default(),
            repetitions: Mutex::default(),
        })
    }

    /// Says at which write point the next daemon is to die.
    pub(super) fn aim_at(&self, point: &'static str) {
        *self.aim.lock().unwrap_or_else(PoisonError::into_inner) = point;
    }

    /// Whether a daemon comes to `point` once in a while only; most points are passed
    /// by every submission.
    pub(super) fn is_rare(point: &str) -> bool {
        [
            "prune",
            "seal",
            "create",
            "folder",
            "store.move",
            "store.judge",
        ]
        .iter()
        .any(|word| point.contains(word))
    }

    pub(super) fn do_until(&self, site: &Site, stop: &AtomicBool) {
        for round in 0.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            if self.round(site, round).is_err() {
                pause();
            }
        }
    }

    /// Everything in turn, or only what leads to the point that is aimed at. Prunes
    /// are seldom, so that one finds something to remove.
    fn round(&self, site: &Site, round: u64) -> Result<()> {
        let aim = *self.aim.lock().unwrap_or_else(PoisonError::into_inner);
        let prunes = ["prune", "seal", "create"]
            .iter()
            .any(|word| aim.contains(word));
        let moves = aim.starts_with("store.move");
        let judges = aim.starts_with("store.judge");
        if prunes || round.is_multiple_of(PRUNE_ROUNDS) {
            self.ml(site, &["prune"])?;
        }
        if !moves && !judges {
            self.change_the_tree(round, aim)?;
            self.ml(site, &["sync"])?;
        }
        if moves || aim.is_empty() {
            self.move_a_run(site)?;
        }
        if judges || aim.is_empty() {
            self.repeat_a_run(site)?;
        }
        if aim.is_empty() {
            let (name, path) = (format!("set-{round}"), format!("small-{round}"));
            self.ml(site, &["data", "add", &name, "1", &path])?;
            let mut datasets = self.datasets.lock().unwrap_or_else(PoisonError::into_inner);
            datasets.insert(name);
        }
        Ok(())
    }

    /// New content under names that are kept, or under new ones where the content is
    /// to travel as if it had not been there.
    fn change_the_tree(&self, round: u64, aim: &str) -> Result<()> {
        fs::write(
            self.project.join(format!("small-{round}")),
            round.to_string(),
        )?;
        self.fill("loose", LOOSE_BYTES, round)?;
        if aim.contains("loose") {
            self.fill("chunked", CHUNKED_BYTES, round)?;
        }
        if aim.contains("upload") {
            if let Some(before) = round.checked_sub(1) {
                drop(fs::remove_file(
                    self.project.join(format!("pieces-{before}")),
                ));
            }
            self.fill(&format!("pieces-{round}"), PIECES_BYTES, round)?;
        }
        Ok(())
    }

    fn fill(&self, name: &str, bytes: usize, round: u64) -> Result<()> {
        let mut content = vec![0_u8; bytes];
        content[..8].copy_from_slice(&round.to_le_bytes());
        fs::write(self.project.join(name), content).with_context(|| format!("write {name}"))
    }

    /// Cancels a run that waits behind all others and puts it back.
    fn move_a_run(&self, site: &Site) -> Result<()> {
        let arguments = ["--repro-policy", "relaxed", "--priority", "-100"];
        let queue = ["queue", "moved.yaml", "-q"];
        let id = words(site.ml(&[&queue[..], &arguments].concat()))?;
        words(site.ml(&["cancel", id.trim()]))?;
        words(site.ml(&["retry", id.trim()]))?;
        Ok(())
    }

    /// Repeats the first job, which is judged when it has ended.
    fn repeat_a_run(&self, site: &Site) -> Result<()> {
        let Some((first, _)) = site.witnessed()?.into_iter().next() else {
            return Ok(());
        };
        let queued = words(site.ml(&["reproduce", &first, "--no-wait", "--json"]))?;
        let queued: serde_json::Value = serde_json::from_str(&queued)?;
        let id = queued["id"].as_str().context("the id of a repetition")?;
        let known = &self.repetitions;
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(id.to_owned());
        Ok(())
    }

    fn ml(&self, site: &Site, arguments: &[&str]) -> Result<String> {
        let mut command = site.ml(arguments);
        command.current_dir(&self.project);
        words(command)
    }

    /// Every dataset that was acknowledged is there, every repetition was judged once.
    pub(super) fn compare(&self, site: &Site) -> Result<()> {
        self.compare_datasets(site)?;
        let repetitions = self.repetitions.lock();
        let repetitions = repetitions.unwrap_or_else(PoisonError::into_inner);
        let mut judged = BTreeMap::new();
        let all = wait_until(JUDGED_TIMEOUT, || {
            judged = judgements(site).unwrap_or_default();
            repetitions.iter().all(|id| judged.contains_key(id))
        });
        ensure!(all, "repetitions {repetitions:?}, judged {judged:?}");
        let twice: Vec<_> = judged.iter().filter(|(_, times)| **times > 1).collect();
        ensure!(twice.is_empty(), "judged more than once: {twice:?}");
        Ok(())
    }

    fn compare_datasets(&self, site: &Site) -> Result<()> {
        let listed = site.json(&["data", "list", "--json"])?;
        let there: BTreeSet<&str> = listed["datasets"]
            .as_array()
            .context("a list of datasets")?
            .iter()
            .filter_map(|dataset| dataset["name"].as_str())
            .collect();
        let acknowledged = self.datasets.lock().unwrap_or_else(PoisonError::into_inner);
        let lost: Vec<_> = acknowledged
            .iter()
            .filter(|name| !there.contains(name.as_str()))
            .collect();
        ensure!(lost.is_empty(), "acknowledged datasets were lost: {lost:?}");
        Ok(())
    }
}

/// How often each repetition was judged, by the audit trail.
fn judgements(site: &Site) -> Result<BTreeMap<String, u32>> {
    let mut judged = BTreeMap::new();
    let pages = words(site.ml(&["audit", "list", "--json"]))?;
    let pages = pages.lines().map(serde_json::from_str);
    let pages: Vec<serde_json::Value> = pages.collect::<Result<_, _>>()?;
    let rows = pages.iter().filter_map(|page| page["rows"].as_array());
    for row in rows.flatten() {
        if row["action"] == "run.judge" {
            let run = row["subject"].as_str().context("a run that was judged")?;
            *judged.entry(run.to_owned()).or_default() += 1;
        }
    }
    Ok(judged)
}

/// What a call printed, when it succeeded.
fn words(mut command: Command) -> Result<String> {
    let output = command.stderr(Stdio::null()).output()?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}
