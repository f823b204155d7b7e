//! Where things are: the root of the source tree and the target directory.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use cargo_metadata::{Metadata, MetadataCommand};

/// The source tree that this command was started in, and where builds go.
#[derive(Debug, Clone)]
pub struct Workspace {
    pub root: PathBuf,
    pub target: PathBuf,
}

impl Workspace {
    /// Asks cargo, which also knows about `CARGO_TARGET_DIR`.
    pub fn locate() -> Result<Workspace> {
        let metadata = metadata_command(&manifest()?)
            .no_deps()
            .exec()
            .context("ask cargo where the workspace is")?;
        Ok(Workspace {
            root: metadata.workspace_root.into_std_path_buf(),
            target: metadata.target_directory.into_std_path_buf(),
        })
    }

    /// All packages with their resolved dependencies.
    pub fn metadata(&self) -> Result<Metadata> {
        metadata_command(&self.root.join("Cargo.toml"))
            .exec()
            .context("read the packages with `cargo metadata`")
    }

    /// A built program of this workspace; `profile` is the folder's name, `debug` or `release`.
    pub fn program(&self, profile: &str, name: &str) -> PathBuf {
        self.target.join(profile).join(name)
    }

    /// The files that belong to the project, relative to the root: those that git
    /// tracks, and new ones that it does not ignore.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let listing = Command::new("git")
            .current_dir(&self.root)
            .args([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .output()
            .context("start git, which knows the project's files")?;
        if !listing.status.success() {
            bail!(
                "`git ls-files` failed: {}\nhint: run this in a clone of the project",
                String::from_utf8_lossy(&listing.stderr).trim()
            );
        }
        let names = String::from_utf8(listing.stdout).context("a file's name is not UTF-8")?;
        let mut files: Vec<PathBuf> = names
            .split_terminator('\0')
            .map(PathBuf::from)
            .filter(|path| self.root.join(path).is_file())
            .collect();
        files.sort();
        files.dedup();
        Ok(files)
    }
}

/// `cargo run` names the package's folder; a program started by hand falls back
/// to the folder that it was built from.
fn manifest() -> Result<PathBuf> {
    let folder = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    let root = folder
        .parent()
        .context("the package xtask has no parent folder")?;
    Ok(root.join("Cargo.toml"))
}

fn metadata_command(manifest: &Path) -> MetadataCommand {
    let mut command = MetadataCommand::new();
    command.manifest_path(manifest);
    if is_ci() {
        command.other_options(vec!["--locked".to_owned()]);
    }
    command
}

/// In continuous integration nothing is skipped and the lock file is taken as it is.
pub fn is_ci() -> bool {
    env::var("CI").is_ok_and(|value| value == "true" || value == "1")
}
