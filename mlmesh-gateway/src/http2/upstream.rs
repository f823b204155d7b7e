//! Connections to targets that requests over HTTP/2 use, of one thread: one of HTTP/2 for
//! each target, and idle ones of HTTP/1.1.

use std::cell::RefCell;
use std::time::Duration;

use hyper::client::conn::{TrySendError, http1, http2};
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use crate::http2::Here;
use crate::http2::passed::Passed;
use crate::limits::{HEAD_BYTES_MAX, IDLE_UPSTREAM_MAX, PING_INTERVAL, PING_WAIT};
use crate::metrics::Outcome;
use crate::target::Target;

pub(crate) type Http1 = http1::SendRequest<Passed>;
type Http2 = http2::SendRequest<Passed>;

/// Connections by target.
#[derive(Debug)]
pub(crate) struct Upstreams {
    of_targets: Vec<RefCell<OfTarget>>,
    tasks: Here,
}

#[derive(Debug, Default)]
struct OfTarget {
    http1: Vec<(Http1, Instant)>,
    http2: Option<Http2>,
}

/// A connection that can take a request.
#[derive(Debug)]
pub(crate) enum Upstream {
    Http1 { sender: Http1, was_idle: bool },
    Http2 { sender: Http2, was_idle: bool },
}

impl Upstreams {
    pub(crate) fn new(targets: usize) -> Self {
        Self {
            of_targets: (0..targets).map(|_| RefCell::default()).collect(),
            tasks: Here(TaskTracker::new()),
        }
    }

    /// A connection that was open a moment ago.
    pub(crate) fn take(&self, target: usize, is_grpc: bool, age_max: Duration) -> Option<Upstream> {
        let mut of_target = self.of_targets[target].borrow_mut();
        if is_grpc {
            let sender = of_target
                .http2
                .clone()
                .filter(|sender| !sender.is_closed())?;
            let was_idle = true;
            return Some(Upstream::Http2 { sender, was_idle });
        }
        while let Some((sender, since)) = of_target.http1.pop() {
            if sender.is_ready() && since.elapsed() <= age_max {
                let was_idle = true;
                return Some(Upstream::Http1 { sender, was_idle });
            }
        }
        None
    }

    /// Keeps a connection on which nothing is under way.
    pub(crate) fn give(&self, target: usize, sender: Http1) {
        let idle = &mut self.of_targets[target].borrow_mut().http1;
        if idle.len() < IDLE_UPSTREAM_MAX {
            idle.push((sender, Instant::now()));
        }
    }

    /// A new connection to a target.
    pub(crate) async fn connect(
        &self,
        index: usize,
        target: &Target,
        is_grpc: bool,
        wait: Duration,
    ) -> Result<Upstream, Outcome> {
        let mut outcome = Outcome::Unreachable;
        for address in target.addresses() {
            let connected = timeout(wait, TcpStream::connect(address)).await;
            let stream = match connected {
                Ok(Ok(stream)) if stream.set_nodelay(true).is_ok() => stream,
                Ok(_) => continue,
                Err(_) => {
                    outcome = Outcome::TimedOut;
                    continue;
                }
            };
            let upstream = match is_grpc {
                true => self.http2(index, stream).await,
                false => self.http1(stream).await,
            };
            match upstream {
                Ok(upstream) => return Ok(upstream),
                Err(error) => tracing::debug!(%error, "no HTTP at a target"),
            }
        }
        Err(outcome)
    }

    async fn http1(&self, stream: TcpStream) -> hyper::Result<Upstream> {
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(2 * HEAD_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await?;
        self.drive(connection);
        let was_idle = false;
        Ok(Upstream::Http1 { sender, was_idle })
    }

    async fn http2(&self, index: usize, stream: TcpStream) -> hyper::Result<Upstream> {
        let (sender, connection) = http2::Builder::new(self.tasks.clone())
            .timer(TokioTimer::new())
            .max_header_list_size(HEAD_BYTES_MAX as u32)
            .keep_alive_interval(Some(PING_INTERVAL))
            .keep_alive_timeout(PING_WAIT)
            .handshake(TokioIo::new(stream))
            .await?;
        self.drive(connection);
        self.of_targets[index].borrow_mut().http2 = Some(sender.clone());
        let was_idle = false;
        Ok(Upstream::Http2 { sender, was_idle })
    }

    fn drive(&self, connection: impl Future<Output = hyper::Result<()>> + 'static) {
        self.tasks.0.spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a target ended");
            }
        });
    }
}

impl Upstream {
    pub(crate) fn was_idle(&self) -> bool {
        match self {
            Self::Http1 { was_idle, .. } | Self::Http2 { was_idle, .. } => *was_idle,
        }
    }

    /// Sends a request; the connection comes back when it is one of HTTP/1.1, to be given
    /// back after the response. A request that was not sent stands in the error.
    pub(crate) async fn send(
        self,
        request: Request<Passed>,
    ) -> Result<(Response<Incoming>, Option<Http1>), TrySendError<Request<Passed>>> {
        match self {
            Self::Http1 { mut sender, .. } => {
                let response = sender.try_send_request(request).await?;
                Ok((response, Some(sender)))
            }
            Self::Http2 { mut sender, .. } => {
                let response = sender.try_send_request(request).await?;
                Ok((response, None))
            }
        }
    }
}
