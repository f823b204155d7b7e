//! `ml sim calibrate`: a profile from what a real engine was measured to do.

use std::fs;
use std::path::Path;

use mlmesh_sim::{Measured, Score, calibrate as fit, read_measured, score_profile};
use serde_json::json;

use super::sim::profile;
use crate::cli;
use crate::error::{Failure, Outcome};
use crate::output::{Output, Table, Tone};

/// Bytes of a benchmark.
const RUN_BYTES_MAX: u64 = 1 << 30;

pub(crate) fn calibrate(output: &Output, verb: &cli::SimCalibrate) -> Outcome {
    let base = profile(&verb.base, Path::new(&verb.base))?;
    let measured = read(&verb.run)?;
    let count = verb.first.unwrap_or(measured.len()).min(measured.len());
    if count == 0 {
        return Err(Failure::usage(
            "`--first 0` leaves nothing to fit to",
            "at least 1 is needed",
        ));
    }
    let others: Vec<Vec<Measured>> = verb
        .score
        .iter()
        .map(|path| read(path))
        .collect::<Outcome<_>>()?;
    let mut calibrated = fit(&base, &measured, count);
    let run = verb.run.display();
    let profile = &mut calibrated.profile;
    profile.name = format!("{}-fitted", base.name);
    profile.about = format!("fitted by `ml sim calibrate` to {count} requests of {run}");
    let mut scores = vec![(format!("{run}, fitted"), calibrated.fitted)];
    scores.extend(
        calibrated
            .scored
            .map(|score| (format!("{run}, the rest"), score)),
    );
    for (path, other) in verb.score.iter().zip(&others) {
        scores.push((path.display().to_string(), score_profile(profile, other)));
    }
    let yaml = profile.to_yaml();
    if let Some(path) = &verb.output {
        fs::write(path, &yaml).map_err(|error| Failure::io("write the profile", path, &error))?;
    }
    if output.json {
        let rows = scores
            .iter()
            .map(|(of, score)| json!({"of": of, "off": score}));
        return output.json(&json!({
            "schema": "mlmesh.sim_calibration/1",
            "profile": calibrated.profile,
            "scores": rows.collect::<Vec<_>>(),
        }));
    }
    if verb.output.is_none() {
        output.line(yaml.trim_end())?;
    }
    print(output, &scores)
}

fn read(path: &Path) -> Outcome<Vec<Measured>> {
    let failed = |error: &std::io::Error| Failure::io("read the run", path, error);
    let length = fs::metadata(path).map_err(|error| failed(&error))?.len();
    if length > RUN_BYTES_MAX {
        return Err(Failure::usage(
            format!("the run has {length} bytes; at most {RUN_BYTES_MAX} are read"),
            "measure fewer requests",
        ));
    }
    let text = fs::read_to_string(path).map_err(|error| failed(&error))?;
    read_measured(&text).map_err(|error| {
        let text = error.to_string();
        let (message, hint) = crate::error::split_hint(&text);
        Failure::failed(
            "run_invalid",
            format!("`{}`: {message}", path.display()),
            hint,
        )
    })
}

/// How far means are off, with their sign, and each request.
fn print(output: &Output, scores: &[(String, Score)]) -> Outcome {
    let mut table = Table::new(&[
        "OF", "REQUESTS", "TTFT", "EACH", "TPOT", "EACH", "E2E", "EACH",
    ]);
    for (of, score) in scores {
        let mut cells = vec![of.clone(), score.requests.to_string()];
        for off in [score.ttft, score.tpot, score.e2e] {
            cells.push(format!("{:+.1} %", off.mean * 100.0));
            cells.push(format!("{:.1} %", off.each * 100.0));
        }
        table.row(cells.into_iter().map(|text| (text, Tone::Plain)));
    }
    output.table(&table)
}
