//! `ml metrics` and `ml plot`: points of runs as text and as figures.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use mlmesh_api::{Client, RunDto, RunFilter, RunKindDto, RunSummaryDto, SeriesDto};
use serde_json::json;

use crate::cli;
use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::output::{Table, Tone};
use crate::plot::axis::Kind;
use crate::plot::{Axis, Chart, Curve, Figures, Lines, page, sheet};

/// Runs whose curves are drawn; more cannot be told apart.
const CURVES_MAX: usize = 20;
/// Runs of a figure of a sweep.
const LINES_MAX: usize = 500;
/// Metrics that are drawn without being named.
const CHARTS_MAX: usize = 12;

/// Prints metrics, or the points of some.
pub(crate) fn metrics(context: &Context, verb: &cli::Metrics) -> Outcome {
    let client = context.client()?;
    let output = &context.output;
    if !output.json && !verb.csv && verb.names.is_empty() && verb.points.is_none() {
        let run = client.run(&verb.run)?;
        if run.metrics.is_empty() {
            output.say("no metrics");
            return Ok(());
        }
        let mut table = Table::new(&["METRIC", "LAST", "MIN", "MAX", "POINTS"]);
        for (name, metric) in &run.metrics {
            let number = |value: f64| (value.to_string(), Tone::Plain);
            table.row([
                (name.clone(), Tone::Plain),
                number(metric.last.0),
                number(metric.min.0),
                number(metric.max.0),
                (metric.steps.to_string(), Tone::Plain),
            ]);
        }
        return output.table(&table);
    }
    let found = client.points(&verb.run, &verb.names, verb.points, verb.x.as_str())?;
    if output.json {
        return output.json(&found);
    }
    if verb.csv {
        output.line("metric,step,time,value")?;
    }
    let mut table = Table::new(&["METRIC", "STEP", "TIME", "VALUE"]);
    for series in &found.metrics {
        for point in &series.points {
            let time = point.time.map_or(String::new(), |time| time.to_string());
            if verb.csv {
                let name = field(&series.name);
                output.line(format_args!(
                    "{name},{},{time},{}",
                    point.step, point.value.0
                ))?;
            } else {
                let cells = [
                    series.name.clone(),
                    point.step.to_string(),
                    time,
                    point.value.0.to_string(),
                ];
                table.row(cells.map(|text| (text, Tone::Plain)));
            }
        }
        if !series.exact {
            output.hint(format_args!(
                "{} of {} points of `{}`; `--points N` shows more",
                series.points.len(),
                series.total,
                series.name
            ));
        }
    }
    if !verb.csv {
        output.table(&table)?;
    }
    Ok(())
}

/// A text as a field of RFC 4180.
fn field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

/// Writes figures.
pub(crate) fn plot(context: &Context, verb: &cli::Plot) -> Outcome {
    let client = context.client()?;
    let mut runs: Vec<Shown> = Vec::new();
    let mut title = Vec::new();
    for name in &verb.runs {
        let run = client.run(name)?;
        title.push(format!("{} {}", run.name, run.id));
        match run.kind {
            RunKindDto::Sweep => runs.extend(points_of(&client, &run)?),
            RunKindDto::Single | RunKindDto::Point => runs.push(Shown::from_run(&run)),
        }
    }
    let path = match &verb.output {
        Some(path) => path.clone(),
        None => PathBuf::from(format!(
            "plot-{}.html",
            runs.first().map_or("runs".to_owned(), |run| run.id.clone())
        )),
    };
    let is_svg = match path.extension().and_then(|end| end.to_str()) {
        Some("svg") => true,
        Some("html" | "htm") => false,
        _ => {
            return Err(Failure::usage(
                format!("`{}` is neither a page nor a drawing", path.display()),
                "give the file a name that ends in `.html` or `.svg`",
            ));
        }
    };
    let mut notes = Vec::new();
    let lines = parallel(&runs, &verb.metric);
    if runs.len() > CURVES_MAX {
        notes.push(format!(
            "curves are those of the first {CURVES_MAX} of {} runs",
            runs.len()
        ));
    }
    let charts = charts(&client, verb, &runs, &mut notes)?;
    if charts.is_empty() && lines.is_none() {
        return Err(Failure::failed(
            "no_points",
            "these runs have no points of the metrics asked for",
            "`ml metrics RUN` shows what a run has logged",
        ));
    }
    let figures = Figures {
        title: title.join(", "),
        lines,
        charts,
        notes,
    };
    let text = if is_svg {
        sheet(&figures)
    } else {
        page(&figures)
    };
    write(&path, &text)?;
    let output = &context.output;
    if output.json {
        return output.json(&json!({
            "schema": "mlmesh.plot/1",
            "file": path.display().to_string(),
            "runs": runs.iter().map(|run| &run.id).collect::<Vec<_>>(),
            "metrics": figures.charts.iter().map(|chart| &chart.title).collect::<Vec<_>>(),
            "parallel": figures.lines.is_some(),
            "notes": figures.notes,
        }));
    }
    for note in &figures.notes {
        output.hint(note);
    }
    output.line(path.display())
}

fn write(path: &Path, text: &str) -> Outcome {
    std::fs::write(path, text).map_err(|error| Failure::io("write", path, &error))
}

/// A run of a figure.
struct Shown {
    id: String,
    name: String,
    params: BTreeMap<String, String>,
    metrics: BTreeMap<String, f64>,
}

impl Shown {
    fn from_run(run: &RunDto) -> Self {
        let params = run
            .plan
            .as_ref()
            .and_then(|plan| plan["params"].as_object());
        let params = params.into_iter().flatten().map(|(name, value)| {
            let text = value
                .as_str()
                .map_or_else(|| value.to_string(), ToOwned::to_owned);
            (name.clone(), text)
        });
        let metrics = run.metrics.iter();
        Self {
            id: run.id.to_string(),
            name: run.name.clone(),
            params: params.collect(),
            metrics: metrics
                .map(|(name, metric)| (name.clone(), metric.last.0))
                .collect(),
        }
    }

    fn from_point(run: &RunSummaryDto) -> Self {
        let params = run.params.iter();
        let metrics = run.metrics.iter();
        Self {
            id: run.id.to_string(),
            name: run
                .index
                .map_or_else(|| run.name.clone(), |index| format!("#{index}")),
            params: params
                .map(|(name, value)| (name.clone(), value.to_string()))
                .collect(),
            metrics: metrics
                .map(|(name, metric)| (name.clone(), metric.last.0))
                .collect(),
        }
    }
}

fn points_of(client: &Client, sweep: &RunDto) -> Outcome<Vec<Shown>> {
    let mut filter = RunFilter {
        parent: Some(sweep.id.to_string()),
        limit: Some(LINES_MAX as u32),
        ..RunFilter::default()
    };
    let mut points: Vec<RunSummaryDto> = Vec::new();
    while points.len() < LINES_MAX {
        let page = client.runs(&filter)?;
        points.extend(page.runs);
        filter.cursor = page.next_cursor;
        if filter.cursor.is_none() {
            break;
        }
    }
    points.sort_unstable_by_key(|point| point.index);
    points.truncate(LINES_MAX);
    Ok(points.iter().map(Shown::from_point).collect())
}

/// Parameters in which some of these runs differ.
fn differing(runs: &[Shown]) -> Vec<String> {
    let names: BTreeSet<&String> = runs.iter().flat_map(|run| run.params.keys()).collect();
    let differs = |name: &&String| {
        runs.windows(2)
            .any(|pair| pair[0].params.get(*name) != pair[1].params.get(*name))
    };
    names.into_iter().filter(differs).cloned().collect()
}

fn labels(runs: &[Shown]) -> Vec<String> {
    let names = differing(runs);
    let label = |run: &Shown| {
        let params = names.iter().filter_map(|name| {
            let value = run.params.get(name)?;
            Some(format!("{name}={value}"))
        });
        let params: Vec<String> = params.collect();
        match params.is_empty() {
            true => format!("{} {}", run.name, run.id),
            false => format!("{} {}", run.name, params.join(" ")),
        }
    };
    runs.iter().map(label).collect()
}

/// The figure of runs whose parameters differ, where there are at least three.
fn parallel(runs: &[Shown], wanted: &[String]) -> Option<Lines> {
    const AXES_MAX: usize = 10;
    let params = differing(runs).into_iter().map(|name| Axis {
        values: runs
            .iter()
            .map(|run| run.params.get(&name).cloned())
            .collect(),
        name,
    });
    let mut axes: Vec<Axis> = params.take(AXES_MAX - 2).collect();
    if runs.len() < 3 || axes.is_empty() {
        return None;
    }
    let names: BTreeSet<&String> = runs.iter().flat_map(|run| run.metrics.keys()).collect();
    let is_wanted = |name: &&&String| wanted.is_empty() || wanted.contains(name);
    let value = |run: &Shown, name: &str| {
        let value = run.metrics.get(name).filter(|value| value.is_finite());
        value.map(ToString::to_string)
    };
    let metrics = names.iter().filter(is_wanted).map(|name| Axis {
        name: (*name).clone(),
        values: runs.iter().map(|run| value(run, name)).collect(),
    });
    let metrics: Vec<Axis> = metrics.filter(Axis::differs).collect();
    if metrics.is_empty() {
        return None;
    }
    let room = AXES_MAX.saturating_sub(axes.len()).max(1);
    axes.extend(metrics.into_iter().take(room));
    // The metric that was named first, else the last axis.
    let named = wanted
        .first()
        .and_then(|name| axes.iter().position(|axis| axis.name == *name));
    let colour = named.unwrap_or(axes.len() - 1);
    Some(Lines {
        title: format!("Parameters and last values of {} runs", runs.len()),
        labels: labels(runs),
        axes,
        colour,
    })
}

/// The curves of each metric.
fn charts(
    client: &Client,
    verb: &cli::Plot,
    runs: &[Shown],
    notes: &mut Vec<String>,
) -> Outcome<Vec<Chart>> {
    let runs = &runs[..runs.len().min(CURVES_MAX)];
    let labels = labels(runs);
    let mut names: Vec<String> = match verb.metric.is_empty() {
        false => verb.metric.clone(),
        true => {
            let all: BTreeSet<&String> = runs.iter().flat_map(|run| run.metrics.keys()).collect();
            all.into_iter().cloned().collect()
        }
    };
    if names.len() > CHARTS_MAX && verb.metric.is_empty() {
        notes.push(format!(
            "curves are those of the first {CHARTS_MAX} of {} metrics; `--metric` names others",
            names.len()
        ));
        names.truncate(CHARTS_MAX);
    }
    let mut curves: BTreeMap<String, Vec<(String, SeriesDto)>> = BTreeMap::new();
    let mut thinned = 0;
    for (run, label) in runs.iter().zip(labels) {
        let found = client.points(&run.id, &names, Some(verb.points), verb.x.as_str())?;
        for series in found.metrics {
            thinned += usize::from(!series.exact);
            let named = curves.entry(series.name.clone()).or_default();
            named.push((label.clone(), series));
        }
    }
    if thinned > 0 {
        notes.push(format!(
            "of {thinned} curves with many points the first, smallest, largest and last of each of {} stretches are drawn",
            verb.points
        ));
    }
    let charts = names.into_iter().filter_map(|name| {
        let series = curves.remove(&name)?;
        Some(chart(verb, name, series))
    });
    Ok(charts.collect())
}

fn chart(verb: &cli::Plot, title: String, series: Vec<(String, SeriesDto)>) -> Chart {
    let by_time = verb.x == cli::Along::Time;
    let kind = |is_log: bool| {
        if is_log {
            Kind::Logarithmic
        } else {
            Kind::Linear
        }
    };
    let span = |points: &SeriesDto| {
        let times = points.points.iter().filter_map(|point| point.time);
        let (low, high) = times.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), time| {
            (low.min(time), high.max(time))
        });
        if low <= high {
            (low, high - low)
        } else {
            (0.0, 0.0)
        }
    };
    let longest = series
        .iter()
        .map(|(_, points)| span(points).1)
        .fold(0.0, f64::max);
    let (unit, seconds) = match longest {
        long if long >= 3.0 * 86_400.0 => ("days", 86_400.0),
        long if long >= 2.0 * 3600.0 => ("hours", 3600.0),
        long if long >= 180.0 => ("minutes", 60.0),
        _ => ("seconds", 1.0),
    };
    let curves = series.into_iter().map(|(label, series)| {
        let start = span(&series).0;
        let points = series.points.iter().map(|point| {
            let x = match (by_time, point.time) {
                (true, Some(time)) => (time - start) / seconds,
                _ => point.step as f64,
            };
            (x, point.value.0)
        });
        Curve {
            label,
            points: points.collect(),
        }
    });
    Chart {
        title,
        x: match by_time {
            true => format!("time since the first point ({unit})"),
            false => "step".to_owned(),
        },
        curves: curves.collect(),
        smooth: verb.smooth,
        x_kind: kind(verb.log_x),
        y_kind: kind(verb.log_y),
    }
}
