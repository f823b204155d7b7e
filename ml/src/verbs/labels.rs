//! `ml tag`, `ml note`: what people write on runs.

use std::io::Read;

use mlmesh_api::{ChangeLabelsDto, IdempotencyKey};

use crate::cli;
use crate::context::Context;
use crate::error::{Failure, Outcome};

/// More than any note may have: it is refused with its length.
const NOTE_BYTES_MAX: u64 = 1 << 20;

/// Sets and removes tags; without any shows them.
pub(crate) fn tag(context: &Context, verb: &cli::Tag) -> Outcome {
    let mut change = ChangeLabelsDto {
        remove: verb.remove.clone(),
        ..ChangeLabelsDto::default()
    };
    for tag in &verb.tags {
        let (key, value) = tag.split_once('=').unwrap_or((tag, ""));
        change.set.insert(key.to_owned(), value.to_owned());
    }
    write(context, &verb.run, &change)
}

/// Writes the note; without a text shows it.
pub(crate) fn note(context: &Context, verb: &cli::Note) -> Outcome {
    let note = match verb.text.as_deref() {
        None => None,
        Some("-") => Some(read_note()?),
        Some(text) => Some(text.to_owned()),
    };
    let change = ChangeLabelsDto {
        note,
        ..ChangeLabelsDto::default()
    };
    write(context, &verb.run, &change)
}

fn read_note() -> Outcome<String> {
    let mut text = String::new();
    let read = std::io::stdin()
        .take(NOTE_BYTES_MAX)
        .read_to_string(&mut text);
    read.map_err(|error| Failure::failed("", format!("read the note: {error}"), "a note is text"))?;
    Ok(text.trim_end().to_owned())
}

fn write(context: &Context, run: &str, change: &ChangeLabelsDto) -> Outcome {
    let (client, output) = (context.client()?, &context.output);
    let (tags, note) = match *change == ChangeLabelsDto::default() {
        true => {
            let run = client.run(run)?;
            (run.tags, run.note)
        }
        false => {
            let labels = client.label(run, change, &IdempotencyKey::random()?)?;
            if output.json {
                return output.json(&labels);
            }
            (labels.tags, labels.note)
        }
    };
    if output.json {
        return output.json(&serde_json::json!({"tags": tags, "note": note}));
    }
    for (key, value) in &tags {
        match value.is_empty() {
            true => output.line(key)?,
            false => output.line(format_args!("{key}={value}"))?,
        }
    }
    match note.is_empty() {
        true => Ok(()),
        false => output.line(&note),
    }
}
