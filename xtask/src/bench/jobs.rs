//! How many jobs that do nothing can be run: `true` with a full manifest against xargs.
//!
//! Supervisors are children of a child of the daemon, which counts with all of them.

use std::fs;
use std::process::Command;

use anyhow::Result;

use super::{Row, duration};
use crate::mesh::Mesh;
use crate::meter::{Clock, Sample, measure, paired};
use crate::step;
use crate::workspace::Workspace;

const ROUNDS: usize = 3;
const JOBS: u32 = 1_000;
/// As many at once on both sides.
const AT_ONCE: u32 = 2;

pub(super) fn run(workspace: &Workspace) -> Result<Vec<Row>> {
    let mesh = Mesh::new(workspace, "release")?;
    let daemon = mesh.up()?;
    let project = mesh.folder().join("jobs");
    fs::create_dir(&project)?;
    let points: Vec<String> = (0..JOBS).map(|point| point.to_string()).collect();
    let recipe = format!(
        "experiment:\n  name: nothing\n  command: [\"true\", \"${{point}}\"]\n  params: {{point: 0}}\n  \
         sweep: {{point: [{}]}}\n  resources: {{cpus: 1}}\n",
        points.join(", ")
    );
    fs::write(project.join("true.yaml"), recipe)?;
    let each = |sample: Sample| Sample {
        wall: sample.wall / f64::from(JOBS),
        cpu: sample.cpu / f64::from(JOBS),
    };
    let (ours, peer) = paired(
        ROUNDS,
        || {
            let words = [
                "queue",
                "true.yaml",
                "-q",
                "--wait",
                "--repro-policy",
                "relaxed",
            ];
            measure(Clock::ChildrenAndDaemon(daemon), 1, || {
                step::quiet(mesh.ml(&words).current_dir(&project)).map(drop)
            })
            .map(each)
        },
        || {
            let line = format!("seq {JOBS} | xargs -P {AT_ONCE} -n 1 true");
            measure(Clock::Children, 1, || {
                step::quiet(Command::new("sh").args(["-c", &line])).map(drop)
            })
            .map(each)
        },
    )?;
    mesh.down()?;
    let beyond = duration((ours.cpu - peer.cpu).max(0.0));
    let rate = format!(
        "{:.0} jobs/s, {beyond} of CPU each beyond fork and exec",
        1.0 / ours.wall
    );
    Ok(vec![
        Row::against("a `true` job, relaxed", ours, "–", "xargs", peer),
        Row::alone("`true` jobs", rate, "≥ 300/s, ≤ 3 ms"),
    ])
}
