//! What people and scripts type: no words panic, and what is accepted is within its
//! bounds. Nothing is executed.

#![cfg(test)]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use clap::Parser as _;
use mlmesh_testkit::fuzz::border;

use crate::cli::{Cli, Verb};
use crate::output::parse_age_us;

#[test]
fn fuzz_command_lines() {
    let samples: Vec<&[u8]> = vec![
        b"up --port 0 --foreground",
        b"queue train.yaml --set lr=0.1 -q --repro-policy relaxed --priority -3 --wait",
        b"list --phase failed --limit 500 --cursor 7 --json",
        b"logs @last -f --attempt 2",
        b"prune --older-than 30d --dry-run",
        b"data add name 1 /path --data-dir x",
        b"info run_manifest.json",
        b"completions bash",
        b"run train.yaml --after aaaaaaaaaaaa --plan 00",
    ];
    let words: &[&[u8]] = &[
        b" ",
        b"--",
        b"-",
        b"=",
        b" --json ",
        b" -q",
        b"@last",
        b"--limit 501",
        b" help ",
        b"--help",
        b"\xff",
        b" --set =",
        b"--priority 99999999999",
        b" events -f",
        b" config explain",
        b"''",
        b"\n",
    ];
    border("command lines", &samples, words, |bytes| {
        let words = bytes.split(|byte| *byte == b' ').take(40);
        let words = words.map(|word| OsString::from_vec(word.to_vec()));
        match Cli::try_parse_from([OsString::from("ml")].into_iter().chain(words)) {
            Ok(Cli {
                verb: Verb::List(list),
                ..
            }) => assert!((1..=500).contains(&list.limit)),
            Ok(_) => {}
            Err(error) => {
                let failure = crate::usage_failure(&error.to_string());
                assert!(!failure.hint.is_empty());
            }
        }
    });
}

#[test]
fn fuzz_ages() {
    border(
        "ages",
        &[b"30d", b"12h", b"9223372036854s"],
        &[b"w", b"-", b" "],
        |bytes| {
            if let Ok(age) = parse_age_us(&String::from_utf8_lossy(bytes)) {
                assert!(age >= 0);
            }
        },
    );
}
