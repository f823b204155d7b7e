//! `cargo xtask soak [NAME]`: the suites that are too long for the gate.
//!
//! A soak is a test that is named `soak_…` and marked `#[ignore]`. It takes its seed
//! from `MLMESH_SEED`, so that a failure can be repeated; results are recorded
//! with date and seed in `docs/BENCHMARKS.md`.

use std::env;
use std::time::{Instant, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::step;
use crate::workspace::Workspace;

/// Where a soak reads its seed.
pub const SEED_VARIABLE: &str = "MLMESH_SEED";

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
    let filter = format!("soak_{}", name.unwrap_or_default());
    step::say(format_args!(
        "seed {seed}; repeat with {SEED_VARIABLE}={seed}"
    ));
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
    let start = Instant::now();
    step::run("soak", &mut test(&["--nocapture", "--test-threads=1"]))?;
    step::say(format_args!(
        "seed {seed}: passed in {:.0} s",
        start.elapsed().as_secs_f64()
    ));
    Ok(())
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
