//! `ml validate`: what is wrong with a run or a commit, a line for each broken rule.

use crate::cli;
use crate::context::Context;
use crate::error::{Exit, Outcome};
use crate::output::Tone;

/// Exit code 1 when something is wrong.
pub(crate) fn validate(context: &Context, verb: &cli::Validate) -> Outcome<Exit> {
    let output = &context.output;
    if verb.schema {
        output.line(mlmesh_proof::MANIFEST_JSON_SCHEMA.trim_end())?;
        return Ok(Exit::Done);
    }
    let client = context.client()?;
    let found = match (&verb.task, &verb.commit) {
        (Some(run), _) => client.validate_run(run)?,
        (None, Some(commit)) => client.validate_commit(commit)?,
        // Refused when the arguments were read.
        (None, None) => return Ok(Exit::Usage),
    };
    if output.json {
        output.json(&found)?;
    } else {
        for defect in &found.defects {
            output.line(format_args!(
                "{} {}: {}; seen {}, allowed {}",
                output.paint(&defect.code, Tone::Bad),
                defect.at,
                defect.rule,
                defect.seen,
                defect.allowed
            ))?;
        }
        match found.defects_total {
            0 => output.line(format_args!("{} is whole", found.subject))?,
            total => output.say(format!("{total} broken rules in {}", found.subject)),
        }
    }
    Ok(match found.defects_total {
        0 => Exit::Done,
        _ => Exit::Failed,
    })
}
