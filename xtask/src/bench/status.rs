//! What `ml status` costs when the store is full: 75,000 runs, all but one queued.

use std::fs;
use std::thread;

use anyhow::Result;

use super::{Row, figure};
use crate::mesh::Mesh;
use crate::meter::{Clock, Sample, measure};
use crate::step;
use crate::workspace::Workspace;

const SWEEPS: u32 = 8;
const POINTS: u32 = 9_375;
const REPEATS: u32 = 100;

pub(super) fn run(workspace: &Workspace) -> Result<Vec<Row>> {
    let mesh = Mesh::new(workspace, "release")?;
    let daemon = mesh.up()?;
    let project = mesh.folder().join("status");
    fs::create_dir(&project)?;
    let cpus = thread::available_parallelism()?;
    let head = format!("experiment:\n  name: waits\n  resources: {{cpus: {cpus}}}\n");
    let points: Vec<String> = (0..POINTS).map(|point| point.to_string()).collect();
    let sweep = format!(
        "{head}  command: [\"true\", \"${{point}}\"]\n  params: {{point: 0}}\n  sweep: {{point: [{}]}}\n",
        points.join(", ")
    );
    fs::write(project.join("sweep.yaml"), sweep)?;
    // It holds the whole node, so that nothing else starts.
    let holder = format!("{head}  command: [sleep, \"600\"]\n");
    fs::write(project.join("holder.yaml"), holder)?;
    let queue = |recipe: &str| {
        let words = ["queue", recipe, "-q", "--repro-policy", "relaxed"];
        step::quiet(mesh.ml(&words).current_dir(&project)).map(drop)
    };
    queue("holder.yaml")?;
    for _ in 0..SWEEPS {
        queue("sweep.yaml")?;
    }
    let status = || step::quiet(&mut mesh.ml(&["status"])).map(drop);
    status()?;
    let sample: Sample = measure(Clock::ChildrenAndDaemon(daemon), REPEATS, status)?;
    step::quiet(&mut mesh.ml(&["down", "--stop-jobs"]))?;
    Ok(vec![Row::alone(
        "75,000 runs in the store: `ml status`",
        figure(sample),
        "≤ 50 ms CPU",
    )])
}
