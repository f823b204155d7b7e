//! `cargo xtask test`: everything that has to pass, cheapest first.
//!
//! The last step is a plain `cargo test`, so that its closing lines are the last
//! thing printed.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::workspace::{Workspace, is_ci};
use crate::{llama, parts, step, tidy};

/// Where tests find the Python that has the packages of `xtask/requirements.txt`.
pub const PYTHON_VARIABLE: &str = "MLMESH_TEST_PYTHON";

/// Runs the whole gate and stops at the first step that fails.
pub fn run(workspace: &Workspace) -> Result<()> {
    let start = Instant::now();
    step::say("==> parts");
    parts::ensure(|_| true)?;
    let python = parts::test_python(workspace)?;
    llama::ensure(workspace)?;
    let cargo = |words: &[&str]| {
        let mut command = step::cargo(&workspace.root, words);
        if is_ci() {
            command.arg("--locked");
        }
        command
    };
    step::run(
        "format",
        &mut step::cargo(&workspace.root, &["fmt", "--all", "--check"]),
    )?;
    step::run("build", &mut cargo(&["build", "--workspace", "--bins"]))?;
    step::say("==> tidy");
    tidy::run(workspace)?;
    let mut clippy = step::cargo(&workspace.root, &["clippy", "--workspace", "--all-targets"]);
    if is_ci() {
        clippy.arg("--locked");
    }
    step::run("lints", clippy.args(["--", "-D", "warnings"]))?;
    let mut tests = cargo(&["test", "--workspace"]);
    if let Some(python) = python {
        tests.env(PYTHON_VARIABLE, python);
    }
    step::say(format_args!(
        "==> tests (after {:.1} s)",
        start.elapsed().as_secs_f64()
    ));
    let status = tests.status().context("start `cargo test`")?;
    step::tell(format_args!(
        "    all steps: {:.1} s",
        start.elapsed().as_secs_f64()
    ));
    ensure!(status.success(), "tests failed ({status})");
    Ok(())
}
