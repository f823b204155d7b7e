//! `ml`: what people type.
//!
//! ```text
//!   argv ─► cli ─► verbs::* ─► project, recipe, snapshot ─► Client ─► meshd
//!                     │
//!                     └─► output (the only place that prints) ─► exit code
//! ```
//!
//! Each call is a short process: it reads no configuration that the verb does not
//! need, keeps no state of its own but caches, and has no runtime.

mod cli;
mod config;
mod context;
mod error;
mod output;
mod project;
mod upload;
mod verbs;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::cli::{Cli, Verb};
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::Output;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let context = Context::new(cli.global);
    let exit = match dispatch(&context, &cli.verb) {
        Ok(exit) => exit,
        Err(failure) => {
            if !failure.is_output_closed() {
                context.output.error(&failure);
            }
            failure.exit
        }
    };
    ExitCode::from(exit.code())
}

fn dispatch(context: &Context, verb: &Verb) -> Outcome<Exit> {
    let output = &context.output;
    let done = |outcome: Outcome| outcome.map(|()| Exit::Done);
    match verb {
        Verb::Init(verb) => done(verbs::init::init(output, verb)),
        Verb::Sync(verb) => done(verbs::sync::sync(context, verb)),
        Verb::Recipe(verb) => done(verbs::recipe::recipe(output, verb)),
        Verb::Config(verb) => done(verbs::settings::config(context, verb)),
        Verb::Completions(verb) => done(verbs::shell::completions(output, verb)),
        Verb::Man(verb) => done(verbs::shell::man(output, verb)),
        Verb::Detached(verb) => done(verbs::shell::detached(verb)),
        _ => todo!(),
    }
}

/// Help and version go to standard output; what cannot be meant is exit code 2.
fn usage(error: &clap::Error) -> ExitCode {
    let asked = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    );
    let json = std::env::args_os().any(|argument| argument == "--json");
    if asked || !json {
        drop(error.print());
        return ExitCode::from(if asked { 0 } else { Exit::Usage.code() });
    }
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let message = lines.next().unwrap_or_default();
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let hint = lines.find_map(|line| line.strip_prefix("tip: "));
    let hint = hint.unwrap_or("`ml --help` and `ml VERB --help` say what is possible");
    Output::new(true).error(&Failure::usage(message, hint));
    ExitCode::from(Exit::Usage.code())
}
