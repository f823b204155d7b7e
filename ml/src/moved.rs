//! `--plan`: what the caller saw before, and which groups of the explanation have
//! moved since. A digest says only that something has; the file that `ml explain
//! --json` wrote says what. Reads that file and compares, asks nobody.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use mlmesh_api::{EXPLANATION_SCHEMA, ExplanationDto};
use mlmesh_model::PlanDigest;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::error::{Failure, Outcome, plain};

/// What `--plan` takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ExpectedPlan {
    /// The digest of a plan.
    Digest(PlanDigest),
    /// A file that holds an explanation.
    File(PathBuf),
}

/// One value that is not any more what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Moved {
    /// One of the six groups.
    group: &'static str,
    /// Where in the group; empty for the group itself.
    path: String,
    before: String,
    now: String,
}

/// The longest explanation that is read: a hundred plans of a large sweep.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Values that are named in a refusal.
const MOVED_MAX: usize = 20;
/// Characters of a value that are shown.
const VALUE_CHARS_MAX: usize = 80;

impl FromStr for ExpectedPlan {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text
            .parse()
            .map_or_else(|_| Self::File(PathBuf::from(text)), Self::Digest))
    }
}

/// Reads the explanation at `path`, and the digest of the plan that it shows.
pub(crate) fn read(path: &Path) -> Outcome<(PlanDigest, ExplanationDto)> {
    let shown = path.display();
    let refused = |what: String| {
        Failure::usage(
            format!("`--plan {shown}`: {what}"),
            "give the digest of a plan, 64 hex digits, or a file that `ml explain --json` wrote",
        )
    };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| refused(format!("it is no digest, and as a file: {}", plain(&error))))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(refused(format!(
            "the file has more than {FILE_BYTES_MAX} bytes, that is the most that is read"
        )));
    }
    let explanation: ExplanationDto = serde_json::from_slice(&bytes)
        .map_err(|error| refused(format!("the file is no explanation: {error}")))?;
    if explanation.schema != EXPLANATION_SCHEMA {
        let schema = excerpt(&explanation.schema);
        return Err(refused(format!(
            "the file's schema is `{schema}`, it must be `{EXPLANATION_SCHEMA}`"
        )));
    }
    match explanation.experiment.plan_sha256 {
        Some(plan) => Ok((plan, explanation)),
        None => Err(refused(
            "the explanation has no plan, since it was refused".to_owned(),
        )),
    }
}

/// What is different between two explanations, by group, at most [`MOVED_MAX`]
/// values, and how many there are in all.
pub(crate) fn compare(before: &ExplanationDto, now: &ExplanationDto) -> (Vec<Moved>, usize) {
    let mut moved = Vec::new();
    for ((group, before), (_, now)) in groups(before).into_iter().zip(groups(now)) {
        differences(group, String::new(), &before, &now, &mut moved);
    }
    let all = moved.len();
    moved.truncate(MOVED_MAX);
    (moved, all)
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dot = if self.path.is_empty() || self.path.starts_with('[') {
            ""
        } else {
            "."
        };
        let Self {
            group,
            path,
            before,
            now,
        } = self;
        write!(f, "{group}{dot}{path}: `{before}` before, `{now}` now")
    }
}

/// The six groups, without what does not belong to the plan.
fn groups(it: &ExplanationDto) -> [(&'static str, Value); 6] {
    // What the other groups show in their own words.
    const ELSEWHERE: [&str; 6] = [
        "commit",
        "datasets",
        "deps",
        "image",
        "plan_version",
        "resources",
    ];
    let plans = it.points.iter().map(|point| match &point.plan {
        Value::Object(plan) => {
            let own = plan
                .iter()
                .filter(|(key, _)| !ELSEWHERE.contains(&key.as_str()));
            Value::Object(
                own.map(|(key, value)| (key.clone(), value.clone()))
                    .collect(),
            )
        }
        other => other.clone(),
    });
    let plans: Vec<Value> = plans.collect();
    let mut experiment = match (it.points_total, plans.as_slice()) {
        (1, [Value::Object(plan)]) => plan.clone(),
        _ => Map::from_iter([("points".to_owned(), Value::Array(plans))]),
    };
    experiment.insert("name".to_owned(), json!(it.experiment.name));
    experiment.insert("recipe".to_owned(), json!(it.experiment.recipe));
    experiment.insert("commit".to_owned(), json!(it.experiment.commit));
    let datasets = it.datasets.iter().map(|dataset| {
        json!({
            "name": dataset.name,
            "version": dataset.version,
            "checksum": dataset.checksum,
            "mount": dataset.mount,
        })
    });
    [
        ("experiment", Value::Object(experiment)),
        ("environment", json!(it.deps)),
        (
            "snapshot",
            json!({"id": it.snapshot.id, "sha256": it.snapshot.sha256}),
        ),
        ("datasets", Value::Array(datasets.collect())),
        ("resources", json!(it.resources)),
        ("image", json!(it.image)),
    ]
}

/// Goes down while both sides have the same form. Depth is that of an explanation
/// which was read, and so bounded by the reader.
fn differences(
    group: &'static str,
    path: String,
    before: &Value,
    now: &Value,
    moved: &mut Vec<Moved>,
) {
    if before == now {
        return;
    }
    match (before, now) {
        (Value::Object(left), Value::Object(right)) => {
            let added = right.keys().filter(|key| !left.contains_key(*key));
            for key in left.keys().chain(added) {
                let dot = if path.is_empty() { "" } else { "." };
                let (before, now) = (&before[key], &now[key]);
                differences(group, format!("{path}{dot}{key}"), before, now, moved);
            }
        }
        (Value::Array(left), Value::Array(right)) => {
            for place in 0..left.len().max(right.len()) {
                let (before, now) = (&before[place], &now[place]);
                differences(group, format!("{path}[{place}]"), before, now, moved);
            }
        }
        _ => moved.push(Moved {
            group,
            path: excerpt(&path),
            before: shown(before),
            now: shown(now),
        }),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => excerpt(text),
        other => excerpt(&other.to_string()),
    }
}

fn excerpt(text: &str) -> String {
    let mut characters = text.chars();
    let mut shown: String = characters.by_ref().take(VALUE_CHARS_MAX).collect();
    shown = shown.escape_debug().to_string();
    if characters.next().is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An explanation as `ml explain --json` prints it.
    fn explanation(plans: &[Value]) -> ExplanationDto {
        let digest = "ab".repeat(32);
        let points = plans
            .iter()
            .map(|plan| json!({"plan_sha256": digest, "plan": plan}));
        let text = json!({
            "schema": EXPLANATION_SCHEMA,
            "admitted": true,
            "refusals": [],
            "waits": [],
            "experiment": {
                "name": "x", "recipe": "train.yaml", "commit": digest, "plan_sha256": digest,
            },
            "deps": null,
            "snapshot": {"id": "abab", "sha256": digest, "complete": true},
            "datasets": [
                {"name": "d", "version": null, "checksum": digest, "mount": "data/d", "registered": true},
            ],
            "resources": {"cpu_milli": 1000, "memory_bytes": null, "gpus": 0, "time_s": null},
            "image": null,
            "trust": {"level": "L2", "reasons": []},
            "repro_policy": "strict",
            "points": points.collect::<Vec<_>>(),
            "points_total": plans.len(),
        });
        serde_json::from_value(text).unwrap()
    }

    fn lines(before: &ExplanationDto, now: &ExplanationDto) -> Vec<String> {
        let (moved, _) = compare(before, now);
        moved.iter().map(Moved::to_string).collect()
    }

    #[test]
    fn each_group_that_moved_is_named_and_no_other() {
        let before = explanation(&[json!({"params": {"lr": 1}, "commit": "c", "seed": null})]);
        assert_eq!(lines(&before, &before), [""; 0]);
        let mut now = explanation(&[json!({"params": {"lr": 2}, "commit": "d", "seed": null})]);
        assert_eq!(
            lines(&before, &now),
            ["experiment.params.lr: `1` before, `2` now"]
        );
        now.points = before.points.clone();
        now.snapshot.complete = false;
        now.datasets[0].registered = false;
        assert_eq!(lines(&before, &now), [""; 0], "neither is part of a plan");
        now.resources.memory_bytes = Some(1 << 20);
        now.datasets[0].mount = "data/e".to_owned();
        now.deps = serde_json::from_value(
            json!({"name": "lock", "python": "3.12", "sha256": "cd".repeat(32)}),
        )
        .unwrap();
        let lines = lines(&before, &now);
        assert_eq!(
            lines[1..],
            [
                "datasets[0].mount: `data/d` before, `data/e` now",
                "resources.memory_bytes: `none` before, `1048576` now",
            ]
        );
        assert!(
            lines[0].starts_with("environment: `none` before, `{"),
            "{lines:?}"
        );
        assert!(lines[0].chars().count() < 200, "{lines:?}");
    }

    #[test]
    fn a_refusal_stays_short_whatever_moved() {
        let plans = |word: &str| -> Vec<Value> {
            let word = word.repeat(10_000);
            (0..100).map(|_| json!({"params": {"p": word}})).collect()
        };
        let (moved, all) = compare(&explanation(&plans("a")), &explanation(&plans("\n")));
        assert_eq!((moved.len(), all), (MOVED_MAX, 100));
        let text: String = moved.iter().map(Moved::to_string).collect();
        assert!(text.len() < 8000 && !text.contains('\n'), "{text}");
    }
}
