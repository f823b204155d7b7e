//! How fast the simulator is: the trace of its tests, replayed by `ml sim compare`.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result};

use super::{Row, figure};
use crate::mesh::Mesh;
use crate::meter::{Clock, Sample, measure};
use crate::step;
use crate::workspace::Workspace;

const TRACE: &str = "mlmesh-sim/tests/data/mooncake-conversation.txt";
/// Replays beside the one that reading the trace is measured with.
const REPLAYS: u32 = 40;
const ROUNDS: usize = 5;

pub(super) fn run(workspace: &Workspace) -> Result<Vec<Row>> {
    let mesh = Mesh::new(workspace, "release")?;
    let trace = mesh.folder().join("trace.jsonl");
    let text = fs::read_to_string(workspace.root.join(TRACE)).context("read the trace")?;
    fs::write(&trace, json_lines(&text)?)?;
    let trace = trace.to_string_lossy();
    let compare = |strategy: &str, seeds: u32| -> Result<(Sample, f64)> {
        let seeds = seeds.to_string();
        let mut said = String::new();
        let mut samples = Vec::new();
        for _ in 0..ROUNDS {
            samples.push(measure(Clock::Children, 1, || {
                let arguments = [
                    "sim",
                    "compare",
                    "--trace",
                    &trace,
                    "--engines",
                    "8",
                    "--strategies",
                    strategy,
                    "--seeds",
                    &seeds,
                ];
                let output = step::quiet(&mut mesh.ml(&arguments))?;
                said = String::from_utf8_lossy(&output.stderr).into_owned();
                Ok(())
            })?);
        }
        samples.sort_by(|a, b| a.wall.total_cmp(&b.wall));
        let events = said.split(' ').next().unwrap_or_default();
        let events = events.parse().with_context(|| format!("read `{said}`"))?;
        Ok((samples[ROUNDS / 2], events))
    };
    let mut rows = Vec::new();
    for strategy in ["hybrid_mesh", "hybrid_mesh+learnt"] {
        let (once, _) = compare(strategy, 1)?;
        let (often, events) = compare(strategy, 1 + REPLAYS)?;
        let each = events / f64::from(1 + REPLAYS);
        let replay_s = (often.cpu - once.cpu) / f64::from(REPLAYS);
        rows.push(Row::alone(
            &format!("`ml sim compare`: 12,031 requests on 8 engines, {strategy}"),
            figure(once),
            "≤ 1.5 s",
        ));
        rows.push(Row::alone(
            &format!("events of it a second of CPU, without reading the trace, {strategy}"),
            format!("{:.2} M", each / replay_s / 1e6),
            "≥ 1 M",
        ));
    }
    Ok(rows)
}

/// The trace as it was published: runs of ids are written out.
fn json_lines(text: &str) -> Result<String> {
    let mut lines = String::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.split(' ').collect();
        let [time, input, output, runs] = cells[..] else {
            anyhow::bail!("`{line}` has not four cells");
        };
        let mut ids: Vec<u64> = Vec::new();
        for run in runs.split(',') {
            let (first, last) = run.split_once('-').unwrap_or((run, run));
            ids.extend(first.parse::<u64>()?..=last.parse()?);
        }
        writeln!(
            lines,
            "{{\"timestamp\":{time},\"input_length\":{input},\"output_length\":{output},\"hash_ids\":{ids:?}}}"
        )?;
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_ids_are_written_out() {
        let lines = json_lines("5 1025 7 0,3-4\n").unwrap();
        assert_eq!(
            lines,
            "{\"timestamp\":5,\"input_length\":1025,\"output_length\":7,\"hash_ids\":[0, 3, 4]}\n"
        );
        assert!(json_lines("5 6").is_err());
    }
}
