//! How fast the command line answers: `ml --version` and `ml status`.

use std::fs;
use std::process::Command;

use anyhow::Result;

use super::Row;
use crate::mesh::Mesh;
use crate::meter::{Clock, measure, paired};
use crate::step;
use crate::workspace::Workspace;

const ROUNDS: usize = 7;
const REPEATS: u32 = 60;

pub(super) fn run(workspace: &Workspace) -> Result<Vec<Row>> {
    let mesh = Mesh::new(workspace, "release")?;
    let daemon = mesh.up()?;
    let repository = mesh.folder().join("repository");
    fs::create_dir(&repository)?;
    fs::write(repository.join("a"), "a")?;
    let git = |word: &str| {
        let mut command = Command::new("git");
        command.arg("-C").arg(&repository).arg(word);
        command
    };
    step::quiet(git("init").arg("-q"))?;

    let version = paired(
        ROUNDS,
        || {
            measure(Clock::Children, REPEATS, || {
                step::quiet(&mut mesh.ml(&["--version"])).map(drop)
            })
        },
        || {
            measure(Clock::Children, REPEATS, || {
                step::quiet(&mut git("--version")).map(drop)
            })
        },
    )?;
    let clock = Clock::ChildrenAndDaemon(daemon);
    let status = paired(
        ROUNDS,
        || {
            measure(clock, REPEATS, || {
                step::quiet(&mut mesh.ml(&["status"])).map(drop)
            })
        },
        || measure(clock, REPEATS, || step::quiet(&mut git("status")).map(drop)),
    )?;
    mesh.down()?;
    Ok(vec![
        Row::against(
            "`ml --version`",
            version.0,
            "≤ 5 ms CPU",
            "git --version",
            version.1,
        ),
        Row::against(
            "`ml status`, daemon up",
            status.0,
            "≤ 10 ms CPU",
            "git status",
            status.1,
        ),
    ])
}
