//! Writes the tests' model of an inference engine, for trying things by hand:
//! `tiny_model FILE`, and then `llama-server --model FILE`.

use std::path::PathBuf;

use anyhow::Context as _;
use mlmesh_testkit::tiny_model;

/// The same file each time.
const SEED: u64 = 1;

fn main() -> anyhow::Result<()> {
    let file = std::env::args_os().nth(1).context("which file?")?;
    let file = PathBuf::from(file);
    tiny_model::write(&file, SEED).with_context(|| format!("write {}", file.display()))
}
