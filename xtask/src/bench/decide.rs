//! How long the router takes to decide, as its own bench (`mlmesh-route/benches`) says.

use anyhow::{Context, Result};

use super::Row;
use crate::step;
use crate::workspace::Workspace;

pub(super) fn run(workspace: &Workspace) -> Result<Vec<Row>> {
    let arguments = [
        "bench",
        "--quiet",
        "-p",
        "mlmesh-route",
        "--bench",
        "decide",
    ];
    let output = step::quiet(&mut step::cargo(&workspace.root, &arguments))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let row = |work: &str, prefix: &str, goal| -> Result<Row> {
        let line = said.lines().find_map(|line| line.strip_prefix(prefix));
        let figures = line.with_context(|| format!("find `{prefix}` in `{said}`"))?;
        Ok(Row::alone(work, figures.replace("us", "µs"), goal))
    };
    Ok(vec![
        row(
            "a decision, 32 KiB hashed, hybrid_mesh, 16 targets",
            "16 targets: ",
            "p99 ≤ 10 µs",
        )?,
        row("the same, 512 targets", "512 targets: ", "p99 ≤ 100 µs")?,
        row("with 16 waiting", "16 waiting: ", "–")?,
        row("with 4,096 waiting", "4096 waiting: ", "not in proportion")?,
    ])
}
