//! What is passed on: bodies frame by frame, and the request to which they belong.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::Response;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::CONTENT_TYPE;
use tokio::time::timeout;

use crate::deadline::Deadline;
use crate::errand::Errand;
use crate::http2::upstream::Http1;
use crate::limits::BODY_READ_MAX;
use crate::metrics::Outcome;
use crate::refusal::Refusal;
use crate::telling::Trip;
use crate::thread::Thread;

/// A body that breaks off when nothing comes for too long.
pub(crate) struct Passed {
    /// What was read of it before; comes first.
    held: Held,
    body: Incoming,
    wait: Duration,
    deadline: Deadline,
    /// Of a response: what ends with it.
    under_way: Option<UnderWay>,
}

/// The beginning of a request's body, read before a target was chosen.
#[derive(Default)]
pub(crate) struct Held {
    frames: VecDeque<Frame<Bytes>>,
    bytes: usize,
    /// Who has lent those bytes.
    thread: Option<Rc<Thread>>,
}

impl Held {
    /// Reads until the body ends, or as far as it is read at all.
    pub(crate) async fn read(
        thread: &Rc<Thread>,
        body: &mut Incoming,
        wait: Duration,
    ) -> Result<Held, Refusal> {
        let mut held = Held::default();
        held.thread = Some(Rc::clone(thread));
        while !body.is_end_stream() && held.bytes < BODY_READ_MAX {
            let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx));
            let frame = match timeout(wait, frame).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(None) => break,
                Ok(Some(Err(_))) => return Err(Refusal::Malformed("the body breaks off")),
                Err(_) => return Err(Refusal::RequestTimeout),
            };
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            let is_lent = thread.spare.lend(bytes);
            held.bytes += if is_lent { bytes } else { 0 };
            held.frames.push_back(frame);
            if !is_lent {
                break;
            }
        }
        Ok(held)
    }

    /// Whether nothing was read.
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The data, in one piece.
    pub(crate) fn data(&self) -> Bytes {
        let mut data = self.frames.iter().filter_map(Frame::data_ref);
        match (data.next(), self.frames.len()) {
            (Some(only), 1) => only.clone(),
            (Some(first), _) => {
                let mut all = first.to_vec();
                data.for_each(|more| all.extend_from_slice(more));
                all.into()
            }
            (None, _) => Bytes::new(),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(thread) = &self.thread {
            thread.spare.lent_back(self.bytes);
        }
    }
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error(transparent)]
    Http(hyper::Error),
    #[error("nothing came for {} s", .0.as_secs())]
    Silent(Duration),
}

impl Passed {
    pub(crate) fn request(held: Held, body: Incoming, wait: Duration) -> Self {
        Self {
            held,
            body,
            wait,
            deadline: Deadline::after(wait),
            under_way: None,
        }
    }

    pub(crate) fn response(body: Incoming, wait: Duration, mut under_way: UnderWay) -> Self {
        if body.is_end_stream() {
            under_way.is_done();
        }
        Self {
            under_way: Some(under_way),
            ..Self::request(Held::default(), body, wait)
        }
    }
}

impl Body for Passed {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = &mut *self;
        if let Some(frame) = this.held.frames.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        let (frame, failed) = match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Err(error))) => {
                (Some(Err(Broken::Http(error))), Some(Outcome::Failed))
            }
            Poll::Ready(frame) => {
                this.deadline.restart(this.wait);
                (frame.map(|frame| frame.map_err(Broken::Http)), None)
            }
            Poll::Pending => {
                ready!(this.deadline.poll_passed(cx));
                (
                    Some(Err(Broken::Silent(this.wait))),
                    Some(Outcome::TimedOut),
                )
            }
        };
        let is_over = frame.is_none() || this.body.is_end_stream();
        if let Some(under_way) = &mut this.under_way {
            if let Some(Ok(frame)) = &frame {
                under_way.follow(frame);
            }
            match failed {
                Some(outcome) => under_way.outcome = outcome,
                None if is_over => under_way.is_done(),
                None => {}
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.held.frames.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.held.frames.is_empty() {
            true => self.body.size_hint(),
            // Said by the length that stands in the head, if one does.
            false => SizeHint::default(),
        }
    }
}

/// A request that counts as under way at a target for as long as this lives.
pub(crate) struct UnderWay {
    thread: Rc<Thread>,
    target: usize,
    errand: Option<Errand>,
    /// What will be told of it.
    trip: Option<Trip>,
    status: u16,
    is_events: bool,
    /// Whether the target has taken the request's connection.
    pub(crate) is_connected: bool,
    /// What is counted if it ends now.
    pub(crate) outcome: Outcome,
    /// What is counted at the end of the response.
    done: Outcome,
    /// The connection that is free then.
    http1: Option<Http1>,
}

impl UnderWay {
    pub(crate) fn at(thread: &Rc<Thread>, target: usize) -> Self {
        thread.shared.brain.begun(target);
        let counters = &thread.counters.targets[target];
        counters.in_flight.fetch_add(1, Ordering::Relaxed);
        Self {
            thread: Rc::clone(thread),
            target,
            errand: None,
            trip: None,
            status: 0,
            is_events: false,
            is_connected: false,
            outcome: Outcome::ClientGone,
            done: Outcome::ClientGone,
            http1: None,
        }
    }

    /// The response has begun, over a connection of HTTP/1.1 if one is given. The
    /// booking ends with it.
    pub(crate) fn answered(
        &mut self,
        response: &Response<Incoming>,
        http1: Option<Http1>,
        errand: Errand,
        trip: Option<Trip>,
    ) {
        self.trip = trip;
        self.done = Outcome::of_status(response.status().as_u16());
        self.http1 = http1;
        self.errand = Some(errand);
        self.status = response.status().as_u16();
        let kind = response.headers().get(CONTENT_TYPE);
        self.is_events = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    }

    /// Learns what a piece of the response's body says.
    fn follow(&mut self, frame: &Frame<Bytes>) {
        if let (Some(errand), Some(piece)) = (&mut self.errand, frame.data_ref()) {
            errand.follow(self.status, self.is_events, piece);
        }
    }

    /// The request's number, if it is work.
    pub(crate) fn request(&self) -> Option<u64> {
        self.errand.as_ref().and_then(Errand::request)
    }

    fn is_done(&mut self) {
        self.outcome = self.done;
        if let Some(trip) = &mut self.trip {
            trip.status = self.status;
        }
        if let Some(http1) = self.http1.take() {
            self.thread.upstreams.give(self.target, http1);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let counters = &self.thread.counters.targets[self.target];
        counters.in_flight.fetch_sub(1, Ordering::Relaxed);
        counters.count(self.outcome);
        let brain = &self.thread.shared.brain;
        match self.outcome.evidence(self.is_connected) {
            Some(evidence) => brain.told(self.target, evidence),
            None => brain.abandoned(self.target),
        }
    }
}
