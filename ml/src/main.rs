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
mod croissant;
mod error;
mod follow;
mod fuzz;
mod large;
mod markup;
mod moved;
mod output;
mod partial;
mod plot;
mod project;
mod signing;
mod simulated;
mod submission;
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
        Verb::Up(verb) => done(verbs::daemon::up(context, verb)),
        Verb::Down(verb) => done(verbs::daemon::down(context, verb)),
        Verb::Doctor(verb) if verb.objects => verbs::scrub::scrub(context),
        Verb::Doctor(_) => verbs::doctor::doctor(context),
        Verb::Init(verb) => done(verbs::init::init(output, verb)),
        Verb::Sync(verb) => done(verbs::sync::sync(context, verb)),
        Verb::Recipe(verb) => done(verbs::recipe::recipe(output, verb)),
        Verb::Explain(verb) => verbs::submit::explain(context, verb),
        Verb::Queue(verb) => verbs::submit::queue(context, verb),
        Verb::Run(verb) => verbs::submit::run(context, verb),
        Verb::Retry(verb) => done(verbs::runs::retry(context, verb)),
        Verb::Metrics(verb) => done(verbs::plot::metrics(context, verb)),
        Verb::Plot(verb) => done(verbs::plot::plot(context, verb)),
        Verb::List(verb) => done(verbs::runs::list(context, verb)),
        Verb::Status => done(verbs::runs::status(context)),
        Verb::Watch(verb) => done(verbs::logs::watch(context, verb)),
        Verb::Logs(verb) => done(verbs::logs::logs(context, verb)),
        Verb::Info(verb) => done(verbs::info::info(context, verb)),
        Verb::Compare(verb) => done(verbs::compare::compare(context, verb)),
        Verb::Reproduce(verb) => verbs::reproduce::reproduce(context, verb),
        Verb::Validate(verb) => verbs::validate::validate(context, verb),
        Verb::Outputs(verb) => done(verbs::outputs::outputs(context, verb)),
        Verb::Export(verb) => verbs::export::export(context, verb),
        Verb::Import(verb) => verbs::import::import(context, verb),
        Verb::Key(verb) => done(verbs::users::key(context, verb)),
        Verb::User(verb) => done(verbs::users::user(context, verb)),
        Verb::Cancel(verb) => verbs::runs::cancel(context, verb),
        Verb::Tag(verb) => done(verbs::labels::tag(context, verb)),
        Verb::Note(verb) => done(verbs::labels::note(context, verb)),
        Verb::Pin(verb) => done(verbs::pins::pin(context, verb)),
        Verb::Unpin(verb) => done(verbs::pins::unpin(context, verb)),
        Verb::Prune(verb) => done(verbs::runs::prune(context, verb)),
        Verb::Deps(cli::Deps::Lock(verb)) => verbs::deps::lock(context, verb),
        Verb::Data(verb) => done(verbs::data::data(context, verb)),
        Verb::Secret(verb) => done(verbs::secret::secret(context, verb)),
        Verb::Model(verb) => done(verbs::model::model(context, verb)),
        Verb::Service(verb) => done(verbs::service::service(context, verb)),
        Verb::Route(cli::Route::Explain(verb)) => done(verbs::route::explain(output, verb)),
        Verb::Route(cli::Route::List(verb)) => done(verbs::route::list(output, verb)),
        Verb::Sim(cli::Sim::Compare(verb)) => done(verbs::sim::compare(output, verb)),
        Verb::Sim(cli::Sim::Calibrate(verb)) => done(verbs::sim_calibrate::calibrate(output, verb)),
        Verb::Sim(cli::Sim::Run(verb)) => done(verbs::sim::run(output, verb)),
        Verb::Sim(cli::Sim::Serve(verb)) => done(verbs::sim::serve(output, verb)),
        Verb::Events(verb) => done(verbs::events::events(context, verb)),
        Verb::Audit(verb) => done(verbs::events::audit(context, verb)),
        Verb::Config(verb) => done(verbs::settings::config(context, verb)),
        Verb::Bench(cli::Bench::Llm(verb)) => verbs::bench::llm(context, verb),
        Verb::Monitor => done(verbs::monitor::monitor(context)),
        Verb::Completions(verb) => done(verbs::shell::completions(output, verb)),
        Verb::Man(verb) => done(verbs::shell::man(output, verb)),
        Verb::Detached(verb) => done(verbs::shell::detached(verb)),
    }
}

/// Help and version go to standard output; what cannot be meant is exit code 2.
fn usage(error: &clap::Error) -> ExitCode {
    let asked = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    );
    if asked {
        drop(error.print());
        return ExitCode::SUCCESS;
    }
    let json = std::env::args_os().any(|argument| argument == "--json");
    let output = Output::new(json);
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand && !json {
        output.say(error.render());
    } else {
        output.error(&usage_failure(&error.to_string()));
    }
    ExitCode::from(Exit::Usage.code())
}

/// The parser's words in our form: what is wrong, then what could be meant.
fn usage_failure(text: &str) -> Failure {
    let mut message = Vec::new();
    let mut hints = Vec::new();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    for line in lines {
        if let Some(tip) = line.strip_prefix("tip: ") {
            hints.push(tip.replace('\'', "`"));
        } else if let Some(usage) = line.strip_prefix("Usage: ") {
            hints.push(format!("usage is `{usage}`"));
        } else if !line.starts_with("For more information") {
            let line = line.strip_prefix("error: ").unwrap_or(line);
            message.push(line.replace('\'', "`"));
        }
    }
    if hints.is_empty() {
        hints.push("`ml VERB --help` says what is possible".to_owned());
    }
    Failure::usage(message.join(" "), hints.join("; "))
}
