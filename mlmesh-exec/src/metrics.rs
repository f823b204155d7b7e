//! Metric points of a job, one object a line: `metrics.jsonl` in its working directory
//! and in its output directory, and in the attempt's folder what it posted and what it
//! has logged through MLflow.
//!
//! Reading goes on where it stopped, so that a live run costs what it has written
//! since. A torn last line waits for its rest; a line that is no point is counted
//! and skipped; a point without step gets the one after the highest of its name.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use mlmesh_model::{MetricPoint, MetricSummary, MetricValue, RunId};
use rustix::fs::OFlags;

use crate::mlflow;
use crate::posted::is_mark;

/// Name of the file that jobs write.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// Longest line that is read.
const LINE_BYTES_MAX: usize = 64 << 10;
/// Most names in one attempt.
const NAMES_MAX: usize = 1000;
/// Longest name.
const NAME_BYTES_MAX: usize = 256;
/// Most bytes that are read of one file.
pub(crate) const FILE_BYTES_MAX: u64 = 256 << 20;
const READ_BYTES: usize = 256 << 10;

/// The metrics of one attempt as far as they were read.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    files: Vec<Tail>,
    names: BTreeMap<String, Series>,
    /// Lines that are no points, points beyond the limits.
    pub(crate) lines_bad: u64,
}

#[derive(Debug)]
struct Series {
    summary: MetricSummary,
    step_last: i64,
}

#[derive(Debug)]
struct Tail {
    path: PathBuf,
    kind: Kind,
    offset: u64,
    rest: Vec<u8>,
}

/// What the lines of a file are.
#[derive(Debug)]
enum Kind {
    /// Points.
    Points,
    /// Points that were read before, from all places together.
    Kept,
    /// What the MLflow client has logged; those with this beginning are points of the
    /// run.
    Spool(Vec<u8>),
}

impl Kind {
    fn bytes_max(&self) -> u64 {
        match self {
            Self::Points => FILE_BYTES_MAX,
            Self::Kept => u64::MAX,
            Self::Spool(_) => mlflow::SPOOL_BYTES_MAX,
        }
    }
}

impl Metrics {
    /// For the files in these folders.
    pub(crate) fn of(folders: &[PathBuf]) -> Self {
        let files = folders.iter().map(|folder| Tail {
            path: folder.join(METRICS_FILE),
            kind: Kind::Points,
            offset: 0,
            rest: Vec::new(),
        });
        Self {
            files: files.collect(),
            ..Self::default()
        }
    }

    /// For what is kept of an attempt that has ended.
    pub(crate) fn kept(path: PathBuf) -> Self {
        let kept = Tail {
            path,
            kind: Kind::Kept,
            offset: 0,
            rest: Vec::new(),
        };
        Self {
            files: vec![kept],
            ..Self::default()
        }
    }

    /// Reads the spool of an attempt, too.
    pub(crate) fn and_spool(mut self, attempt: &Path, run: RunId) -> Self {
        let prefix = mlflow::metric_prefix(&run.to_string(), None);
        self.files.push(Tail {
            path: mlflow::spool_path(attempt),
            kind: Kind::Spool(prefix.into_bytes()),
            offset: 0,
            rest: Vec::new(),
        });
        self
    }

    /// Reads what has been written since; hands each point, with its step, to `each`.
    pub(crate) fn read(&mut self, each: &mut dyn FnMut(&MetricPoint)) -> io::Result<()> {
        self.read_files(false, each)
    }

    /// Reads the rest; a last line without its end counts, too.
    pub(crate) fn finish(&mut self, each: &mut dyn FnMut(&MetricPoint)) -> io::Result<()> {
        self.read_files(true, each)
    }

    pub(crate) fn summaries(&self) -> BTreeMap<String, MetricSummary> {
        let names = self.names.iter();
        names
            .map(|(name, series)| (name.clone(), series.summary.clone()))
            .collect()
    }

    fn read_files(&mut self, ended: bool, each: &mut dyn FnMut(&MetricPoint)) -> io::Result<()> {
        let mut files = std::mem::take(&mut self.files);
        let outcome = files
            .iter_mut()
            .try_for_each(|file| self.read_file(file, ended, each));
        self.files = files;
        outcome
    }

    fn read_file(
        &mut self,
        tail: &mut Tail,
        ended: bool,
        each: &mut dyn FnMut(&MetricPoint),
    ) -> io::Result<()> {
        let Some(mut file) = open_regular(&tail.path)? else {
            return Ok(());
        };
        file.seek(SeekFrom::Start(tail.offset))?;
        let mut buffer = vec![0_u8; READ_BYTES];
        while tail.offset < tail.kind.bytes_max() {
            let length = file.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            tail.offset += length as u64;
            for piece in buffer[..length].split_inclusive(|byte| *byte == b'\n') {
                // A line beyond the limit keeps one byte too many: it is counted, not stored.
                let room = (LINE_BYTES_MAX + 1).saturating_sub(tail.rest.len());
                tail.rest.extend_from_slice(&piece[..piece.len().min(room)]);
                if piece.ends_with(b"\n") {
                    let line = std::mem::take(&mut tail.rest);
                    self.line(&tail.kind, &line, each);
                }
            }
        }
        if ended && !tail.rest.is_empty() {
            let line = std::mem::take(&mut tail.rest);
            // Torn, most likely; whole if the job forgot the end of line.
            self.line(&tail.kind, &line, each);
        }
        Ok(())
    }

    fn line(&mut self, kind: &Kind, line: &[u8], each: &mut dyn FnMut(&MetricPoint)) {
        if line.trim_ascii().is_empty() || is_mark(line) {
            return;
        }
        let point = match kind {
            Kind::Points | Kind::Kept if line.len() > LINE_BYTES_MAX => None,
            Kind::Points | Kind::Kept => parse_point(line),
            Kind::Spool(prefix) if line.starts_with(prefix) => spooled_point(line),
            Kind::Spool(_) => return,
        };
        match point.and_then(|point| self.add(point)) {
            Some(point) => each(&point),
            None => self.lines_bad += 1,
        }
    }

    fn add(&mut self, mut point: MetricPoint) -> Option<MetricPoint> {
        let MetricValue(value) = point.value;
        let Some(series) = self.names.get_mut(&point.name) else {
            if self.names.len() >= NAMES_MAX {
                return None;
            }
            let step = *point.step.get_or_insert(0);
            let summary = MetricSummary {
                last: point.value,
                min: point.value,
                max: point.value,
                steps: 1,
            };
            let series = Series {
                summary,
                step_last: step,
            };
            self.names.insert(point.name.clone(), series);
            return Some(point);
        };
        let next = series.step_last.saturating_add(1);
        let step = *point.step.get_or_insert(next);
        let summary = &mut series.summary;
        summary.steps += 1;
        if step >= series.step_last {
            series.step_last = step;
            summary.last = point.value;
        }
        // Not-a-number is neither smallest nor largest, unless there is nothing else.
        if summary.min.0.is_nan() || value < summary.min.0 {
            summary.min = point.value;
        }
        if summary.max.0.is_nan() || value > summary.max.0 {
            summary.max = point.value;
        }
        Some(point)
    }
}

fn spooled_point(line: &[u8]) -> Option<MetricPoint> {
    let Ok(mlflow::Entry::Metric(point)) = serde_json::from_slice(line) else {
        return None;
    };
    Some(MetricPoint {
        name: point.key,
        value: point.value,
        step: Some(point.step),
        time: Some(point.timestamp_ms as f64 / 1000.0),
    })
}

/// Python writes `NaN` and `Infinity` bare, which JSON does not know.
fn parse_point(line: &[u8]) -> Option<MetricPoint> {
    let text = std::str::from_utf8(line).ok()?;
    let point: Option<MetricPoint> = match serde_json::from_str(text) {
        Ok(point) => Some(point),
        Err(_) => serde_json::from_str(&quote_bare_numbers(text)).ok(),
    };
    point.filter(|point| !point.name.is_empty() && point.name.len() <= NAME_BYTES_MAX)
}

/// Puts quotes around the bare words `NaN`, `Infinity` and `-Infinity`.
fn quote_bare_numbers(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 4);
    let mut in_string = false;
    let mut escaped = false;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let word = ["NaN", "-Infinity", "Infinity"]
            .into_iter()
            .find(|word| !in_string && rest.starts_with(word));
        if let Some(word) = word {
            out.push('"');
            out.push_str(word);
            out.push('"');
            rest = &rest[word.len()..];
            continue;
        }
        if first == '"' && !escaped {
            in_string = !in_string;
        }
        escaped = in_string && first == '\\' && !escaped;
        out.push(first);
        rest = &rest[first.len_utf8()..];
    }
    out
}

/// Opens a file that is neither a link nor a device nor a pipe: a job chooses what
/// lies at the path, and the daemon must not hang on it or read elsewhere.
fn open_regular(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let opened = fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path);
    match opened {
        Ok(file) => Ok(file.metadata()?.is_file().then_some(file)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            Ok(None)
        }
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(text: &str) -> (Vec<MetricPoint>, Metrics) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(METRICS_FILE), text).unwrap();
        let mut metrics = Metrics::of(&[folder.path().to_owned(), folder.path().join("outputs")]);
        let mut points = Vec::new();
        metrics
            .finish(&mut |point| points.push(point.clone()))
            .unwrap();
        (points, metrics)
    }

    #[test]
    fn summaries_follow_the_highest_step() {
        let (points, metrics) = read(concat!(
            r#"{"name":"loss","value":3,"step":5}"#,
            "\n",
            r#"{"name":"loss","value":1.5,"step":2}"#,
            "\n",
            r#"{"name":"loss","value":2,"time":1.5}"#,
            "\n",
        ));
        assert_eq!(points[2].step, Some(6));
        let expected = MetricSummary {
            last: MetricValue(2.0),
            min: MetricValue(1.5),
            max: MetricValue(3.0),
            steps: 3,
        };
        assert_eq!(metrics.summaries()["loss"], expected);
        assert_eq!(metrics.lines_bad, 0);
    }

    #[test]
    fn bad_lines_are_counted_and_a_torn_end_is_one() {
        let (points, metrics) = read(concat!(
            "nonsense\n\n[1]\n",
            r#"{"name":"a","value":1}"#,
            "\n",
            r#"{"name":"a","val"#
        ));
        assert_eq!(points.len(), 1);
        assert_eq!(metrics.lines_bad, 3);
    }

    #[test]
    fn numbers_that_are_none_are_points() {
        let (points, metrics) = read(concat!(
            r#"{"name":"NaN \"Infinity","value":NaN}"#,
            "\n",
            r#"{"name":"b","value":-Infinity}"#,
            "\n",
            r#"{"name":"b","value":"inf"}"#,
            "\n",
            r#"{"name":"b","value":"nan"}"#,
        ));
        assert_eq!(points.len(), 4);
        assert_eq!(points[0].name, "NaN \"Infinity");
        let b = &metrics.summaries()["b"];
        assert_eq!((b.min.0, b.max.0), (f64::NEG_INFINITY, f64::INFINITY));
        assert!(b.last.0.is_nan());
    }

    #[test]
    fn reading_goes_on_in_the_middle_of_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(METRICS_FILE);
        let mut file = File::create(&path).unwrap();
        let mut metrics = Metrics::of(&[folder.path().to_owned()]);
        let mut seen = 0;
        for part in [
            r#"{"name":"a","#,
            "\"value\":1}\n{",
            "\"name\":\"a\",\"value\":2}\n",
        ] {
            file.write_all(part.as_bytes()).unwrap();
            metrics.read(&mut |_| seen += 1).unwrap();
        }
        assert_eq!(seen, 2);
        assert_eq!(metrics.lines_bad, 0);
    }

    #[test]
    fn what_is_no_regular_file_is_no_metrics_file() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join(METRICS_FILE)).unwrap();
        let mut metrics = Metrics::of(&[folder.path().to_owned(), PathBuf::from("/dev/null")]);
        metrics.finish(&mut |_| ()).unwrap();
        assert!(metrics.summaries().is_empty());
    }
}
