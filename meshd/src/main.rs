//! `meshd`: the daemon, and the processes of its attempts.
//!
//! ```text
//!   meshd run …                the daemon, in the foreground
//!   meshd gateway …            requests to inference engines, without a daemon
//!   meshd openapi              prints the OpenAPI document
//!   meshd attempt-… FOLDER     one process of an attempt; handed on before anything else
//! ```
//!
//! This is the composition root: it picks the store, the executor and the content
//! store, gives them to control, and puts the HTTP front end before it.

mod arguments;
mod daemon;
mod data_dir;
mod fuzz;
mod gateway;
mod handlers;
mod hooks;
mod http;
mod keys;
mod limits;
mod logs;
mod machine;
mod metrics;
mod needs;
mod openapi;
mod permissions;
mod prober;
mod reply;
mod routes;
mod serve;
mod stores;
mod tls;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use crate::arguments::{Arguments, Verb};

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let first = words.next();
    let is_attempt = first
        .as_deref()
        .and_then(|word| word.to_str())
        .is_some_and(|word| mlmesh_exec::VERBS.contains(&word));
    if is_attempt {
        let words: Vec<OsString> = first.into_iter().chain(words).collect();
        return mlmesh_exec::supervise_main(words);
    }
    match Arguments::parse().verb {
        Verb::Openapi => print_document(),
        Verb::Run(run) => ended(serve::run(&run)),
        Verb::Gateway(gateway) => ended(gateway::run(*gateway)),
    }
}

fn ended(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "the document is what was asked for")]
fn print_document() -> ExitCode {
    println!("{:#}", openapi::document());
    ExitCode::SUCCESS
}

/// Says why a program of ours does not run. A `hint:` stands on a line of its own, last.
#[expect(
    clippy::print_stderr,
    reason = "the last words of a daemon go to whoever started it"
)]
fn complain(error: &anyhow::Error) {
    let text = format!("{error:#}");
    let (hints, lines): (Vec<&str>, Vec<&str>) = text
        .lines()
        .partition(|line| line.trim_start().starts_with("hint:"));
    eprintln!("error: {}", lines.join("\n"));
    for hint in hints {
        eprintln!("{}", hint.trim_start());
    }
}
