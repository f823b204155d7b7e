//! `ml monitor`: the status, drawn again when something happens. On a terminal it
//! redraws in place; elsewhere each state is printed after the other.

use std::time::{Duration, Instant};

use mlmesh_api::EventStream;

use crate::context::Context;
use crate::error::Outcome;
use crate::follow::Patient;
use crate::output::{self, Tone};
use crate::verbs::runs;

/// Ages and times go on also when nothing happens.
const REDRAW: Duration = Duration::from_secs(1);
/// Events of a burst make one picture.
const BURST: Duration = Duration::from_millis(100);
const HOME_AND_CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// Goes on until it is interrupted.
pub(crate) fn monitor(context: &Context) -> Outcome {
    let output = &context.output;
    let mut patient = Patient::new(context)?;
    let mut after = 0;
    loop {
        let status = patient.call(mlmesh_api::Client::status)?;
        after = status.runs.iter().map(|run| run.seq).fold(after, u64::max);
        draw(context, &status)?;
        let mut stream = patient.call(|client| client.events(after))?;
        loop {
            let wait = if output.stdout_terminal && !output.json {
                REDRAW
            } else {
                Duration::from_secs(3600)
            };
            let Ok(something) = stream.next(wait) else {
                break;
            };
            if something.is_some() {
                drain(&mut stream);
            }
            let status = patient.call(mlmesh_api::Client::status)?;
            draw(context, &status)?;
        }
        after = stream.seq();
    }
}

/// Reads the rest of a burst, for no longer than a picture may be late.
fn drain(stream: &mut EventStream) {
    let started = Instant::now();
    while started.elapsed() < BURST {
        if !matches!(stream.next(BURST / 4), Ok(Some(_))) {
            return;
        }
    }
}

fn draw(context: &Context, status: &mlmesh_api::StatusDto) -> Outcome {
    let output = &context.output;
    if output.json {
        return output.json(status);
    }
    if !output.stdout_terminal {
        runs::print_status(output, status)?;
        return output.line("");
    }
    output.raw(HOME_AND_CLEAR.as_bytes())?;
    let time = output::date_time(runs::now().into());
    output.line(output.paint(&format!("mlmesh  {time}  Ctrl-C ends"), Tone::Dim))?;
    let mut status = status.clone();
    // Heading, counts, an empty line, the table's heading and the cursor's line.
    let rows = output::terminal_rows().unwrap_or(24).saturating_sub(5);
    status.runs.truncate(rows.max(1));
    runs::print_status(output, &status)
}
