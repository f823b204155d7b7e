//! The answer to one request, read from bytes as they come: head, framing, body.
//!
//! It does no I/O and keeps no body. Framing is what RFC 9112, section 6, says, and
//! what two readers could understand differently is an error: such an answer has no
//! length that could be measured.

/// Bytes that a head may have.
const HEAD_BYTES_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 64;
/// Bytes of a line with a chunk's size, and of all trailers.
const LINE_BYTES_MAX: usize = 8 * 1024;

/// Why bytes are no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// No HTTP/1.x head.
    #[error("the head is no HTTP/1.x")]
    Head,
    /// The head is longer than is read.
    #[error("the head is longer than 64 KiB")]
    HeadTooLong,
    /// More than one length, or a length that is none.
    #[error("the length of the body is not clear")]
    Length,
    /// A chunk that is none.
    #[error("the body's chunks are malformed")]
    Chunk,
    /// The connection ended before the answer did.
    #[error("the answer is cut")]
    Truncated,
}

/// What a body claims to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Body {
    /// `text/event-stream`.
    Events,
    /// Anything else.
    #[default]
    Other,
}

/// One answer on its way in.
#[derive(Debug, Default)]
pub struct Answer {
    state: State,
    head: Vec<u8>,
    /// The status once the head is there, else 0.
    pub status: u16,
    /// What the body claims to be.
    pub body: Body,
    /// Whether the connection may be used again.
    pub keep_alive: bool,
    /// Seconds of a `retry-after` that is a number.
    pub retry_after_s: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Head,
    /// So many bytes are still to come.
    Length(u64),
    UntilClose,
    ChunkSize {
        size: u64,
        digits: u8,
        line: usize,
        extension: bool,
    },
    ChunkSizeEnd {
        size: u64,
    },
    ChunkData(u64),
    ChunkEnd {
        cr_seen: bool,
    },
    Trailer {
        line: usize,
        total: usize,
        cr_seen: bool,
    },
    Done,
}

const CHUNK_START: State = State::ChunkSize {
    size: 0,
    digits: 0,
    line: 0,
    extension: false,
};

impl Answer {
    /// Takes the answer's next bytes and gives `body` each piece of the body as it
    /// lies there, with what the head says it is. Returns how many bytes belong to this answer.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        body: &mut impl FnMut(Body, &[u8]),
    ) -> Result<usize, HttpError> {
        let mut used = 0;
        if self.state == State::Head {
            used = self.feed_head(bytes)?;
        }
        while used < bytes.len() && !self.is_done() && self.state != State::Head {
            let rest = &bytes[used..];
            used += match self.state {
                State::Length(left) => {
                    let taken = take(rest, left);
                    body(self.body, &rest[..taken]);
                    self.state = match left - taken as u64 {
                        0 => State::Done,
                        left => State::Length(left),
                    };
                    taken
                }
                State::UntilClose => {
                    body(self.body, rest);
                    rest.len()
                }
                State::ChunkData(left) => {
                    let taken = take(rest, left);
                    body(self.body, &rest[..taken]);
                    self.state = match left - taken as u64 {
                        0 => State::ChunkEnd { cr_seen: false },
                        left => State::ChunkData(left),
                    };
                    taken
                }
                state => match plain_chunk_start(state, rest) {
                    Some((size, taken)) => {
                        self.state = State::ChunkData(size);
                        taken
                    }
                    None => {
                        self.state = framing(state, rest[0])?;
                        1
                    }
                },
            };
        }
        Ok(used)
    }

    /// Whether the whole answer is there.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether its head is there.
    pub fn has_head(&self) -> bool {
        self.state != State::Head
    }

    /// The connection has ended.
    pub fn closed(&mut self) -> Result<(), HttpError> {
        match self.state {
            State::Done => Ok(()),
            State::UntilClose => {
                self.state = State::Done;
                Ok(())
            }
            _ => Err(HttpError::Truncated),
        }
    }

    /// Ready for the next answer; keeps its memory.
    pub(crate) fn reset(&mut self) {
        let mut head = std::mem::take(&mut self.head);
        head.clear();
        *self = Self {
            head,
            ..Self::default()
        };
    }

    /// Bytes of heads among `bytes`; interim answers (1xx) are passed over.
    fn feed_head(&mut self, bytes: &[u8]) -> Result<usize, HttpError> {
        let before = self.head.len();
        if before == 0 {
            // Usually the head comes whole: no copy.
            let mut start = 0;
            while let Some(length) = self.parse_head(&bytes[start..])? {
                start += length;
                if self.state != State::Head {
                    return Ok(start);
                }
            }
            self.head.extend_from_slice(&bytes[start..]);
        } else {
            self.head.extend_from_slice(bytes);
            let head = std::mem::take(&mut self.head);
            let mut start = 0;
            while let Some(length) = self.parse_head(&head[start..])? {
                start += length;
                if self.state != State::Head {
                    return Ok(start - before);
                }
            }
            self.head = head;
            self.head.drain(..start);
        }
        if self.head.len() > HEAD_BYTES_MAX {
            return Err(HttpError::HeadTooLong);
        }
        Ok(bytes.len())
    }

    /// The length of a head at the beginning of `bytes`, `None` when it is not whole.
    fn parse_head(&mut self, bytes: &[u8]) -> Result<Option<usize>, HttpError> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let length = match response.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(HttpError::Head),
        };
        let status = response.code.ok_or(HttpError::Head)?;
        if (100..200).contains(&status) && status != 101 {
            return Ok(Some(length));
        }
        self.status = status;
        self.keep_alive = response.version == Some(1);
        let mut chunked = None;
        let mut content_length = None;
        for header in response.headers.iter() {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            let value = header.value.trim_ascii();
            if is("content-length") {
                let number = number(value).ok_or(HttpError::Length)?;
                if content_length
                    .replace(number)
                    .is_some_and(|old| old != number)
                {
                    return Err(HttpError::Length);
                }
            } else if is("transfer-encoding") {
                if chunked.replace(value.eq_ignore_ascii_case(b"chunked")) == Some(true) {
                    return Err(HttpError::Length);
                }
            } else if is("connection") {
                self.keep_alive &= !has_word(value, b"close");
                self.keep_alive |= has_word(value, b"keep-alive");
            } else if is("content-type") {
                self.body = match starts_with(value, b"text/event-stream") {
                    true => Body::Events,
                    false => Body::Other,
                };
            } else if is("retry-after") {
                self.retry_after_s = number(value);
            }
        }
        self.state = match (chunked, content_length) {
            _ if status == 204 || status == 304 || status == 101 => State::Done,
            (Some(true), None) => CHUNK_START,
            (Some(_), _) => return Err(HttpError::Length),
            (None, Some(0)) => State::Done,
            (None, Some(length)) => State::Length(length),
            (None, None) => State::UntilClose,
        };
        self.keep_alive &= self.state != State::UntilClose;
        Ok(Some(length))
    }
}

/// The size of the next chunk when its line, and the end of the chunk before it, lie
/// whole in `rest` and have nothing but digits, as nearly all do; and the bytes before
/// its data.
fn plain_chunk_start(state: State, rest: &[u8]) -> Option<(u64, usize)> {
    let line = match state {
        CHUNK_START => rest,
        State::ChunkEnd { cr_seen: false } => rest.strip_prefix(b"\r\n")?,
        _ => return None,
    };
    let mut size = 0;
    for (at, byte) in line.iter().copied().enumerate().take(15) {
        match (byte as char).to_digit(16) {
            Some(digit) => size = size << 4 | u64::from(digit),
            // The last chunk has no data, and trailers behind it.
            None if byte == b'\r' && size > 0 && line.get(at + 1) == Some(&b'\n') => {
                return Some((size, rest.len() - line.len() + at + 2));
            }
            None => return None,
        }
    }
    None
}

/// The state after one byte of a chunked body that is no data.
fn framing(state: State, byte: u8) -> Result<State, HttpError> {
    match state {
        State::ChunkSize {
            size,
            digits,
            line,
            extension,
        } => {
            if line >= LINE_BYTES_MAX {
                return Err(HttpError::Chunk);
            }
            let line = line + 1;
            let next = |size, digits, extension| State::ChunkSize {
                size,
                digits,
                line,
                extension,
            };
            match (byte, (byte as char).to_digit(16)) {
                (b'\r', _) if digits > 0 => Ok(State::ChunkSizeEnd { size }),
                (b'\n', _) => Err(HttpError::Chunk),
                _ if extension => Ok(next(size, digits, true)),
                (_, Some(digit)) if digits < 15 => {
                    Ok(next(size << 4 | u64::from(digit), digits + 1, false))
                }
                (b';' | b' ' | b'\t', _) if digits > 0 => Ok(next(size, digits, true)),
                _ => Err(HttpError::Chunk),
            }
        }
        State::ChunkSizeEnd { size: 0 } if byte == b'\n' => Ok(State::Trailer {
            line: 0,
            total: 0,
            cr_seen: false,
        }),
        State::ChunkSizeEnd { size } if byte == b'\n' => Ok(State::ChunkData(size)),
        State::ChunkEnd { cr_seen: false } if byte == b'\r' => {
            Ok(State::ChunkEnd { cr_seen: true })
        }
        State::ChunkEnd { cr_seen: true } if byte == b'\n' => Ok(CHUNK_START),
        State::Trailer {
            line,
            total,
            cr_seen,
        } => match byte {
            _ if total >= LINE_BYTES_MAX => Err(HttpError::Chunk),
            b'\n' if cr_seen && line == 0 => Ok(State::Done),
            b'\n' if cr_seen => Ok(State::Trailer {
                line: 0,
                total: total + 1,
                cr_seen: false,
            }),
            b'\r' if !cr_seen => Ok(State::Trailer {
                line,
                total: total + 1,
                cr_seen: true,
            }),
            b'\n' | b'\r' => Err(HttpError::Chunk),
            _ if cr_seen => Err(HttpError::Chunk),
            _ => Ok(State::Trailer {
                line: line + 1,
                total: total + 1,
                cr_seen: false,
            }),
        },
        _ => Err(HttpError::Chunk),
    }
}

fn take(rest: &[u8], left: u64) -> usize {
    usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()))
}

fn number(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn has_word(value: &[u8], word: &[u8]) -> bool {
    value
        .split(|byte| *byte == b',')
        .any(|part| part.trim_ascii().eq_ignore_ascii_case(word))
}

fn starts_with(value: &[u8], beginning: &[u8]) -> bool {
    value
        .get(..beginning.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(beginning))
}
