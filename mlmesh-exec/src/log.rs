//! The log file of an attempt: written by its supervisor alone, read by daemons.
//!
//! A file is a sequence of records, each `STREAM MICROS LENGTH BYTES\n` with one
//! space between the fields: STREAM is `1` (stdout), `2` (stderr) or `0` (a note
//! of ours), MICROS the time at which the piece was read, LENGTH the number of
//! bytes. A record holds one line with its end, or what was written without one.
//! A torn last record is not there: readers stop before it, the writer cuts it.
//!
//! On a full disk the job is not held up: what cannot be written is counted, and
//! when there is space again a note stands in its place.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use mlmesh_model::{LogLine, LogStream, Micros, SecretText};

use crate::redact::Redactor;

/// Longest piece in one record; a longer line is several records.
const PIECE_BYTES_MAX: usize = 64 << 10;

/// Longest header of a record.
const HEADER_BYTES_MAX: usize = 48;

/// The writer's side: two streams into one bounded file.
pub(crate) struct LogWriter {
    path: PathBuf,
    /// Made with the first output.
    file: Option<File>,
    /// Bytes of whole records in the file.
    bytes: u64,
    bytes_max: u64,
    /// Bytes of output beyond the limit.
    dropped: u64,
    /// Bytes of output that the disk refused, all and since the last note.
    refused: u64,
    refused_unnoted: u64,
    streams: [Lines; 2],
}

impl LogWriter {
    pub(crate) fn new(
        path: PathBuf,
        bytes_max: u64,
        secrets: &BTreeMap<String, SecretText>,
    ) -> Self {
        let redactor = Redactor::new(secrets.values().map(|secret| secret.0.as_str()));
        let lines = Lines {
            redactor,
            pending: Vec::new(),
        };
        Self {
            path,
            file: None,
            bytes: 0,
            bytes_max,
            dropped: 0,
            refused: 0,
            refused_unnoted: 0,
            streams: [lines.clone(), lines],
        }
    }

    /// What hides values of secrets in it.
    pub(crate) fn redactor(&self) -> &Redactor {
        &self.streams[0].redactor
    }

    /// Takes bytes that were read from a stream at `time`.
    pub(crate) fn push(&mut self, stream: LogStream, time: Micros, bytes: &[u8]) {
        let lines = &mut self.streams[index(stream)];
        lines.redactor.push(bytes, &mut lines.pending);
        let pieces = lines.whole();
        self.write(stream, time, &pieces);
    }

    /// Whether a stream has a piece without an end of line.
    pub(crate) fn has_pending(&self) -> bool {
        self.streams.iter().any(|lines| !lines.pending.is_empty())
    }

    /// Writes pieces that have waited for their end of line.
    pub(crate) fn flush(&mut self, time: Micros) {
        for stream in [LogStream::Stdout, LogStream::Stderr] {
            let pending = std::mem::take(&mut self.streams[index(stream)].pending);
            if !pending.is_empty() {
                self.write(stream, time, &[pending]);
            }
        }
    }

    /// Ends the log; returns the bytes that are not in it.
    pub(crate) fn finish(mut self, time: Micros) -> u64 {
        for lines in &mut self.streams {
            lines.redactor.finish(&mut lines.pending);
        }
        self.flush(time);
        let note = self.note_of_refused(time);
        if self.append(&note) {
            self.refused_unnoted = 0;
        }
        if self.dropped > 0 {
            let text = format!(
                "[mlmesh: {} bytes of output are not here; the log's limit is {} bytes]\n",
                self.dropped, self.bytes_max
            );
            let mut record = Vec::new();
            put_record(&mut record, b'0', time, text.as_bytes());
            // The note may exceed the limit; it is the last record.
            self.append(&record);
        }
        self.dropped + self.refused
    }

    /// Stands before what could be written again; empty when nothing is missing.
    fn note_of_refused(&self, time: Micros) -> Vec<u8> {
        let mut record = Vec::new();
        if self.refused_unnoted > 0 {
            let text = format!(
                "[mlmesh: {} bytes of output are not here; they could not be written, the disk was full]\n",
                self.refused_unnoted
            );
            put_record(&mut record, b'0', time, text.as_bytes());
        }
        record
    }

    fn write(&mut self, stream: LogStream, time: Micros, pieces: &[Vec<u8>]) {
        let mut records = self.note_of_refused(time);
        let mut payload = 0;
        for piece in pieces {
            let before = records.len();
            put_record(&mut records, b'1' + index(stream) as u8, time, piece);
            if self.dropped > 0 || self.bytes + records.len() as u64 > self.bytes_max {
                records.truncate(before);
                self.dropped += piece.len() as u64;
            } else {
                payload += piece.len() as u64;
            }
        }
        if payload == 0 {
            return;
        }
        if self.append(&records) {
            self.refused_unnoted = 0;
        } else {
            self.refused += payload;
            self.refused_unnoted += payload;
        }
    }

    /// On a full disk a part may have been written: it is cut off again, so that
    /// the file stays a sequence of whole records.
    fn append(&mut self, records: &[u8]) -> bool {
        if records.is_empty() {
            return true;
        }
        let Ok(file) = self.opened() else {
            return false;
        };
        if file.write_all(records).is_ok() {
            self.bytes += records.len() as u64;
            return true;
        }
        let bytes = self.bytes;
        if let Ok(file) = self.opened() {
            drop(file.set_len(bytes));
            drop(file.seek(SeekFrom::Start(bytes)));
        }
        false
    }

    fn opened(&mut self) -> io::Result<&mut File> {
        let file = match self.file.take() {
            Some(file) => file,
            None => OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&self.path)?,
        };
        Ok(self.file.insert(file))
    }
}

#[derive(Clone)]
struct Lines {
    redactor: Redactor,
    pending: Vec<u8>,
}

impl Lines {
    /// Takes out whole lines, and pieces of lines that are too long to wait for.
    fn whole(&mut self) -> Vec<Vec<u8>> {
        let mut pieces = Vec::new();
        let mut from = 0;
        for (place, byte) in self.pending.iter().enumerate() {
            if *byte == b'\n' || place + 1 - from == PIECE_BYTES_MAX {
                pieces.push(self.pending[from..=place].to_vec());
                from = place + 1;
            }
        }
        self.pending.drain(..from);
        pieces
    }
}

fn index(stream: LogStream) -> usize {
    match stream {
        LogStream::Stdout => 0,
        LogStream::Stderr => 1,
    }
}

fn put_record(out: &mut Vec<u8>, stream: u8, time: Micros, bytes: &[u8]) {
    out.push(stream);
    out.extend_from_slice(format!(" {} {} ", time.0, bytes.len()).as_bytes());
    out.extend_from_slice(bytes);
    out.push(b'\n');
}

/// Lines from a byte offset on, and the offset after the last of them.
pub(crate) fn read_lines(
    path: &Path,
    from: u64,
    bytes_max: u64,
) -> io::Result<(Vec<LogLine>, u64)> {
    /// Smallest page, so that each page has room for the longest record.
    const PAGE_BYTES_MIN: u64 = (PIECE_BYTES_MAX + HEADER_BYTES_MAX) as u64 * 2;
    const PAGE_BYTES_MAX: u64 = 16 << 20;
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let page = bytes_max.clamp(PAGE_BYTES_MIN, PAGE_BYTES_MAX);
    let mut bytes = Vec::new();
    file.take(page).read_to_end(&mut bytes)?;
    let mut lines = Vec::new();
    let mut position = 0;
    while let Some((line, length)) = parse_record(&bytes[position..], from + position as u64)? {
        lines.push(line);
        position += length;
        if position as u64 >= bytes_max {
            break;
        }
    }
    Ok((lines, from + position as u64))
}

/// One record and its length; `None` when it is not there as a whole.
fn parse_record(bytes: &[u8], offset: u64) -> io::Result<Option<(LogLine, usize)>> {
    let wrong = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("no record begins at byte {offset} of the log"),
        )
    };
    let header = &bytes[..bytes.len().min(HEADER_BYTES_MAX)];
    let mut spaces = header
        .iter()
        .enumerate()
        .filter_map(|(place, byte)| (*byte == b' ').then_some(place));
    let (Some(first), Some(second), Some(third)) = (spaces.next(), spaces.next(), spaces.next())
    else {
        return if bytes.len() < HEADER_BYTES_MAX {
            Ok(None)
        } else {
            Err(wrong())
        };
    };
    let stream = match &header[..first] {
        b"1" => LogStream::Stdout,
        b"0" | b"2" => LogStream::Stderr,
        _ => return Err(wrong()),
    };
    let number = |part: &[u8]| -> Option<i64> { std::str::from_utf8(part).ok()?.parse().ok() };
    let time = number(&header[first + 1..second]).ok_or_else(wrong)?;
    let length = number(&header[second + 1..third])
        .and_then(|length| usize::try_from(length).ok())
        .filter(|length| *length <= PIECE_BYTES_MAX)
        .ok_or_else(wrong)?;
    let begin = third + 1;
    match bytes.get(begin + length) {
        None => Ok(None),
        Some(b'\n') => {
            let line = LogLine {
                time: Micros(time),
                stream,
                bytes: bytes[begin..begin + length].to_vec(),
            };
            Ok(Some((line, begin + length + 1)))
        }
        Some(_) => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(path: &Path, bytes_max: u64) -> LogWriter {
        LogWriter::new(path.to_owned(), bytes_max, &BTreeMap::new())
    }

    fn texts(lines: &[LogLine]) -> Vec<(LogStream, String)> {
        lines
            .iter()
            .map(|line| (line.stream, String::from_utf8(line.bytes.clone()).unwrap()))
            .collect()
    }

    #[test]
    fn lines_keep_their_stream_order_and_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = writer(&path, 1 << 20);
        log.push(LogStream::Stdout, Micros(5), b"one\ntw");
        log.push(LogStream::Stderr, Micros(6), b"oops 3 4 \n");
        log.push(LogStream::Stdout, Micros(7), b"o\n\nthree");
        assert!(log.has_pending());
        assert_eq!(log.finish(Micros(8)), 0);
        let (lines, next) = read_lines(&path, 0, 1 << 20).unwrap();
        let expected = [
            (LogStream::Stdout, "one\n"),
            (LogStream::Stderr, "oops 3 4 \n"),
            (LogStream::Stdout, "two\n"),
            (LogStream::Stdout, "\n"),
            (LogStream::Stdout, "three"),
        ];
        assert_eq!(
            texts(&lines),
            expected.map(|(stream, text)| (stream, text.to_owned()))
        );
        assert_eq!(lines[0].time, Micros(5));
        assert_eq!(next, std::fs::metadata(&path).unwrap().len());
        assert_eq!(read_lines(&path, next, 9).unwrap(), (vec![], next));
    }

    #[test]
    fn pages_go_on_where_they_stopped_and_torn_ends_are_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = writer(&path, 1 << 20);
        log.push(LogStream::Stdout, Micros(5), b"one\ntwo\n");
        log.finish(Micros(6));
        let (first, next) = read_lines(&path, 0, 1).unwrap();
        assert_eq!(texts(&first), [(LogStream::Stdout, "one\n".to_owned())]);
        let length = std::fs::metadata(&path).unwrap().len();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(length - 1).unwrap();
        assert_eq!(read_lines(&path, next, 99).unwrap(), (vec![], next));
        assert!(read_lines(&path, 1, 99).is_err());
    }

    #[test]
    fn the_limit_holds_and_what_is_missing_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = writer(&path, 100);
        for _ in 0..50 {
            log.push(LogStream::Stdout, Micros(1), b"0123456789\n");
        }
        let dropped = log.finish(Micros(2));
        let (lines, _) = read_lines(&path, 0, 1 << 20).unwrap();
        let (note, kept) = lines.split_last().unwrap();
        assert_eq!(dropped, (50 - kept.len() as u64) * 11);
        let note = String::from_utf8(note.bytes.clone()).unwrap();
        assert!(note.contains(&format!("{dropped} bytes")), "{note}");
    }

    #[test]
    fn a_line_that_is_too_long_is_several_records() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = writer(&path, 1 << 20);
        let long = vec![b'x'; PIECE_BYTES_MAX + 5];
        log.push(LogStream::Stdout, Micros(1), &long);
        log.finish(Micros(2));
        let (lines, _) = read_lines(&path, 0, 1).unwrap();
        assert_eq!(lines[0].bytes.len(), PIECE_BYTES_MAX);
        let (lines, _) = read_lines(&path, 0, 1 << 20).unwrap();
        assert_eq!(lines[1].bytes, b"xxxxx");
    }
}
