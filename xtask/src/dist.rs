//! `cargo xtask dist`: the release binaries, the licence, the readme and the man
//! pages in one archive, with its SHA-256.

use std::env::consts::ARCH;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::step;
use crate::workspace::Workspace;

const PROGRAMS: &[&str] = &["ml", "meshd"];
const TEXTS: &[&str] = &["LICENSE", "README.md", "CHANGELOG.md"];

/// Builds, packs and prints `SHA256  PATH`.
pub fn run(workspace: &Workspace) -> Result<()> {
    let mut build = step::cargo(&workspace.root, &["build", "--release", "--locked"]);
    for program in PROGRAMS {
        build.args(["--bin", program]);
    }
    step::run("build", &mut build)?;
    let version = version(workspace)?;
    let name = format!("mlmesh-{version}-{ARCH}-linux");
    let dist = workspace.target.join("dist");
    let folder = dist.join(&name);
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("remove the old {}", folder.display()))?;
    }
    fs::create_dir_all(folder.join("bin"))?;
    for program in PROGRAMS {
        copy(
            &workspace.program("release", program),
            &folder.join("bin").join(program),
        )?;
    }
    for text in TEXTS {
        copy(&workspace.root.join(text), &folder.join(text))?;
    }
    man_pages(&folder)?;
    let archive = dist.join(format!("{name}.tar.gz"));
    pack(&dist, &name, &archive)?;
    step::say(step::read(Command::new("sha256sum").arg(&archive))?);
    Ok(())
}

/// `ml` writes its own pages; a build without that command ships none and says so.
fn man_pages(folder: &Path) -> Result<()> {
    let man = folder.join("share/man/man1");
    fs::create_dir_all(&man)?;
    let printed = Command::new(folder.join("bin/ml"))
        .arg("man")
        .arg(&man)
        .output()
        .context("start `ml man`")?;
    if !printed.status.success() {
        step::tell(format_args!(
            "no man pages: `ml man` failed: {}",
            String::from_utf8_lossy(&printed.stderr).trim()
        ));
        fs::remove_dir_all(folder.join("share"))?;
    }
    Ok(())
}

/// The same content gives the same archive: names are sorted, times and owners fixed.
fn pack(dist: &Path, name: &str, archive: &Path) -> Result<()> {
    step::quiet(
        Command::new("tar")
            .current_dir(dist)
            .args([
                "--sort=name",
                "--mtime=@0",
                "--owner=0",
                "--group=0",
                "--numeric-owner",
            ])
            .args(["--use-compress-program=gzip -n", "-cf"])
            .arg(archive)
            .arg(name),
    )?;
    Ok(())
}

fn version(workspace: &Workspace) -> Result<String> {
    let metadata = workspace.metadata()?;
    let package = metadata
        .workspace_packages()
        .into_iter()
        .find(|package| package.name.as_str() == "ml");
    Ok(package
        .context("the workspace has no package `ml`")?
        .version
        .to_string())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    Ok(())
}
