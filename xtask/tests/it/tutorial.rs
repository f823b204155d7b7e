//! The README's tutorial is run as it stands: every `sh` block after its heading, in
//! order, in one shell, with a home of its own.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const HEADING: &str = "## Ten minutes";

#[test]
fn tutorial_commands_run() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let blocks = blocks(&readme);
    assert!(
        blocks.len() >= 4,
        "the tutorial has {} blocks",
        blocks.len()
    );

    build(root);
    let programs = Path::new(env!("CARGO_BIN_EXE_xtask")).parent().unwrap();
    let home = tempfile::Builder::new()
        .prefix("tutorial")
        .tempdir()
        .unwrap();
    let script = home.path().join("tutorial.sh");
    fs::write(&script, script_of(&blocks)).unwrap();
    let output = Command::new("bash")
        .arg(&script)
        .current_dir(home.path())
        .env_clear()
        .envs(env::vars_os().filter(|(name, _)| kept(&name.to_string_lossy())))
        .env("HOME", home.path())
        .env("PATH", path_with(programs))
        .output()
        .unwrap();
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{}\n{talk}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout)
    );
}

/// The fenced `sh` blocks between the tutorial's heading and the next one.
fn blocks(readme: &str) -> Vec<String> {
    let tutorial = readme.split(HEADING).nth(1).unwrap_or_default();
    let tutorial = tutorial.split("\n## ").next().unwrap_or_default();
    tutorial
        .split("\n```sh\n")
        .skip(1)
        .filter_map(|rest| rest.split("\n```").next())
        .map(str::to_owned)
        .collect()
}

/// Stops at the first command that fails and shows each before it runs. The daemon is
/// stopped at the end, whatever happens.
fn script_of(blocks: &[String]) -> String {
    format!(
        "set -euo pipefail\ntrap 'ml down --stop-jobs >/dev/null 2>&1 || true' EXIT\nset -x\n{}\n",
        blocks.join("\n")
    )
}

/// What a person's shell would have: no setting of ours, but those of pip.
fn kept(name: &str) -> bool {
    ["LANG", "TMPDIR", "TERM"].contains(&name)
        || name.starts_with("PIP_")
        || name.starts_with("SSL_")
        || name.starts_with("PYENV_")
}

fn path_with(programs: &Path) -> std::ffi::OsString {
    let folders = env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(PathBuf::from(programs)).chain(env::split_paths(&folders));
    env::join_paths(all).expect("folders of PATH have no colon")
}

/// A test that is started alone finds the programs of this tree, not older ones.
fn build(root: &Path) {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .current_dir(root)
        .args(["build", "--quiet", "--bin", "ml", "--bin", "meshd"])
        .output()
        .expect("cargo starts");
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
}

#[test]
fn blocks_are_those_of_the_tutorial() {
    let readme = format!(
        "# x\n```sh\nno\n```\n{HEADING}\n\n```sh\na\nb\n```\ntext\n```yaml\nno\n```\n```sh\nc\n```\n## Next\n```sh\nno\n```\n"
    );
    assert_eq!(blocks(&readme), ["a\nb", "c"]);
}

#[test]
fn a_failing_command_fails_the_tutorial() {
    let home = tempfile::tempdir().unwrap();
    let script = script_of(&["false | cat".to_owned(), "touch reached".to_owned()]);
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(home.path())
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(!home.path().join("reached").exists());
}
