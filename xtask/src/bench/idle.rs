//! What a daemon costs that does nothing.

use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::Row;
use crate::mesh::Mesh;
use crate::meter::{process, resident};
use crate::workspace::Workspace;

const SETTLE: Duration = Duration::from_secs(2);
const WATCH: Duration = Duration::from_secs(20);

pub(super) fn run(workspace: &Workspace) -> Result<Vec<Row>> {
    let mesh = Mesh::new(workspace, "release")?;
    let daemon = mesh.up()?;
    thread::sleep(SETTLE);
    let before = process(daemon)?;
    thread::sleep(WATCH);
    let share = (process(daemon)? - before) / WATCH.as_secs_f64() * 100.0;
    let mebibytes = resident(daemon)? / (1024 * 1024);
    mesh.down()?;
    Ok(vec![Row::alone(
        "idle daemon",
        format!("{mebibytes} MiB, {share:.2} % of a CPU"),
        "< 50 MB, < 1 %",
    )])
}
