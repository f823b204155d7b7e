//! `ml info`: everything that is recorded of a run, from the daemon or from a
//! `run_manifest.json` on disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use mlmesh_api::{AttemptDto, LoggedDto, MetricDto, RunDto, TellingStateDto, TrustDto};
use mlmesh_model::MetricValue;
use serde_json::Value;

use crate::cli;
use crate::context::Context;
use crate::error::{Failure, Outcome, split_hint};
use crate::output::{self, Output, Table, Tone};
use crate::verbs::logs::phase_tone;

/// Largest manifest that is read.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// Shows a run.
pub(crate) fn info(context: &Context, verb: &cli::Info) -> Outcome {
    let output = &context.output;
    if is_path(&verb.run) {
        return show_manifest(output, Path::new(&verb.run));
    }
    let client = context.client()?;
    let run = match digest_of(&verb.run) {
        // What stands in an answer of a service: the run that put the weights out.
        Some(digest) => client.run(&client.maker(&digest)?.run.to_string())?,
        None => client.run(&verb.run)?,
    };
    if output.json {
        return output.json(&run);
    }
    let attempts = match run.attempts {
        0 => Vec::new(),
        _ => client.attempts(&run.id.to_string())?.attempts,
    };
    let made_by = model_of(run.plan.as_ref()).and_then(|model| model["run"].as_str());
    // It may have been pruned.
    let maker = made_by.and_then(|made_by| client.run(made_by).ok());
    print_run(output, &run, &attempts, maker.as_ref())?;
    let tellings = client.tellings(Some(&run.id.to_string()))?.tellings;
    tellings.iter().try_for_each(|telling| {
        let words = match telling.state {
            TellingStateDto::Waiting if telling.tries == 0 => "when it has ended".to_owned(),
            TellingStateDto::Waiting => format!("tried {} times, goes on", telling.tries),
            TellingStateDto::Delivered => "told".to_owned(),
            TellingStateDto::Failed => format!("given up after {} tries", telling.tries),
            TellingStateDto::NotWanted => "not wanted for this end".to_owned(),
        };
        let said = output::printable(&telling.message);
        let gap = if said.is_empty() { "" } else { ": " };
        let key = output.paint("on_finish", Tone::Plain);
        output.line(format_args!("{key:<11} {words}{gap}{said}"))
    })
}

/// A digest of 64 hex digits, with or without its algorithm.
fn digest_of(text: &str) -> Option<String> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let is_one = digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_one.then(|| digits.to_ascii_lowercase())
}

/// A run's name has neither `/` nor `.`.
pub(crate) fn is_path(text: &str) -> bool {
    text.contains(['/', '.'])
}

fn show_manifest(output: &Output, path: &Path) -> Outcome {
    let manifest = read_manifest(path)?;
    if output.json {
        output.json(&manifest)
    } else {
        output.line(format_args!("{manifest:#}"))
    }
}

/// The manifest in a file; of its form no more is asked than that it is JSON.
pub(crate) fn read_manifest(path: &Path) -> Outcome<Value> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MANIFEST_BYTES_MAX).read_to_string(&mut text))
        .map_err(|error| {
            let mut failure = Failure::io("read the manifest", path, &error);
            if error.kind() == std::io::ErrorKind::NotFound {
                failure.exit = crate::error::Exit::NotFound;
            }
            failure
        })?;
    serde_json::from_str(&text).map_err(|error| Failure {
        code: "manifest_form".to_owned(),
        ..Failure::failed(
            "",
            format!("`{}` is no JSON: {error}", path.display()),
            "a run's manifest is data/experiments/RUN/run_manifest.json",
        )
    })
}

/// Data that a plan names, one a line.
fn datasets(plan: Option<&Value>) -> Vec<String> {
    let all = plan.and_then(|plan| plan["datasets"].as_array());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let lines = all.into_iter().flatten().map(|data| {
        let (name, version) = (text(&data["name"]), text(&data["version"]));
        format!("{name} {version} sha256:{}", text(&data["checksum"]))
    });
    lines.collect()
}

/// Of a service: the weights that it serves, and what they were made of.
fn weights(plan: Option<&Value>, maker: Option<&RunDto>) -> Vec<(&'static str, String)> {
    let Some(model) = model_of(plan) else {
        return Vec::new();
    };
    let text = |key: &str| model[key].as_str().unwrap_or_default().to_owned();
    let mut lines = vec![
        (
            "model",
            format!("{} sha256:{}", text("name"), text("sha256")),
        ),
        (
            "made by",
            format!("run {}, as {}", text("run"), text("path")),
        ),
    ];
    if let Some(maker) = maker {
        lines.push(("made of", format!("commit {}", maker.commit)));
        let data = datasets(maker.plan.as_ref()).into_iter();
        lines.extend(data.map(|data| ("made of", data)));
    }
    lines
}

/// The weights in a service's plan.
fn model_of(plan: Option<&Value>) -> Option<&Value> {
    plan.map(|plan| &plan["service"]["model"])
        .filter(|model| model.is_object())
}

fn print_run(
    output: &Output,
    run: &RunDto,
    attempts: &[AttemptDto],
    maker: Option<&RunDto>,
) -> Outcome {
    let line = |key: &str, value: String| match value.as_str() {
        "" => Ok(()),
        value => output.line(format_args!(
            "{:<11} {value}",
            output.paint(key, Tone::Plain)
        )),
    };
    output.line(output.paint(&format!("{}  {}", run.id, run.name), Tone::Bold))?;
    line("phase", phase_line(output, run))?;
    let (why, hint) = split_hint(&run.message);
    line("why", why.to_owned())?;
    line("hint", hint.to_owned())?;
    line("owner", run.owner.clone())?;
    line(
        "sweep",
        run.parent.map_or(String::new(), |parent| {
            format!("{parent}, point {}", run.index.unwrap_or(0))
        }),
    )?;
    line(
        "points",
        run.children_counts.map_or(String::new(), |counts| {
            format!(
                "{}: {} completed, {} failed, {} queued",
                run.children.unwrap_or(0),
                counts.completed,
                counts.failed,
                counts.queued
            )
        }),
    )?;
    line(
        "repeats",
        run.placement
            .reproduces
            .map_or(String::new(), |original| original.to_string()),
    )?;
    line("queued", output::date_time(run.queued_at))?;
    line(
        "next try",
        run.not_before.map_or(String::new(), |time| {
            format!("not before {}", output::date_time(time))
        }),
    )?;
    line(
        "started",
        run.started_at.map_or(String::new(), output::date_time),
    )?;
    line(
        "ended",
        run.ended_at.map_or(String::new(), output::date_time),
    )?;
    let tags = run.tags.iter().map(|(key, value)| match value.is_empty() {
        true => key.clone(),
        false => format!("{key}={value}"),
    });
    line("tags", tags.collect::<Vec<_>>().join(", "))?;
    line("note", run.note.replace('\n', "\n            "))?;
    let pinned = "kept from prune until `ml unpin`";
    line("pinned", if run.pinned { pinned } else { "" }.to_owned())?;
    line("plan", run.plan_sha256.to_string())?;
    line("commit", run.commit.to_string())?;
    line(
        "git",
        run.git.as_ref().map_or(String::new(), |git| {
            format!(
                "{} {}",
                git.head,
                git.branch.as_deref().unwrap_or("(no branch)")
            )
        }),
    )?;
    line("command", argv(run.plan.as_ref()))?;
    for data in datasets(run.plan.as_ref()) {
        line("data", data)?;
    }
    for (key, value) in weights(run.plan.as_ref(), maker) {
        line(key, value)?;
    }
    line(
        "policy",
        format!(
            "{}, on {}",
            run.placement.repro_policy, run.placement.executor
        ),
    )?;
    line("isolation", isolation(run))?;
    line(
        "outputs",
        run.outputs
            .map_or(String::new(), |listing| listing.to_string()),
    )?;
    line(
        "manifest",
        run.manifest_sha256
            .map_or(String::new(), |digest| digest.to_string()),
    )?;
    print_trust(output, run.trust.as_ref(), run.phase.is_ended())?;
    print_metrics(output, &run.metrics)?;
    print_logged(output, run.logged.as_ref())?;
    print_attempts(output, attempts)
}

fn phase_line(output: &Output, run: &RunDto) -> String {
    let mut text = output.paint(run.phase.as_str(), phase_tone(run.phase));
    if let Some(cause) = run.cause {
        text.push_str(&format!(", cause {cause}"));
    }
    if let Some(code) = run.exit_code {
        text.push_str(&format!(", exit code {code}"));
    }
    if let Some(signal) = run.signal {
        text.push_str(&format!(", signal {signal}"));
    }
    text
}

/// The command as one could type it.
fn argv(plan: Option<&Value>) -> String {
    let words = plan.and_then(|plan| plan["argv"].as_array());
    let words = words.into_iter().flatten().filter_map(Value::as_str);
    words.map(quoted).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=:,@%+".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn isolation(run: &RunDto) -> String {
    let Some(isolation) = &run.isolation else {
        return String::new();
    };
    let mut parts = vec![if isolation.sandboxed {
        "sandboxed".to_owned()
    } else {
        "not sandboxed".to_owned()
    }];
    if isolation.network_enforced {
        parts.push("network enforced".to_owned());
    }
    for host in &isolation.hosts {
        parts.push(format!(
            "{} connections to {} ({} out, {} in)",
            host.connections,
            host.host,
            output::bytes(host.bytes_sent),
            output::bytes(host.bytes_received)
        ));
    }
    for limit in &isolation.limits {
        parts.push(match limit.held {
            Some(held) => {
                let held = match limit.name.as_str() {
                    // Thousandths of one.
                    "cpu" => format!("{}", held as f64 / 1000.0),
                    "memory" => output::bytes(held),
                    "time" => format!("{held} s"),
                    _ => held.to_string(),
                };
                format!("{} ≤ {held} ({})", limit.name, limit.by)
            }
            None => format!("{} not limited ({})", limit.name, limit.by),
        });
    }
    parts.join(", ")
}

/// A level with what was met to reach it: `L4 reproduced (bit-identical)`.
pub(crate) fn badge(trust: &TrustDto) -> String {
    match &trust.reproduced {
        Some(reproduced) => format!("{} reproduced ({})", trust.level, reproduced.how),
        None => trust.level.to_string(),
    }
}

fn print_trust(output: &Output, trust: Option<&TrustDto>, ended: bool) -> Outcome {
    let Some(trust) = trust else {
        return Ok(());
    };
    let word = if ended { "" } else { " (expected)" };
    output.line(format_args!("{:<11} {}{word}", "trust", badge(trust)))?;
    if let Some(reproduced) = &trust.reproduced {
        let signer = reproduced.signer.as_ref();
        let signed = signer.map_or("not signed yet".to_owned(), |by| format!("signed by {by}"));
        let by = reproduced.by;
        output.line(format_args!("            by run {by}, {signed}"))?;
    }
    for reason in &trust.reasons {
        output.line(format_args!(
            "            no {}: {}",
            reason.level, reason.message
        ))?;
        output.line(output.paint(&format!("                hint: {}", reason.hint), Tone::Dim))?;
    }
    Ok(())
}

fn print_metrics(output: &Output, metrics: &BTreeMap<String, MetricDto>) -> Outcome {
    if metrics.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["METRIC", "LAST", "MIN", "MAX", "STEPS"]);
    for (name, metric) in metrics {
        table.row([
            (name.clone(), Tone::Plain),
            (number(metric.last), Tone::Plain),
            (number(metric.min), Tone::Plain),
            (number(metric.max), Tone::Plain),
            (metric.steps.to_string(), Tone::Plain),
        ]);
    }
    output.line("")?;
    output.table(&table)
}

/// What the job has logged, by the names under which `ml list --where` finds it.
fn print_logged(output: &Output, logged: Option<&LoggedDto>) -> Outcome {
    let Some(logged) = logged else {
        return Ok(());
    };
    let mut table = Table::new(&["LOGGED", "VALUE"]);
    for (family, texts) in [("params", &logged.params), ("tags", &logged.tags)] {
        for (name, value) in texts {
            let name = format!("{family}.{}", output::printable(name));
            let value = output::printable(value);
            table.row([(name, Tone::Plain), (value, Tone::Plain)]);
        }
    }
    output.line("")?;
    output.table(&table)?;
    for (count, what) in [
        (logged.left_out, "more were left out"),
        (logged.shortened, "values were cut"),
    ] {
        if count > 0 {
            let note = format!("{count} {what}; the attempt's `tracking.jsonl` has all");
            output.line(output.paint(&note, Tone::Dim))?;
        }
    }
    Ok(())
}

/// A metric's value with at most six digits that count.
pub(crate) fn number(value: MetricValue) -> String {
    let value = value.0;
    let magnitude = value.abs();
    if !value.is_finite() || value == 0.0 {
        return format!("{value}");
    }
    if !(1e-4..1e7).contains(&magnitude) {
        return format!("{value:.5e}");
    }
    let before = magnitude.log10().floor() as i32 + 1;
    let decimals = usize::try_from(6 - before.max(1)).unwrap_or(0);
    let text = format!("{value:.decimals$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

fn print_attempts(output: &Output, attempts: &[AttemptDto]) -> Outcome {
    if attempts.len() < 2 {
        return Ok(());
    }
    let mut table = Table::new(&["ATTEMPT", "STARTED", "TIME", "END"]);
    for attempt in attempts {
        let time = match (attempt.started_at, attempt.ended_at) {
            (Some(started), Some(ended)) => output::duration_us(ended.0.since(started.0)),
            _ => String::new(),
        };
        let mut end = attempt
            .cause
            .map_or(String::new(), |cause| cause.to_string());
        if let Some(code) = attempt.exit_code {
            end.push_str(&format!(" {code}"));
        }
        table.row([
            (attempt.number.to_string(), Tone::Plain),
            (
                attempt.started_at.map_or(String::new(), output::date_time),
                Tone::Plain,
            ),
            (time, Tone::Plain),
            (end, Tone::Plain),
        ]);
    }
    output.line("")?;
    output.table(&table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (0.976_543_21, "0.97654"),
            (123_456.789, "123457"),
            (0.000_012, "1.20000e-5"),
            (-2.5, "-2.5"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(number(MetricValue(value)), text);
        }
    }

    #[test]
    fn a_command_is_shown_as_typed() {
        let plan = serde_json::json!({"argv": ["python", "-c", "print('x')", ""]});
        assert_eq!(argv(Some(&plan)), r"python -c 'print('\''x'\'')' ''");
        assert!(is_path("./run") && is_path("run_manifest.json"));
        assert!(!is_path("@last") && !is_path("abcdefghijkl"));
    }
}
