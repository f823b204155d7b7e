//! A snapshot of 10,000 small files: the first, the same again, and with 1 % changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::Row;
use crate::mesh::Mesh;
use crate::meter::{Clock, Sample, measure, paired};
use crate::step;
use crate::workspace::Workspace;

const FOLDERS: usize = 100;
const FILES_PER_FOLDER: usize = 100;
const FIRST_ROUNDS: usize = 3;
const ROUNDS: usize = 5;
const SAME_REPEATS: u32 = 20;

pub(super) fn run(workspace: &Workspace) -> Result<Vec<Row>> {
    let first = paired(
        FIRST_ROUNDS,
        || first_sync(workspace),
        || first_add(workspace),
    )?;

    let mesh = Mesh::new(workspace, "release")?;
    let daemon = Clock::ChildrenAndDaemon(mesh.up()?);
    let tree = tree(&mesh, "tree")?;
    let repository = self::tree(&mesh, "repository")?;
    step::quiet(&mut git(&repository, &["init", "-q"]))?;
    step::quiet(&mut sync(&mesh, &tree))?;
    step::quiet(&mut add(&repository))?;
    let same = paired(
        ROUNDS,
        || {
            measure(daemon, SAME_REPEATS, || {
                step::quiet(&mut sync(&mesh, &tree)).map(drop)
            })
        },
        || {
            measure(Clock::Children, SAME_REPEATS, || {
                step::quiet(&mut add(&repository)).map(drop)
            })
        },
    )?;
    // Every round changes other bytes; both sides change the same ones.
    let (mut left, mut right) = (0, 0);
    let changed = paired(
        ROUNDS,
        || {
            left += 1;
            change(&tree, left)?;
            measure(daemon, 1, || step::quiet(&mut sync(&mesh, &tree)).map(drop))
        },
        || {
            right += 1;
            change(&repository, right)?;
            measure(Clock::Children, 1, || {
                step::quiet(&mut add(&repository)).map(drop)
            })
        },
    )?;
    mesh.down()?;
    Ok(vec![
        Row::against(
            "10,000 small files, first `ml sync`",
            first.0,
            "≤ 0.35 s CPU",
            "git add",
            first.1,
        ),
        Row::against("the same again", same.0, "≤ 25 ms CPU", "git add", same.1),
        Row::against(
            "1 % changed",
            changed.0,
            "≤ 50 ms CPU",
            "git add",
            changed.1,
        ),
    ])
}

fn first_sync(workspace: &Workspace) -> Result<Sample> {
    let mesh = Mesh::new(workspace, "release")?;
    let daemon = mesh.up()?;
    let tree = tree(&mesh, "tree")?;
    let sample = measure(Clock::ChildrenAndDaemon(daemon), 1, || {
        step::quiet(&mut sync(&mesh, &tree)).map(drop)
    })?;
    mesh.down()?;
    Ok(sample)
}

fn first_add(workspace: &Workspace) -> Result<Sample> {
    let mesh = Mesh::new(workspace, "release")?;
    let repository = tree(&mesh, "repository")?;
    step::quiet(&mut git(&repository, &["init", "-q"]))?;
    measure(Clock::Children, 1, || {
        step::quiet(&mut add(&repository)).map(drop)
    })
}

/// The same files everywhere: sizes from 50 to 2,000 bytes, no two alike.
fn tree(mesh: &Mesh, name: &str) -> Result<PathBuf> {
    let root = mesh.folder().join(name);
    for folder in 0..FOLDERS {
        let path = root.join(format!("folder_{folder:03}"));
        fs::create_dir_all(&path)?;
        for file in 0..FILES_PER_FOLDER {
            let words = 3 + (folder * 31 + file * 17) % 120;
            let text: String = (0..words)
                .map(|word| format!("{folder} {file} {word} value\n"))
                .collect();
            fs::write(path.join(format!("file_{file:03}.txt")), text)?;
        }
    }
    fs::write(root.join("mlmesh.toml"), "")?;
    Ok(root)
}

/// Rewrites one file in each folder.
fn change(root: &Path, round: usize) -> Result<()> {
    for folder in 0..FOLDERS {
        let file = (round * 7 + folder) % FILES_PER_FOLDER;
        fs::write(
            root.join(format!("folder_{folder:03}/file_{file:03}.txt")),
            format!("round {round} of {folder}\n"),
        )?;
    }
    Ok(())
}

fn sync(mesh: &Mesh, tree: &Path) -> Command {
    let mut command = mesh.ml(&["sync", "--json"]);
    command.current_dir(tree);
    command
}

fn add(repository: &Path) -> Command {
    git(repository, &["add", "-A"])
}

fn git(repository: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.current_dir(repository).args(words);
    command
}
