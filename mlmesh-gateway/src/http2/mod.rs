//! HTTP/2 from clients that begin with it (RFC 9113, section 3.3): hyper speaks it, and each
//! stream is one request.
//!
//! ```text
//!   preface ─► hyper's server ─► stream ─► answer ─► gRPC: HTTP/2 to the target
//!              (one task)        (a task)         └─► else: HTTP/1.1 to the target
//! ```
//!
//! Targets, pages, counts and refusals are those of HTTP/1.1. Bodies are passed on frame by
//! frame with their trailers. A stream that its client resets, or whose connection ends,
//! is dropped, and the target's side of it with it. A target speaks HTTP/1.1, unless the
//! call is gRPC, which HTTP/1.1 cannot carry.

mod answer;
mod passed;
mod upstream;

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;

use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::interval;
use tokio_util::task::TaskTracker;

use crate::connection::Door;
use crate::limits::{HEAD_BYTES_MAX, PING_INTERVAL, PING_WAIT, STREAMS_MAX};
use crate::thread::Thread;

pub(crate) use upstream::Upstreams;

/// With what a client begins that speaks HTTP/2 and nothing else.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Whether this is its beginning. Fewer bytes than the word `PRI` are taken for HTTP/1.1,
/// in which that is no method: the preface comes in one piece.
pub(crate) fn begins(input: &[u8]) -> bool {
    input.len() >= 3 && PREFACE.starts_with(input)
}

/// Spawns on this thread, and counts what has not ended.
#[derive(Debug, Clone)]
pub(crate) struct Here(pub(crate) TaskTracker);

impl<F> Executor<F> for Here
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn_local(future);
    }
}

/// Serves a client until one side closes.
pub(crate) async fn serve(thread: Rc<Thread>, client: TcpStream, door: Door) {
    let streams = Here(TaskTracker::new());
    let mut builder = http2::Builder::new(streams.clone());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .keep_alive_interval(Some(PING_INTERVAL))
        .keep_alive_timeout(PING_WAIT);
    let started = Rc::new(Cell::new(0_u64));
    let of_stream = {
        let (thread, started) = (Rc::clone(&thread), Rc::clone(&started));
        service_fn(move |request| {
            started.set(started.get() + 1);
            answer::answer(Rc::clone(&thread), request, door)
        })
    };
    let io = TokioIo::new(client);
    let mut connection = pin!(builder.serve_connection(io, of_stream));
    let mut drain = pin!(thread.drain.notified());
    let mut is_draining = thread.is_draining.get();
    if is_draining {
        connection.as_mut().graceful_shutdown();
    }
    // Answers to pings keep no connection open: who asks nothing for long has to go.
    let mut idle = interval(thread.shared.waits.idle);
    idle.reset();
    let mut known = 0;
    let ended = loop {
        tokio::select! {
            ended = &mut connection => break ended,
            () = &mut drain, if !is_draining => {
                is_draining = true;
                connection.as_mut().graceful_shutdown();
            }
            _ = idle.tick() => {
                if streams.0.is_empty() && started.get() == known {
                    connection.as_mut().graceful_shutdown();
                }
                known = started.get();
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection of HTTP/2 ended");
    }
    // Streams that outlive their connection have nobody to talk to, and end by that.
    streams.0.close();
    streams.0.wait().await;
}
