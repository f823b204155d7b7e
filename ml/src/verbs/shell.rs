//! `ml completions`, `ml man` and the hidden step between `ml up` and the daemon.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use clap::CommandFactory;
use serde_json::json;

use crate::cli::{self, Cli};
use crate::error::{Failure, Outcome, plain};
use crate::output::Output;

/// Prints a completion script.
pub(crate) fn completions(output: &Output, verb: &cli::Completions) -> Outcome {
    use clap_complete::{generate, shells};
    let mut script = Vec::new();
    let mut command = Cli::command();
    let name = match verb.shell {
        cli::Shell::Bash => {
            generate(shells::Bash, &mut command, "ml", &mut script);
            "bash"
        }
        cli::Shell::Zsh => {
            generate(shells::Zsh, &mut command, "ml", &mut script);
            "zsh"
        }
        cli::Shell::Fish => {
            generate(shells::Fish, &mut command, "ml", &mut script);
            "fish"
        }
    };
    if output.json {
        let script = String::from_utf8_lossy(&script);
        return output.json(&json!({
            "schema": "mlmesh.completions/1", "shell": name, "script": script,
        }));
    }
    output.raw(&script)
}

/// Writes `ml.1` and one page per verb.
pub(crate) fn man(output: &Output, verb: &cli::Man) -> Outcome {
    let dir = verb.out.as_ref().unwrap_or(&verb.dir);
    fs::create_dir_all(dir).map_err(|error| Failure::io("make the folder", dir, &error))?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    write_pages(dir, &command, &mut pages)?;
    if output.json {
        return output.json(&json!({"schema": "mlmesh.man/1", "pages": pages}));
    }
    pages.iter().try_for_each(|page| output.line(page))
}

fn write_pages(dir: &Path, command: &clap::Command, pages: &mut Vec<String>) -> Outcome {
    let page = clap_mangen::Man::new(command.clone());
    let path = dir.join(page.get_filename());
    let mut text = Vec::new();
    page.render(&mut text)
        .and_then(|()| fs::write(&path, text))
        .map_err(|error| Failure::io("write", &path, &error))?;
    pages.push(path.display().to_string());
    let mut verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    verbs.try_for_each(|verb| write_pages(dir, verb, pages))
}

/// Leaves the terminal's session, then becomes the command. `ml up` starts the
/// daemon through this, so that no signal of the terminal reaches it.
pub(crate) fn detached(verb: &cli::Detached) -> Outcome {
    rustix::process::setsid().map_err(|error| {
        Failure::failed("local_failure", format!("leave the session: {error}"), "")
    })?;
    let (program, arguments) = verb
        .command
        .split_first()
        .ok_or_else(|| Failure::usage("no command was given", ""))?;
    let error = Command::new(program).args(arguments).exec();
    Err(Failure::failed(
        "local_failure",
        format!("execute `{}`: {}", program.display(), plain(&error)),
        "",
    ))
}
