//! HTTP/1.1 as far as clients of one run speak it: heads of bounded size, bodies with
//! a length or in chunks, connections that stay open. No TLS, no upgrades, no trailers.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use serde_json::{Map, Value};

/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;
/// Bytes of a JSON body: a batch of the largest size takes a part of that.
const JSON_BYTES_MAX: u64 = 4 << 20;
/// Bytes that are read only to get to the next request.
const SKIPPED_BYTES_MAX: u64 = 1 << 20;
const CHUNK_LINE_BYTES_MAX: u64 = 128;

/// What is wrong with a request as such; the connection ends with the answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error(
        "a request's head is HTTP/1.1 and has at most {HEAD_BYTES_MAX} bytes and {HEADERS_MAX} fields"
    )]
    Head,
    #[error("a body has a Content-Length or comes in chunks")]
    Framing,
    #[error("a JSON body has at most {JSON_BYTES_MAX} bytes")]
    TooLong,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl HttpError {
    /// `None` when there is nobody to answer.
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Head => Some(400),
            Self::Framing => Some(400),
            Self::TooLong => Some(413),
            Self::Io(_) => None,
        }
    }
}

/// The head of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) method: String,
    /// Decoded, without the query.
    pub(super) path: String,
    query: String,
    pub(super) authorization: Option<String>,
    pub(super) keeps_open: bool,
    expects_continue: bool,
    body: Framing,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Framing {
    #[default]
    None,
    Length(u64),
    Chunked,
}

impl Head {
    /// Reads the next head; `None` when the client has closed.
    pub(super) fn read(input: &mut impl BufRead) -> Result<Option<Self>, HttpError> {
        let mut bytes = Vec::with_capacity(1024);
        loop {
            let room = (HEAD_BYTES_MAX - bytes.len()) as u64;
            let length = input.by_ref().take(room).read_until(b'\n', &mut bytes)?;
            if length == 0 && bytes.is_empty() {
                return Ok(None);
            }
            if bytes.ends_with(b"\r\n\r\n") {
                return Self::parse(&bytes).map(Some);
            }
            if length == 0 || bytes.len() >= HEAD_BYTES_MAX {
                return Err(HttpError::Head);
            }
        }
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, HttpError> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(bytes) {
            Ok(httparse::Status::Complete(_)) => {}
            _ => return Err(HttpError::Head),
        }
        let (Some(method), Some(target), Some(version)) =
            (request.method, request.path, request.version)
        else {
            return Err(HttpError::Head);
        };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut head = Self {
            method: method.to_owned(),
            path: decoded(path, false).ok_or(HttpError::Head)?,
            query: query.to_owned(),
            keeps_open: version == 1,
            ..Self::default()
        };
        for header in request.headers.iter() {
            head.take(header.name, header.value)?;
        }
        Ok(head)
    }

    fn take(&mut self, name: &str, value: &[u8]) -> Result<(), HttpError> {
        let text = std::str::from_utf8(value)
            .map_err(|_| HttpError::Head)?
            .trim();
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        if is("content-length") {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let length = text.parse().ok().filter(|_| digits);
            let length = length.ok_or(HttpError::Framing)?;
            // Two ways to say where a body ends could be understood in two ways.
            if self.body != Framing::None {
                return Err(HttpError::Framing);
            }
            self.body = Framing::Length(length);
        } else if is("transfer-encoding") {
            if self.body != Framing::None || !text.eq_ignore_ascii_case("chunked") {
                return Err(HttpError::Framing);
            }
            self.body = Framing::Chunked;
        } else if is("content-encoding") && !text.eq_ignore_ascii_case("identity") {
            return Err(HttpError::Framing);
        } else if is("connection") {
            let close = text
                .split(',')
                .any(|one| one.trim().eq_ignore_ascii_case("close"));
            self.keeps_open &= !close;
        } else if is("expect") {
            self.expects_continue = text.eq_ignore_ascii_case("100-continue");
        } else if is("authorization") {
            self.authorization = Some(text.to_owned());
        }
        Ok(())
    }

    /// The fields of the query; one that comes more than once is a list.
    pub(super) fn query(&self) -> Map<String, Value> {
        let mut fields: Map<String, Value> = Map::new();
        for part in self.query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let (Some(name), Some(value)) = (decoded(name, true), decoded(value, true)) else {
                continue;
            };
            match fields.get_mut(&name) {
                None => drop(fields.insert(name, Value::String(value))),
                Some(Value::Array(list)) => list.push(Value::String(value)),
                Some(first) => *first = Value::Array(vec![first.take(), Value::String(value)]),
            }
        }
        fields
    }
}

/// Percent signs, and plus signs where they are blanks.
fn decoded(text: &str, plus: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                (high * 16 + low) as u8
            }
            b'+' if plus => b' ',
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

/// The body of one request.
pub(super) struct Body<'a, R> {
    input: &'a mut R,
    framing: Framing,
    /// Bytes of the chunk that are still to come.
    chunk: u64,
    ended: bool,
}

impl<'a, R: BufRead> Body<'a, R> {
    pub(super) fn of(head: &Head, input: &'a mut R) -> Self {
        Self {
            input,
            framing: head.body,
            chunk: 0,
            ended: false,
        }
    }

    /// Reads all of a JSON body.
    pub(super) fn json(&mut self) -> Result<Vec<u8>, HttpError> {
        if let Framing::Length(length) = self.framing
            && length > JSON_BYTES_MAX
        {
            return Err(HttpError::TooLong);
        }
        let mut bytes = Vec::new();
        self.take(JSON_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > JSON_BYTES_MAX {
            return Err(HttpError::TooLong);
        }
        Ok(bytes)
    }

    /// Reads what nobody has read; says whether the next request can be.
    pub(super) fn skip(&mut self) -> bool {
        let skipped = io::copy(&mut self.take(SKIPPED_BYTES_MAX), &mut io::sink());
        skipped.is_ok() && self.has_ended()
    }

    fn has_ended(&self) -> bool {
        match self.framing {
            Framing::None => true,
            Framing::Length(left) => left == 0,
            Framing::Chunked => self.ended,
        }
    }

    fn next_chunk(&mut self) -> io::Result<()> {
        let size = self.line()?;
        let digits = size.split(';').next().unwrap_or_default().trim();
        let bad = || io::Error::from(io::ErrorKind::InvalidData);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad());
        }
        self.chunk = u64::from_str_radix(digits, 16).map_err(|_| bad())?;
        if self.chunk == 0 {
            if !self.line()?.is_empty() {
                return Err(bad());
            }
            self.ended = true;
        }
        Ok(())
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        let limited = &mut self.input.by_ref().take(CHUNK_LINE_BYTES_MAX);
        limited.read_until(b'\n', &mut line)?;
        match line.strip_suffix(b"\r\n").map(<[u8]>::to_vec) {
            Some(line) => String::from_utf8(line).map_err(io::Error::other),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

impl<R: BufRead> Read for Body<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.has_ended() || buffer.is_empty() {
            return Ok(0);
        }
        if self.framing == Framing::Chunked && self.chunk == 0 {
            self.next_chunk()?;
            if self.ended {
                return Ok(0);
            }
        }
        let left = match self.framing {
            Framing::Length(left) => left,
            Framing::Chunked | Framing::None => self.chunk,
        };
        let length = self.input.by_ref().take(left).read(buffer)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match &mut self.framing {
            Framing::Length(left) => *left -= length as u64,
            Framing::Chunked | Framing::None => {
                self.chunk -= length as u64;
                if self.chunk == 0 && !self.line()?.is_empty() {
                    return Err(io::ErrorKind::InvalidData.into());
                }
            }
        }
        Ok(length)
    }
}

/// Tells a client that waits for it to go on with its body.
pub(super) fn go_on(head: &Head, stream: &mut impl Write) -> io::Result<()> {
    match head.expects_continue {
        true => stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n"),
        false => Ok(()),
    }
}

/// Writes an answer of which all is there.
pub(super) fn answer(
    stream: &mut impl Write,
    status: u16,
    kind: &str,
    body: &[u8],
    keeps_open: bool,
) -> io::Result<()> {
    let mut bytes = answer_head(status, kind, body.len() as u64, keeps_open);
    bytes.extend_from_slice(body);
    stream.write_all(&bytes)
}

pub(super) fn answer_head(status: u16, kind: &str, length: u64, keeps_open: bool) -> Vec<u8> {
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        413 => "Content Too Large",
        503 => "Service Unavailable",
        _ => "Error",
    };
    let connection = if keeps_open { "keep-alive" } else { "close" };
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Connection: {connection}\r\n\r\n"
    )
    .into_bytes()
}

/// The reading end of a connection.
pub(super) fn reader(stream: &TcpStream) -> BufReader<&TcpStream> {
    BufReader::with_capacity(HEAD_BYTES_MAX, stream)
}
