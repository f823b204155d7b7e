//! Both directions of one exchange, in one poll.
//!
//! ```text
//!   client ── input ──► head, then body ──► target        until the request is sent
//!   client ◄── reply, then body ◄── answer ── target      at the same time, and after
//!   client ── anything ──► input                          an end is seen at once
//! ```
//!
//! A side that does not take what it is sent is not read for: nothing grows.

use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use mlmesh_route::{Evidence, Progress, Repeatable};

use crate::body::Body;
use crate::connection::Connection;
use crate::errand::Errand;
use crate::exchange::End;
use crate::farewell::{self, Tail};
use crate::limits::INTERIM_MAX;
use crate::linger::receive;
use crate::metrics::Outcome;
use crate::refusal::Refusal;
use crate::request::Request;
use crate::response::{self, Asked, Response};
use crate::thread::Thread;

/// One exchange over two connections.
pub(crate) struct Hop<'c> {
    connection: &'c mut Connection,
    thread: &'c Thread,
    target: TcpStream,
    was_idle: bool,
    repeatable: Repeatable,
    asked: Asked,
    sending: Sending,
    /// What of the request's body has still to be received.
    request_body: Body,
    /// Bytes taken by the target, of the head.
    head_sent: usize,
    /// And of what is kept of the body.
    kept_sent: usize,
    /// Bytes of the input behind those that are known to be the request's.
    forward: usize,
    /// Whether all that the target took is still here.
    is_whole: bool,
    errand: &'c mut Errand,
    /// It goes to another target.
    moves: bool,
    response: Option<Response>,
    /// What of the response's body has still to be received.
    response_body: Body,
    /// Bytes of the answer that are known to be the response's.
    relay: usize,
    interims: usize,
    /// Whether the client took a byte of a response.
    has_begun: bool,
    /// Whether it was told that the target has stalled.
    has_stalled: bool,
    /// Whether the client does not take what it is sent.
    is_stalled: bool,
    /// How what was received of the body ends.
    tail: Tail,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    UnderWay,
    Done,
    /// The target takes no more; it may still answer.
    Broken,
}

/// Why an exchange did not end with its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    ClientGone,
    /// The client does not send, or does not take, what is under way.
    ClientStalled,
    Request(&'static str),
    /// The idle connection had ended; the request may be sent again.
    Stale,
    Target(&'static str),
    TargetStalled,
    /// It is too busy, by its own word (503).
    TargetBusy,
}

impl Fault {
    pub(crate) fn outcome(self) -> Outcome {
        match self {
            Fault::ClientGone | Fault::ClientStalled | Fault::Request(_) => Outcome::ClientGone,
            Fault::Stale | Fault::Target(_) => Outcome::Failed,
            Fault::TargetStalled => Outcome::TimedOut,
            Fault::TargetBusy => Outcome::ServerError,
        }
    }

    /// Whether another target may do better.
    pub(crate) fn is_of_target(self) -> bool {
        matches!(
            self,
            Fault::Target(_) | Fault::TargetStalled | Fault::TargetBusy
        )
    }

    /// What the client is told, if it was told nothing else.
    pub(crate) fn refusal(self) -> Option<Refusal> {
        match self {
            Fault::ClientGone | Fault::Stale => None,
            Fault::ClientStalled => Some(Refusal::RequestTimeout),
            Fault::Request(rule) => Some(Refusal::Malformed(rule)),
            Fault::Target(what) => Some(Refusal::TargetFailed(what)),
            Fault::TargetStalled => Some(Refusal::TargetTimeout),
            Fault::TargetBusy => Some(Refusal::TargetFailed("it is too busy")),
        }
    }
}

impl<'c> Hop<'c> {
    pub(crate) fn new(
        connection: &'c mut Connection,
        thread: &'c Thread,
        target: TcpStream,
        request: &Request,
        was_idle: bool,
        errand: &'c mut Errand,
    ) -> Hop<'c> {
        connection
            .deadline
            .restart(thread.shared.waits.request_body);
        Hop {
            connection,
            thread,
            target,
            was_idle,
            repeatable: request.repeatable,
            asked: Asked {
                is_head: request.is_head,
                is_old: request.is_old,
                close: request.close,
                request: errand.request(),
            },
            sending: Sending::UnderWay,
            request_body: request.body,
            head_sent: 0,
            kept_sent: 0,
            forward: 0,
            is_whole: true,
            errand,
            moves: false,
            response: None,
            response_body: Body::Done,
            relay: 0,
            interims: 0,
            has_begun: false,
            has_stalled: false,
            is_stalled: false,
            tail: Tail::default(),
        }
    }

    /// Whether the client took a byte of a response.
    pub(crate) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Whether the request was received and sent as a whole.
    pub(crate) fn is_sent(&self) -> bool {
        self.sending == Sending::Done
    }

    /// The response's status, when there is one.
    pub(crate) fn status(&self) -> u16 {
        self.response.map_or(0, |response| response.status)
    }

    /// Makes the head's buffer what it was before it was sent, and says what of the body
    /// has still to be received.
    pub(crate) fn rewind(&mut self) -> Body {
        let spare = &self.thread.spare;
        self.connection.head.rewind(self.head_sent);
        self.connection.answer.clear(spare);
        self.connection.reply.clear(spare);
        self.request_body
    }

    /// Whether the request may be made again at another target, within what all may.
    pub(crate) fn may_move(&mut self) -> bool {
        let progress = match self.head_sent {
            0 => Progress::NotSent,
            _ => Progress::Sent,
        };
        // A busy target was asked about before.
        self.moves
            || (!self.has_begun
                && self.is_whole
                && self.errand.may_move(self.thread, self.repeatable, progress))
    }

    /// What can still be said to a client whose response breaks off: within a stream of
    /// events, between two of them, what happened.
    pub(crate) fn farewell(&self, refusal: Refusal) -> Option<Vec<u8>> {
        let is_chunked = self.response_body.is_between_chunks();
        let is_open = is_chunked || self.response_body == Body::UntilClose;
        let is_taken = self.connection.reply.is_empty() && self.relay == 0;
        let is_events = self.response.is_some_and(|response| response.is_events);
        (is_events && is_open && is_taken && self.tail.is_between_events(is_chunked))
            .then(|| farewell::words(refusal, is_chunked && !self.asked.is_old))
    }

    /// After the response: what can be used again is.
    pub(crate) fn finish(self, target: usize) -> End {
        let is_framed = |response: Response| response.body != Body::UntilClose;
        let Some(response) = self.response else {
            return End::Cut;
        };
        let is_sent = self.is_sent();
        let is_clean = is_sent && self.connection.answer.is_empty() && is_framed(response);
        if is_clean && !response.close {
            self.thread.pool.give(target, self.target);
        }
        match self.asked.close || !is_framed(response) {
            true if is_sent => End::Close,
            true => End::Linger,
            false => End::Keep,
        }
    }

    /// Ready when the whole response was taken by the client.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.send(cx)?;
        if self.receive(cx)? {
            return Poll::Ready(Ok(()));
        }
        if self.sending != Sending::UnderWay {
            self.watch(cx)?;
        }
        ready!(self.connection.deadline.poll_passed(cx));
        let overdue = self.overdue();
        if overdue == Fault::TargetStalled && self.waits_on() {
            ready!(self.connection.deadline.poll_passed(cx));
        }
        Poll::Ready(Err(overdue))
    }

    /// The first time that a stream stalls the target is told of, and waited for as long
    /// as for others, unless the request may go elsewhere.
    fn waits_on(&mut self) -> bool {
        let has_token = self.response.is_some();
        if self.has_stalled || self.errand.stalled_after(has_token).is_none() {
            return false;
        }
        self.has_stalled = true;
        if self.may_move() {
            self.moves = true;
            return false;
        }
        let waits = &self.thread.shared.waits;
        let target = self.errand.target();
        self.thread.shared.brain.told(target, Evidence::Stalled);
        let wait = match has_token {
            true => waits.response_body,
            false => waits.response_head,
        };
        self.connection.deadline.restart(wait);
        true
    }

    /// Sends what can be sent of the request.
    fn send(&mut self, cx: &mut Context<'_>) -> Result<(), Fault> {
        let spare = &self.thread.spare;
        let waits = &self.thread.shared.waits;
        while self.sending == Sending::UnderWay {
            let Connection {
                client,
                input,
                kept,
                head,
                deadline,
                ..
            } = &mut *self.connection;
            // The head with the body as far as it is here; then the rest as it comes.
            let body = &input.filled()[self.kept_sent..*kept + self.forward];
            let parts = [IoSlice::new(head.filled()), IoSlice::new(body)];
            let parts = match (head.is_empty(), body.is_empty()) {
                (true, true) => &[],
                (true, false) => &parts[1..],
                (false, true) => &parts[..1],
                (false, false) => &parts[..],
            };
            if !parts.is_empty() {
                let was_touched = self.head_sent + self.kept_sent > 0 || !self.is_whole;
                match Pin::new(&mut self.target).poll_write_vectored(cx, parts) {
                    Poll::Pending => return Ok(()),
                    Poll::Ready(Ok(taken)) if taken > 0 => self.took(taken),
                    Poll::Ready(_) if self.was_idle && !was_touched => return Err(Fault::Stale),
                    Poll::Ready(_) => self.sending = Sending::Broken,
                }
            } else if self.request_body.is_done() {
                self.sending = Sending::Done;
                if self.response.is_none() {
                    let stall = self.errand.stalled_after(false);
                    deadline.restart(stall.unwrap_or(waits.response_head));
                }
            } else {
                // What comes from here on is passed on and not kept.
                self.is_whole = false;
                input.passed(std::mem::take(kept));
                self.kept_sent = 0;
                if input.is_empty() {
                    match receive(client, input, spare, cx) {
                        Poll::Pending => return Ok(()),
                        Poll::Ready(Ok(bytes)) if bytes > 0 => deadline.restart(waits.request_body),
                        Poll::Ready(_) => return Err(Fault::ClientGone),
                    }
                } else {
                    let known = self.request_body.advance(input.filled());
                    self.forward = known.map_err(Fault::Request)?;
                }
            }
        }
        Ok(())
    }

    /// The target took so many bytes.
    fn took(&mut self, taken: usize) {
        let Connection { input, head, .. } = &mut *self.connection;
        let of_head = taken.min(head.filled().len());
        head.passed(of_head);
        self.head_sent += of_head;
        let of_body = taken - of_head;
        match self.is_whole {
            true => self.kept_sent += of_body,
            false => {
                input.passed(of_body);
                self.forward -= of_body;
            }
        }
    }

    /// Passes on what came of the response; whether that was all of it.
    fn receive(&mut self, cx: &mut Context<'_>) -> Result<bool, Fault> {
        loop {
            if !self.pass(cx)? {
                return Ok(false);
            }
            if self.response.is_some() && self.response_body.is_done() {
                return Ok(true);
            }
            if !self.connection.answer.is_empty() && self.understand()? {
                continue;
            }
            self.connection.answer.rest(&self.thread.spare);
            if self.connection.answer.is_empty() && self.target.poll_read_ready(cx).is_pending() {
                return Ok(false);
            }
            match receive(
                &mut self.target,
                &mut self.connection.answer,
                &self.thread.spare,
                cx,
            ) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(bytes)) if bytes > 0 => {
                    let wait = self.thread.shared.waits.response_body;
                    let stall = match self.has_stalled {
                        true => None,
                        false => self.errand.stalled_after(self.response.is_some()),
                    };
                    let wait = stall.map_or(wait, |stall| stall.min(wait));
                    self.connection.deadline.restart(wait);
                }
                Poll::Ready(end) => return self.ended(end.is_ok()),
            }
        }
    }

    /// Hands the client what is ready for it; whether it took everything.
    fn pass(&mut self, cx: &mut Context<'_>) -> Result<bool, Fault> {
        let waits = &self.thread.shared.waits;
        let Connection {
            client,
            answer,
            reply,
            deadline,
            ..
        } = &mut *self.connection;
        loop {
            let from = match reply.is_empty() {
                false => reply.filled(),
                true => &answer.filled()[..self.relay],
            };
            if from.is_empty() {
                break;
            }
            match Pin::new(&mut *client).poll_write(cx, from) {
                Poll::Ready(Ok(taken)) if taken > 0 => {
                    self.has_begun = true;
                    if reply.is_empty() {
                        answer.passed(taken);
                        self.relay -= taken;
                    } else {
                        reply.passed(taken);
                    }
                    if self.is_stalled {
                        deadline.restart(waits.client_write);
                    }
                }
                Poll::Ready(_) => return Err(Fault::ClientGone),
                Poll::Pending if self.is_stalled => return Ok(false),
                Poll::Pending => {
                    self.is_stalled = true;
                    deadline.restart(waits.client_write);
                    return Ok(false);
                }
            }
        }
        reply.rest(&self.thread.spare);
        if self.is_stalled {
            self.is_stalled = false;
            deadline.restart(waits.response_body);
        }
        Ok(true)
    }

    /// Reads the head of a response, or finds how much of what came is its body.
    /// `false` if more has to come first.
    fn understand(&mut self) -> Result<bool, Fault> {
        let response = match self.response {
            Some(response) => response,
            None => match self.read_head()? {
                Some(response) if response.is_interim() => return self.interim(),
                Some(response) => response,
                None => return Ok(false),
            },
        };
        let spare = &self.thread.spare;
        let Connection { answer, reply, .. } = &mut *self.connection;
        if self.asked.is_old && matches!(self.response_body, Body::Chunked(_)) {
            // HTTP/1.0 gets the data alone, and the head before it.
            if reply.is_empty() {
                let piece = self.response_body.piece(answer.filled());
                let piece = piece.map_err(Fault::Target)?;
                let bytes = &answer.filled()[..piece.bytes];
                self.errand
                    .follow(response.status, response.is_events, bytes);
                self.tail.follow(bytes);
                reply.append(&answer.filled()[piece.data], spare);
                answer.passed(piece.bytes);
            }
            return Ok(true);
        }
        let known = self.response_body.advance(answer.filled());
        self.relay = known.map_err(Fault::Target)?;
        let piece = &answer.filled()[..self.relay];
        self.errand
            .follow(response.status, response.is_events, piece);
        if response.is_events {
            self.tail.follow(piece);
        }
        if !reply.is_empty() {
            // The first bytes of the body travel with the head; later ones are not copied.
            let fits = reply.append(&answer.filled()[..self.relay], spare);
            answer.passed(fits);
            self.relay -= fits;
        }
        Ok(true)
    }

    /// Reads the head of a response and writes it for the client.
    fn read_head(&mut self) -> Result<Option<Response>, Fault> {
        let spare = &self.thread.spare;
        let Connection { answer, reply, .. } = &mut *self.connection;
        let is_sent = self.sending == Sending::Done;
        // A request that is not there as a whole by now is not waited for.
        let close = self.asked.close || !is_sent || self.thread.is_draining.get();
        let asked = Asked {
            close,
            ..self.asked
        };
        let read = response::read(answer.filled(), asked, reply, spare);
        let Some(response) = read.map_err(Fault::Target)? else {
            return Ok(None);
        };
        if response.status == 503 && self.may_move() {
            self.moves = true;
            return Err(Fault::TargetBusy);
        }
        let Connection {
            answer,
            head,
            input,
            kept,
            ..
        } = &mut *self.connection;
        answer.passed(response.head_bytes);
        if is_sent && !response.is_interim() {
            // Nothing is sent again from here on.
            head.clear(spare);
            input.passed(std::mem::take(kept));
            input.rest(spare);
        }
        if !response.is_interim() {
            self.asked = asked;
            self.response = Some(response);
            self.response_body = response.body;
        }
        Ok(Some(response))
    }

    /// A 1xx is passed on to those who know what it is; the response is still to come.
    fn interim(&mut self) -> Result<bool, Fault> {
        self.interims += 1;
        if self.interims > INTERIM_MAX {
            return Err(Fault::Target("too many interim responses"));
        }
        if self.asked.is_old {
            self.connection.reply.clear(&self.thread.spare);
        }
        Ok(true)
    }

    /// The target's connection has ended, with or without an error.
    fn ended(&mut self, is_orderly: bool) -> Result<bool, Fault> {
        if self.response.is_some() {
            if is_orderly && self.response_body == Body::UntilClose {
                self.response_body = Body::Done;
                return Ok(true);
            }
            return Err(Fault::Target("the connection ended within the response"));
        }
        let nothing_came = self.connection.answer.is_empty() && self.interims == 0;
        let is_untouched = self.head_sent == 0;
        if nothing_came
            && self.was_idle
            && self.is_whole
            && (self.repeatable.idempotent || is_untouched)
        {
            return Err(Fault::Stale);
        }
        Err(Fault::Target("the connection ended before a response"))
    }

    /// Sees whether the client is still there. Once it has closed its side nobody waits
    /// for the response; what it sends is the next request's.
    fn watch(&mut self, cx: &mut Context<'_>) -> Result<(), Fault> {
        let spare = &self.thread.spare;
        let Connection { client, input, .. } = &mut *self.connection;
        while !input.is_full() && client.poll_read_ready(cx).is_ready() {
            match receive(client, input, spare, cx) {
                Poll::Ready(Ok(bytes)) if bytes > 0 => {}
                Poll::Ready(_) => return Err(Fault::ClientGone),
                Poll::Pending => break,
            }
        }
        input.rest(spare);
        Ok(())
    }

    /// Whom the deadline was set for.
    fn overdue(&self) -> Fault {
        let waits_for_body = self.sending == Sending::UnderWay
            && self.connection.head.is_empty()
            && (self.kept_sent, self.forward) == (self.connection.kept, 0);
        if self.is_stalled || (waits_for_body && self.response.is_none()) {
            Fault::ClientStalled
        } else {
            Fault::TargetStalled
        }
    }
}
