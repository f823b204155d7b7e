//! `ml sim`: the router of the gateway on engines that are only numbers.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use mlmesh_sim::engine::{PROFILES, Profile};
use mlmesh_sim::{
    Compared, Comparison, Fleet, Format, Row, Scenario, Slo, Telemetry, Trace, Workload,
    compare as compare_all,
};

use crate::cli;
use crate::error::{Failure, Outcome};
use crate::output::{Output, Table, Tone};
use crate::plot::axis::Kind;
use crate::plot::{Chart, Curve, Figures, page};
use crate::simulated::{self, Plan};

/// Bytes of a trace.
const TRACE_BYTES_MAX: u64 = 1 << 30;
/// Points of a curve.
const CURVE_POINTS: usize = 400;

/// Replays a trace under several strategies.
pub(crate) fn compare(output: &Output, verb: &cli::SimCompare) -> Outcome {
    let trace = read(&verb.trace, verb.format)?;
    let fleet = |name: &str| -> Outcome<Fleet> {
        let profile = profile(name, Path::new(name))?;
        Ok(Fleet {
            engines: vec![profile; usize::from(verb.engines)],
            rtt_us: RTT_US,
            telemetry: Some(TELEMETRY),
            slo: Slo::default(),
        })
    };
    let comparison = Comparison {
        engines: verb.engines,
        contenders: verb.strategies.clone(),
        seeds: (0..verb.seeds).collect(),
        sigma: verb.prediction_error,
        fleet: verb.engine.as_deref().map(fleet).transpose()?,
        leave_out_us: 0,
    };
    let compared = compare_all(&trace, &comparison);
    let engines = verb.engines;
    let title = format!(
        "{engines} simulated engines, {} requests",
        compared.requests
    );
    show(output, verb.output.as_deref(), title, &compared)
}

/// How far whole engines are away, and what is heard of them.
const RTT_US: u64 = 1_000;
const TELEMETRY: Telemetry = Telemetry {
    every_us: 100_000,
    age_us: 100_000,
    loss: 0.0,
};

/// Runs an experiment that is written in a file.
pub(crate) fn run(output: &Output, verb: &cli::SimRun) -> Outcome {
    let path = &verb.scenario;
    let text =
        fs::read_to_string(path).map_err(|error| Failure::io("read the scenario", path, &error))?;
    let scenario = Scenario::read(&text, &path.display().to_string()).map_err(|error| {
        let text = error.to_string();
        let (message, hint) = crate::error::split_hint(&text);
        Failure {
            code: "scenario_invalid".to_owned(),
            ..Failure::usage(message, hint)
        }
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let profile = profile(&scenario.profile, &folder.join(&scenario.profile))?;
    let trace = match &scenario.workload {
        Workload::Trace(recorded) => Some(read(&folder.join(&recorded.file), recorded.format.0)?),
        Workload::Shared(_) => None,
    };
    let compared = scenario.run(&profile, trace);
    let title = format!(
        "{} (simulated), {} requests",
        scenario.name, compared.requests
    );
    show(output, verb.output.as_deref(), title, &compared)
}

fn show(output: &Output, folder: Option<&Path>, title: String, compared: &Compared) -> Outcome {
    if let Some(folder) = folder {
        write(folder, title, compared)?;
        output.say(format_args!("written to {}", folder.join(PAGE).display()));
    }
    if output.json {
        return output.json(compared);
    }
    output.say(format_args!("{} events were simulated", compared.events));
    print(output, compared)
}

/// Serves simulated engines until the process ends.
pub(crate) fn serve(output: &Output, verb: &cli::SimServe) -> Outcome {
    let profile = profile(&verb.profile, Path::new(&verb.profile))?;
    let mut engines = vec![profile; usize::from(verb.engines)];
    for (place, factor) in &verb.slow {
        let Some(engine) = engines.get_mut(usize::from(*place)) else {
            return Err(Failure::usage(
                format!(
                    "`--slow {place}={factor}` names an engine that is not there; there are {}",
                    verb.engines
                ),
                "engines are counted from 0",
            ));
        };
        *engine = engine.slower(*factor);
    }
    let plan = Plan {
        engines,
        listen: verb.listen,
    };
    let ready = |addresses: &[SocketAddr]| {
        let urls: Vec<String> = addresses.iter().map(|at| format!("http://{at}")).collect();
        let said = if output.json {
            output.json(
                &serde_json::json!({"schema": "mlmesh.sim_serve/1", "model": "sim", "urls": urls}),
            )
        } else {
            urls.iter().try_for_each(|url| output.line(url))
        };
        said.map_err(|failure| std::io::Error::other(failure.message))
    };
    simulated::serve(plan, ready).map_err(|error| {
        let place = format!("serve simulated engines at `{}`: {error}", verb.listen);
        Failure::failed(
            "sim_serve_failed",
            place,
            "look whether something else listens there",
        )
    })
}

/// A profile that comes along, or else one in that file.
pub(crate) fn profile(name: &str, path: &Path) -> Outcome<Profile> {
    if let Some(profile) = Profile::named(name) {
        return Ok(profile);
    }
    let text = fs::read_to_string(path).map_err(|error| {
        let known: Vec<&str> = PROFILES.iter().map(|(known, _)| *known).collect();
        let hint = format!("a file, or one of {}", known.join(", "));
        Failure {
            hint,
            ..Failure::io("read the profile", path, &error)
        }
    })?;
    Profile::read(&text, &path.display().to_string()).map_err(|error| {
        let text = error.to_string();
        let (message, hint) = crate::error::split_hint(&text);
        Failure::failed("profile_invalid", message, hint)
    })
}

const PAGE: &str = "compare.html";

fn read(path: &Path, format: Format) -> Outcome<Trace> {
    let failed = |error: &std::io::Error| Failure::io("read the trace", path, error);
    let length = fs::metadata(path).map_err(|error| failed(&error))?.len();
    if length > TRACE_BYTES_MAX {
        return Err(Failure::usage(
            format!("the trace has {length} bytes; at most {TRACE_BYTES_MAX} are read"),
            "take a part of it",
        ));
    }
    let bytes = fs::read(path).map_err(|error| failed(&error))?;
    let invalid = |message: String, hint: &str| {
        let place = format!("`{}`: {message}", path.display());
        Failure::failed("trace_invalid", place, hint)
    };
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        invalid(
            format!("byte {at} is no text"),
            "a packed trace has to be unpacked first",
        )
    })?;
    Trace::read(&text, format).map_err(|error| {
        let text = error.to_string();
        let (message, hint) = crate::error::split_hint(&text);
        invalid(message.to_owned(), hint)
    })
}

fn print(output: &Output, compared: &Compared) -> Outcome {
    let mut table = Table::new(&[
        "STRATEGY",
        "TTFT MEAN",
        "±",
        "P50",
        "P90",
        "P99",
        "E2E MEAN",
        "TPOT",
        "GOODPUT",
        "CACHED",
        "GPU S",
        "IMBALANCE",
    ]);
    for row in &compared.strategies {
        let seconds = |value: f64| match value {
            ..1.0 => format!("{value:.4}"),
            _ => format!("{value:.2}"),
        };
        let percent = |value: f64| format!("{:.1} %", value * 100.0);
        let ttft = &row.ttft_s;
        let cells = [
            row.strategy.clone(),
            seconds(ttft.mean),
            seconds(ttft.ci95),
            seconds(ttft.p50),
            seconds(ttft.p90),
            seconds(ttft.p99),
            seconds(row.e2e_s.mean),
            row.tpot_s
                .map_or_else(String::new, |tpot| seconds(tpot.mean)),
            percent(row.goodput),
            percent(row.cached_ratio),
            format!("{:.0}", row.gpu_s),
            format!("{:.2}", row.imbalance),
        ];
        table.row(cells.map(|text| (text, Tone::Plain)));
    }
    output.table(&table)
}

fn write(folder: &Path, title: String, compared: &Compared) -> Outcome {
    fs::create_dir_all(folder).map_err(|error| Failure::io("make", folder, &error))?;
    let json = serde_json::to_string(compared).map_err(|error| {
        Failure::failed("internal", format!("write the result as JSON: {error}"), "")
    })?;
    let figures = figures(title, compared);
    for (name, text) in [("compare.json", json + "\n"), (PAGE, page(&figures))] {
        let path = folder.join(name);
        fs::write(&path, text).map_err(|error| Failure::io("write", &path, &error))?;
    }
    Ok(())
}

fn figures(title: String, compared: &Compared) -> Figures {
    let rows = &compared.strategies;
    let chart = |title: &str, x: &str, x_kind, curve: &dyn Fn(&Row) -> Vec<(f64, f64)>| Chart {
        title: title.to_owned(),
        x: x.to_owned(),
        curves: rows
            .iter()
            .map(|row| Curve {
                label: row.strategy.clone(),
                points: curve(row),
            })
            .collect(),
        smooth: 0.0,
        x_kind,
        y_kind: Kind::Linear,
    };
    Figures {
        title,
        lines: None,
        charts: vec![
            chart(
                "share of all requests with their first token so soon",
                "time to the first token (s)",
                Kind::Logarithmic,
                &|row| distribution(row, compared.requests),
            ),
            chart(
                "share within the SLO, by length of prompt",
                "tenth of the requests, shortest prompts first",
                Kind::Linear,
                &|row| {
                    let tenths = row.goodput_by_length.iter().enumerate();
                    tenths
                        .map(|(tenth, good)| ((tenth + 1) as f64, *good))
                        .collect()
                },
            ),
        ],
        notes: rows.iter().map(note).collect(),
    }
}

/// Part of all requests over time; those that were refused are missing at its end.
fn distribution(row: &Row, requests: usize) -> Vec<(f64, f64)> {
    let times = &row.sorted_ttft_s;
    let ranks = (1..=CURVE_POINTS).map(|point| (times.len() * point).div_ceil(CURVE_POINTS));
    ranks
        .filter_map(|rank| {
            Some((
                *times.get(rank.checked_sub(1)?)?,
                rank as f64 / requests as f64,
            ))
        })
        .collect()
}

fn note(row: &Row) -> String {
    let ttft = &row.ttft_s;
    format!(
        "{}: first token after {:.2} s ± {:.2} in the mean, p50 {:.2}, p90 {:.2}, p99 {:.2}; {:.1} % of all \
         requests within the SLO, {:.1} % of tokens cached, {:.0} GPU seconds, imbalance {:.2}",
        row.strategy,
        ttft.mean,
        ttft.ci95,
        ttft.p50,
        ttft.p90,
        ttft.p99,
        row.goodput * 100.0,
        row.cached_ratio * 100.0,
        row.gpu_s,
        row.imbalance
    )
}
