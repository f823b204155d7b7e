//! Brings llama.cpp's `llama-server` for the tests: Debian's package of it, which only
//! unstable has, unpacked below `target/` together with everything that it depends on,
//! C library included. Nothing is installed and the machine's own lists of packages stay
//! as they are; where packages come from is what apt itself is set to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::step;
use crate::workspace::{Workspace, is_ci};

const PACKAGE: &str = "llama.cpp-tools";
const SUITE: &str = "sid";
/// Where Debian puts the keys of its archive.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Below the unpacked files.
const PROGRAM: &str = "usr/bin/llama-server";

/// Makes sure that the server is there. A machine that cannot have it is told so; in
/// continuous integration that is a failure.
pub fn ensure(workspace: &Workspace) -> Result<()> {
    let folder = workspace.target.join("llama");
    if folder.join("root").join(PROGRAM).is_file() {
        return Ok(());
    }
    let brought = bring(&folder);
    drop(fs::remove_dir_all(folder.join("new")));
    match brought {
        Err(error) if !is_ci() => {
            step::say(format_args!(
                "    missing: llama-server ({error:#}); its tests are skipped"
            ));
            Ok(())
        }
        brought => brought.context("bring llama-server"),
    }
}

fn bring(folder: &Path) -> Result<()> {
    for program in ["apt-get", "dpkg", "dpkg-deb"] {
        ensure!(step::on_path(program), "no `{program}` on PATH");
    }
    let machine = step::read(Command::new("dpkg").arg("--print-architecture"))?;
    ensure!(machine == "amd64", "not for `{machine}`, only for `amd64`");
    let new = folder.join("new");
    drop(fs::remove_dir_all(&new));
    for name in ["lists/partial", "cache/archives/partial", "root"] {
        let path = new.join(name);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    }
    let listing = step::read(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(SUITE) $(COMPONENT)",
        "Created-By: Packages",
    ]))?;
    let mirror = mirror(&listing).context("apt is set to no archive of Debian")?;
    let keys = match Path::new(KEYS).is_file() {
        true => format!("[signed-by={KEYS}] "),
        false => String::new(),
    };
    fs::write(
        new.join("sources"),
        format!("deb {keys}{mirror} {SUITE} main\n"),
    )?;
    // As if nothing were installed: then apt names everything that is needed.
    fs::write(new.join("status"), "")?;
    step::run("read unstable's package lists", apt(&new).arg("update"))?;
    step::run(
        &format!("download {PACKAGE}"),
        apt(&new).args([
            "install",
            "-y",
            "--download-only",
            "--no-install-recommends",
            PACKAGE,
        ]),
    )?;
    for package in packages(&new.join("cache/archives"))? {
        step::quiet(
            Command::new("dpkg-deb")
                .arg("-x")
                .arg(&package)
                .arg(new.join("root")),
        )?;
    }
    ensure!(
        new.join("root").join(PROGRAM).is_file(),
        "{PACKAGE} has no {PROGRAM}"
    );
    let root = folder.join("root");
    fs::rename(new.join("root"), &root).with_context(|| format!("create {}", root.display()))
}

/// The archive of Debian that apt reads first.
fn mirror(listing: &str) -> Option<&str> {
    listing.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (mirror, suite, component) = (words.next()?, words.next()?, words.next()?);
        let is_main = mirror.trim_end_matches('/').ends_with("/debian") && component == "main";
        (is_main && !suite.contains("security")).then_some(mirror)
    })
}

/// apt with folders of its own.
fn apt(new: &Path) -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").arg("-q");
    for (key, name) in [
        ("Dir::Etc::sourcelist", "sources"),
        ("Dir::State::lists", "lists"),
        ("Dir::State::status", "status"),
        ("Dir::Cache", "cache"),
    ] {
        let path = new.join(name);
        command.arg("-o").arg(format!("{key}={}", path.display()));
    }
    for setting in [
        "Dir::Etc::sourceparts=-",
        "Acquire::Languages=none",
        "APT::Sandbox::User=",
        "Debug::NoLocking=1",
    ] {
        command.args(["-o", setting]);
    }
    command
}

fn packages(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    let packages: Vec<PathBuf> = paths
        .into_iter()
        .filter(|path| path.extension().is_some_and(|end| end == "deb"))
        .collect();
    if packages.is_empty() {
        bail!("nothing was downloaded");
    }
    Ok(packages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_the_one_that_apt_uses() {
        let listing = "https://other.test/apt/ stable main\n\
                       http://mirror.test/debian-security/ stable-security main\n\
                       http://mirror.test/debian/ stable contrib\n\
                       http://mirror.test/debian/ stable main\n";
        assert_eq!(mirror(listing), Some("http://mirror.test/debian/"));
        assert_eq!(mirror("https://other.test/apt/ stable main\n"), None);
    }
}
