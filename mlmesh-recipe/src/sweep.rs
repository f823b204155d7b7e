//! Reads `sweep:`: a grid, `zip:` or `random:`.
//!
//! `random:` keeps the keys `count` and `seed` for itself, so that a random sweep
//! draws parameters and leaves the run's own seed as the recipe gives it.

use std::collections::BTreeSet;

use mlmesh_model::{Axis, ParamValue, RandomAxis, RandomRange, Sweep};
use serde_json::{Value as Json, json};

use crate::error::{Fault, Position, Report, code, shown};
use crate::expand::POINTS_MAX;
use crate::scalar::{INTEGER_END, decimal, integer, param_value, text};
use crate::table::{did_you_mean, listed, read_entries, read_list, read_scalar, wrong_type};
use crate::tree::{Entry, Node, Value};
use crate::{rules, units};

/// Axes of one sweep.
pub(crate) const AXES_MAX: usize = 64;
const HINT: &str =
    "write it like `{lr: [0.01, 0.1]}`, `{zip: {…}}` or `{random: {count: 20, seed: 1, …}}`";

/// A sweep and where its axes stand.
pub(crate) struct PlacedSweep {
    pub(crate) sweep: Sweep,
    pub(crate) axes: Vec<(String, Position)>,
}

/// Reads the value of `sweep:`.
pub(crate) fn read(report: &mut Report, node: &Node) -> Option<PlacedSweep> {
    let Value::Mapping(entries) = &node.value else {
        wrong_type(report, "sweep", node, "a mapping", HINT);
        return None;
    };
    let special = entries
        .iter()
        .find(|entry| is_form(entry) && matches!(entry.value.value, Value::Mapping(_)));
    if let Some(form) = special {
        for other in entries.iter().filter(|entry| entry.key != form.key) {
            report.add(
                other.key_at,
                code::CONFLICT,
                format!(
                    "`{}` stands beside `{}`; a sweep has one form",
                    shown(&other.key),
                    form.key
                ),
                format!("move it into `{}`, or remove one of the two", form.key),
            );
        }
        return match form.key.as_str() {
            "zip" => zip(report, &form.value),
            _ => random(report, form),
        };
    }
    let axes = axes(report, "sweep", node)?;
    let points = axes.iter().try_fold(1_usize, |points, (axis, _)| {
        points.checked_mul(axis.values.len())
    });
    bounded(report, node.at, points)?;
    for (axis, at) in &axes {
        let mut seen = BTreeSet::new();
        if let Some(twice) = axis.values.iter().find(|value| !seen.insert(*value)) {
            report.add(
                *at,
                code::CONFLICT,
                format!(
                    "`{}` lists `{}` twice; each point of a grid is one run",
                    axis.param,
                    shown(&twice.to_string())
                ),
                "remove one of the two; sweep `seed` to repeat a point",
            );
        }
    }
    Some(placed(axes, Sweep::Grid))
}

fn is_form(entry: &Entry) -> bool {
    matches!(entry.key.as_str(), "zip" | "random")
}

fn placed(axes: Vec<(Axis, Position)>, form: fn(Vec<Axis>) -> Sweep) -> PlacedSweep {
    let names = axes
        .iter()
        .map(|(axis, at)| (axis.param.clone(), *at))
        .collect();
    PlacedSweep {
        sweep: form(axes.into_iter().map(|(axis, _)| axis).collect()),
        axes: names,
    }
}

fn zip(report: &mut Report, node: &Node) -> Option<PlacedSweep> {
    let axes = axes(report, "zip", node)?;
    let (first, _) = axes.first()?;
    let (first, length) = (first.param.clone(), first.values.len());
    bounded(report, node.at, Some(length))?;
    for (axis, at) in &axes {
        if axis.values.len() != length {
            report.add(
                *at,
                code::CONFLICT,
                format!(
                    "`{}` has {} values and `{first}` has {length}; all lists of `zip` have one length",
                    axis.param,
                    axis.values.len(),
                ),
                "point i takes the i-th value of each list; make them equally long",
            );
        }
    }
    Some(placed(axes, Sweep::Zip))
}

/// The lists below a grid or `zip:`; `None` when there is nothing to sweep.
fn axes(report: &mut Report, name: &str, node: &Node) -> Option<Vec<(Axis, Position)>> {
    let mut axes = Vec::new();
    read_entries(report, name, node, (AXES_MAX, HINT), |report, entry| {
        let param = axis_name(report, entry);
        let values = values(report, &entry.key, &entry.value);
        if let (Some(param), Some(values)) = (param, values) {
            axes.push((Axis { param, values }, entry.key_at));
        }
    });
    if axes.is_empty() {
        report.add_if_empty(
            node.at,
            code::VALUE,
            "`sweep` names no parameter; it needs at least one list",
            HINT,
        );
        return None;
    }
    Some(axes)
}

fn axis_name(report: &mut Report, entry: &Entry) -> Option<String> {
    match rules::param_name(&entry.key) {
        Ok(()) => Some(entry.key.clone()),
        Err(fault) => {
            report.fault(entry.key_at, code::VALUE, fault);
            None
        }
    }
}

fn values(report: &mut Report, param: &str, node: &Node) -> Option<Vec<ParamValue>> {
    let mut values = Vec::new();
    let mut whole = true;
    read_list(
        report,
        param,
        node,
        (POINTS_MAX, "write the values as a list, like `[0.01, 0.1]`"),
        |report, item| {
            let value = read_scalar(report, param, item, |scalar| {
                let value = param_value(scalar)?;
                if param == "seed" {
                    seed_value(&value)?;
                }
                Ok(value)
            });
            whole &= value.is_some();
            values.extend(value);
        },
    );
    if values.is_empty() && whole && matches!(node.value, Value::Sequence(_)) {
        report.add(
            node.at,
            code::VALUE,
            format!(
                "`{}` is an empty list; a sweep over nothing has no run",
                shown(param)
            ),
            "list at least one value, or remove the key",
        );
    }
    (whole && !values.is_empty()).then_some(values)
}

fn seed_value(value: &ParamValue) -> Result<(), Fault> {
    match value {
        ParamValue::Int(seed) if *seed >= 0 => Ok(()),
        other => Err(Fault::new(
            format!(
                "`{}` is not a seed; a seed is a whole number from 0, below 2^53",
                shown(&other.to_string())
            ),
            "write it like `7`",
        )),
    }
}

fn bounded(report: &mut Report, at: Position, points: Option<usize>) -> Option<()> {
    if points.is_some_and(|points| points <= POINTS_MAX) {
        return Some(());
    }
    let seen = points.map_or_else(|| "too many".to_owned(), |points| points.to_string());
    report.add(
        at,
        code::TOO_LARGE,
        format!("`sweep` has `{seen}` points; at most {POINTS_MAX} are accepted"),
        "draw a sample with `random: {count: …}`, or split the sweep",
    );
    None
}

fn random(report: &mut Report, form: &Entry) -> Option<PlacedSweep> {
    let mut count = None;
    let mut seed = None;
    let mut axes: Vec<RandomAxis> = Vec::new();
    let mut names = Vec::new();
    let hint = (AXES_MAX + 2, HINT);
    read_entries(
        report,
        "random",
        &form.value,
        hint,
        |report, entry| match entry.key.as_str() {
            "count" => count = whole(report, entry, POINTS_MAX as u64, "a number of points", 1),
            "seed" => seed = whole(report, entry, INTEGER_END - 1, "a seed", 0),
            _ => {
                let param = axis_name(report, entry);
                if let (Some(param), Some(range)) = (param, range(report, entry)) {
                    names.push((param.clone(), entry.key_at));
                    axes.push(RandomAxis { param, range });
                }
            }
        },
    );
    let Value::Mapping(entries) = &form.value.value else {
        return None;
    };
    for (key, about) in [
        ("count", "how many points are drawn"),
        ("seed", "what makes the draw the same on every machine"),
    ] {
        if !entries.iter().any(|entry| entry.key == key) {
            report.add(
                form.key_at,
                code::MISSING_KEY,
                format!("`random` lacks the key `{key}`: {about}"),
                format!("add `{key}:` to it"),
            );
        }
    }
    if entries
        .iter()
        .all(|entry| matches!(entry.key.as_str(), "count" | "seed"))
    {
        report.add(
            form.key_at,
            code::MISSING_KEY,
            "`random` names no parameter to draw",
            "add one, like `lr: {loguniform: [1e-4, 1e-1]}`",
        );
    }
    Some(PlacedSweep {
        sweep: Sweep::Random {
            count: u32::try_from(count?).ok()?,
            seed: seed?,
            axes,
        },
        axes: names,
    })
}

fn whole(report: &mut Report, entry: &Entry, max: u64, what: &str, min: u64) -> Option<u64> {
    read_scalar(report, &entry.key, &entry.value, |scalar| {
        let text = text(scalar)?;
        units::whole(text, max)
            .filter(|value| *value >= min)
            .ok_or_else(|| {
                Fault::new(
                    format!(
                        "`{}` is not {what}; it is a whole number from {min} to {max}",
                        shown(text)
                    ),
                    "write it like `20`",
                )
            })
    })
}

/// The words that name a distribution.
const RANGES: &[&str] = &["uniform", "loguniform", "int", "choice"];
const RANGE_HINT: &str = "write `{uniform: [0, 1]}`, `{loguniform: [1e-4, 1e-1]}`, `{int: [1, 8]}`, `{choice: [a, b]}` or a list";

fn range(report: &mut Report, entry: &Entry) -> Option<RandomRange> {
    let name = entry.key.as_str();
    if matches!(entry.value.value, Value::Sequence(_)) {
        return values(report, name, &entry.value).map(RandomRange::Choice);
    }
    let Value::Mapping(entries) = &entry.value.value else {
        wrong_type(report, name, &entry.value, "a range or a list", RANGE_HINT);
        return None;
    };
    let [range] = entries.as_slice() else {
        report.add(
            entry.value.at,
            code::VALUE,
            format!(
                "`{}` has {} ranges; it needs one of {}",
                shown(name),
                entries.len(),
                listed(RANGES.iter().copied())
            ),
            RANGE_HINT,
        );
        return None;
    };
    match range.key.as_str() {
        "choice" => values(report, "choice", &range.value).map(RandomRange::Choice),
        "uniform" => {
            let (low, high) = float_bounds(report, range, f64::NEG_INFINITY)?;
            Some(RandomRange::Uniform { low, high })
        }
        "loguniform" => {
            let (low, high) = float_bounds(report, range, 0.0)?;
            Some(RandomRange::LogUniform { low, high })
        }
        "int" => {
            let (low, high) = bounds(report, range)?;
            match (integer(&low), integer(&high)) {
                (Some(low), Some(high)) if low <= high => Some(RandomRange::Int { low, high }),
                _ => {
                    bad_bounds(
                        report,
                        range,
                        "two whole numbers, the smaller first, both included",
                    );
                    None
                }
            }
        }
        other => {
            report.add(
                range.key_at,
                code::UNKNOWN_KEY,
                format!(
                    "unknown range `{}`{}",
                    shown(other),
                    did_you_mean(other, RANGES.iter().copied())
                ),
                RANGE_HINT,
            );
            None
        }
    }
}

fn float_bounds(report: &mut Report, range: &Entry, above: f64) -> Option<(String, String)> {
    let (low, high) = bounds(report, range)?;
    match (decimal(&low), decimal(&high)) {
        (Some(first), Some(second))
            if above < first && first < second && (second - first).is_finite() =>
        {
            Some((low, high))
        }
        _ => {
            let rule = if above == 0.0 {
                "two numbers above 0, the smaller first"
            } else {
                "two numbers, the smaller first"
            };
            bad_bounds(report, range, rule);
            None
        }
    }
}

fn bounds(report: &mut Report, range: &Entry) -> Option<(String, String)> {
    let mut texts = Vec::new();
    read_list(
        report,
        &range.key,
        &range.value,
        (2, RANGE_HINT),
        |report, item| {
            texts.extend(read_scalar(report, &range.key, item, |scalar| {
                text(scalar).map(str::to_owned)
            }));
        },
    );
    let Value::Sequence(items) = &range.value.value else {
        return None;
    };
    if items.len() < 2 {
        bad_bounds(report, range, "two numbers");
        return None;
    }
    match <[String; 2]>::try_from(texts) {
        Ok([low, high]) => Some((low, high)),
        Err(_) => None,
    }
}

fn bad_bounds(report: &mut Report, range: &Entry, rule: &str) {
    report.add(
        range.value.at,
        code::VALUE,
        format!("`{}` needs {rule}", range.key),
        RANGE_HINT,
    );
}

/// The JSON Schema of `sweep:`.
pub(crate) fn schema() -> Json {
    let scalar = json!({"type": ["string", "number", "boolean"]});
    let values = json!({"type": "array", "items": scalar, "minItems": 1});
    let axes = json!({"type": "object", "additionalProperties": values, "minProperties": 1});
    let pair = json!({"type": "array", "items": {"type": ["number", "string"]}, "minItems": 2, "maxItems": 2});
    let ranges: serde_json::Map<String, Json> = RANGES
        .iter()
        .map(|name| {
            let schema = if *name == "choice" { &values } else { &pair };
            ((*name).to_owned(), schema.clone())
        })
        .collect();
    let range = json!({"oneOf": [
        values,
        {"type": "object", "additionalProperties": false, "properties": ranges, "minProperties": 1, "maxProperties": 1},
    ]});
    json!({"oneOf": [
        axes,
        {"type": "object", "additionalProperties": false, "required": ["zip"], "properties": {"zip": axes}},
        {"type": "object", "additionalProperties": false, "required": ["random"], "properties": {"random": {
            "type": "object",
            "required": ["count", "seed"],
            "properties": {
                "count": {"type": "integer", "minimum": 1, "maximum": POINTS_MAX},
                "seed": {"type": "integer", "minimum": 0},
            },
            "additionalProperties": range,
        }}},
    ]})
}
