//! The way from text to workload.

use mlmesh_model::{OnFinish, Workload};

use crate::error::{Position, RecipeErrors, Report, code, shown};
use crate::experiment;
use crate::fields;
use crate::kind::FindKind;
use crate::service;
use crate::table::{did_you_mean, wrong_type};
use crate::tree::{self, Entry, Node, Value};

/// Kinds of recipe that are known by name and not in this version.
pub(crate) const LATER_KINDS: &[&str] = &["client", "monitor", "training", "stack"];

/// Reads a recipe. `file_name` is what errors show; nothing is opened.
///
/// # Errors
/// All errors of the file by position, at most [`crate::ERRORS_MAX`] of them.
pub fn parse(file_name: &str, text: &str) -> Result<Workload, RecipeErrors> {
    parse_with(file_name, text, &|_| None)
}

/// The same, with kinds of services beside those that are built in.
///
/// # Errors
/// All errors of the file, and of the kind that it names.
pub fn parse_with(
    file_name: &str,
    text: &str,
    find_kind: &FindKind<'_>,
) -> Result<Workload, RecipeErrors> {
    let mut report = Report::new(file_name);
    let read = tree::read(text, &mut report);
    let workload = read.and_then(|root| workload(&mut report, &root, find_kind));
    match workload {
        Some(workload) if report.is_empty() => Ok(workload),
        _ => {
            // Every way here has reported; this keeps a gap from becoming silence.
            report.add_if_empty(
                Position::START,
                code::SYNTAX,
                "the recipe could not be read",
                "`ml init` writes a commented `train.yaml` to compare with",
            );
            Err(report.into_errors())
        }
    }
}

/// Reads a value of `on_finish:` that stands alone, as a project's setting has it.
///
/// # Errors
/// All errors of the text by position.
pub fn parse_on_finish(name: &str, text: &str) -> Result<OnFinish, RecipeErrors> {
    let mut report = Report::new(name);
    let hook = tree::read(text, &mut report)
        .and_then(|root| fields::on_finish(&mut report, root.at, &root));
    match hook {
        Some(hook) if report.is_empty() => Ok(hook),
        _ => {
            let message = "`on_finish` could not be read";
            let hint = "write it as in a recipe: `{webhook: \"https://example.org/hook\"}`";
            report.add_if_empty(Position::START, code::SYNTAX, message, hint);
            Err(report.into_errors())
        }
    }
}

/// Kinds of recipe that are read.
const KINDS: [&str; 2] = ["experiment", "service"];

fn workload(report: &mut Report, root: &Node, find_kind: &FindKind<'_>) -> Option<Workload> {
    let Value::Mapping(entries) = &root.value else {
        wrong_type(
            report,
            "recipe",
            root,
            "a mapping with the key `experiment` or `service`",
            "`ml init` writes a commented `train.yaml` to start from",
        );
        return None;
    };
    let is_known = |entry: &&Entry| KINDS.contains(&entry.key.as_str());
    for entry in entries.iter().filter(|entry| !is_known(entry)) {
        if report.is_full() {
            return None;
        }
        unknown_kind(report, entry);
    }
    let mut known = entries.iter().filter(is_known);
    let Some(entry) = known.next() else {
        report.add_if_empty(
            root.at,
            code::MISSING_KEY,
            "the recipe lacks the key `experiment` or `service`",
            "`ml init` writes a commented `train.yaml` to start from",
        );
        return None;
    };
    if let Some(other) = known.next() {
        report.add(
            other.key_at,
            code::CONFLICT,
            format!(
                "`{}` stands beside `{}`; a recipe holds one of them",
                other.key, entry.key
            ),
            "write two files",
        );
    }
    match entry.key.as_str() {
        "service" => service::read(report, entry, &find_kind)
            .map(|service| Workload::Service(Box::new(service))),
        _ => experiment::read(report, entry)
            .map(|experiment| Workload::Experiment(Box::new(experiment))),
    }
}

fn unknown_kind(report: &mut Report, entry: &Entry) {
    let key = entry.key.as_str();
    if LATER_KINDS.contains(&key) {
        report.add(
            entry.key_at,
            code::KIND,
            format!("`{key}` is not available in this version; a recipe holds one `experiment` or one `service`"),
            "write the work as `experiment:` or `service:`",
        );
        return;
    }
    let hint = if experiment::EXPERIMENT
        .keys
        .iter()
        .any(|known| known.name == key)
    {
        "it belongs below `experiment:`; indent it by two spaces"
    } else {
        "the valid keys at the top are `experiment` and `service`"
    };
    let nearest = did_you_mean(key, KINDS.into_iter());
    report.add(
        entry.key_at,
        code::UNKNOWN_KEY,
        format!(
            "unknown key `{}` at the top of the recipe{nearest}",
            shown(key)
        ),
        hint,
    );
}
