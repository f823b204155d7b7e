//! Points of metrics at rest and on their way to a chart: written once, when an attempt
//! ends, into the run's own folder, where they stay until a later attempt has ended or the
//! run is gone; read as a stream and thinned, so that a million of them take no more memory
//! than a thousand. Points of one attempt are never shown as those of another.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use mlmesh_model::{AttemptNumber, Point, PointsAsk, Series, Thinned};

use crate::metrics::Metrics;

/// Reads all points of an ended attempt and writes them, each with its step, into the
/// run's folder. No points, no file; those of earlier attempts go.
pub(crate) fn keep(metrics: &mut Metrics, folder: &Path, number: AttemptNumber) -> io::Result<()> {
    let path = kept_path(folder, number);
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
            fs::rename(&beside, &path)?;
        }
        None => remove(&path)?,
    }
    (1..number.0).try_for_each(|earlier| remove(&kept_path(folder, AttemptNumber(earlier))))
}

/// Where the points of an attempt are kept.
fn kept_path(folder: &Path, AttemptNumber(number): AttemptNumber) -> PathBuf {
    folder.join(format!("metrics-{number}.jsonl"))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
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

/// Reads the points that are asked for: what is kept of the attempt in `folder`, or what
/// lies in its own files as long as it lives.
pub(crate) fn read(
    ask: &PointsAsk,
    live: Metrics,
    folder: &Path,
    number: AttemptNumber,
) -> io::Result<Vec<Series>> {
    let kept = kept_path(folder, number);
    if !kept.exists() {
        let found = thinned(ask, live)?;
        // Its files go when its points are kept: it may have ended while they were read.
        if !kept.exists() {
            return Ok(found);
        }
    }
    thinned(ask, Metrics::kept(kept))
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
