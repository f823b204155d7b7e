//! One request at a target, from the connection to the end of the response.
//!
//! When is a request sent a second time? Only as long as no byte of a response came, and
//! - the connection could not be made: nothing was sent, the router names another target;
//! - an idle connection that was taken up again turns out to have ended, and either not a
//!   byte was taken by it, or the method is idempotent and all that was sent is still here:
//!   once more, to the same target, on a new connection.
//!
//! - the target failed, stalled or answered 503, all that was sent is still here, the
//!   request may be made twice (an idempotent method, an `Idempotency-Key`, or by the
//!   setting one that leaves nothing behind), and the budget of all retries allows it:
//!   the router names another target.
//!
//! Everything else is a 502, since the target may have carried the request out.

use std::borrow::Cow;
use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use tokio::net::TcpStream;

use crate::body::Body;
use crate::connection::Connection;
use crate::errand::{Errand, Unplaced};
use crate::hop::{Fault, Hop};
use crate::linger::receive;
use crate::metrics::Outcome;
use crate::refusal::Refusal;
use crate::request::Request;
use crate::thread::Thread;

/// What becomes of the client's connection after an exchange.
#[derive(Debug)]
pub(crate) enum End {
    Keep,
    /// Everything was said and read.
    Close,
    /// The client may still be sending what nobody reads.
    Linger,
    /// These are the last bytes of a response.
    Told(Vec<u8>),
    /// There is nobody to talk to, or the response cannot be finished.
    Cut,
    /// No byte of a response was sent.
    Refused {
        refusal: Refusal,
        is_head: bool,
        keep: bool,
    },
}

/// Carries a request whose head was written but for the target.
pub(crate) async fn carry(connection: &mut Connection, mut request: Request) -> End {
    let thread = Rc::clone(&connection.thread);
    let mut errand = match begin(connection, &thread, &request).await {
        Ok(errand) => errand,
        Err(why) => return unplaced(why, &request),
    };
    let mut may_reuse = true;
    loop {
        let target = errand.target();
        let under_way = UnderWay::at(&thread, target);
        let idle = if may_reuse {
            thread.pool.take(target)
        } else {
            None
        };
        let was_idle = idle.is_some();
        let stream = match idle {
            Some(stream) => stream,
            None => match connect(connection, &thread, target).await {
                Ok(stream) => stream,
                Err(outcome) => {
                    under_way.count(outcome);
                    if outcome == Outcome::ClientGone {
                        return End::Cut;
                    }
                    errand.failed(&thread);
                    let gone = |cx: &mut Context<'_>| is_gone(connection, &thread, cx);
                    match errand.elsewhere(&thread, gone).await {
                        Ok(next) => (errand, may_reuse) = (next, true),
                        Err(why) => return unplaced(why, &request),
                    }
                    continue;
                }
            },
        };
        under_way.is_connected.set(true);
        let host = thread.shared.targets[target].host();
        if let Some(trip) = &mut connection.trip {
            trip.target = Some(host.to_owned());
        }
        request.address(host, &mut connection.head, &thread.spare);
        let mut hop = Hop::new(connection, &thread, stream, &request, was_idle, &mut errand);
        match poll_fn(|cx| hop.poll(cx)).await {
            Ok(()) => {
                let status = hop.status();
                under_way.count(Outcome::of_status(status));
                let end = hop.finish(target);
                if let Some(trip) = &mut connection.trip {
                    trip.status = status;
                }
                return end;
            }
            Err(Fault::Stale) => {
                request.body = hop.rewind();
                may_reuse = false;
            }
            Err(fault) if fault.is_of_target() && hop.may_move() => {
                under_way.count(fault.outcome());
                request.body = hop.rewind();
                errand.failed(&thread);
                let gone = |cx: &mut Context<'_>| is_gone(connection, &thread, cx);
                match errand.elsewhere(&thread, gone).await {
                    Ok(next) => (errand, may_reuse) = (next, true),
                    Err(why) => return unplaced(why, &request),
                }
            }
            Err(fault) => {
                under_way.count(fault.outcome());
                let keep = hop.is_sent() && !request.close;
                let end = match fault.refusal() {
                    Some(refusal) if !hop.has_begun() => refused(refusal, &request, keep),
                    Some(refusal) => hop.farewell(refusal).map_or(End::Cut, End::Told),
                    None => End::Cut,
                };
                if fault.is_of_target() {
                    errand.failed(&thread);
                }
                return end;
            }
        }
    }
}

/// Tells the router what of the request is here, and waits for its word.
async fn begin(
    connection: &mut Connection,
    thread: &Thread,
    request: &Request,
) -> Result<Errand, Unplaced> {
    let is_read = request.reads_body(thread.shared.reads_bodies());
    let here = &connection.input.filled()[..connection.kept];
    let bytes = here.len() as u64 + request.body.announced();
    // What is waited for meanwhile goes into the same buffer.
    let data = match (is_read, request.is_chunked) {
        (false, _) => None,
        (true, true) => Some(Cow::Owned(data_of(here))),
        (true, false) => Some(Cow::Borrowed(here)),
    };
    let begun = Errand::tell(
        thread,
        request.call,
        data.as_deref(),
        bytes,
        request.tenant.as_ref(),
    );
    drop(data);
    let begun = begun.map_err(Unplaced::Refused)?;
    connection.number = begun.request();
    begun
        .place(thread, |cx| is_gone(connection, thread, cx))
        .await
}

/// What becomes of a request without a target. What is here of it is forgotten; if that
/// is all, the next may come.
fn unplaced(why: Unplaced, request: &Request) -> End {
    match why {
        Unplaced::ClientGone => End::Cut,
        Unplaced::Refused(refusal) => {
            refused(refusal, request, request.body.is_done() && !request.close)
        }
    }
}

/// What a body's chunks hold, as far as they are here.
fn data_of(chunks: &[u8]) -> Vec<u8> {
    let (mut body, mut rest, mut data) = (Body::CHUNKED, chunks, Vec::new());
    while !rest.is_empty() && !body.is_done() {
        // They were read before, so that nothing is wrong with them.
        let Ok(piece) = body.piece(rest) else { break };
        data.extend_from_slice(&rest[piece.data]);
        rest = &rest[piece.bytes..];
    }
    data
}

fn refused(refusal: Refusal, request: &Request, keep: bool) -> End {
    End::Refused {
        refusal,
        is_head: request.is_head,
        keep,
    }
}

/// A connection to a target, unless the client goes away first.
async fn connect(
    connection: &mut Connection,
    thread: &Thread,
    target: usize,
) -> Result<TcpStream, Outcome> {
    let mut outcome = Outcome::Unreachable;
    for address in thread.shared.targets[target].addresses() {
        connection.deadline.restart(thread.shared.waits.connect);
        let mut connecting = pin!(TcpStream::connect(address));
        let connected = poll_fn(|cx| {
            if let Poll::Ready(connected) = connecting.as_mut().poll(cx) {
                return Poll::Ready(connected.map_err(|_| Outcome::Unreachable));
            }
            if is_gone(connection, thread, cx) {
                return Poll::Ready(Err(Outcome::ClientGone));
            }
            connection
                .deadline
                .poll_passed(cx)
                .map(|()| Err(Outcome::TimedOut))
        })
        .await;
        match connected.map(|stream| (stream.set_nodelay(true), stream)) {
            Ok((Ok(()), stream)) => {
                let connects = &thread.counters.targets[target].connects;
                connects.fetch_add(1, Ordering::Relaxed);
                return Ok(stream);
            }
            Ok((Err(_), _)) => outcome = Outcome::Unreachable,
            Err(Outcome::ClientGone) => return Err(Outcome::ClientGone),
            Err(other) => outcome = other,
        }
    }
    Err(outcome)
}

/// Whether the client has closed. What it sends meanwhile is kept, up to a full buffer.
fn is_gone(connection: &mut Connection, thread: &Thread, cx: &mut Context<'_>) -> bool {
    let Connection { client, input, .. } = connection;
    while !input.is_full() && client.poll_read_ready(cx).is_ready() {
        match receive(client, input, &thread.spare, cx) {
            Poll::Ready(Ok(bytes)) if bytes > 0 => {}
            Poll::Ready(_) => return true,
            Poll::Pending => break,
        }
    }
    input.rest(&thread.spare);
    false
}

/// A request that counts as under way for as long as this lives.
struct UnderWay<'t> {
    thread: &'t Thread,
    target: usize,
    is_connected: Cell<bool>,
    is_told: Cell<bool>,
}

impl<'t> UnderWay<'t> {
    fn at(thread: &'t Thread, target: usize) -> UnderWay<'t> {
        thread.shared.brain.begun(target);
        let counters = &thread.counters.targets[target];
        counters.in_flight.fetch_add(1, Ordering::Relaxed);
        UnderWay {
            thread,
            target,
            is_connected: Cell::new(false),
            is_told: Cell::new(false),
        }
    }

    fn count(&self, outcome: Outcome) {
        self.thread.counters.targets[self.target].count(outcome);
        if let Some(evidence) = outcome.evidence(self.is_connected.get()) {
            self.is_told.set(true);
            self.thread.shared.brain.told(self.target, evidence);
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let counters = &self.thread.counters.targets[self.target];
        counters.in_flight.fetch_sub(1, Ordering::Relaxed);
        if !self.is_told.get() {
            self.thread.shared.brain.abandoned(self.target);
        }
    }
}
