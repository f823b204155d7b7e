//! What it costs to compare two runs, to find what is wrong with one, and to hand one on:
//! a project of two hundred files of which one changed, runs that leave a few outputs,
//! and one that leaves a gigabyte, against `sha256sum` and `zip -0` of the same files.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{Row, figure};
use crate::mesh::Mesh;
use crate::meter::{Clock, Sample, measure, paired, resident_peak, watch_memory};
use crate::step;
use crate::workspace::Workspace;

const FILES: u32 = 200;
const REPEATS: u32 = 50;
const GOAL: &str = "≤ 20 ms CPU";

/// Leaves 1 GB: 3 files of 250 MB, 20 of 10 MB, 400 of 100 kB, 1,000 of 10 kB.
const GIGABYTE: &str = "mkdir out
leave() { i=0; while [ $i -lt $1 ]; do head -c $2 /dev/urandom > out/$2-$i.bin; i=$((i+1)); done; }
leave 3 250000000; leave 20 10000000; leave 400 100000; leave 1000 10000
";
const EXPORT_ROUNDS: usize = 3;
const POINTS: u32 = 500;
const EXPORT_GOAL: &str = "≤ 1.5 × the CPU";

pub(super) fn run(workspace: &Workspace) -> Result<Vec<Row>> {
    let mut rows = compare_and_validate(workspace)?;
    rows.extend(export(workspace)?);
    rows.extend(sweep(workspace)?);
    Ok(rows)
}

/// The memory that a sweep with all its runs takes to hand on and to verify.
fn sweep(workspace: &Workspace) -> Result<Vec<Row>> {
    let mesh = Mesh::new(workspace, "release")?;
    let daemon = mesh.up()?;
    let project = mesh.folder().join("sweep");
    fs::create_dir(&project)?;
    let points: Vec<String> = (0..POINTS).map(|point| point.to_string()).collect();
    let recipe = format!(
        "experiment:\n  name: sweep\n  command: [sh, -c, 'echo $0 > out.txt', \"${{x}}\"]\n  \
         seed: none\n  params: {{x: 0}}\n  sweep: {{x: [{}]}}\n  outputs: [out.txt]\n",
        points.join(", ")
    );
    fs::write(project.join("train.yaml"), recipe)?;
    let run = queued(&mesh, &project, &[])?;
    let file = mesh.folder().join("sweep.zip").display().to_string();
    let peak = |words: &[&str]| -> Result<f64> {
        let mut command = mesh.ml(words);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let (status, peak) = watch_memory(&mut child)?;
        ensure!(
            status.success(),
            "`ml {}` failed ({status})",
            words.join(" ")
        );
        Ok(peak as f64 / 1e6)
    };
    let export = peak(&["export", &run, "-o", &file])?;
    let daemon = resident_peak(daemon)? as f64 / 1e6;
    let verify = peak(&["export", "--verify", &file])?;
    mesh.down()?;
    let figure = format!("export {export:.0} MB, verify {verify:.0} MB, daemon {daemon:.0} MB");
    let work = format!("a sweep of {POINTS} points, peak memory");
    Ok(vec![Row::alone(&work, figure, "< 100 MB each")])
}

/// A run that leaves a gigabyte is exported, verified and imported elsewhere.
fn export(workspace: &Workspace) -> Result<Vec<Row>> {
    if !step::on_path("zip") {
        bail!(
            "`zip` is not on PATH, and an export is held against it\nhint: as root, `apt-get install zip`"
        );
    }
    let mesh = Mesh::new(workspace, "release")?;
    let daemon = mesh.up()?;
    let project = mesh.folder().join("gigabyte");
    fs::create_dir(&project)?;
    fs::write(project.join("job.sh"), GIGABYTE)?;
    let recipe = "experiment:\n  name: gigabyte\n  command: [sh, job.sh]\n  seed: none\n  \
                  outputs: [\"out/*\"]\n";
    fs::write(project.join("train.yaml"), recipe)?;
    let run = queued(&mesh, &project, &[])?;
    let copy = mesh.folder().join("copy");
    step::quiet(mesh.ml(&["outputs", &run, "-o"]).arg(&copy))?;
    let file = mesh.folder().join("run.zip");
    let path = file.display().to_string();
    let zipped = mesh.folder().join("peer.zip");
    let mut peer = Command::new("sh");
    peer.args([
        "-c",
        "find . -type f -exec sha256sum {} + && exec zip -0 -q -r \"$0\" .",
    ])
    .arg(&zipped)
    .current_dir(&copy);
    let clock = Clock::ChildrenAndDaemon(daemon);
    let (ours, theirs) = paired(
        EXPORT_ROUNDS,
        || {
            measure(clock, 1, || {
                step::quiet(&mut mesh.ml(&["export", &run, "-o", &path])).map(drop)
            })
        },
        || {
            if zipped.exists() {
                fs::remove_file(&zipped)?;
            }
            measure(Clock::Children, 1, || step::quiet(&mut peer).map(drop))
        },
    )?;
    let verify = measure(Clock::Children, EXPORT_ROUNDS as u32, || {
        step::quiet(&mut mesh.ml(&["export", "--verify", &path])).map(drop)
    })?;
    let import = import(workspace, &path)?;
    mesh.down()?;
    Ok(vec![
        Row::against(
            "1 GB of outputs in 1,423 files, `ml export`",
            ours,
            EXPORT_GOAL,
            "sha256sum, then zip -0",
            theirs,
        ),
        Row::alone("`ml export --verify` of it", figure(verify), "–"),
        Row::alone("`ml import` of it, elsewhere", figure(import), "–"),
    ])
}

/// Into a data directory that has nothing of it.
fn import(workspace: &Workspace, path: &str) -> Result<Sample> {
    let mesh = Mesh::new(workspace, "release")?;
    let clock = Clock::ChildrenAndDaemon(mesh.up()?);
    let sample = measure(clock, 1, || {
        step::quiet(&mut mesh.ml(&["import", path])).map(drop)
    })?;
    mesh.down()?;
    Ok(sample)
}

/// The id of a run of `train.yaml` that has ended.
fn queued(mesh: &Mesh, project: &Path, more: &[&str]) -> Result<String> {
    let words = [
        "queue",
        "train.yaml",
        "-q",
        "--repro-policy",
        "relaxed",
        "--wait",
    ];
    let words = [&words, more].concat();
    step::read(mesh.ml(&words).current_dir(project))
}

fn compare_and_validate(workspace: &Workspace) -> Result<Vec<Row>> {
    let mesh = Mesh::new(workspace, "release")?;
    let daemon = mesh.up()?;
    let project = mesh.folder().join("proof");
    fs::create_dir(&project)?;
    for file in 0..FILES {
        let text: String = (0..100)
            .map(|line| format!("line {line} of file {file}\n"))
            .collect();
        fs::write(project.join(format!("module_{file}.py")), text)?;
    }
    fs::write(
        project.join("job.sh"),
        "mkdir out\nfor i in 1 2 3 4 5; do echo $i > out/$i.txt; done\n\
         echo '{\"name\": \"loss\", \"value\": 0.5}' > metrics.jsonl\n",
    )?;
    let recipe = "experiment:\n  name: proof\n  command: [sh, job.sh]\n  seed: none\n  \
                  params: {x: 1}\n  outputs: [\"out/*\"]\n";
    fs::write(project.join("train.yaml"), recipe)?;
    let a = queued(&mesh, &project, &[])?;
    let changed = fs::read_to_string(project.join("module_7.py"))?.replace("line 50 ", "line L ");
    fs::write(project.join("module_7.py"), changed)?;
    let b = queued(&mesh, &project, &["--set", "x=2"])?;
    // What follows an end has settled.
    sleep(Duration::from_secs(1));
    let mut rows = Vec::new();
    let verbs: [(&str, &[&str]); 2] = [
        (
            "200 files, one changed: `ml compare A B`",
            &["compare", &a, &b],
        ),
        (
            "the same run: `ml validate --task A`",
            &["validate", "--task", &a],
        ),
    ];
    for (work, words) in verbs {
        let call = || step::quiet(&mut mesh.ml(words)).map(drop);
        call().with_context(|| work.to_owned())?;
        let sample = measure(Clock::ChildrenAndDaemon(daemon), REPEATS, call)?;
        rows.push(Row::alone(work, figure(sample), GOAL));
    }
    step::quiet(&mut mesh.ml(&["down"]))?;
    Ok(rows)
}
