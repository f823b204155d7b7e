//! Whether a run that was executed anew gave the same result, and what that proves.
//!
//! ```text
//!   both records, both listings ─► outputs by name and digest, last values of metrics
//!       ─► nothing differs: bit-identical ─► all that differs is allowed: within tolerance
//!       ─► else differs, and where first ─► is it enough for L4, else why not
//! ```
//!
//! A tolerance says what "reproduced" means for the metrics that it names: where one of
//! them was logged by both runs, they decide, and the bytes of files and other metrics
//! may differ. The names of files and metrics never may.

use std::collections::{BTreeMap, BTreeSet};

use mlmesh_model::{
    ListedFile, MetricValue, Micros, ObjectId, Phase, Reproduction, ReproductionVerdict,
    ResultDifference, ResultKind, Run, Tolerance, TrustLevel, TrustReason,
};

/// A run with the files that it left.
#[derive(Debug, Clone, Copy)]
pub struct RunResult<'a> {
    /// Its record.
    pub run: &'a Run,
    /// Its outputs, as the content store lists them.
    pub outputs: &'a [ListedFile],
}

/// Differences that a judgement keeps.
const DIFFERENCES_KEPT_MAX: usize = 20;

/// Judges a repetition that has ended. The original is absent when it was removed.
/// `first_byte` says where two objects differ; it is asked once at most.
pub fn judge(
    original: Option<RunResult<'_>>,
    repeated: RunResult<'_>,
    time: Micros,
    first_byte: &mut dyn FnMut(ObjectId, ObjectId) -> Option<u64>,
) -> Reproduction {
    let run = repeated.run;
    let judgement = Reproduction {
        run: run.id,
        original: run.placement.reproduces.unwrap_or(run.id),
        tenant: run.tenant.clone(),
        plan_sha256: run.plan_sha256,
        original_manifest_sha256: original.and_then(|it| it.run.manifest_sha256),
        manifest_sha256: run.manifest_sha256,
        verdict: ReproductionVerdict::NotCompared,
        outputs_compared: 0,
        metrics_compared: 0,
        differences: Vec::new(),
        differences_total: 0,
        tolerance: run.placement.tolerance.clone(),
        denied: None,
        time,
    };
    let denied = |denied| Reproduction {
        denied: Some(denied),
        ..judgement.clone()
    };
    let Some(original) = original else {
        return denied(gone(run));
    };
    if let Some(reason) = no_repetition(original.run, run) {
        return denied(reason);
    }
    let declares = run
        .plan
        .as_ref()
        .is_some_and(|plan| !plan.outputs.is_empty());
    let mut found = results(original, repeated, &run.placement.tolerance);
    let has_outputs = found.outputs_compared > 0 || !found.differences.is_empty();
    if found.compared() == 0 && found.differences.is_empty() || declares && !has_outputs {
        return denied(empty(run));
    }
    if let Some(first) = found.differences.iter().position(is_of_bytes)
        && let Some([one, other]) = objects(original, repeated, &found.differences[first].name)
    {
        found.differences[first].first_byte = first_byte(one, other);
    }
    let verdict = match found.differences.as_slice() {
        [] => ReproductionVerdict::BitIdentical,
        some if some.iter().all(|it| it.allowed) => ReproductionVerdict::WithinTolerance,
        _ => ReproductionVerdict::Differs,
    };
    // What decides stands first.
    found.differences.sort_by_key(|it| it.allowed);
    let reason = match found.differences.first() {
        Some(first) if !first.allowed => Some(differs(run, first)),
        _ => not_enough(original.run, run),
    };
    Reproduction {
        verdict,
        tolerance: found.applied,
        outputs_compared: found.outputs_compared,
        metrics_compared: found.metrics_compared,
        differences_total: found.differences.len() as u64,
        differences: found
            .differences
            .into_iter()
            .take(DIFFERENCES_KEPT_MAX)
            .collect(),
        denied: reason,
        ..judgement
    }
}

/// What keeps two runs from being one and its repetition.
fn no_repetition(original: &Run, repeated: &Run) -> Option<TrustReason> {
    let is_asked = repeated.placement.reproduces == Some(original.id);
    if !is_asked || original.id == repeated.id || original.plan_sha256 != repeated.plan_sha256 {
        return Some(deny(
            "reproduction_other_plan",
            format!("run `{}` is no repetition of this plan", repeated.id),
            "`ml reproduce` makes one",
        ));
    }
    let ended = [original, repeated]
        .into_iter()
        .find(|run| run.phase != Phase::Completed || run.manifest_sha256.is_none());
    ended.map(|run| {
        deny(
            "reproduction_incomplete",
            format!(
                "there is no result of both runs to compare: `{}` is {}",
                run.id, run.phase
            ),
            "`ml info` says why; `ml reproduce` tries again",
        )
    })
}

/// What keeps a result that was the same from being L4.
fn not_enough(original: &Run, repeated: &Run) -> Option<TrustReason> {
    let level = |run: &Run| run.trust.as_ref().map_or(TrustLevel::L0, |it| it.level);
    let below = [original, repeated]
        .into_iter()
        .find(|run| level(run) < TrustLevel::L3)?;
    Some(deny(
        "reproduction_below_l3",
        format!(
            "run `{}` gave the same result, but `{}` is {}: only what is L3 can be L4",
            repeated.id,
            below.id,
            level(below)
        ),
        "`ml info` says what keeps it from L3",
    ))
}

fn differs(repeated: &Run, first: &ResultDifference) -> TrustReason {
    let name = &first.name;
    let what = match (&first.original, &first.repeated, first.first_byte) {
        (None, ..) => format!("`{name}` is new"),
        (_, None, _) => format!("`{name}` is missing"),
        (.., Some(byte)) => format!("`{name}` differs from byte {byte} on"),
        (Some(one), Some(other), None) => format!("`{name}` was {one} and is {other}"),
    };
    deny(
        "reproduction_differs",
        format!("run `{}` gave another result: {what}", repeated.id),
        "`ml compare` shows what else differs; `tolerance:` says how far a metric may lie off",
    )
}

fn empty(repeated: &Run) -> TrustReason {
    deny(
        "reproduction_empty",
        format!(
            "run `{}` completed, but there was no output and no metric to compare, or none of the outputs that the recipe declares",
            repeated.id
        ),
        "declare `outputs:`, or write metrics to `metrics.jsonl`",
    )
}

fn gone(repeated: &Run) -> TrustReason {
    deny(
        "reproduction_original_gone",
        format!("the run that `{}` repeats was removed", repeated.id),
        "`ml pin` keeps a run from prune",
    )
}

fn deny(code: &str, message: String, hint: &str) -> TrustReason {
    TrustReason {
        level: TrustLevel::L4,
        code: code.to_owned(),
        message,
        hint: hint.to_owned(),
    }
}

struct Results {
    /// Bounds of metrics that both runs have.
    applied: BTreeMap<String, Tolerance>,
    outputs_compared: u64,
    metrics_compared: u64,
    differences: Vec<ResultDifference>,
}

impl Results {
    fn compared(&self) -> u64 {
        self.outputs_compared + self.metrics_compared
    }
}

fn results(
    original: RunResult<'_>,
    repeated: RunResult<'_>,
    tolerance: &BTreeMap<String, Tolerance>,
) -> Results {
    let (was, is) = (&original.run.metrics, &repeated.run.metrics);
    let mut applied = tolerance.clone();
    applied.retain(|name, _| was.contains_key(name) && is.contains_key(name));
    // Whether a tolerance decides, and not every bit.
    let decides = !applied.is_empty();
    let mut found = Results {
        applied,
        outputs_compared: 0,
        metrics_compared: 0,
        differences: Vec::new(),
    };
    let mut add = |kind, name: &str, pair: (Option<String>, Option<String>), allowed| {
        let allowed = allowed && pair.0.is_some() && pair.1.is_some();
        found.differences.push(ResultDifference {
            kind,
            name: name.to_owned(),
            original: pair.0,
            repeated: pair.1,
            first_byte: None,
            allowed,
        });
    };
    let (files, again) = (by_path(original.outputs), by_path(repeated.outputs));
    for path in files.keys().chain(again.keys()).collect::<BTreeSet<_>>() {
        let (one, other) = (files.get(path), again.get(path));
        found.outputs_compared += u64::from(one.is_some() && other.is_some());
        if one.map(|it| (it.sha256, &it.mode)) != other.map(|it| (it.sha256, &it.mode)) {
            add(
                ResultKind::Output,
                path,
                (one.map(|it| said(it)), other.map(|it| said(it))),
                decides,
            );
        }
    }
    for name in was.keys().chain(is.keys()).collect::<BTreeSet<_>>() {
        let (one, other) = (was.get(name), is.get(name));
        let (one, other) = (one.map(|it| it.last), other.map(|it| it.last));
        found.metrics_compared += u64::from(one.is_some() && other.is_some());
        let allowed = match (one, other, tolerance.get(name)) {
            (Some(one), Some(other), _) if is_same(one, other) => continue,
            (Some(one), Some(other), Some(bounds)) => is_within(one.0, other.0, bounds),
            _ => decides,
        };
        let pair = (one.map(number), other.map(number));
        add(ResultKind::Metric, name, pair, allowed);
    }
    found
}

fn by_path(files: &[ListedFile]) -> BTreeMap<&str, &ListedFile> {
    files
        .iter()
        .map(|file| (file.path.as_str(), file))
        .collect()
}

fn said(file: &ListedFile) -> String {
    match file.mode.as_str() {
        "644" => file.sha256.to_string(),
        mode => format!("{} ({mode})", file.sha256),
    }
}

fn number(value: MetricValue) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(other) => other.to_string(),
        Err(error) => error.to_string(),
    }
}

/// The same bits; every not-a-number is one.
fn is_same(one: MetricValue, other: MetricValue) -> bool {
    one.0.to_bits() == other.0.to_bits() || one.0.is_nan() && other.0.is_nan()
}

/// Whether each bound that is given holds. Bounds other than 0 are widened by the
/// rounding of two values: 0.97 lies within 0.01 of 0.96.
fn is_within(one: f64, other: f64, tolerance: &Tolerance) -> bool {
    let difference = (one - other).abs();
    let slack = 2.0 * f64::EPSILON * one.abs().max(other.abs());
    let holds = |bound: &Option<String>, unit: f64| {
        let Some(text) = bound else {
            return true;
        };
        match text.parse::<f64>() {
            Ok(0.0) => one == other,
            Ok(bound) => difference <= bound * unit + slack,
            Err(_) => false,
        }
    };
    let is_bound = tolerance.abs.is_some() || tolerance.rel.is_some();
    is_bound
        && difference.is_finite()
        && holds(&tolerance.abs, 1.0)
        && holds(&tolerance.rel, one.abs())
}

fn is_of_bytes(difference: &ResultDifference) -> bool {
    let has_both = difference.original.is_some() && difference.repeated.is_some();
    difference.kind == ResultKind::Output && has_both
}

fn objects(original: RunResult<'_>, repeated: RunResult<'_>, path: &str) -> Option<[ObjectId; 2]> {
    let object = |result: RunResult<'_>| {
        let mut files = result.outputs.iter();
        let file = files.find(|file| file.path == path)?;
        Some(ObjectId(file.sha256))
    };
    Some([object(original)?, object(repeated)?])
}

#[cfg(test)]
mod tests;
