//! `ml status`, `list`, `cancel`, `retry`, `prune`: runs by the number.

use std::str::FromStr;

use mlmesh_api::{
    CANCEL_NAMES_MAX, ChangedRunsDto, Client, CountsDto, IdempotencyKey, PruneRequestDto, RetryDto,
    RunFilter, RunKindDto, RunSummaryDto, StatusDto,
};
use mlmesh_model::filter::{Field, Filter, FilterError, Sort};
use mlmesh_model::{Micros, PHASES};

use crate::cli;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::{self, Output, Table, Tone};
use crate::verbs::info::badge;
use crate::verbs::logs::phase_tone;

/// Counts and the runs that matter now.
pub(crate) fn status(context: &Context) -> Outcome {
    let status = context.client()?.status()?;
    if context.output.json {
        return context.output.json(&status);
    }
    print_status(&context.output, &status)
}

/// The status for people.
pub(crate) fn print_status(output: &Output, status: &StatusDto) -> Outcome {
    output.line(counts_line(output, &status.counts))?;
    if !status.runs.is_empty() {
        output.line("")?;
        output.table(&runs_table(&status.runs, now()))?;
    }
    Ok(())
}

/// Phases with runs in them; all of them when there is no run.
fn counts_line(output: &Output, counts: &CountsDto) -> String {
    let shown: Vec<String> = PHASES
        .into_iter()
        .filter(|phase| counts.of(*phase) > 0)
        .map(|phase| output.paint(&format!("{} {phase}", counts.of(phase)), phase_tone(phase)))
        .collect();
    if shown.is_empty() {
        "no runs yet".to_owned()
    } else {
        shown.join(", ")
    }
}

/// Metrics that a search asked for, each once.
fn metrics_of<'a>(fields: impl Iterator<Item = &'a Field>) -> Vec<&'a str> {
    let mut names = Vec::new();
    for field in fields {
        if let Field::Metric(name, _) = field
            && !names.contains(&name.as_str())
        {
            names.push(name.as_str());
        }
    }
    names
}

/// Runs as rows.
pub(crate) fn runs_table(runs: &[RunSummaryDto], now: Micros) -> Table {
    found_table(runs, now, &[])
}

/// Runs as rows, with the last values of some metrics.
fn found_table(runs: &[RunSummaryDto], now: Micros, metrics: &[&str]) -> Table {
    let mut head = vec!["RUN", "NAME", "PHASE", "TRUST", "AGE", "TIME"];
    head.extend(metrics);
    head.push("DETAIL");
    let mut table = Table::new(&head);
    for run in runs {
        let name = match (run.kind, run.children, run.index) {
            (RunKindDto::Sweep, Some(children), _) => format!("{} ×{children}", run.name),
            (_, _, Some(index)) => format!("{} #{index}", run.name),
            _ => run.name.clone(),
        };
        let name = match run.pinned {
            true => format!("{name} (pinned)"),
            false => name,
        };
        let trust = run.trust.as_ref();
        let ended = run.ended_at.map_or(now, |time| time.0);
        let time = run.started_at.map(|start| ended.since(start.0));
        let mut cells = vec![
            (run.id.to_string(), Tone::Plain),
            (name, Tone::Plain),
            (run.phase.to_string(), phase_tone(run.phase)),
            (trust.map_or(String::new(), badge), Tone::Plain),
            (output::duration_us(now.since(run.queued_at.0)), Tone::Dim),
            (time.map_or(String::new(), output::duration_us), Tone::Plain),
        ];
        cells.extend(metrics.iter().map(|name| {
            let last = run
                .metrics
                .get(*name)
                .map(|metric| metric.last.0.to_string());
            (last.unwrap_or_default(), Tone::Plain)
        }));
        cells.push((detail(run), Tone::Plain));
        table.row(cells);
    }
    table
}

/// Why it ended, else its parameters.
fn detail(run: &RunSummaryDto) -> String {
    let params = mlmesh_model::params_line(&run.params);
    let Some(cause) = run.cause else {
        return params;
    };
    let end = match (run.exit_code, run.signal) {
        (Some(code), _) => format!("{cause} {code}"),
        (None, Some(signal)) => format!("{cause} (signal {signal})"),
        (None, None) => cause.to_string(),
    };
    if params.is_empty() {
        end
    } else {
        format!("{end}  {params}")
    }
}

/// Now, by the machine's clock.
#[expect(clippy::disallowed_methods, reason = "this is the clock of `ml`")]
pub(crate) fn now() -> Micros {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let micros = since.unwrap_or_default().as_micros();
    Micros(i64::try_from(micros).unwrap_or(i64::MAX))
}

/// Lists runs.
pub(crate) fn list(context: &Context, verb: &cli::List) -> Outcome {
    let filter = expression::<Filter>(verb.expression.as_deref(), "--where")?;
    let sort = expression::<Sort>(verb.sort.as_deref(), "--sort")?;
    let page = context.client()?.runs(&RunFilter {
        phases: verb.phase.clone(),
        parent: verb.parent.clone(),
        owner: verb.owner.clone(),
        expression: filter.as_ref().map(ToString::to_string),
        sort: sort.as_ref().map(ToString::to_string),
        cursor: verb.cursor,
        limit: Some(verb.limit),
    })?;
    let output = &context.output;
    if output.json {
        return output.json(&page);
    }
    if page.runs.is_empty() {
        output.say("no runs");
        return Ok(());
    }
    let fields = filter.iter().flat_map(Filter::fields);
    let fields = sort.iter().map(|sort| &sort.field).chain(fields);
    output.table(&found_table(&page.runs, now(), &metrics_of(fields)))?;
    if let Some(cursor) = page.next_cursor {
        output.hint(format_args!("more with `--cursor {cursor}`"));
    }
    Ok(())
}

/// An expression that was typed; an error shows where it went wrong.
fn expression<T: FromStr<Err = FilterError>>(text: Option<&str>, flag: &str) -> Outcome<Option<T>> {
    let Some(text) = text else {
        return Ok(None);
    };
    text.parse().map(Some).map_err(|error: FilterError| {
        let picture = error.picture(text);
        Failure::usage(format!("`{flag}`: {error}\n{picture}"), error.hint)
    })
}

/// Cancels each run; goes on after one that cannot be.
pub(crate) fn cancel(context: &Context, verb: &cli::Cancel) -> Outcome<Exit> {
    let client = context.client()?;
    if let [run] = verb.runs.as_slice() {
        let changed = client.cancel(run, &IdempotencyKey::random()?)?;
        print_changed(context, &changed, "cancelling")?;
        return Ok(Exit::Done);
    }
    let mut exit = Exit::Done;
    for names in verb.runs.chunks(CANCEL_NAMES_MAX) {
        for outcome in client.cancel_each(names, &IdempotencyKey::random()?)? {
            match outcome {
                Ok(changed) => print_changed(context, &changed, "cancelling")?,
                Err(error) => {
                    let failure = error.into();
                    context.output.error(&failure);
                    exit = failure.exit;
                }
            }
        }
    }
    Ok(exit)
}

/// Puts ended runs back.
pub(crate) fn retry(context: &Context, verb: &cli::Retry) -> Outcome {
    let retry = RetryDto {
        failed_only: verb.failed,
    };
    let key = IdempotencyKey::random()?;
    let changed = context.client()?.retry(&verb.run, retry, &key)?;
    print_changed(context, &changed, "queued again")?;
    context
        .output
        .hint(format_args!("`ml watch {}` waits for the end", changed.id));
    Ok(())
}

fn print_changed(context: &Context, changed: &ChangedRunsDto, what: &str) -> Outcome {
    let output = &context.output;
    if output.json {
        return output.json(changed);
    }
    match changed.runs.as_slice() {
        [] => output.line(format_args!("{}: nothing to do", changed.id)),
        [only] if *only == changed.id => output.line(format_args!("{what} {only}")),
        runs => output.line(format_args!("{what} {} runs of {}", runs.len(), changed.id)),
    }
}

/// Removes what nothing refers to.
pub(crate) fn prune(context: &Context, verb: &cli::Prune) -> Outcome {
    let client: Client = context.client()?;
    let ended_before_s = verb
        .older_than
        .map(|us| u64::try_from(us / 1_000_000).unwrap_or(0));
    let pruned = client.prune(&PruneRequestDto {
        ended_before_s,
        dry_run: verb.dry_run,
        grace_s: None,
    })?;
    let output = &context.output;
    if output.json {
        return output.json(&pruned);
    }
    let runs = pruned.runs.len();
    for environment in &pruned.environments {
        let word = if pruned.dry_run {
            "would remove"
        } else {
            "removed"
        };
        output.line(format_args!("{word} environment {environment}"))?;
    }
    match (pruned.objects, pruned.bytes) {
        (Some(objects), Some(bytes)) => output.line(format_args!(
            "removed {} and {}, {}",
            output::counted(runs as u64, "run"),
            output::counted(objects, "object"),
            output::bytes(bytes)
        )),
        _ => output.line(format_args!(
            "would remove {runs} runs, and the objects that nothing else refers to"
        )),
    }
}
