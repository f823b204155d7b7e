//! After the sweep: what makes the best run another one than the worst, and the best one
//! once more, which has to give the same result to the bit.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::page::{Again, Difference, Run};
use crate::mesh::Mesh;
use crate::step;

/// Compares the best run with the worst, executes the best one anew, and notes the level
/// that it has then.
pub(super) fn run(mesh: &Mesh, runs: &mut [Run]) -> Result<Again> {
    let by_accuracy = |one: &&Run, other: &&Run| {
        let value = |run: &Run| run.accuracy.unwrap_or(-1.0);
        value(one).total_cmp(&value(other))
    };
    // Of several the first, as in the table.
    let best = runs.iter().rev().max_by(by_accuracy).context("no runs")?;
    let worst = runs.iter().min_by(by_accuracy).context("no runs")?;
    let (best, worst) = (best.id.clone(), worst.id.clone());
    let compared = mesh.json(&["compare", &worst, &best])?;
    let differences = compared["differences"].as_array().into_iter().flatten();
    let differences: Vec<Difference> = differences
        .filter(|it| it["group"] != "outputs")
        .map(|it| Difference {
            group: text(&it["group"]),
            name: text(&it["name"]),
            worst: text(&it["a"]),
            best: text(&it["b"]),
        })
        .collect();
    for it in &differences {
        step::say(format_args!(
            "best and worst: {} {}: {} and {}",
            it.group, it.name, it.best, it.worst
        ));
    }
    let found = mesh.json(&["reproduce", &best])?;
    let judgement = &found["judgement"];
    ensure!(
        judgement["verdict"] == "bit_identical" && found["trust"]["level"] == "L4",
        "the best run was not reproduced to the bit: {found:#}"
    );
    let again = Again {
        run: text(&found["run"]),
        how: text(&found["trust"]["reproduced"]["how"]),
        compared: judgement["outputs_compared"].as_u64().unwrap_or(0)
            + judgement["metrics_compared"].as_u64().unwrap_or(0),
        best: best.clone(),
        worst,
        differences,
    };
    step::say(format_args!(
        "reproduced: {best} by {}, {}: L4",
        again.run, again.how
    ));
    if let Some(run) = runs.iter_mut().find(|run| run.id == best) {
        run.trust = text(&found["trust"]["level"]);
    }
    Ok(again)
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
