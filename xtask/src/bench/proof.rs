//! What it costs to compare two runs and to find what is wrong with one: a project of
//! two hundred files of which one changed, and runs that leave a few outputs.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Row, figure};
use crate::mesh::Mesh;
use crate::meter::{Clock, measure};
use crate::step;
use crate::workspace::Workspace;

const FILES: u32 = 200;
const REPEATS: u32 = 50;
const GOAL: &str = "≤ 20 ms CPU";

pub(super) fn run(workspace: &Workspace) -> Result<Vec<Row>> {
    let mesh = Mesh::new(workspace, "release")?;
    let daemon = mesh.up()?;
    let project = mesh.folder().join("proof");
    fs::create_dir(&project)?;
    for file in 0..FILES {
        let text: String = (0..100)
            .map(|line| format!("line {line} of file {file}\n"))
            .collect();
        fs::write(project.join(format!("module_{file}.py")), text)?;
    }
    fs::write(
        project.join("job.sh"),
        "mkdir out\nfor i in 1 2 3 4 5; do echo $i > out/$i.txt; done\n\
         echo '{\"name\": \"loss\", \"value\": 0.5}' > metrics.jsonl\n",
    )?;
    let recipe = "experiment:\n  name: proof\n  command: [sh, job.sh]\n  seed: none\n  \
                  params: {x: 1}\n  outputs: [\"out/*\"]\n";
    fs::write(project.join("train.yaml"), recipe)?;
    let queued = |more: &[&str]| -> Result<String> {
        let words = [
            "queue",
            "train.yaml",
            "-q",
            "--repro-policy",
            "relaxed",
            "--wait",
        ];
        let words = [&words, more].concat();
        step::read(mesh.ml(&words).current_dir(&project))
    };
    let a = queued(&[])?;
    let changed = fs::read_to_string(project.join("module_7.py"))?.replace("line 50 ", "line L ");
    fs::write(project.join("module_7.py"), changed)?;
    let b = queued(&["--set", "x=2"])?;
    // What follows an end has settled.
    sleep(Duration::from_secs(1));
    let mut rows = Vec::new();
    let verbs: [(&str, &[&str]); 2] = [
        (
            "200 files, one changed: `ml compare A B`",
            &["compare", &a, &b],
        ),
        (
            "the same run: `ml validate --task A`",
            &["validate", "--task", &a],
        ),
    ];
    for (work, words) in verbs {
        let call = || step::quiet(&mut mesh.ml(words)).map(drop);
        call().with_context(|| work.to_owned())?;
        let sample = measure(Clock::ChildrenAndDaemon(daemon), REPEATS, call)?;
        rows.push(Row::alone(work, figure(sample), GOAL));
    }
    step::quiet(&mut mesh.ml(&["down"]))?;
    Ok(rows)
}
