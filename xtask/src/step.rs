//! Child processes that are named, timed and checked, and the two ways to speak:
//! data to stdout, talk to stderr.

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// Runs a command with its output shown, and says how long it took.
pub fn run(title: &str, command: &mut Command) -> Result<()> {
    say(format_args!("==> {title}"));
    let start = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("start `{}`", line(command)))?;
    let seconds = start.elapsed().as_secs_f64();
    if !status.success() {
        bail!(
            "{title} failed after {seconds:.1} s ({status}): `{}`",
            line(command)
        );
    }
    say(format_args!("    {title}: {seconds:.1} s"));
    Ok(())
}

/// Runs a command quietly; its output becomes part of the error when it fails.
pub fn quiet(command: &mut Command) -> Result<Output> {
    let output = command
        .output()
        .with_context(|| format!("start `{}`", line(command)))?;
    if !output.status.success() {
        bail!(
            "`{}` failed ({}):\n{}{}",
            line(command),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}

/// What a command prints on stdout, without the closing newline.
pub fn read(command: &mut Command) -> Result<String> {
    let output = quiet(command)?;
    let text = String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` printed bytes that are not UTF-8", line(command)))?;
    Ok(text.trim_end().to_owned())
}

/// A cargo command in the given folder.
pub fn cargo(root: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root).args(words);
    command
}

/// Whether a program of this name stands in one of the folders of `PATH`.
pub fn on_path(name: impl AsRef<OsStr>) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| folder.join(name.as_ref()).is_file())
}

/// Data, for stdout. A reader that has gone away is no error of ours.
pub fn say(text: impl Display) {
    drop(writeln!(io::stdout().lock(), "{text}"));
}

/// Talk, for stderr.
pub fn tell(text: impl Display) {
    drop(writeln!(io::stderr().lock(), "{text}"));
}

fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(OsStr::to_string_lossy));
    words.join(" ")
}
