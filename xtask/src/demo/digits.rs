//! The demo's data and project.
//!
//! The data are the file that scikit-learn's wheel carries. Only pip is asked for the
//! wheel; nothing of it is installed. The file's digest is pinned here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::step;

/// What the data are, and whose.
pub(super) const SOURCE: &str = "data: the test part of \"Optical Recognition of Handwritten Digits\" (E. Alpaydin and C. Kaynak, 1998, \
UCI Machine Learning Repository, doi 10.24432/C50P49), CC BY 4.0, as scikit-learn 1.9.1 (BSD-3-Clause) ships it";

const WHEEL: &str = "scikit-learn==1.9.1";
/// The wheel of this Python version is taken whatever the machine has: the data are the same.
const WHEEL_PYTHON: &str = "3.11";

/// Arguments: folder with the wheel, wanted file.
const UNPACK: &str = r#"
import glob, hashlib, os, sys, zipfile
folder, wanted = sys.argv[1:]
[wheel] = glob.glob(folder + "/scikit_learn-*.whl")
content = zipfile.ZipFile(wheel).read("sklearn/datasets/data/digits.csv.gz")
digest = hashlib.sha256(content).hexdigest()
pinned = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
if digest != pinned:
    sys.exit(f"digits.csv.gz has SHA-256 {digest}, expected {pinned}")
with open(wanted + ".part", "wb") as file:
    file.write(content)
os.replace(wanted + ".part", wanted)
"#;

/// The data file, downloaded once into the cache.
pub(super) fn fetch(cache: &Path) -> Result<PathBuf> {
    let file = cache.join("digits.csv.gz");
    if file.is_file() {
        return Ok(file);
    }
    let wheels = cache.join("wheels");
    fs::create_dir_all(&wheels).with_context(|| format!("create {}", wheels.display()))?;
    let python = python_with_pip(cache)?;
    let options = [
        "-m",
        "pip",
        "download",
        "-q",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
    ];
    step::run(
        &format!("download {WHEEL}"),
        Command::new(&python)
            .args(options)
            .args(["--python-version", WHEEL_PYTHON, "--dest"])
            .arg(&wheels)
            .arg(WHEEL),
    )?;
    step::quiet(
        Command::new(&python)
            .args(["-c", UNPACK])
            .arg(&wheels)
            .arg(&file),
    )?;
    fs::remove_dir_all(&wheels).with_context(|| format!("remove {}", wheels.display()))?;
    Ok(file)
}

/// Debian's Python comes without pip; a virtual environment brings one.
fn python_with_pip(cache: &Path) -> Result<PathBuf> {
    let has_pip = |python: &Path| {
        Command::new(python)
            .args(["-m", "pip", "--version"])
            .output()
            .is_ok_and(|output| output.status.success())
    };
    let system = PathBuf::from("python3");
    if has_pip(&system) {
        return Ok(system);
    }
    let folder = cache.join("venv");
    let python = folder.join("bin/python");
    if !has_pip(&python) {
        step::run(
            "make a Python environment with pip",
            Command::new(&system)
                .args(["-m", "venv", "--clear"])
                .arg(&folder),
        )?;
    }
    Ok(python)
}

/// Copies the example and writes this machine's Python and the data's checksum into
/// its recipe.
pub(super) fn project(example: &Path, folder: &Path, checksum: &str) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    for entry in fs::read_dir(example).with_context(|| format!("read {}", example.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), folder.join(entry.file_name()))?;
        }
    }
    let version = step::read(
        Command::new("python3").args(["-c", "import sys; print('%d.%d' % sys.version_info[:2])"]),
    )?;
    let path = folder.join("train.yaml");
    let recipe = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let recipe = with_value(&recipe, "python: \"", &version)?;
    let recipe = with_value(&recipe, "checksum: \"", checksum)?;
    fs::write(&path, recipe).with_context(|| format!("write {}", path.display()))?;
    Ok(folder.to_owned())
}

/// Replaces what stands between `start` and the next quote, which must be there once.
fn with_value(recipe: &str, start: &str, value: &str) -> Result<String> {
    ensure!(
        recipe.matches(start).count() == 1,
        "the example's recipe has `{start}` {} times, expected once",
        recipe.matches(start).count()
    );
    let (before, rest) = recipe.split_once(start).context("found above")?;
    let (_, after) = rest
        .split_once('"')
        .with_context(|| format!("`{start}` is not closed"))?;
    Ok(format!("{before}{start}{value}\"{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_replaced_in_place() {
        assert_eq!(
            with_value("a: {python: \"3.9\", x: 1}\n", "python: \"", "3.11").unwrap(),
            "a: {python: \"3.11\", x: 1}\n"
        );
        assert!(with_value("a: 1", "python: \"", "3.11").is_err());
        assert!(with_value("python: \"1\" python: \"2\"", "python: \"", "3.11").is_err());
    }

    #[test]
    fn the_example_becomes_a_project_of_this_machine() {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/digits");
        let folder = tempfile::tempdir().unwrap();
        let project = project(&example, &folder.path().join("p"), "sha256:abc").unwrap();
        let recipe = fs::read_to_string(project.join("train.yaml")).unwrap();
        assert!(recipe.contains("checksum: \"sha256:abc\""));
        assert!(project.join("train.py").is_file() && project.join("requirements.lock").is_file());
    }
}
