//! `ml events` and `ml audit`: what happened, and that nobody changed the record.

use std::time::Duration;

use mlmesh_api::{EventDto, EventKindDto, TellingStateDto};

use crate::cli;
use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::follow::Patient;
use crate::output::{self, Output, Table, Tone};

/// Committed events that are there come within this time.
const BACKLOG_WAIT: Duration = Duration::from_millis(250);
const FOLLOW_WAIT: Duration = Duration::from_secs(30);
/// Audit rows in one call.
const PAGE: u32 = 500;

/// Prints events.
pub(crate) fn events(context: &Context, verb: &cli::Events) -> Outcome {
    let output = &context.output;
    if !verb.follow {
        let mut stream = context.client()?.events(verb.after)?;
        while let Some(event) = stream.next(BACKLOG_WAIT)? {
            print(output, &event)?;
        }
        return Ok(());
    }
    let mut patient = Patient::new(context)?;
    let mut after = verb.after;
    loop {
        let mut stream = patient.call(|client| client.events(after))?;
        // A broken stream goes on after the last event that was seen.
        while let Ok(next) = stream.next(FOLLOW_WAIT) {
            if let Some(event) = next {
                print(output, &event)?;
            }
        }
        after = stream.seq();
    }
}

fn print(output: &Output, event: &EventDto) -> Outcome {
    if output.json {
        return output.json(event);
    }
    let run = event.run.map_or(String::new(), |run| format!("{run}  "));
    output.line(format_args!(
        "{:>6}  {}  {run}{}",
        event.seq,
        output::date_time(event.time),
        words(&event.event)
    ))
}

fn words(event: &EventKindDto) -> String {
    match event {
        EventKindDto::RunPhase {
            phase,
            cause,
            attempt,
        } => {
            let cause = cause.map_or(String::new(), |cause| format!(" ({cause})"));
            match attempt {
                0 => format!("{phase}{cause}"),
                attempt => format!("{phase}{cause}, attempt {attempt}"),
            }
        }
        EventKindDto::SweepAccepted { children } => format!(
            "sweep of {} accepted",
            output::counted((*children).into(), "run")
        ),
        EventKindDto::CommitStored { commit, files } => {
            format!(
                "commit {} stored, {}",
                commit.0.short(),
                output::counted(*files, "file")
            )
        }
        EventKindDto::DatasetChanged {
            name,
            version,
            change,
        } => format!("dataset {name} {version} {change}"),
        EventKindDto::EndTold { state, tries } => {
            let word = match state {
                TellingStateDto::Delivered => "told of its end",
                _ => "could not be told of its end",
            };
            format!("somebody {word}, try {tries}")
        }
        EventKindDto::DaemonStarted { version } => format!("daemon {version} started"),
        EventKindDto::Security { code, remote } => format!("security: {code} from {remote}"),
    }
}

/// Checks or prints the audit trail.
pub(crate) fn audit(context: &Context, verb: &cli::Audit) -> Outcome {
    match verb {
        cli::Audit::Verify => verify(context),
        cli::Audit::List { after } => list(context, *after),
    }
}

fn verify(context: &Context) -> Outcome {
    let verdict = context.client()?.verify_audit()?;
    let output = &context.output;
    if output.json {
        output.json(&verdict)?;
    } else if verdict.ok {
        output.line(format_args!(
            "{}, the chain is whole",
            output::counted(verdict.rows, "row")
        ))?;
    }
    if verdict.ok {
        return Ok(());
    }
    let place = verdict
        .first_bad
        .map_or(String::new(), |row| format!(" at row {row}"));
    Err(Failure {
        code: "audit_broken".to_owned(),
        ..Failure::failed(
            "",
            format!("the audit trail is broken{place}: {}", verdict.message),
            "somebody changed the store by hand, or it was restored from an older copy",
        )
    }
    .with_details(serde_json::json!({"first_bad": verdict.first_bad, "rows": verdict.rows})))
}

fn list(context: &Context, after: u64) -> Outcome {
    let client = context.client()?;
    let output = &context.output;
    let mut cursor = after;
    loop {
        let page = client.audit(cursor, Some(PAGE))?;
        if output.json {
            output.json(&page)?;
        } else {
            let mut table = Table::new(&["N", "TIME", "OWNER", "KEY", "FROM", "ACTION", "SUBJECT"]);
            for row in &page.rows {
                table.row([
                    (row.n.to_string(), Tone::Dim),
                    (output::date_time(row.time), Tone::Plain),
                    (row.owner.clone(), Tone::Plain),
                    (row.key.clone(), Tone::Plain),
                    (row.remote.clone(), Tone::Plain),
                    (row.action.clone(), Tone::Plain),
                    (row.subject.clone(), Tone::Plain),
                ]);
            }
            if !table.is_empty() {
                output.table(&table)?;
            }
        }
        match page.next_cursor {
            Some(next) => cursor = next,
            None => return Ok(()),
        }
    }
}
