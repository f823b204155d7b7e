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
const ROUNDS: usize = 5;

/// What is replayed.
struct Case {
    strategy: &'static str,
    /// A profile of whole engines, or the reference engine that only prefills.
    engine: Option<&'static str>,
    engines: &'static str,
    /// Replays beside the one that reading the trace is measured with.
    replays: u32,
}

/// The numbers of engines are those at which most of what comes can be served in time.
const CASES: [Case; 4] = [
    Case {
        strategy: "hybrid_mesh",
        engine: None,
        engines: "8",
        replays: 40,
    },
    Case {
        strategy: "hybrid_mesh+learnt",
        engine: None,
        engines: "8",
        replays: 40,
    },
    Case {
        strategy: "baseline_rr",
        engine: Some("a100x8-70b"),
        engines: "16",
        replays: 2,
    },
    Case {
        strategy: "hybrid_mesh",
        engine: Some("a100x8-70b"),
        engines: "16",
        replays: 2,
    },
];

pub(super) fn run(workspace: &Workspace) -> Result<Vec<Row>> {
    let mesh = Mesh::new(workspace, "release")?;
    let trace = mesh.folder().join("trace.jsonl");
    let text = fs::read_to_string(workspace.root.join(TRACE)).context("read the trace")?;
    fs::write(&trace, json_lines(&text)?)?;
    let trace = trace.to_string_lossy();
    let compare = |case: &Case, seeds: u32| -> Result<(Sample, f64)> {
        let seeds = seeds.to_string();
        let mut arguments = vec![
            "sim",
            "compare",
            "--trace",
            &trace,
            "--engines",
            case.engines,
        ];
        arguments.extend(["--strategies", case.strategy, "--seeds", &seeds]);
        if let Some(engine) = case.engine {
            arguments.extend(["--engine", engine]);
        }
        let mut said = String::new();
        let mut samples = Vec::new();
        for _ in 0..ROUNDS {
            samples.push(measure(Clock::Children, 1, || {
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
    for case in &CASES {
        let (once, _) = compare(case, 1)?;
        let (often, events) = compare(case, 1 + case.replays)?;
        let each = events / f64::from(1 + case.replays);
        let replay_s = (often.cpu - once.cpu) / f64::from(case.replays);
        let (engines, strategy) = (case.engines, case.strategy);
        let what = match case.engine {
            Some(engine) => format!("{engines} whole engines ({engine}), {strategy}"),
            None => format!("{engines} engines, {strategy}"),
        };
        rows.push(Row::alone(
            &format!("`ml sim compare`: 12,031 requests on {what}"),
            figure(once),
            if case.engine.is_none() {
                "≤ 1.5 s"
            } else {
                "–"
            },
        ));
        rows.push(Row::alone(
            &format!("events of it a second of CPU, without reading the trace, {what}"),
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
