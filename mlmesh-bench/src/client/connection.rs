//! One connection and the request that it carries.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
    sockopt,
};

use super::secure::{Session, Trust};
use crate::delta::Reader;
use crate::http::{Answer, Body, HttpError};
use crate::sample::{Chunk, Fault, Sample};
use crate::sse::Scanner;

/// Bytes of an answer's body that is not streamed, kept to read the usage.
const PLAIN_BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of what an engine says of a fault.
const SAID_BYTES_MAX: usize = 512;

/// A socket and what its request has met so far.
pub(super) struct Connection {
    socket: OwnedFd,
    /// What travels is encrypted.
    session: Option<Session>,
    pub(super) phase: Phase,
    /// The request's bytes, of which `written` are with the kernel.
    pub(super) request: Vec<u8>,
    pub(super) written: usize,
    pub(super) exchange: Option<Exchange>,
    /// Chunks with text of the exchange under way.
    pub(super) chunks: Vec<Chunk>,
    answer: Answer,
    scanner: Scanner,
    /// A body that is no stream, or what an error in a stream said.
    plain: Vec<u8>,
    /// Requests that it has carried to their end.
    pub(super) served: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Connecting,
    Idle,
    Writing,
    Reading,
}

/// A request under way.
pub(super) struct Exchange {
    pub(super) sample: Sample,
    streamed: bool,
    done_seen: bool,
    error_seen: bool,
}

/// Whether an answer is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Going,
    /// The whole answer is there, and the connection may be used again or not.
    Whole {
        reusable: bool,
    },
}

impl Connection {
    /// Begins to connect.
    pub(super) fn open(address: SocketAddr, trust: Option<&Trust>) -> io::Result<Self> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        let phase = match connect(&socket, &address) {
            Ok(()) => Phase::Idle,
            Err(Errno::INPROGRESS) => Phase::Connecting,
            Err(errno) => return Err(errno.into()),
        };
        Ok(Self {
            socket,
            session: trust.map(Session::new).transpose()?,
            phase,
            request: Vec::new(),
            written: 0,
            exchange: None,
            chunks: Vec::new(),
            answer: Answer::default(),
            scanner: Scanner::default(),
            plain: Vec::new(),
            served: 0,
        })
    }

    /// What became of the attempt to connect.
    pub(super) fn connected(&self) -> io::Result<()> {
        sockopt::socket_error(&self.socket)??;
        Ok(())
    }

    /// Takes a request on. Its bytes lie in `request` already.
    pub(super) fn begin(&mut self, exchange: Exchange) {
        self.exchange = Some(exchange);
        self.written = 0;
        self.answer.reset();
        self.scanner.reset();
        self.plain.clear();
        self.chunks.clear();
    }

    /// Writes what the kernel takes; whether that was all.
    pub(super) fn write(&mut self) -> io::Result<bool> {
        if let Some(session) = &mut self.session {
            session.put(&self.request[self.written..])?;
            self.written = self.request.len();
            return session.flush(&self.socket);
        }
        while self.written < self.request.len() {
            match send(
                &self.socket,
                &self.request[self.written..],
                SendFlags::NOSIGNAL,
            ) {
                Ok(count) => self.written += count,
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(true)
    }

    /// Reads into `buffer` what is there; `None` when nothing is.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        if let Some(session) = &mut self.session {
            return session.read(&self.socket, buffer);
        }
        loop {
            match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
                Ok((count, _)) => return Ok(Some(count)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Whether it is to be encrypted, and the other side has not shown who it is.
    pub(super) fn is_handshaking(&self) -> bool {
        self.session.as_ref().is_some_and(Session::is_handshaking)
    }

    /// Whether a read that brought so few bytes has taken all that was there.
    pub(super) fn is_drained(&self, count: usize, buffer: usize) -> bool {
        self.session.is_none() && count < buffer
    }

    /// Takes bytes that were read at `now_us`.
    pub(super) fn take(
        &mut self,
        bytes: &[u8],
        now_us: u64,
        reader: &Reader,
    ) -> Result<Progress, HttpError> {
        let Self {
            answer,
            scanner,
            plain,
            chunks,
            exchange: Some(exchange),
            ..
        } = self
        else {
            // An answer that nobody asked for.
            return Err(HttpError::Head);
        };
        exchange.sample.first_byte_us.get_or_insert(now_us);
        let used = answer.feed(bytes, &mut |body, piece| match body {
            Body::Events => scanner.feed(piece, &mut |data| {
                chunks.extend(exchange.event(data, now_us, reader, plain));
            }),
            Body::Other => {
                let room = PLAIN_BODY_BYTES_MAX.saturating_sub(plain.len());
                plain.extend_from_slice(&piece[..piece.len().min(room)]);
            }
        })?;
        if !answer.is_done() {
            return Ok(Progress::Going);
        }
        self.finish(now_us, reader);
        // Bytes behind the end belong to no request of ours.
        let reusable = self.answer.keep_alive && used == bytes.len();
        Ok(Progress::Whole { reusable })
    }

    /// The other side has closed: the end of an answer without a length, or a cut.
    pub(super) fn closed(&mut self, now_us: u64, reader: &Reader) -> Result<(), Fault> {
        let begun = self
            .exchange
            .as_ref()
            .is_some_and(|exchange| exchange.sample.first_byte_us.is_some());
        if self.is_handshaking() {
            return Err(Fault::Tls);
        }
        match self.answer.closed() {
            Ok(()) => {
                self.finish(now_us, reader);
                Ok(())
            }
            Err(_) if begun => Err(Fault::Truncated),
            Err(_) => Err(Fault::Closed),
        }
    }

    /// What the engine said of a fault: the beginning of a body that is no stream, or
    /// of an event that is an error.
    pub(super) fn said(&self) -> String {
        let said = &self.plain[..self.plain.len().min(SAID_BYTES_MAX)];
        String::from_utf8_lossy(said).into_owned()
    }

    /// The answer is whole: what it amounts to.
    fn finish(&mut self, now_us: u64, reader: &Reader) {
        let Some(exchange) = &mut self.exchange else {
            return;
        };
        let (status, body) = (self.answer.status, self.answer.body);
        if body == Body::Events {
            let (chunks, plain) = (&mut self.chunks, &mut self.plain);
            self.scanner
                .finish(&mut |data| chunks.extend(exchange.event(data, now_us, reader, plain)));
        } else {
            exchange.sample.usage = reader.usage(&self.plain);
        }
        let sample = &mut exchange.sample;
        sample.last_byte_us = Some(now_us);
        sample.status = Some(status);
        sample.retry_after_s = self.answer.retry_after_s;
        sample.fault = match (status, exchange.streamed, body) {
            (200, true, Body::Events) if exchange.error_seen => Some(Fault::Engine),
            (200, true, Body::Events) if !exchange.done_seen => Some(Fault::NoEnd),
            (200, true, Body::Other) => Some(Fault::NotStream),
            (200, _, _) => None,
            (status, _, _) => Some(Fault::Status(status)),
        };
    }
}

impl Exchange {
    pub(super) fn new(sample: Sample, streamed: bool) -> Self {
        Self {
            sample,
            streamed,
            done_seen: false,
            error_seen: false,
        }
    }

    /// The chunk that an event is, when it carries text. What an error says is `said`.
    fn event(
        &mut self,
        data: &[u8],
        now_us: u64,
        reader: &Reader,
        said: &mut Vec<u8>,
    ) -> Option<Chunk> {
        let delta = reader.event(data);
        if delta.error && said.is_empty() {
            said.extend_from_slice(&data[..data.len().min(SAID_BYTES_MAX)]);
        }
        self.done_seen |= delta.done;
        self.error_seen |= delta.error;
        if let Some(usage) = delta.usage {
            self.sample.usage = Some(usage);
        }
        let counted = delta.usage.map_or(0, |usage| usage.completion_tokens);
        delta.token.then(|| Chunk {
            at_us: now_us,
            tokens: counted.try_into().unwrap_or(u32::MAX),
        })
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
