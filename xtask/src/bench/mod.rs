//! `cargo xtask bench [NAME]`: our programs against named peers, as Markdown rows.
//!
//! Each bench is a function that drives the release builds of `ml` and `meshd` as a
//! person would. [`crate::meter`] says how a figure is taken.

mod big;
mod cli;
mod data;
mod decide;
mod gateway;
mod idle;
mod jobs;
mod list;
mod llm;
mod mlflow;
mod proof;
mod route;
mod sim;
mod snapshot;
mod status;
mod submit;
mod warm;

use anyhow::{Result, bail};

use crate::meter::Sample;
use crate::step;
use crate::workspace::Workspace;

/// A bench: its name, and the function that measures.
struct Bench {
    name: &'static str,
    run: fn(&Workspace) -> Result<Vec<Row>>,
    /// Runs also when none is named.
    everyday: bool,
}

/// The one table.
const BENCHES: &[Bench] = &[
    Bench {
        name: "cli",
        run: cli::run,
        everyday: true,
    },
    Bench {
        name: "snapshot",
        run: snapshot::run,
        everyday: true,
    },
    Bench {
        name: "submit",
        run: submit::run,
        everyday: true,
    },
    Bench {
        name: "jobs",
        run: jobs::run,
        everyday: true,
    },
    Bench {
        name: "warm",
        run: warm::run,
        everyday: true,
    },
    Bench {
        name: "status",
        run: status::run,
        everyday: true,
    },
    Bench {
        name: "list",
        run: list::run,
        everyday: true,
    },
    Bench {
        name: "proof",
        run: proof::run,
        everyday: true,
    },
    Bench {
        name: "mlflow",
        run: mlflow::run,
        everyday: true,
    },
    Bench {
        name: "sim",
        run: sim::run,
        everyday: true,
    },
    Bench {
        name: "decide",
        run: decide::run,
        everyday: true,
    },
    Bench {
        name: "llm",
        run: llm::run,
        everyday: true,
    },
    Bench {
        name: "idle",
        run: idle::run,
        everyday: true,
    },
    Bench {
        name: "gateway",
        run: gateway::run,
        everyday: false,
    },
    Bench {
        name: "route",
        run: route::run,
        everyday: false,
    },
    Bench {
        name: "data",
        run: data::run,
        everyday: false,
    },
    Bench {
        name: "big",
        run: big::run,
        everyday: false,
    },
];

/// One line of the printed table.
pub(crate) struct Row {
    work: String,
    ours: String,
    goal: &'static str,
    peer: String,
    ratio: String,
}

impl Row {
    /// Our figure beside that of a peer; the ratio is that of CPU times.
    fn against(work: &str, ours: Sample, goal: &'static str, peer_name: &str, peer: Sample) -> Row {
        let ratio = if peer.cpu > 0.0 {
            format!("{:.2}", ours.cpu / peer.cpu)
        } else {
            "–".to_owned()
        };
        Row {
            work: work.to_owned(),
            ours: figure(ours),
            goal,
            peer: format!("{peer_name}: {}", figure(peer)),
            ratio,
        }
    }

    /// A figure that has no peer.
    fn alone(work: &str, ours: String, goal: &'static str) -> Row {
        Row {
            work: work.to_owned(),
            ours,
            goal,
            peer: "–".to_owned(),
            ratio: "–".to_owned(),
        }
    }
}

/// Builds for release, runs one bench or all of them, and prints the table.
pub fn run(workspace: &Workspace, name: Option<&str>) -> Result<()> {
    let chosen: Vec<&Bench> = BENCHES
        .iter()
        .filter(|bench| name.map_or(bench.everyday, |name| bench.name == name))
        .collect();
    if chosen.is_empty() {
        let names: Vec<&str> = BENCHES.iter().map(|bench| bench.name).collect();
        bail!(
            "no bench is named `{}`\nhint: there are {}",
            name.unwrap_or_default(),
            names.join(", ")
        );
    }
    step::run(
        "build",
        &mut step::cargo(
            &workspace.root,
            &["build", "--release", "--bin", "ml", "--bin", "meshd"],
        ),
    )?;
    step::say("| work | ours (CPU / wall) | goal | peer (CPU / wall) | ratio of CPU |");
    step::say("|---|---|---|---|---|");
    for bench in chosen {
        for row in (bench.run)(workspace)? {
            step::say(format_args!(
                "| {} | {} | {} | {} | {} |",
                row.work, row.ours, row.goal, row.peer, row.ratio
            ));
        }
    }
    Ok(())
}

fn figure(sample: Sample) -> String {
    format!("{} / {}", duration(sample.cpu), duration(sample.wall))
}

fn duration(seconds: f64) -> String {
    if seconds >= 1.0 {
        format!("{seconds:.2} s")
    } else {
        format!("{:.1} ms", seconds * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_say_both_times_and_the_ratio() {
        let sample = |cpu, wall| Sample { cpu, wall };
        let row = Row::against("x", sample(0.002, 1.5), "g", "git", sample(0.001, 0.01));
        assert_eq!(
            (row.ours.as_str(), row.peer.as_str(), row.ratio.as_str()),
            ("2.0 ms / 1.50 s", "git: 1.0 ms / 10.0 ms", "2.00")
        );
        assert_eq!(
            Row::against("x", sample(0.0, 0.0), "g", "p", sample(0.0, 0.0)).ratio,
            "–"
        );
    }

    #[test]
    fn an_unknown_bench_is_refused_before_anything_is_built() {
        let nowhere = Workspace {
            root: "/nowhere".into(),
            target: "/nowhere".into(),
        };
        let error = run(&nowhere, Some("speed")).unwrap_err().to_string();
        assert!(
            error.contains("`speed`") && error.contains("snapshot"),
            "{error}"
        );
    }
}
