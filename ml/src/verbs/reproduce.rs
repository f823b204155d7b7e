//! `ml reproduce`: runs once more what completed, says whether the result is the same, and
//! signs that it is.

use std::time::{Duration, Instant};

use mlmesh_api::{
    AttestDto, Client, ClientError, IdempotencyKey, JudgementDto, ReproductionDto,
    ResultDifferenceDto, RunDto, Timestamp, ToleranceDto, error_code,
};
use mlmesh_model::{Digest, ReproductionVerdict, RunId, Tolerance};
use mlmesh_proof::export::{ReproductionClaim, SigningKey};
use serde_json::json;

use crate::cli;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::follow::Patient;
use crate::output::{self, Output, Tone};
use crate::signing;
use crate::verbs::outputs::damaged;
use crate::verbs::runs::now;

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
    sign(output, &patient, &reproduction, &judgement);
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
            if let Some(signer) = trust.reproduced.as_ref().and_then(|it| it.signer.as_ref()) {
                output.line(format_args!("signed by {signer}"))?;
            }
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

/// Signs what makes the original L4. The judgement stands without it, and the next export
/// of the original signs it, so that a failure is told and no more.
fn sign(
    output: &Output,
    patient: &Patient,
    reproduction: &ReproductionDto,
    judgement: &JudgementDto,
) {
    if judgement.denied.is_some() {
        return;
    }
    let signed = signing::key(output)
        .and_then(|key| attest(patient.client(), &key, reproduction, judgement));
    if let Err(failure) = signed {
        output.say(format_args!("not signed: {}", failure.message));
        output.hint(format_args!(
            "`ml export {}` signs it",
            reproduction.original
        ));
    }
}

/// The envelope of the statement that makes a run L4; it is signed now if it never was.
pub(crate) fn statement(
    client: &Client,
    key: &SigningKey,
    run: &RunDto,
) -> Outcome<Option<Vec<u8>>> {
    let reproduced = run.trust.as_ref().and_then(|it| it.reproduced.as_ref());
    let Some(reproduced) = reproduced else {
        return Ok(None);
    };
    let found = client.reproductions(&run.id.to_string())?.reproductions;
    let by = found.into_iter().find(|it| it.run == reproduced.by);
    let Some(mut by) = by else {
        return Ok(None);
    };
    match (by.statement.take(), by.judgement.take()) {
        (Some(statement), _) => Ok(Some(statement.envelope.into_bytes())),
        (None, Some(judgement)) => attest(client, key, &by, &judgement).map(Some),
        (None, None) => Ok(None),
    }
}

/// Signs a judgement, once both manifests are those that were judged, and has the daemon
/// keep the statement. The envelope that it keeps comes back.
fn attest(
    client: &Client,
    key: &SigningKey,
    reproduction: &ReproductionDto,
    judgement: &JudgementDto,
) -> Outcome<Vec<u8>> {
    let claim = claim(reproduction, judgement).ok_or_else(|| {
        Failure::failed(
            error_code::BAD_ANSWER,
            format!("what was judged of run `{}` makes no L4", reproduction.run),
            "`ml` and `meshd` should be of one version",
        )
    })?;
    is_manifest(client, claim.original, claim.original_manifest_sha256)?;
    is_manifest(client, claim.repetition, claim.manifest_sha256)?;
    let envelope = claim.sign(key, &Timestamp(now()).to_string());
    let envelope = String::from_utf8_lossy(&envelope).into_owned();
    let kept = client.attest(claim.repetition, &AttestDto { envelope })?;
    let statement = kept.statement.ok_or_else(|| {
        Failure::failed(
            error_code::BAD_ANSWER,
            "the daemon kept no statement",
            "`ml` and `meshd` should be of one version",
        )
    })?;
    Ok(statement.envelope.into_bytes())
}

/// The repetition's manifest may be gone by now: its digest was judged.
fn is_manifest(client: &Client, run: RunId, judged: Digest) -> Outcome {
    let found = match client.manifest_bytes(&run.to_string()) {
        Err(ClientError::Api { body, .. }) if body.code == error_code::NOT_FOUND => return Ok(()),
        found => Digest::of(&found?),
    };
    match found == judged {
        true => Ok(()),
        false => Err(damaged(
            &format!("the manifest of run {run}"),
            judged,
            found,
        )),
    }
}

fn claim(it: &ReproductionDto, judged: &JudgementDto) -> Option<ReproductionClaim> {
    let verdict = match judged.verdict.as_str() {
        "bit_identical" => ReproductionVerdict::BitIdentical,
        "within_tolerance" => ReproductionVerdict::WithinTolerance,
        _ => return None,
    };
    let bounds = |(name, bounds): (&String, &ToleranceDto)| {
        let ToleranceDto { abs, rel } = bounds.clone();
        (name.clone(), Tolerance { abs, rel })
    };
    Some(ReproductionClaim {
        original: it.original,
        original_manifest_sha256: judged.original_manifest_sha256?,
        repetition: it.run,
        manifest_sha256: judged.manifest_sha256?,
        plan_sha256: judged.plan_sha256,
        verdict,
        tolerance: judged.tolerance.iter().map(bounds).collect(),
        outputs_compared: judged.outputs_compared,
        metrics_compared: judged.metrics_compared,
        judged_at: judged.time.0,
    })
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
