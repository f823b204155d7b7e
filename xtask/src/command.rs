//! The words of the command line, matched by hand: six commands need no parser.

use std::process::ExitCode;

use crate::workspace::Workspace;
use crate::{bench, demo, dist, gate, soak, step, tidy};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  demo           run a small sweep of experiments from nothing and write a page about it
  test           everything that has to pass: format, lints, tidy, build, tests
  tidy           the house rules alone
  bench [NAME]   measure against named peers and print a table
  soak [NAME]    the long suites, by hand
  dist           pack the release binaries

Build output and caches go to the target directory (CARGO_TARGET_DIR is honoured).";

/// Runs one command and says in its exit code how that went: 0 done, 1 failed,
/// 2 not a command of ours.
pub fn run(words: &[String]) -> ExitCode {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = Workspace::locate().and_then(|workspace| match words.as_slice() {
        ["demo"] => demo::run(&workspace).map(|()| true),
        ["test"] => gate::run(&workspace).map(|()| true),
        ["tidy"] => tidy::run(&workspace).map(|()| true),
        ["soak"] => soak::run(&workspace, None).map(|()| true),
        ["soak", name] => soak::run(&workspace, Some(name)).map(|()| true),
        ["bench"] => bench::run(&workspace, None).map(|()| true),
        ["bench", name] => bench::run(&workspace, Some(name)).map(|()| true),
        ["dist"] => dist::run(&workspace).map(|()| true),
        ["help" | "--help" | "-h"] => {
            step::say(USAGE);
            Ok(true)
        }
        _ => Ok(false),
    });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            step::tell(USAGE);
            ExitCode::from(2)
        }
        Err(error) => {
            step::tell(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
