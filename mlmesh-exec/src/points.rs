//! Points of metrics at rest and on their way to a chart: written once, when an attempt
//! ends, into the run's own folder, where they stay as long as the run does; read as a
//! stream and thinned, so that a million of them take no more memory than a thousand.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use mlmesh_model::{Point, PointsAsk, Series, Thinned};

use crate::METRICS_FILE;
use crate::metrics::Metrics;

/// Reads all points of an ended attempt and writes them, each with its step, into the
/// run's folder. No points, no folder; those of an earlier attempt go.
pub(crate) fn keep(metrics: &mut Metrics, folder: &Path) -> io::Result<()> {
    let path = folder.join(METRICS_FILE);
    let beside = folder.join("metrics.jsonl.new");
    let mut out: Option<BufWriter<fs::File>> = None;
    let mut failed = Ok(());
    metrics.finish(&mut |point| {
        if failed.is_ok() {
            failed = write_point(&mut out, &beside, point);
        }
    })?;
    failed?;
    match out {
        Some(mut out) => {
            out.flush()?;
            fs::rename(&beside, &path)
        }
        None => match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    }
}

fn write_point(
    out: &mut Option<BufWriter<fs::File>>,
    path: &Path,
    point: &mlmesh_model::MetricPoint,
) -> io::Result<()> {
    if out.is_none() {
        if let Some(folder) = path.parent() {
            let mut folders = DirBuilder::new();
            folders.recursive(true).mode(0o700).create(folder)?;
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        *out = Some(BufWriter::new(options.open(path)?));
    }
    if let Some(out) = out {
        serde_json::to_writer(&mut *out, point)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// Reads the points that are asked for: of the live attempt, or what is kept in `folder`.
pub(crate) fn read(ask: &PointsAsk, live: Metrics, folder: &Path) -> io::Result<Vec<Series>> {
    if ask.is_live {
        let found = thinned(ask, live)?;
        if !found.is_empty() {
            return Ok(found);
        }
        // It has ended meanwhile, and its files are gone; or it has logged nothing.
    }
    thinned(ask, Metrics::kept(folder))
}

fn thinned(ask: &PointsAsk, mut from: Metrics) -> io::Result<Vec<Series>> {
    let mut series: BTreeMap<String, Thinned> = BTreeMap::new();
    from.read(&mut |point| {
        if !ask.names.is_empty() && !ask.names.contains(&point.name) {
            return;
        }
        let one = Point {
            step: point.step.unwrap_or(0),
            time: point.time,
            value: point.value.0,
        };
        match series.get_mut(&point.name) {
            Some(known) => known.push(one),
            None => {
                let mut new = Thinned::new(ask.along, ask.buckets);
                new.push(one);
                series.insert(point.name.clone(), new);
            }
        }
    })?;
    let series = series.into_iter();
    Ok(series.map(|(name, kept)| kept.finish(name)).collect())
}
