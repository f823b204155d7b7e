//! What is passed on: bodies frame by frame, and the request to which they belong.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};

use crate::deadline::Deadline;
use crate::http2::upstream::Http1;
use crate::metrics::Outcome;
use crate::thread::Thread;

/// A body that breaks off when nothing comes for too long.
pub(crate) struct Passed {
    body: Incoming,
    wait: Duration,
    deadline: Deadline,
    /// Of a response: what ends with it.
    under_way: Option<UnderWay>,
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
    pub(crate) fn request(body: Incoming, wait: Duration) -> Self {
        Self {
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
            ..Self::request(body, wait)
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
            match failed {
                Some(outcome) => under_way.outcome = outcome,
                None if is_over => under_way.is_done(),
                None => {}
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A request that counts as under way at a target for as long as this lives.
pub(crate) struct UnderWay {
    thread: Rc<Thread>,
    target: usize,
    /// What is counted if it ends now.
    pub(crate) outcome: Outcome,
    /// What is counted at the end of the response.
    done: Outcome,
    /// The connection that is free then.
    http1: Option<Http1>,
}

impl UnderWay {
    pub(crate) fn at(thread: &Rc<Thread>, target: usize) -> Self {
        let counters = &thread.counters.targets[target];
        counters.in_flight.fetch_add(1, Ordering::Relaxed);
        Self {
            thread: Rc::clone(thread),
            target,
            outcome: Outcome::ClientGone,
            done: Outcome::ClientGone,
            http1: None,
        }
    }

    /// The response has begun, over a connection of HTTP/1.1 if one is given.
    pub(crate) fn answered(&mut self, status: u16, http1: Option<Http1>) {
        self.done = Outcome::of_status(status);
        self.http1 = http1;
    }

    fn is_done(&mut self) {
        self.outcome = self.done;
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
    }
}
