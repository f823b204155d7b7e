//! How long a Python job takes whose environment is there already: `ml run`, from the
//! snapshot to the job's exit code, against the environment's interpreter started alone.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Row, duration};
use crate::mesh::Mesh;
use crate::meter::{Clock, measure, paired};
use crate::step;
use crate::workspace::Workspace;

const ROUNDS: usize = 5;
const TIMES: u32 = 20;
const PYTHON: &str = "python3";
const ASKED: &str = "import sys; print('%d.%d' % sys.version_info[:2])";

pub(super) fn run(workspace: &Workspace) -> Result<Vec<Row>> {
    let version = step::read(Command::new(PYTHON).args(["-c", ASKED]))?;
    let mesh = Mesh::new(workspace, "release")?;
    let daemon = mesh.up()?;
    let project = mesh.folder().join("warm");
    fs::create_dir(&project)?;
    fs::write(project.join("requirements.lock"), "# needs nothing\n")?;
    let recipe = format!(
        "experiment:\n  name: warm\n  command: [python, -c, pass]\n  seed: none\n  resources: {{cpus: 1}}\n  \
         environment: {{python: \"{}\", lock: requirements.lock}}\n",
        version.trim()
    );
    fs::write(project.join("warm.yaml"), recipe)?;
    // The one on PATH may load packages of its own, which takes longer than the job.
    step::quiet(
        mesh.ml(&["run", "warm.yaml", "--repro-policy", "relaxed"])
            .current_dir(&project),
    )?;
    let environments = mesh.data().join("data/objects/environments");
    let built = fs::read_dir(&environments)?.flatten().next();
    let python = built
        .context("an environment was built")?
        .path()
        .join("bin/python");
    let mut rows = Vec::new();
    for policy in ["relaxed", "strict"] {
        let (ours, peer) = paired(
            ROUNDS,
            || {
                measure(Clock::ChildrenAndDaemon(daemon), TIMES, || {
                    let words = ["run", "warm.yaml", "--repro-policy", policy];
                    step::quiet(mesh.ml(&words).current_dir(&project)).map(drop)
                })
            },
            || {
                measure(Clock::Children, TIMES, || {
                    step::quiet(Command::new(&python).args(["-c", "pass"])).map(drop)
                })
            },
        )?;
        let work = format!("`ml run` of Python, environment there, {policy}");
        rows.push(Row::against(&work, ours, "–", "python -c pass", peer));
        rows.push(Row::alone(
            &format!("beyond Python's own start, {policy}"),
            format!("{} wall", duration((ours.wall - peer.wall).max(0.0))),
            "≤ 50 ms",
        ));
    }
    mesh.down()?;
    Ok(rows)
}
