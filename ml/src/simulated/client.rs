//! One connection: bytes in, requests out, and bytes of answers on their way.
//!
//! HTTP/1.1 with keep-alive, one request at a time; what comes behind it waits. It is
//! strict about lengths and knows nothing of TLS, HTTP/2 or keys: a gateway has those.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use mlmesh_sim::engine::Ticket;

use super::wish::{Answer, Usage};

/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a request's body.
const BODY_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Fields of a head.
const FIELDS_MAX: usize = 64;
/// Bytes of an answer that a client does not take; it is given up then.
const UNTAKEN_BYTES_MAX: usize = 4 * 1024 * 1024;

pub(super) struct Client {
    pub(super) stream: TcpStream,
    pub(super) engine: usize,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    /// Whether the poll tells when there is room again.
    pub(super) awaits_room: bool,
    pub(super) work: Option<Work>,
    /// No other request after this one.
    pub(super) is_last: bool,
}

/// A request that an engine has.
pub(super) struct Work {
    pub(super) ticket: Ticket,
    pub(super) answer: Answer,
    pub(super) usage: Usage,
    pub(super) wanted_tokens: u64,
    pub(super) came_us: u64,
    pub(super) begun_us: u64,
    /// Of the newest token; the coming before there is one.
    pub(super) token_us: u64,
}

/// A whole request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) body: Vec<u8>,
}

/// What is in the inbox.
pub(super) enum Inbox {
    /// Not a whole request yet.
    Part,
    Whole(Request),
    /// Nothing that can be answered in order; status and reason.
    Bad(u16, &'static str),
}

/// The connection is of no use any more.
pub(super) struct Gone;

impl Client {
    pub(super) fn new(stream: TcpStream, engine: usize) -> Self {
        Self {
            stream,
            engine,
            inbox: Vec::new(),
            outbox: Vec::new(),
            awaits_room: false,
            work: None,
            is_last: false,
        }
    }

    /// Takes what has come. A client that will send no more has gone.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<(), Gone> {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return Err(Gone),
                Ok(count) => {
                    self.inbox.extend_from_slice(&buffer[..count]);
                    if self.inbox.len() > HEAD_BYTES_MAX + 2 * BODY_BYTES_MAX {
                        return Err(Gone);
                    }
                    if count < buffer.len() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Gone),
            }
        }
    }

    /// The next request of those that have come.
    pub(super) fn next(&mut self) -> Inbox {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut head = httparse::Request::new(&mut fields);
        let head_bytes = match head.parse(&self.inbox) {
            Ok(httparse::Status::Complete(bytes)) => bytes,
            Ok(httparse::Status::Partial) if self.inbox.len() <= HEAD_BYTES_MAX => {
                return Inbox::Part;
            }
            Ok(httparse::Status::Partial) => return Inbox::Bad(431, "the head is too long"),
            Err(_) => return Inbox::Bad(400, "the head is not HTTP/1.1"),
        };
        let framing = match Framing::of(&head) {
            Ok(framing) => framing,
            Err((status, reason)) => return Inbox::Bad(status, reason),
        };
        let method = head.method.unwrap_or_default().to_owned();
        let path = head.path.unwrap_or_default().to_owned();
        let (body, bytes) = match framing.body(&self.inbox[head_bytes..]) {
            Ok(Some((body, bytes))) => (body, head_bytes + bytes),
            Ok(None) => {
                if framing.expects {
                    // Said again with each piece that comes, which does no harm.
                    let _ = self.put(b"HTTP/1.1 100 Continue\r\n\r\n");
                }
                return Inbox::Part;
            }
            Err((status, reason)) => return Inbox::Bad(status, reason),
        };
        self.is_last = framing.closes;
        self.inbox.drain(..bytes);
        Inbox::Whole(Request { method, path, body })
    }

    /// Sends an answer that is there as a whole.
    pub(super) fn answer(&mut self, status: u16, kind: &str, body: &str) -> Result<(), Gone> {
        let close = if self.is_last {
            "connection: close\r\n"
        } else {
            ""
        };
        let reason = match status {
            200 => "OK",
            404 => "Not Found",
            405 => "Method Not Allowed",
            413 => "Content Too Large",
            431 => "Request Header Fields Too Large",
            _ => "Bad Request",
        };
        let length = body.len();
        let text = format!(
            "HTTP/1.1 {status} {reason}\r\nserver: mlmesh-sim\r\ncontent-type: {kind}\r\n\
             content-length: {length}\r\n{close}\r\n{body}"
        );
        self.put(text.as_bytes())
    }

    /// Sends the next token of a stream, and the end behind the last one.
    pub(super) fn token(&mut self, is_last: bool) -> Result<(), Gone> {
        let Some(work) = &mut self.work else {
            return Ok(());
        };
        if !work.answer.is_stream {
            return Ok(());
        }
        let is_first = work.usage.output_tokens == 1;
        if !is_first && !is_last && self.outbox.is_empty() {
            // The usual case: nothing to be put together.
            let piece = std::mem::take(&mut work.answer.piece);
            let put = self.put(&piece);
            if let Some(work) = &mut self.work {
                work.answer.piece = piece;
            }
            return put;
        }
        let mut bytes = Vec::new();
        if is_first {
            bytes.extend_from_slice(
                b"HTTP/1.1 200 OK\r\nserver: mlmesh-sim\r\ncontent-type: text/event-stream\r\n\
                  cache-control: no-cache\r\ntransfer-encoding: chunked\r\n",
            );
            if self.is_last {
                bytes.extend_from_slice(b"connection: close\r\n");
            }
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(&work.answer.piece);
        if is_last {
            work.answer.put_end(work.usage, &mut bytes);
        }
        self.put(&bytes)
    }

    /// Sends what the kernel takes and keeps the rest.
    fn put(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        let sent = if self.outbox.is_empty() {
            write(&self.stream, bytes)?
        } else {
            0
        };
        self.outbox.extend_from_slice(&bytes[sent..]);
        if self.outbox.len() > UNTAKEN_BYTES_MAX {
            return Err(Gone);
        }
        Ok(())
    }

    /// Sends what was kept.
    pub(super) fn flush(&mut self) -> Result<(), Gone> {
        let sent = write(&self.stream, &self.outbox)?;
        self.outbox.drain(..sent);
        Ok(())
    }

    /// Whether bytes are left that the kernel did not take.
    pub(super) fn has_left(&self) -> bool {
        !self.outbox.is_empty()
    }
}

fn write(mut stream: &TcpStream, bytes: &[u8]) -> Result<usize, Gone> {
    let mut sent = 0;
    while sent < bytes.len() {
        match stream.write(&bytes[sent..]) {
            Ok(0) => return Err(Gone),
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Err(Gone),
        }
    }
    Ok(sent)
}

/// How the end of a request is found.
struct Framing {
    length: Option<usize>,
    chunked: bool,
    closes: bool,
    expects: bool,
}

type Bad = (u16, &'static str);

impl Framing {
    fn of(head: &httparse::Request<'_, '_>) -> Result<Self, Bad> {
        let mut framing = Self {
            length: None,
            chunked: false,
            closes: head.version == Some(0),
            expects: false,
        };
        for field in head.headers.iter() {
            let value = std::str::from_utf8(field.value).unwrap_or_default().trim();
            if field.name.eq_ignore_ascii_case("content-length") {
                let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
                let length = value
                    .parse()
                    .ok()
                    .filter(|_| digits && framing.length.is_none());
                framing.length =
                    Some(length.ok_or((400, "`Content-Length` has to be one number"))?);
            } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
                if framing.chunked || !value.eq_ignore_ascii_case("chunked") {
                    return Err((400, "`Transfer-Encoding` has to be `chunked`"));
                }
                framing.chunked = true;
            } else if field.name.eq_ignore_ascii_case("connection") {
                framing.closes |= value.to_ascii_lowercase().contains("close");
            } else if field.name.eq_ignore_ascii_case("expect") {
                framing.expects = value.eq_ignore_ascii_case("100-continue");
            }
        }
        if framing.chunked && framing.length.is_some() {
            return Err((400, "a body has either a length or chunks"));
        }
        if framing.length.is_some_and(|length| length > BODY_BYTES_MAX) {
            return Err((413, "the body is too long"));
        }
        Ok(framing)
    }

    /// The body and how many bytes it took; none when there is more to come.
    fn body(&self, bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, Bad> {
        if !self.chunked {
            let length = self.length.unwrap_or(0);
            return Ok(bytes.get(..length).map(|body| (body.to_vec(), length)));
        }
        let bad = (400, "a chunk is not written as it should be");
        let (mut body, mut at) = (Vec::new(), 0);
        loop {
            let (head, length) = match httparse::parse_chunk_size(&bytes[at..]) {
                Ok(httparse::Status::Complete(found)) => found,
                Ok(httparse::Status::Partial) => return Ok(None),
                Err(_) => return Err(bad),
            };
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if length > BODY_BYTES_MAX - body.len() {
                return Err((413, "the body is too long"));
            }
            at += head;
            // Trailers are not taken.
            let Some(rest) = bytes.get(at..).filter(|rest| rest.len() >= length + 2) else {
                return Ok(None);
            };
            if &rest[length..length + 2] != b"\r\n" {
                return Err(bad);
            }
            body.extend_from_slice(&rest[..length]);
            at += length + 2;
            if length == 0 {
                return Ok(Some((body, at)));
            }
        }
    }
}
