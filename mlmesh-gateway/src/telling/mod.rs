//! What is told of each request when it has ended: a span for a collector of traces
//! (OpenTelemetry), a line for a log.
//!
//! ```text
//!   head ─► Trip (ids; goes to the engine) ─► end of the response ─► Done
//!                                                    │ bounded, never waited for
//!                               a thread: batches ◄──┴──► whoever writes the log
//! ```
//!
//! The engine gets the trace of the client (W3C Trace Context) with the gateway's span as
//! its parent, and one request id; nothing is parsed or written where nobody asks for it.

mod export;
mod otlp;

use std::hash::{BuildHasher as _, RandomState};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;

use mlmesh_route::mixed_pair;
use thiserror::Error;
use tokio::sync::mpsc;

use crate::limits::{REQUEST_ID_BYTES_MAX, SPANS_WAITING_MAX, TOLD_PATH_BYTES_MAX};
use crate::signals::SnapshotCell;
use crate::target::{Target, TargetError};

/// Who is told of requests.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// A collector of traces.
    pub collector: Option<Collector>,
    /// Who writes a line for each request. One that is full is not waited for.
    pub log: Option<SyncSender<Done>>,
    /// What time it is when the gateway starts, in microseconds of Unix time.
    pub unix_us: u64,
}

/// Where spans go, by OTLP 1.
#[derive(Debug, Clone)]
pub struct Collector {
    pub(crate) at: Target,
    pub(crate) by: By,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum By {
    /// Protobuf over HTTP/1.1, to this path.
    Http(String),
    Grpc,
}

/// Why a text names no collector.
#[derive(Debug, Error)]
#[error("`{seen}` is no collector: `http://HOST:PORT[/PATH]`, or `grpc://HOST:PORT`")]
pub struct CollectorError {
    /// What was typed.
    pub seen: String,
    #[source]
    source: TargetError,
}

/// A request that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// The client's, or made here; the engine got it, too.
    pub request_id: String,
    /// The trace, in hexadecimal digits.
    pub trace_id: String,
    /// The gateway's span, which the engine has as its parent.
    pub span_id: String,
    /// The client's span, if it named one.
    pub parent_id: Option<String>,
    pub method: String,
    /// Without its query.
    pub path: String,
    /// Who answered, or was asked last.
    pub target: Option<String>,
    /// Zero where the answer broke off before it had one, or the client was gone.
    pub status: u16,
    /// In microseconds of Unix time.
    pub began_us: u64,
    /// From the head of the request to the end of the response.
    pub took_us: u64,
}

/// Tells what requests tell it.
#[derive(Debug)]
pub(crate) struct Teller {
    clock: SnapshotCell,
    unix_us: u64,
    key: u64,
    trips: AtomicU64,
    log: Option<SyncSender<Done>>,
    spans: Option<mpsc::Sender<Done>>,
    pub(crate) counts: Arc<Counts>,
}

/// What became of spans and lines.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) exported: AtomicU64,
    /// The collector did not take them.
    pub(crate) failed: AtomicU64,
    /// Too many waited.
    pub(crate) left_out: AtomicU64,
    pub(crate) lines_left_out: AtomicU64,
}

/// A request under way, of which will be told when this is dropped.
#[derive(Debug)]
pub(crate) struct Trip {
    teller: Arc<Teller>,
    trace: [u64; 2],
    span: u64,
    parent: Option<u64>,
    is_sampled: bool,
    request_id: String,
    method: String,
    path: String,
    began_us: u64,
    pub(crate) target: Option<String>,
    pub(crate) status: u16,
}

/// A teller, if there is one, and the thread that exports for it, if one does.
type Started = (Option<Arc<Teller>>, Option<JoinHandle<()>>);

impl Teller {
    /// With the thread that exports spans, where they are wanted. `None` if nobody wants
    /// to know anything.
    pub(crate) fn start(told: Told, clock: SnapshotCell) -> std::io::Result<Started> {
        if told.collector.is_none() && told.log.is_none() {
            return Ok((None, None));
        }
        let counts = Arc::new(Counts::default());
        let (spans, thread) = match told.collector {
            Some(collector) => {
                let (sender, spans) = mpsc::channel(SPANS_WAITING_MAX);
                let thread = export::start(collector, spans, Arc::clone(&counts))?;
                (Some(sender), Some(thread))
            }
            None => (None, None),
        };
        let teller = Teller {
            unix_us: told.unix_us.saturating_sub(clock.now_us()),
            clock,
            key: RandomState::new().hash_one("trips"),
            trips: AtomicU64::new(0),
            log: told.log,
            spans,
            counts,
        };
        Ok((Some(Arc::new(teller)), thread))
    }

    /// A request has come, with what its head says of a trace and of itself.
    pub(crate) fn begin(
        self: &Arc<Self>,
        method: &str,
        path: &str,
        traceparent: Option<&[u8]>,
        request_id: Option<&[u8]>,
    ) -> Trip {
        let number = self.trips.fetch_add(1, Ordering::Relaxed);
        let drawn = |salt: u64| mixed_pair(self.key ^ salt, number).max(1);
        let given = traceparent.and_then(context);
        let (trace, parent, is_sampled) = match given {
            Some((trace, parent, is_sampled)) => (trace, Some(parent), is_sampled),
            None => ([drawn(1), drawn(2)], None, true),
        };
        let request_id = request_id.filter(|id| is_plain(id));
        let request_id = match request_id {
            Some(id) => String::from_utf8_lossy(id).into_owned(),
            None => format!("{:016x}", drawn(4)),
        };
        let path = path.split('?').next().unwrap_or(path);
        Trip {
            trace,
            span: drawn(3),
            parent,
            is_sampled,
            request_id,
            method: method.to_owned(),
            path: path.chars().take(TOLD_PATH_BYTES_MAX).collect(),
            began_us: self.clock.now_us(),
            target: None,
            status: 0,
            teller: Arc::clone(self),
        }
    }
}

impl Trip {
    /// What the engine gets as `traceparent`.
    pub(crate) fn traceparent(&self) -> String {
        let [high, low] = self.trace;
        let flags = u8::from(self.is_sampled);
        format!("00-{high:016x}{low:016x}-{:016x}-{flags:02x}", self.span)
    }

    pub(crate) fn request_id(&self) -> &str {
        &self.request_id
    }
}

impl Drop for Trip {
    fn drop(&mut self) {
        let teller = &self.teller;
        let [high, low] = self.trace;
        let take = std::mem::take::<String>;
        let done = Done {
            request_id: take(&mut self.request_id),
            trace_id: format!("{high:016x}{low:016x}"),
            span_id: format!("{:016x}", self.span),
            parent_id: self.parent.map(|parent| format!("{parent:016x}")),
            method: take(&mut self.method),
            path: take(&mut self.path),
            target: self.target.take(),
            status: self.status,
            began_us: teller.unix_us.saturating_add(self.began_us),
            took_us: teller.clock.now_us().saturating_sub(self.began_us),
        };
        let counts = &teller.counts;
        if let Some(log) = &teller.log
            && log.try_send(done.clone()).is_err()
        {
            counts.lines_left_out.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(spans) = teller.spans.as_ref().filter(|_| self.is_sampled)
            && spans.try_send(done).is_err()
        {
            counts.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Families of the page that Prometheus reads; nothing where nothing is told.
pub(crate) fn text(teller: Option<&Teller>) -> String {
    let Some(teller) = teller else {
        return String::new();
    };
    let counts = &teller.counts;
    let spans = "mlmesh_gateway_spans_total";
    let lines = "mlmesh_gateway_request_log_left_out_total";
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    format!(
        "# HELP {spans} Spans of requests, by what became of them.\n# TYPE {spans} counter\n\
         {spans}{{outcome=\"exported\"}} {}\n{spans}{{outcome=\"failed\"}} {}\n\
         {spans}{{outcome=\"left_out\"}} {}\n\
         # HELP {lines} Requests for which the log had no room.\n# TYPE {lines} counter\n\
         {lines} {}\n",
        of(&counts.exported),
        of(&counts.failed),
        of(&counts.left_out),
        of(&counts.lines_left_out),
    )
}

/// Trace, parent and whether it is sampled (W3C Trace Context, section 3.2).
fn context(value: &[u8]) -> Option<([u64; 2], u64, bool)> {
    let text = std::str::from_utf8(value).ok()?;
    let mut parts = text.split('-');
    let (version, trace) = (parts.next()?, parts.next()?);
    let (parent, flags) = (parts.next()?, parts.next()?);
    let is_hex = |text: &str| {
        let mut bytes = text.bytes();
        bytes.all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let lengths = [version, trace, parent, flags].map(str::len);
    let all_hex = [version, trace, parent, flags].into_iter().all(is_hex);
    // Later versions may say more behind; this one may not.
    let is_over = version != "00" || parts.next().is_none();
    if lengths != [2, 32, 16, 2] || !all_hex || version == "ff" || !is_over {
        return None;
    }
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let trace = [number(&trace[..16])?, number(&trace[16..])?];
    let parent = number(parent)?;
    let is_sampled = number(flags)? & 1 == 1;
    (trace != [0, 0] && parent != 0).then_some((trace, parent, is_sampled))
}

/// Whether an id may be written on.
fn is_plain(id: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte);
    (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.iter().all(plain)
}

impl FromStr for Collector {
    type Err = CollectorError;

    fn from_str(text: &str) -> Result<Collector, CollectorError> {
        let failed = |source| CollectorError {
            seen: text.chars().take(200).collect(),
            source,
        };
        if let Some(host) = text.strip_prefix("grpc://") {
            let at = format!("http://{host}").parse().map_err(failed)?;
            let by = By::Grpc;
            return Ok(Collector { at, by });
        }
        let host_at = text.find("://").map_or(0, |place| place + 3);
        let slash = text[host_at..].find('/').map(|place| place + host_at);
        let (base, path) = text.split_at(slash.unwrap_or(text.len()));
        let path = match path {
            "" | "/" => "/v1/traces",
            path => path,
        };
        Ok(Collector {
            at: base.parse().map_err(failed)?,
            by: By::Http(path.to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_context_is_taken() {
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let (ids, parent, is_sampled) = context(trace.as_bytes()).unwrap();
        assert_eq!(ids, [0x0af7_6519_16cd_43dd, 0x8448_eb21_1c80_319c]);
        assert_eq!((parent, is_sampled), (0xb7ad_6b71_6920_3331, true));
        let later = trace.replacen("00", "cc", 1) + "-what-the-future-brings";
        assert!(context(later.as_bytes()).is_some());
        for wrong in [
            "",
            "00",
            &trace.to_uppercase(),
            &trace.replacen("00", "ff", 1),
            &format!("{trace}-more"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333-01",
        ] {
            assert!(context(wrong.as_bytes()).is_none(), "{wrong}");
        }
    }

    #[test]
    fn collectors_are_addresses_with_a_protocol() {
        let path = |text: &str| match text.parse::<Collector>().unwrap().by {
            By::Http(path) => path,
            By::Grpc => "gRPC".to_owned(),
        };
        assert_eq!(path("http://127.0.0.1:4318"), "/v1/traces");
        assert_eq!(path("http://127.0.0.1:4318/"), "/v1/traces");
        assert_eq!(path("http://127.0.0.1:4318/a/b"), "/a/b");
        assert_eq!(path("grpc://127.0.0.1:4317"), "gRPC");
        for wrong in ["", "127.0.0.1:4318", "https://127.0.0.1:1", "grpc://a/b"] {
            assert!(wrong.parse::<Collector>().is_err(), "{wrong}");
        }
    }
}
