//! What it costs to find runs: the first page of `ml list --where` over 75,000 ended runs
//! with 20 metrics each, by everything that an expression can ask for.

use std::process::Command;

use anyhow::{Context, Result};

use super::{Row, figure};
use crate::mesh::Mesh;
use crate::meter::{Clock, measure};
use crate::step;
use crate::workspace::Workspace;

const REPEATS: u32 = 10;
const GOAL: &str = "≤ 100 ms CPU";

/// What is asked for, as it is typed.
const SEARCHES: &[&[&str]] = &[
    // Metrics: 1 %, half of them, almost none.
    &["metrics.accuracy > 0.99"],
    &[
        "metrics.accuracy > 0.5",
        "--sort",
        "metrics.loss:desc",
        "--limit",
        "20",
    ],
    &["metrics.accuracy > 0.9", "--sort", "metrics.accuracy:desc"],
    &["metrics.accuracy > 0.9 and params.lr <= 0.001"],
    &["metrics.accuracy > 0.9", "--sort", "params.lr"],
    &["metrics.accuracy.max > 1.999"],
    &["metrics.accuracy.steps > 0", "--sort", "metrics.loss.min"],
    &["not metrics.accuracy > 0.01"],
    // Of half of the runs: 1 %, none.
    &["logged.params.lr > 0.99"],
    &["logged.tags.team = red"],
    // One run, a twelfth, three eighths.
    &["params.seed = 4711"],
    &["params.depth = 3"],
    &[
        "params.lr <= 0.0001 and params.optimizer = adam",
        "--sort",
        "params.seed",
    ],
    // Ten runs, a twentieth.
    &["tags.paper = ''"],
    &["tags.team = red"],
    &["tags.team = red", "--sort", "metrics.loss"],
    // A thousandth, a tenth.
    &["phase = interrupted"],
    &["phase = failed", "--sort", "duration:desc"],
    &["not phase = completed and not phase = failed"],
    // A week, far back.
    &["created > 2025-02-01 and created < 2025-02-08"],
    &["duration > 59.9m"],
    &["trust >= L4"],
    &["name ~ other"],
    // All and none.
    &["id ~ a", "--sort", "id:desc"],
    &["priority > 0"],
];

pub(super) fn run(workspace: &Workspace) -> Result<Vec<Row>> {
    let mesh = Mesh::new(workspace, "release")?;
    mesh.up()?;
    mesh.down()?;
    // How fast it fills is not measured, so it need not be optimised.
    let build = ["build", "-p", "mlmesh-store", "--example", "fill_list"];
    step::run(
        "build what fills the store",
        &mut step::cargo(&workspace.root, &build),
    )?;
    let mut fill = Command::new(workspace.program("debug", "examples/fill_list"));
    step::run("fill", fill.arg(mesh.data().join("meshd.db")))?;
    let daemon = mesh.up()?;
    let mut rows = Vec::new();
    for search in SEARCHES {
        let words = [&["list", "--where"], *search].concat();
        let call = || step::quiet(&mut mesh.ml(&words)).map(drop);
        call().with_context(|| format!("search {search:?}"))?;
        let sample = measure(Clock::ChildrenAndDaemon(daemon), REPEATS, call)?;
        let work = format!("`{}`", search.join(" ").replace('|', "\\|"));
        rows.push(Row::alone(&work, figure(sample), GOAL));
    }
    mesh.down()?;
    Ok(rows)
}
