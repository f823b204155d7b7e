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
    let row = |targets: &str, goal| -> Result<Row> {
        let line = said.lines().find_map(|line| line.strip_prefix(targets));
        let figures = line.with_context(|| format!("find `{targets}` in `{said}`"))?;
        let work = format!(
            "a decision, 32 KiB hashed, hybrid_mesh, {}",
            targets.trim_end_matches(": ")
        );
        Ok(Row::alone(&work, figures.replace("us", "µs"), goal))
    };
    Ok(vec![
        row("16 targets: ", "p99 ≤ 10 µs")?,
        row("512 targets: ", "p99 ≤ 100 µs")?,
    ])
}
