//! `cargo xtask soak [NAME]`: the suites that are too long for the gate.
//!
//! A soak is a test that is named `soak_…` and marked `#[ignore]`. `fuzz` is one more:
//! the targets `fuzz_…` of the gate with a million cases each, optimised, overflow
//! checks on. All take their seed from `MLMESH_SEED`, so that a failure can be
//! repeated; results are recorded with date and seed in `docs/BENCHMARKS.md`.

use std::env;
use std::time::{Instant, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::step;
use crate::workspace::Workspace;

/// Where a soak reads its seed.
pub const SEED_VARIABLE: &str = "MLMESH_SEED";
/// The soak that is no ignored test.
const FUZZ: &str = "fuzz";
/// Cases of each fuzz target.
const FUZZ_CASES: &str = "1000000";

/// Runs the soaks whose name contains `soak_NAME`, or all of them.
pub fn run(workspace: &Workspace, name: Option<&str>) -> Result<()> {
    if name.is_some_and(|name| {
        !name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    }) {
        bail!(
            "a soak's name has lower-case letters, digits and `_`, found `{}`\nhint: `cargo xtask soak` runs all",
            name.unwrap_or_default()
        );
    }
    let seed = match env::var(SEED_VARIABLE) {
        Ok(text) => text
            .parse::<u64>()
            .with_context(|| format!("{SEED_VARIABLE} is a whole number, found `{text}`"))?,
        Err(_) => fresh_seed()?,
    };
    step::say(format_args!(
        "seed {seed}; repeat with {SEED_VARIABLE}={seed}"
    ));
    let start = Instant::now();
    if name.is_none_or(|name| name == FUZZ) {
        fuzz(workspace, seed)?;
    }
    if name != Some(FUZZ) {
        ignored(workspace, name, seed)?;
    }
    step::say(format_args!(
        "seed {seed}: passed in {:.0} s",
        start.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// Our own crates are built with optimisation; dependencies are those of the gate.
fn fuzz(workspace: &Workspace, seed: u64) -> Result<()> {
    for targets in [
        &["--workspace", "--lib", "--bins"][..],
        &["--package", "mlmesh-recipe", "--test", "it"],
        &["--package", "mlmesh-bench", "--test", "it"],
    ] {
        let mut command = step::cargo(&workspace.root, &["test", "--quiet", "--no-fail-fast"]);
        command
            .args(targets)
            .args(["--", "fuzz_", "--nocapture"])
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "2")
            .env("MLMESH_FUZZ_CASES", FUZZ_CASES)
            .env("PROPTEST_CASES", FUZZ_CASES)
            .env("PROPTEST_RNG_SEED", seed.to_string())
            .env(SEED_VARIABLE, seed.to_string());
        step::run("fuzz", &mut command)?;
    }
    Ok(())
}

fn ignored(workspace: &Workspace, name: Option<&str>, seed: u64) -> Result<()> {
    let filter = format!("soak_{}", name.unwrap_or_default());
    step::run(
        "build",
        &mut step::cargo(&workspace.root, &["build", "--workspace", "--bins"]),
    )?;
    let test = |words: &[&str]| {
        let base = ["test", "--quiet", "--workspace", "--", "--ignored"];
        let mut command = step::cargo(&workspace.root, &base);
        command
            .args(words)
            .arg(&filter)
            .env(SEED_VARIABLE, seed.to_string());
        command
    };
    let names = step::read(&mut test(&["--list"]))?;
    let names = listed(&names);
    if names.is_empty() {
        bail!(
            "no soak is named `{filter}…`\nhint: a soak is an ignored test whose name begins with `soak_`"
        );
    }
    step::say(names.join("\n"));
    step::run("soak", &mut test(&["--nocapture", "--test-threads=1"]))
}

/// The names in what `cargo test -- --list` prints.
fn listed(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .collect()
}

#[expect(
    clippy::disallowed_methods,
    reason = "a new seed for each soak is what the clock is read for; the seed is printed"
)]
fn fresh_seed() -> Result<u64> {
    let now = std::time::SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock stands before 1970")?;
    Ok(now.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_from_cargos_list() {
        let text = "it::soak_kills: test\n\n1 test, 0 benchmarks\n0 tests, 0 benchmarks\n";
        assert_eq!(listed(text), ["it::soak_kills"]);
    }

    #[test]
    fn a_name_that_would_be_an_option_is_refused() {
        let nowhere = Workspace {
            root: "/nowhere".into(),
            target: "/nowhere".into(),
        };
        let error = run(&nowhere, Some("--all")).unwrap_err().to_string();
        assert!(error.contains("`--all`"), "{error}");
    }
}
