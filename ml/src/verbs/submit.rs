//! `ml explain`, `ml queue`, `ml run`: one recipe, one submission, one preflight.

use mlmesh_api::{AcceptedDto, Client, ClientError, ExplanationDto, IdempotencyKey, RefusalDto};
use serde_json::{Value, json};

use crate::cli;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::follow::{self, Patient, Verdict};
use crate::moved;
use crate::output::{self, Output, Table, Tone};
use crate::submission::{self, Prepared};
use crate::verbs::logs;

/// Shows what would run. Exit code 3 when it would be refused.
pub(crate) fn explain(context: &Context, verb: &cli::Explain) -> Outcome<Exit> {
    let prepared = submission::prepare(context, &verb.submit)?;
    let explanation = context.client()?.explain(&prepared.submission)?;
    if context.output.json {
        context.output.json(&explanation)?;
    } else {
        print_explanation(&context.output, &explanation)?;
    }
    if explanation.admitted {
        return Ok(Exit::Done);
    }
    let failure = would_be_refused(&explanation.refusals);
    Err(with_moved(failure, &prepared, Some(&explanation)))
}

/// Queues a recipe; with `--wait` returns when it has ended.
pub(crate) fn queue(context: &Context, verb: &cli::Queue) -> Outcome<Exit> {
    let quiet = verb.quiet;
    let queue = || -> Outcome<Exit> {
        let (accepted, client) = submit(context, &verb.submit)?;
        print_accepted(&context.output, &accepted, quiet, verb.wait)?;
        if !verb.wait {
            return Ok(Exit::Done);
        }
        let mut patient = Patient::with(context, client)?;
        if quiet {
            patient = patient.silent();
        }
        let ended = patient.wait(&accepted.id.to_string())?;
        let verdict = patient.verdict(&ended)?;
        if context.output.json && !quiet {
            context.output.json(&ended)?;
        } else if !quiet {
            context.output.say(logs::end_line(&context.output, &ended));
        }
        finish(&ended, verdict)
    };
    if verb.wait {
        queue().map_err(Failure::while_waiting)
    } else {
        queue()
    }
}

/// Queues a recipe and follows it.
pub(crate) fn run(context: &Context, verb: &cli::Run) -> Outcome<Exit> {
    let run = || -> Outcome<Exit> {
        let (accepted, client) = submit(context, &verb.submit)?;
        let id = accepted.id.to_string();
        context
            .output
            .say(format_args!("queued {}", described(&accepted)));
        logs::on_interrupt(context, &client, &id)?;
        let mut patient = Patient::with(context, client)?;
        let ended = if accepted.children.is_some() {
            logs::watch_one(context, &mut patient, &id)?
        } else {
            logs::follow(context, &mut patient, &id, None)?;
            patient.wait(&id)?
        };
        let verdict = patient.verdict(&ended)?;
        if context.output.json {
            context.output.json(&ended)?;
        } else {
            context.output.say(logs::end_line(&context.output, &ended));
            context.output.hint(format_args!(
                "`ml info {id}` shows what it proves, `ml outputs {id}` what it left"
            ));
        }
        finish(&ended, verdict)
    };
    run().map_err(Failure::while_waiting)
}

fn finish(ended: &mlmesh_api::RunDto, verdict: Verdict) -> Outcome<Exit> {
    match verdict {
        Verdict::Job(0) => Ok(Exit::Done),
        Verdict::Job(code) => Ok(Exit::Job(code)),
        Verdict::Ours => Err(follow::ended_badly(ended)),
    }
}

/// Submits a recipe that is a service.
pub(crate) fn submit_service(
    context: &Context,
    verb: &cli::Submit,
) -> Outcome<(AcceptedDto, Client)> {
    let prepared = submission::prepare(context, verb)?;
    if prepared.submission.workload.service().is_none() {
        return Err(Failure::usage(
            format!("`{}` is no service", verb.recipe.display()),
            "`ml queue` queues an experiment; a service has the key `service` at the top",
        ));
    }
    submit_prepared(context, prepared)
}

/// Preflight's word for a tree that the daemon does not have.
const NOT_SYNCED: &str = "commit_not_synced";

/// Sends a submission. The tree is sent when it is all that is missing: nothing
/// travels for a recipe that is refused anyway.
fn submit(context: &Context, verb: &cli::Submit) -> Outcome<(AcceptedDto, Client)> {
    submit_prepared(context, submission::prepare(context, verb)?)
}

fn submit_prepared(context: &Context, mut prepared: Prepared) -> Outcome<(AcceptedDto, Client)> {
    let client = context.client()?;
    let key = IdempotencyKey::random()?;
    let error = match client.submit(&prepared.submission, &key) {
        Ok(accepted) => return Ok((accepted, client)),
        Err(error) => error,
    };
    let reasons = reasons(&error);
    let only_the_tree = reasons.iter().all(|reason| reason.code == NOT_SYNCED);
    if reasons.is_empty() || !only_the_tree {
        return Err(explained(&client, &prepared, refusal(error, reasons)));
    }
    prepared.upload(context, &client)?;
    match client.submit(&prepared.submission, &key) {
        Ok(accepted) => Ok((accepted, client)),
        Err(error) => {
            let reasons = self::reasons(&error);
            Err(explained(&client, &prepared, refusal(error, reasons)))
        }
    }
}

/// Preflight's word for a plan that is not the expected one.
const PLAN_MOVED: &str = "plan_moved";

/// A refusal because the plan has moved also says what of it, when the caller has
/// named the explanation that it saw. When nothing can be asked, the refusal stands.
fn explained(client: &Client, prepared: &Prepared, failure: Failure) -> Failure {
    let now = match &prepared.seen_before {
        Some(_) => client.explain(&prepared.submission).ok(),
        None => None,
    };
    with_moved(failure, prepared, now.as_ref())
}

fn with_moved(mut failure: Failure, prepared: &Prepared, now: Option<&ExplanationDto>) -> Failure {
    let refusals = failure.details["refusals"].as_array();
    let has_moved = |reason: &Value| reason["code"] == PLAN_MOVED;
    let (Some(before), Some(now), Some(true)) = (
        &prepared.seen_before,
        now,
        refusals.map(|refusals| refusals.iter().any(has_moved)),
    ) else {
        return failure;
    };
    let (moved, all) = moved::compare(before, now);
    for value in &moved {
        failure.message.push_str(&format!("\n  moved: {value}"));
    }
    if all > moved.len() {
        let more = all - moved.len();
        failure.message.push_str(&format!("\n  and {more} more"));
    }
    failure.details["moved"] = json!(moved);
    failure
}

/// Preflight's reasons in an error of the daemon.
fn reasons(error: &ClientError) -> Vec<RefusalDto> {
    match error {
        ClientError::Api { body, .. } => {
            serde_json::from_value(body.details["refusals"].clone()).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

/// The daemon's refusal; its reasons become the text.
fn refusal(error: ClientError, mut reasons: Vec<RefusalDto>) -> Failure {
    let failure = Failure::from(error);
    // A tree that would be sent is no reason beside others.
    if reasons.iter().any(|reason| reason.code != NOT_SYNCED) {
        reasons.retain(|reason| reason.code != NOT_SYNCED);
    }
    if reasons.is_empty() {
        return failure;
    }
    Failure {
        message: listed("refused by preflight", &reasons),
        hint: reasons[0].hint.clone(),
        details: json!({"refusals": reasons}),
        ..failure
    }
}

fn would_be_refused(reasons: &[RefusalDto]) -> Failure {
    Failure {
        code: mlmesh_api::error_code::REFUSED.to_owned(),
        exit: Exit::Refused,
        ..Failure::failed(
            "",
            listed("`ml queue` would refuse this", reasons),
            reasons.first().map_or("", |first| &first.hint),
        )
    }
    .with_details(json!({"refusals": reasons}))
}

/// Reasons, one a line, each with its hint.
fn listed(title: &str, reasons: &[RefusalDto]) -> String {
    let mut text = title.to_owned();
    for reason in reasons {
        text.push_str(&format!("\n  {} [{}]", reason.message, reason.code));
        if !reason.hint.is_empty() {
            text.push_str(&format!("\n    hint: {}", reason.hint));
        }
    }
    text
}

fn print_accepted(output: &Output, accepted: &AcceptedDto, quiet: bool, wait: bool) -> Outcome {
    if quiet {
        return output.raw(format!("{}\n", accepted.id).as_bytes());
    }
    if output.json {
        return if wait { Ok(()) } else { output.json(accepted) };
    }
    output.line(format_args!("queued {}", described(accepted)))?;
    if wait {
        output.hint("Ctrl-C ends the waiting, not the run");
    } else {
        let id = accepted.id;
        output.hint(format_args!(
            "`ml watch {id}` waits for its end, `ml logs -f {id}` follows it"
        ));
    }
    Ok(())
}

fn described(accepted: &AcceptedDto) -> String {
    let plan = accepted.plan_sha256.0.short();
    match accepted.children {
        None => format!("{} (plan {plan})", accepted.id),
        Some(points) => format!("{} (sweep of {points} runs, plan {plan})", accepted.id),
    }
}

/// The six groups, then the verdict.
fn print_explanation(output: &Output, it: &ExplanationDto) -> Outcome {
    let section = |name: &str| output.line(output.paint(name, Tone::Bold));
    let line = |key: &str, value: String| output.line(format_args!("  {key:<10}  {value}"));
    section("experiment")?;
    line("name", it.experiment.name.clone())?;
    line("recipe", it.experiment.recipe.clone())?;
    line("commit", it.experiment.commit.to_string())?;
    let plan = it.experiment.plan_sha256;
    line(
        "plan",
        plan.map_or_else(|| "none, see below".to_owned(), |plan| plan.to_string()),
    )?;
    line("points", it.points_total.to_string())?;
    section("environment")?;
    match &it.deps {
        None => line("deps", "none declared".to_owned())?,
        Some(deps) => {
            line("deps", format!("{} (Python {})", deps.name, deps.python))?;
            line("digest", deps.sha256.to_string())?;
        }
    }
    section("snapshot")?;
    line("id", it.snapshot.id.clone())?;
    let complete = if it.snapshot.complete {
        "at the daemon"
    } else {
        "not yet at the daemon, `ml queue` sends it"
    };
    line("content", complete.to_owned())?;
    section("datasets")?;
    for dataset in &it.datasets {
        let version = dataset.version.as_deref().unwrap_or("any version");
        let checksum = dataset
            .checksum
            .map_or("no checksum".to_owned(), |sum| sum.short());
        let known = if dataset.registered {
            "registered"
        } else {
            "not registered"
        };
        let text = format!("{version}, {checksum}, at {}, {known}", dataset.mount);
        line(&dataset.name, text)?;
    }
    if it.datasets.is_empty() {
        output.line("  none")?;
    }
    for (place, secret) in it.secrets.iter().enumerate() {
        if place == 0 {
            section("secrets")?;
        }
        let from = match secret.from.as_deref() {
            Some("caller") => "from your environment",
            Some("store") => "from the daemon's store",
            Some(other) => other,
            None => "no value",
        };
        line(&secret.name, from.to_owned())?;
    }
    section("resources")?;
    line("cpus", cpus(it.resources.cpu_milli))?;
    line(
        "memory",
        it.resources
            .memory_bytes
            .map_or("no limit".to_owned(), output::bytes),
    )?;
    line("gpus", it.resources.gpus.to_string())?;
    line(
        "time",
        it.resources
            .time_s
            .map_or("no limit".to_owned(), |s| format!("{s} s")),
    )?;
    section("image")?;
    line(
        "image",
        it.image
            .as_ref()
            .map_or("none".to_owned(), |image| image.name.clone()),
    )?;
    print_points(output, it)?;
    section("verdict")?;
    line("policy", it.repro_policy.clone())?;
    line("trust", format!("can reach {}", it.trust.level))?;
    for reason in &it.trust.reasons {
        line("", format!("no {}: {}", reason.level, reason.message))?;
        line("", format!("  hint: {}", reason.hint))?;
    }
    for wait in it.waits.iter().filter(|wait| wait.code != NOT_SYNCED) {
        line("waits", wait.message.clone())?;
    }
    line(
        "queue",
        if it.admitted {
            "would accept it"
        } else {
            "would refuse it"
        }
        .to_owned(),
    )
}

fn cpus(milli: u64) -> String {
    if milli.is_multiple_of(1000) {
        (milli / 1000).to_string()
    } else {
        format!("{:.3}", milli as f64 / 1000.0)
    }
}

/// Of a sweep: each point's plan and parameters.
fn print_points(output: &Output, it: &ExplanationDto) -> Outcome {
    if it.points_total <= 1 {
        return Ok(());
    }
    let mut table = Table::new(&["POINT", "PLAN", "PARAMS"]);
    for (index, point) in it.points.iter().enumerate() {
        let params = point.plan["params"].as_object();
        let params = params
            .into_iter()
            .flatten()
            .map(|(name, value)| match value {
                Value::String(text) => format!("{name}={text}"),
                value => format!("{name}={value}"),
            });
        table.row([
            (index.to_string(), Tone::Dim),
            (point.plan_sha256.0.short(), Tone::Plain),
            (params.collect::<Vec<_>>().join(" "), Tone::Plain),
        ]);
    }
    output.table(&table)?;
    let left = u64::from(it.points_total).saturating_sub(it.points.len() as u64);
    if left > 0 {
        output.line(format_args!("… and {left} more"))?;
    }
    Ok(())
}
