//! Pages of an attempt's log.

use mlmesh_model::{LogLine, LogPage, LogStream, RunId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Timestamp, wire};

/// Schema name of [`LogPageDto`].
pub const LOG_PAGE_SCHEMA: &str = "mlmesh.log/1";

/// A part of a log, and where to go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogPageDto {
    /// [`LOG_PAGE_SCHEMA`].
    pub schema: String,
    /// The run.
    #[schemars(schema_with = "wire::run_id")]
    pub run: RunId,
    /// Which try.
    pub attempt: u32,
    /// Lines in order.
    pub lines: Vec<LogLineDto>,
    /// Give this as `from` for what follows.
    pub next: u64,
    /// Whether the attempt has ended and everything was read.
    pub complete: bool,
}

impl LogPageDto {
    /// The page as it goes out.
    pub fn new(run: RunId, attempt: u32, page: &LogPage) -> Self {
        Self {
            schema: LOG_PAGE_SCHEMA.to_owned(),
            run,
            attempt,
            lines: page.lines.iter().map(LogLineDto::from).collect(),
            next: page.next,
            complete: page.complete,
        }
    }
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogLineDto {
    /// When it was read from the job.
    pub time: Timestamp,
    /// Which stream.
    pub stream: LogStreamDto,
    /// The text with its end of line; where the bytes are not UTF-8, with replacement
    /// characters.
    pub text: String,
    /// The bytes in hex, only where `text` is not exactly what was written.
    pub hex: Option<String>,
}

impl LogLineDto {
    /// The bytes as the job wrote them.
    pub fn bytes(&self) -> Vec<u8> {
        match self.hex.as_deref().and_then(bytes_of_hex) {
            Some(bytes) => bytes,
            None => self.text.clone().into_bytes(),
        }
    }
}

impl From<&LogLine> for LogLineDto {
    fn from(line: &LogLine) -> Self {
        let exact = std::str::from_utf8(&line.bytes).is_ok();
        Self {
            time: line.time.into(),
            stream: match line.stream {
                LogStream::Stdout => LogStreamDto::Stdout,
                LogStream::Stderr => LogStreamDto::Stderr,
            },
            text: String::from_utf8_lossy(&line.bytes).into_owned(),
            hex: (!exact).then(|| hex_of(&line.bytes)),
        }
    }
}

/// One of a job's two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogStreamDto {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

pub(crate) fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of_hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|place| u8::from_str_radix(&text[place..place + 2], 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlmesh_model::Micros;

    #[test]
    fn bytes_survive_the_wire_whatever_they_are() {
        for bytes in [&b"plain\n"[..], "é".as_bytes(), b"\xff\x00half \xc3", b""] {
            let line = LogLine {
                time: Micros(1),
                stream: LogStream::Stderr,
                bytes: bytes.to_vec(),
            };
            let text = serde_json::to_string(&LogLineDto::from(&line)).unwrap();
            let back: LogLineDto = serde_json::from_str(&text).unwrap();
            assert_eq!(back.bytes(), bytes);
        }
    }
}
