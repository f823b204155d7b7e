//! Durable submissions over open connections against bare `fdatasync`.
//!
//! The client is `mlmesh-api/examples/submit_bench.rs`: it submits and flushes in
//! turn within one process, then with 64 clients at once, whose CPU time is shown
//! beside the daemon's.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Row;
use crate::mesh::Mesh;
use crate::step;
use crate::workspace::Workspace;

pub(super) fn run(workspace: &Workspace) -> Result<Vec<Row>> {
    let build = [
        "build",
        "--release",
        "-p",
        "mlmesh-api",
        "--example",
        "submit_bench",
    ];
    step::run(
        "build the client",
        &mut step::cargo(&workspace.root, &build),
    )?;
    let mesh = Mesh::new(workspace, "release")?;
    mesh.up()?;
    let project = mesh.folder().join("submit");
    fs::create_dir(&project)?;
    let recipe = "experiment:\n  name: holds\n  command: [sleep, \"600\"]\n  seed: none\n";
    fs::write(project.join("bench.yaml"), recipe)?;
    let words = ["queue", "bench.yaml", "-q", "--repro-policy", "relaxed"];
    let run = String::from_utf8(step::quiet(mesh.ml(&words).current_dir(&project))?.stdout)?;
    let program = workspace.program("release", "examples/submit_bench");
    let mut client = Command::new(program);
    client.arg(mesh.folder().join("data")).arg(run.trim());
    let line = String::from_utf8(step::quiet(&mut client)?.stdout)?;
    let seen: Value = serde_json::from_str(&line).context("read the client's line")?;
    mesh.down()?;
    let micros = |key: &str| {
        seen[key]
            .as_f64()
            .with_context(|| format!("`{key}` in `{line}`"))
    };
    let (ours, peer) = (micros("submit_p50_us")?, micros("fdatasync_p50_us")?);
    let typed = micros("submit_typed_p50_us")?;
    Ok(vec![
        Row {
            work: "durable submit, 1 client, p50".to_owned(),
            ours: format!("{:.2} ms ({:.2} with ml's client)", ours / 1e3, typed / 1e3),
            goal: "≤ 2 × fdatasync + 0.3 ms",
            peer: format!("fdatasync: {:.2} ms", peer / 1e3),
            ratio: format!(
                "{:.2} of wall; goal here {:.2} ms",
                ours / peer,
                (2.0 * peer + 300.0) / 1e3
            ),
        },
        Row::alone(
            "durable submit, 64 clients",
            format!(
                "{:.0}/s; CPU each: daemon {:.0} µs, client {:.0} µs",
                micros("submits_per_s")?,
                micros("daemon_cpu_us")?,
                micros("client_cpu_us")?
            ),
            "≥ 5,000/s",
        ),
    ])
}
