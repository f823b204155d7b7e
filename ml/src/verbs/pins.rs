//! `ml pin`, `ml unpin`: what prune keeps.

use mlmesh_api::{IdempotencyKey, PinDto};

use crate::cli;
use crate::context::Context;
use crate::error::Outcome;
use crate::output::{self, Table, Tone};

/// Keeps runs and commits from prune; without a name lists what is kept.
pub(crate) fn pin(context: &Context, verb: &cli::Pin) -> Outcome {
    let client = context.client()?;
    let output = &context.output;
    if verb.targets.is_empty() {
        let pins = client.pins()?;
        if output.json {
            return output.json(&pins);
        }
        if pins.pins.is_empty() {
            output.say("nothing is pinned");
            return Ok(());
        }
        let mut table = Table::new(&["KIND", "PINNED", "BY", "SINCE"]);
        for pin in &pins.pins {
            table.row([
                (kind(pin).to_owned(), Tone::Plain),
                (name(pin), Tone::Plain),
                (pin.owner.clone(), Tone::Plain),
                (output::date_time(pin.pinned_at), Tone::Dim),
            ]);
        }
        return output.table(&table);
    }
    for target in &verb.targets {
        let pin = client.pin(target, &IdempotencyKey::random()?)?;
        if output.json {
            output.json(&pin)?;
        } else {
            output.line(format_args!("pinned {} {}", kind(&pin), name(&pin)))?;
        }
    }
    Ok(())
}

/// Lets prune take them again.
pub(crate) fn unpin(context: &Context, verb: &cli::Unpin) -> Outcome {
    let client = context.client()?;
    for target in &verb.targets {
        client.unpin(target)?;
        if context.output.json {
            let schema = "mlmesh.unpinned/1";
            let answer = serde_json::json!({"schema": schema, "target": target});
            context.output.json(&answer)?;
        } else {
            context.output.line(format_args!("unpinned {target}"))?;
        }
    }
    Ok(())
}

fn kind(pin: &PinDto) -> &'static str {
    match pin.run {
        Some(_) => "run",
        None => "commit",
    }
}

fn name(pin: &PinDto) -> String {
    let run = pin.run.map(|run| run.to_string());
    let commit = pin.commit.map(|commit| commit.to_string());
    run.or(commit).unwrap_or_default()
}
