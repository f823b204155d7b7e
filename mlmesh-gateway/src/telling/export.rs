//! The thread that hands spans to a collector, some at a time.
//!
//! A batch that the collector does not take within its time is counted and forgotten:
//! traces are there to look at, and memory is there for requests.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue, TE};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use crate::http2::Here;
use crate::limits::{EXPORT_BYTES_MAX, EXPORT_PAUSE, EXPORT_WAIT, SPANS_EXPORTED_MAX};
use crate::telling::{By, Collector, Counts, Done, otlp};

const GRPC_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// Why a collector did not take a batch.
#[derive(Debug, Error)]
enum ExportError {
    #[error("no connection: {0}")]
    Connect(#[from] std::io::Error),
    #[error("no HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("no request: {0}")]
    Request(#[from] hyper::http::Error),
    #[error("it answers {0}")]
    Status(StatusCode),
    #[error("its answer breaks off: {0}")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("`grpc-status` is {0:?}, not `0`")]
    Grpc(Option<HeaderValue>),
}

/// Exports until the last sender is gone, and what is left then.
pub(crate) fn start(
    collector: Collector,
    spans: mpsc::Receiver<Done>,
    counts: Arc<Counts>,
) -> std::io::Result<JoinHandle<()>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name("gateway-traces".to_owned());
    thread.spawn(move || {
        let all = export(&collector, spans, &counts);
        LocalSet::new().block_on(&runtime, all);
    })
}

async fn export(collector: &Collector, mut spans: mpsc::Receiver<Done>, counts: &Counts) {
    let mut batch = Vec::new();
    // Said once, not with each batch.
    let mut is_failing = false;
    while spans.recv_many(&mut batch, SPANS_EXPORTED_MAX).await > 0 {
        if batch.len() < SPANS_EXPORTED_MAX && !spans.is_closed() {
            sleep(EXPORT_PAUSE).await;
            while batch.len() < SPANS_EXPORTED_MAX
                && let Ok(done) = spans.try_recv()
            {
                batch.push(done);
            }
        }
        let body = otlp::request(&batch);
        let sent = timeout(EXPORT_WAIT, send(collector, body)).await;
        let failure = match sent {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("no answer in time".to_owned()),
        };
        let count = match &failure {
            None => &counts.exported,
            Some(_) => &counts.failed,
        };
        count.fetch_add(batch.len() as u64, Ordering::Relaxed);
        if let Some(reason) = failure {
            if !std::mem::replace(&mut is_failing, true) {
                let collector = collector.at.host();
                tracing::warn!(collector, reason, "a collector does not take spans");
            }
        } else {
            is_failing = false;
        }
        batch.clear();
    }
}

async fn send(collector: &Collector, body: Vec<u8>) -> Result<(), ExportError> {
    let stream = TcpStream::connect(collector.at.addresses()).await?;
    let stream = TokioIo::new(stream);
    let host = collector.at.host();
    match &collector.by {
        By::Http(path) => {
            let request = Request::post(path)
                .header(HOST, host)
                .header(CONTENT_TYPE, "application/x-protobuf")
                .body(Full::new(Bytes::from(body)))?;
            let (mut sender, connection) = http1::handshake(stream).await?;
            let answer = async {
                let response = sender.send_request(request).await?;
                is_good(&response)?;
                let body = Limited::new(response.into_body(), EXPORT_BYTES_MAX);
                body.collect().await.map(drop).map_err(ExportError::Body)
            };
            along(connection, answer).await
        }
        By::Grpc => {
            // One message, not compressed, behind its length.
            let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
            let framed = [&[0], &length[..], &body].concat();
            let request = Request::post(format!("http://{host}{GRPC_PATH}"))
                .header(CONTENT_TYPE, "application/grpc")
                .header(TE, "trailers")
                .body(Full::new(Bytes::from(framed)))?;
            let tasks = Here(TaskTracker::new());
            let (mut sender, connection) = http2::handshake(tasks, stream).await?;
            let answer = async {
                let response = sender.send_request(request).await?;
                is_good(&response)?;
                let head = response.headers().get("grpc-status").cloned();
                let body = Limited::new(response.into_body(), EXPORT_BYTES_MAX);
                let collected = body.collect().await.map_err(ExportError::Body)?;
                let trailers = collected.trailers();
                let status = trailers.and_then(|trailers| trailers.get("grpc-status").cloned());
                match status.or(head) {
                    Some(status) if status == "0" => Ok(()),
                    status => Err(ExportError::Grpc(status)),
                }
            };
            along(connection, answer).await
        }
    }
}

fn is_good(response: &Response<Incoming>) -> Result<(), ExportError> {
    match response.status().is_success() {
        true => Ok(()),
        false => Err(ExportError::Status(response.status())),
    }
}

/// An answer, with the connection that works for it as long as it is waited for.
async fn along<T>(
    connection: impl Future<Output = T>,
    answer: impl Future<Output = Result<(), ExportError>>,
) -> Result<(), ExportError> {
    let mut connection = Box::pin(connection);
    let mut answer = pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        _ = &mut connection => {
            drop(connection);
            answer.await
        }
    }
}
