//! The accept loop: bounded, TLS only, drained on shutdown.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::http::linger::Lingering;
use crate::limits::{
    CONNECTIONS_MAX, HANDSHAKE_TIMEOUT, HEAD_BYTES_MAX, HEAD_TIMEOUT, HEADERS_MAX,
};
use crate::metrics::Metrics;

/// Everything that a connection needs.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) tls: TlsAcceptor,
    pub(crate) router: Router,
    pub(crate) metrics: Arc<Metrics>,
    /// Cancelled when the daemon stops accepting.
    pub(crate) closing: CancellationToken,
    /// Owns every connection, so that a shutdown can wait for them.
    pub(crate) tasks: TaskTracker,
}

/// The address of a request's sender.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Remote(pub(crate) SocketAddr);

/// How long the loop rests when the system has no more descriptors.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
/// What somebody who speaks plain HTTP is told.
const PLAIN_HTTP_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\
Connection: close\r\nContent-Length: 55\r\n\r\nthis port speaks HTTPS only; use a URL with `https://`\n";

/// Accepts until the door closes.
pub(crate) async fn accept(listener: TcpListener, door: Door) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = tokio::select! {
            () = door.closing.cancelled() => return,
            place = Arc::clone(&places).acquire_owned() => place,
        };
        let Ok(place) = place else { return };
        let accepted = tokio::select! {
            () = door.closing.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, remote)) => {
                let connection = connection(stream, remote, door.clone());
                door.tasks.spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, remote: SocketAddr, door: Door) {
    door.metrics
        .connections_total
        .fetch_add(1, Ordering::Relaxed);
    door.metrics.connections.fetch_add(1, Ordering::Relaxed);
    let metrics = Arc::clone(&door.metrics);
    // Small answers must not wait for an acknowledgement.
    let _ = stream.set_nodelay(true);
    tokio::select! {
        () = door.closing.cancelled() => {}
        secured = tokio::time::timeout(HANDSHAKE_TIMEOUT, secure(stream, &door)) => {
            match secured {
                Ok(Some(stream)) => serve(stream, remote, door.clone()).await,
                Ok(None) => {}
                Err(_) => {
                    metrics.handshake_failures_total.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
    metrics.connections.fetch_sub(1, Ordering::Relaxed);
}

type Secured = tokio_rustls::server::TlsStream<TcpStream>;

/// The TLS handshake; `None` when that was no TLS.
async fn secure(mut stream: TcpStream, door: &Door) -> Option<Secured> {
    let mut first = [0_u8; 1];
    match stream.peek(&mut first).await {
        Ok(1) => {}
        _ => return None,
    }
    if first[0].is_ascii_uppercase() {
        door.metrics
            .plain_http_refused_total
            .fetch_add(1, Ordering::Relaxed);
        // The other side may have gone already.
        let _ = stream.write_all(PLAIN_HTTP_ANSWER).await;
        if let Some(lingering) = Lingering::of(&stream) {
            lingering.close().await;
        }
        return None;
    }
    match door.tls.accept(stream).await {
        Ok(stream) => Some(stream),
        Err(error) => {
            door.metrics
                .handshake_failures_total
                .fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%error, "handshake failed");
            None
        }
    }
}

async fn serve(stream: Secured, remote: SocketAddr, door: Door) {
    let lingering = Lingering::of(stream.get_ref().0);
    let upgraded = Arc::new(AtomicBool::new(false));
    let upgrading = Arc::clone(&upgraded);
    let router = door
        .router
        .map_request(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Remote(remote));
            request
        })
        .map_response(move |response: Response| {
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                upgrading.store(true, Ordering::Relaxed);
            }
            response
        });
    let served = protocol()
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .with_upgrades();
    let mut served = pin!(served);
    let result = tokio::select! {
        result = served.as_mut() => result,
        () = door.closing.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, %remote, "connection ended early");
    }
    // An upgraded connection lives on in the task that speaks its protocol.
    if let Some(lingering) =
        lingering.filter(|_| !upgraded.load(Ordering::Relaxed) && !door.closing.is_cancelled())
    {
        lingering.close().await;
    }
}

/// The protocol with its limits.
pub(crate) fn protocol() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .half_close(true);
    builder
}
