//! Finds the Python that a recipe names and learns where it lives.
//!
//! Candidates are programs on PATH, then the versions that pyenv and uv manage,
//! then the system's own folders. Each is asked itself: a name such as
//! `python3.11` may be a shim for another version, or for none.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use mlmesh_model::{Digest, Interpreter};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// An interpreter, and what must be visible for it to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) interpreter: Interpreter,
    /// Folders that hold it and its standard library.
    pub(crate) prefixes: Vec<PathBuf>,
    stat: FileStat,
}

/// What changes when a file is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct FileStat {
    inode: u64,
    bytes: u64,
    modified_ns: i64,
}

impl FileStat {
    fn of(path: &Path) -> io::Result<Self> {
        let facts = fs::metadata(path)?;
        Ok(Self {
            inode: facts.ino(),
            bytes: facts.len(),
            modified_ns: facts
                .mtime()
                .wrapping_mul(1_000_000_000)
                .wrapping_add(facts.mtime_nsec()),
        })
    }
}

impl Found {
    /// Whether the executable is still the one that was looked at.
    pub(crate) fn is_current(&self) -> bool {
        FileStat::of(&self.interpreter.path).is_ok_and(|stat| stat == self.stat)
    }
}

/// What was found by version; forgotten with the process.
static KNOWN: Mutex<BTreeMap<String, Found>> = Mutex::new(BTreeMap::new());

/// Most versions that are remembered.
const KNOWN_MAX: usize = 64;

/// The interpreter of a version such as `3.11` or `3.11.7` on this machine.
pub fn find_interpreter(version: &str) -> Option<Interpreter> {
    find(version).map(|found| found.interpreter)
}

pub(crate) fn find(version: &str) -> Option<Found> {
    let known = KNOWN.lock().ok()?.get(version).cloned();
    if let Some(found) = known.filter(Found::is_current) {
        return Some(found);
    }
    let found = candidates(version)
        .into_iter()
        .find_map(|candidate| ask(&candidate, version))?;
    if let Ok(mut known) = KNOWN.lock()
        && known.len() < KNOWN_MAX
    {
        known.insert(version.to_owned(), found.clone());
    }
    Some(found)
}

fn candidates(version: &str) -> Vec<PathBuf> {
    let short = version.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
    let exact_name = format!("python{short}");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    if let Some(home) = std::env::var_os("HOME").map(PathBuf::from) {
        let pyenv =
            std::env::var_os("PYENV_ROOT").map_or_else(|| home.join(".pyenv"), PathBuf::from);
        for managed in [pyenv.join("versions"), home.join(".local/share/uv/python")] {
            let mut versions: Vec<PathBuf> = fs::read_dir(managed)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path().join("bin"))
                .collect();
            versions.sort();
            // The newest first, roughly; the version itself is asked for anyway.
            folders.extend(versions.into_iter().rev());
        }
    }
    folders.extend(["/usr/local/bin", "/usr/bin"].map(PathBuf::from));
    let mut found = Vec::new();
    for name in [exact_name.as_str(), "python3", "python"] {
        for folder in folders.iter().filter(|folder| folder.is_absolute()) {
            let path = folder.join(name);
            if path.is_file() && !found.contains(&path) {
                found.push(path);
            }
        }
    }
    found
}

#[derive(Deserialize)]
struct Answer {
    version: String,
    executable: PathBuf,
    prefixes: Vec<PathBuf>,
}

/// The base interpreter is meant, not the virtual environment around it.
const QUESTION: &str = "\
import json, os, sys
exe = os.path.realpath(getattr(sys, '_base_executable', None) or sys.executable)
print(json.dumps({'version': '%d.%d.%d' % sys.version_info[:3], 'executable': exe,
  'prefixes': sorted({sys.base_prefix, sys.base_exec_prefix, os.path.dirname(os.path.dirname(exe))})}))
";

fn ask(candidate: &Path, version: &str) -> Option<Found> {
    let output = Command::new(candidate)
        .args(["-I", "-c", QUESTION])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let answer: Answer = serde_json::from_slice(&output.stdout).ok()?;
    let matches = answer.version == version || answer.version.starts_with(&format!("{version}."));
    if !matches {
        return None;
    }
    Some(Found {
        stat: FileStat::of(&answer.executable).ok()?,
        interpreter: Interpreter {
            version: version.to_owned(),
            exact: answer.version,
            sha256: digest_of(&answer.executable).ok()?,
            path: answer.executable,
        },
        prefixes: answer.prefixes,
    })
}

/// The interpreter behind a virtual environment that somebody else has made, and the
/// packages in it as they are now.
pub(crate) fn of_environment(prefix: &Path) -> Option<(Found, Vec<String>)> {
    let found = ask(&prefix.join("bin/python"), "3")?;
    Some((found, packages(prefix)?))
}

/// The packages that a virtual environment's Python can import, `name==version`, sorted.
/// `None` when it does not work.
pub(crate) fn packages(prefix: &Path) -> Option<Vec<String>> {
    let mut python = Command::new(prefix.join("bin/python"));
    frozen(python.args(["-I", "-c", mlmesh_recipe::lock::FREEZE]))
}

/// The same without running anything of theirs: a package can have lines in a `.pth`
/// file that Python executes whenever it starts with the folder that they lie in.
pub(crate) fn packages_unrun(prefix: &Path) -> Option<Vec<String>> {
    let libraries = std::fs::read_dir(prefix.join("lib")).ok()?.flatten();
    let mut sites = libraries.map(|library| library.path().join("site-packages"));
    let site = sites.find(|site| site.is_dir())?;
    let code = format!(
        "import sys\nsys.path.append(sys.argv[1])\n{}",
        mlmesh_recipe::lock::FREEZE
    );
    let mut python = Command::new(prefix.join("bin/python"));
    frozen(python.args(["-I", "-S", "-c", &code]).arg(site))
}

#[derive(Deserialize)]
struct Frozen {
    frozen: Vec<String>,
}

fn frozen(python: &mut Command) -> Option<Vec<String>> {
    let output = python
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let frozen: Frozen = serde_json::from_slice(&output.stdout).ok()?;
    Some(frozen.frozen)
}

fn digest_of(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0_u8; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest::from_bytes(hasher.finalize().into())),
            length => hasher.update(&buffer[..length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_listed_without_running_what_they_bring() {
        let folder = tempfile::tempdir().unwrap();
        let prefix = folder.path().join("env");
        let made = Command::new("python3")
            .args(["-m", "venv", "--without-pip"])
            .arg(&prefix)
            .status();
        if !made.is_ok_and(|status| status.success()) {
            return;
        }
        let library = std::fs::read_dir(prefix.join("lib")).unwrap().next();
        let site = library.unwrap().unwrap().path().join("site-packages");
        let info = site.join("gadget-1.0.dist-info");
        std::fs::create_dir(&info).unwrap();
        let metadata = "Metadata-Version: 2.1\nName: gadget\nVersion: 1.0\n";
        std::fs::write(info.join("METADATA"), metadata).unwrap();
        let ran = folder.path().join("ran");
        let line = format!("import os; open({:?}, 'w')\n", ran.to_str().unwrap());
        std::fs::write(site.join("gadget.pth"), line).unwrap();
        assert_eq!(packages_unrun(&prefix).unwrap(), ["gadget==1.0"]);
        assert!(!ran.exists());
        // Python does run it when it is let.
        assert_eq!(packages(&prefix).unwrap(), ["gadget==1.0"]);
        assert!(ran.exists());
    }

    #[test]
    fn a_version_that_does_not_exist_is_not_found() {
        assert_eq!(find_interpreter("3.999"), None);
    }

    #[test]
    fn what_is_found_has_the_version_that_was_asked_for() {
        let Some(found) = find("3") else {
            assert!(std::env::var_os("CI").is_none(), "no python3 in CI");
            println!("skipped: no python3");
            return;
        };
        assert!(found.interpreter.exact.starts_with("3."));
        assert!(found.is_current());
        let again = find(&found.interpreter.exact).unwrap();
        assert_eq!(again.interpreter.exact, found.interpreter.exact);
    }
}
