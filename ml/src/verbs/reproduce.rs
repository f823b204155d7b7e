//! `ml reproduce`: runs once more what completed, and says whether the result is the same.

use std::time::{Duration, Instant};

use mlmesh_api::{IdempotencyKey, JudgementDto, ReproductionDto, ResultDifferenceDto};
use serde_json::json;

use crate::cli;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::follow::Patient;
use crate::output::{self, Output, Tone};

/// How long the judgement may take after the end of the run.
const JUDGED_MAX: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(20);

/// Exit code 1 when the result is another one, or there is none.
pub(crate) fn reproduce(context: &Context, verb: &cli::Reproduce) -> Outcome<Exit> {
    let output = &context.output;
    let client = context.client()?;
    let accepted = client.reproduce(&verb.run, &IdempotencyKey::random()?)?;
    let id = accepted.id.to_string();
    if verb.no_wait {
        if output.json {
            output.json(&accepted)?;
        } else {
            output.line(format_args!("queued {id}, which repeats {}", verb.run))?;
            output.hint(format_args!("`ml info {id}` says what came of it"));
        }
        return Ok(Exit::Done);
    }
    output.say(format_args!("queued {id}, which repeats {}", verb.run));
    let mut patient = Patient::with(context, client)?;
    patient.wait(&id)?;
    let (reproduction, judgement) = judged(&mut patient, &id)?;
    let original = patient.call(|client| client.run(&reproduction.original.to_string()));
    // It may have been removed meanwhile.
    let trust = original.ok().and_then(|run| run.trust);
    if output.json {
        output.json(&json!({
            "schema": "mlmesh.reproduction/1",
            "run": reproduction.run,
            "original": reproduction.original,
            "judgement": judgement,
            "trust": trust,
        }))?;
    } else {
        print(output, &judgement)?;
        if let Some(trust) = &trust {
            let badge = super::info::badge(trust);
            output.line(format_args!("{} is {badge}", reproduction.original))?;
        }
        if let Some(reason) = &judgement.denied {
            output.say(format_args!("no L4: {}", reason.message));
            output.hint(&reason.hint);
        }
    }
    Ok(match judgement.how {
        Some(_) => Exit::Done,
        None => Exit::Failed,
    })
}

/// The judgement, which follows the end of the run.
fn judged(patient: &mut Patient, id: &str) -> Outcome<(ReproductionDto, JudgementDto)> {
    let since = Instant::now();
    loop {
        let found = patient.call(|client| client.reproductions(id))?;
        let mut own = found.reproductions.into_iter();
        if let Some(mut it) = own.find(|it| it.run == found.run)
            && let Some(judgement) = it.judgement.take()
        {
            return Ok((it, judgement));
        }
        if since.elapsed() > JUDGED_MAX {
            return Err(Failure::failed(
                "reproduction_not_judged",
                format!(
                    "run `{id}` has ended and was not judged within {} s",
                    JUDGED_MAX.as_secs()
                ),
                "`logs/app.log` says why; the next start of the daemon judges it",
            ));
        }
        std::thread::sleep(LOOK);
    }
}

fn print(output: &Output, judgement: &JudgementDto) -> Outcome {
    let compared = format!(
        "{} and {} compared",
        output::counted(judgement.outputs_compared, "output"),
        output::counted(judgement.metrics_compared, "metric")
    );
    let (words, tone) = match (judgement.verdict.as_str(), &judgement.how) {
        ("within_tolerance", Some(how)) => (format!("within tolerance: {how}"), Tone::Good),
        (_, Some(how)) => (how.clone(), Tone::Good),
        ("differs", None) => ("differs".to_owned(), Tone::Bad),
        (_, None) => ("not compared".to_owned(), Tone::Bad),
    };
    output.line(format_args!("{}, {compared}", output.paint(&words, tone)))?;
    for it in &judgement.differences {
        output.line(format_args!("  {}", line(it)))?;
    }
    let more = judgement.differences_total - judgement.differences.len() as u64;
    match more {
        0 => Ok(()),
        more => output.line(format_args!("  and {more} more")),
    }
}

/// `model.npz differs from byte 17 on`, `accuracy 0.9 → 0.8`.
fn line(it: &ResultDifferenceDto) -> String {
    let name = &it.name;
    let allowed = if it.allowed { " (allowed)" } else { "" };
    let what = match (&it.original, &it.repeated, it.first_byte) {
        (None, ..) => "only in the repetition".to_owned(),
        (_, None, _) => "only in the original".to_owned(),
        (.., Some(byte)) => format!("differs from byte {byte} on"),
        (Some(_), Some(_), None) if it.kind == "output" => "differs".to_owned(),
        (Some(one), Some(other), None) => format!("{one} → {other}"),
    };
    format!("{name} {what}{allowed}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_difference_is_one_line() {
        let it = |kind: &str, original: Option<&str>, repeated: Option<&str>, first_byte| {
            line(&ResultDifferenceDto {
                kind: kind.into(),
                name: "x".into(),
                original: original.map(str::to_owned),
                repeated: repeated.map(str::to_owned),
                first_byte,
                allowed: kind == "metric",
            })
        };
        let told = [
            it("output", Some("a"), Some("b"), Some(17)),
            it("output", Some("a"), Some("b"), None),
            it("output", Some("a"), None, None),
            it("metric", None, Some("1"), None),
            it("metric", Some("0.5"), Some("nan"), None),
        ];
        assert_eq!(
            told,
            [
                "x differs from byte 17 on",
                "x differs",
                "x only in the original",
                "x only in the repetition (allowed)",
                "x 0.5 → nan (allowed)",
            ]
        );
    }
}
