//! One file of 2 GiB: registered for the first time, and looked at again when nothing
//! changed, against `sha256sum` and dvc.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::Row;
use crate::mesh::Mesh;
use crate::meter::{Clock, measure, paired};
use crate::step;
use crate::workspace::Workspace;

const BYTES: u64 = 2 << 30;
const ROUNDS: usize = 3;
const SAME_REPEATS: u32 = 20;

pub(super) fn run(workspace: &Workspace) -> Result<Vec<Row>> {
    let mesh = Mesh::new(workspace, "release")?;
    let daemon = Clock::ChildrenAndDaemon(mesh.up()?);
    let file = mesh.folder().join("big.bin");
    write(&file)?;
    let path = file.display().to_string();
    let mut version = 0;
    let register = |version: u32| mesh.ml(&["data", "add", "big", &version.to_string(), &path]);
    let first = paired(
        ROUNDS,
        || {
            // Another time of change: nothing that is remembered of the file counts.
            version += 1;
            File::options()
                .append(true)
                .open(&file)?
                .set_modified(std::time::UNIX_EPOCH)?;
            forget(&mesh)?;
            measure(daemon, 1, || step::quiet(&mut register(version)).map(drop))
        },
        || {
            let mut sum = Command::new("sha256sum");
            sum.arg(&file);
            measure(Clock::Children, 1, || step::quiet(&mut sum).map(drop))
        },
    )?;
    let same = measure(daemon, SAME_REPEATS, || {
        step::quiet(&mut register(version)).map(drop)
    })?;
    let dvc = dvc(workspace)?;
    let repository = mesh.folder().join("repository");
    fs::create_dir(&repository)?;
    fs::rename(&file, repository.join("big.bin"))?;
    let command = |words: &[&str]| {
        let mut command = Command::new(&dvc);
        command
            .args(words)
            .current_dir(&repository)
            .env("DVC_NO_ANALYTICS", "1");
        command
    };
    step::quiet(&mut command(&["init", "--no-scm", "-q"]))?;
    let add = measure(Clock::Children, 1, || {
        step::quiet(&mut command(&["add", "-q", "big.bin"])).map(drop)
    })?;
    let status = measure(Clock::Children, 3, || {
        step::quiet(&mut command(&["status", "-q"])).map(drop)
    })?;
    mesh.down()?;
    let (goal, again) = ("≤ 2.1 s", "≤ 5 ms CPU");
    Ok(vec![
        Row::against(
            "2 GiB file, `ml data add`",
            first.0,
            goal,
            "sha256sum",
            first.1,
        ),
        Row::against("the same", first.0, goal, "dvc add", add),
        Row::against(
            "2 GiB file unchanged, `ml data add` again",
            same,
            again,
            "dvc status",
            status,
        ),
    ])
}

/// Bytes that no two blocks have alike.
fn write(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    let mut block = vec![0_u8; 1 << 20];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..BYTES / block.len() as u64 {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    file.sync_all()?;
    Ok(())
}

/// Takes what the daemon remembers of files away.
fn forget(mesh: &Mesh) -> Result<()> {
    match fs::remove_dir_all(mesh.data().join("data/cache/stat")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// dvc, in a Python environment of its own.
fn dvc(workspace: &Workspace) -> Result<PathBuf> {
    let folder = workspace.target.join("dvc");
    let dvc = folder.join("bin/dvc");
    if !dvc.is_file() {
        let mut venv = Command::new("python3");
        venv.args(["-m", "venv"]).arg(&folder);
        step::run("make an environment for dvc", &mut venv)?;
        let mut pip = Command::new(folder.join("bin/python"));
        pip.args(["-m", "pip", "install", "-q", "dvc"]);
        step::run("install dvc", &mut pip)?;
    }
    Ok(dvc)
}
