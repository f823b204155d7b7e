//! Every bound of the data plane, by name.

use std::time::Duration;

/// Bytes of a request's or a response's head, and of a chunked body's trailers.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Header fields of one head.
pub const HEADERS_MAX: usize = 100;
/// Bytes read or written at once. A head with what is added to it fits.
pub const BUFFER_BYTES: usize = 32 * 1024;
/// Unused buffers that a thread keeps.
pub const SPARE_BUFFERS_MAX: usize = 256;
/// Bytes of a request's body that are read before a target is chosen; what comes after
/// them is passed on as it comes, and decides nothing.
pub const BODY_READ_MAX: usize = 2 * 1024 * 1024;
/// Bytes of a buffer that holds a body which does not fit the usual one.
pub const GROWN_BYTES: usize = 256 * 1024;
/// Unused ones of those that a thread keeps.
pub const SPARE_GROWN_MAX: usize = 16;
/// Bytes of them in use at once in a thread. Beyond, a target is chosen by the beginning
/// of a body.
pub const GROWN_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Bytes of one chunk's extensions.
pub const CHUNK_EXTENSION_BYTES_MAX: usize = 1024;
/// Interim responses (1xx) that one request may get.
pub const INTERIM_MAX: usize = 16;
/// Requests at once over one connection of HTTP/2.
pub const STREAMS_MAX: u32 = 256;
/// How often the other side of a connection of HTTP/2 is asked whether it is there.
pub const PING_INTERVAL: Duration = Duration::from_secs(20);
/// How long its answer may take.
pub const PING_WAIT: Duration = Duration::from_secs(20);
/// Idle connections to one target that a thread keeps.
pub const IDLE_UPSTREAM_MAX: usize = 256;
/// Clients' connections of one thread.
pub const CLIENTS_MAX: usize = 16_384;
/// Connections that wait to be accepted.
pub const BACKLOG: u32 = 1024;
/// Threads of one gateway.
pub const THREADS_MAX: usize = 256;
/// Targets of one gateway.
pub const TARGETS_MAX: usize = 512;
/// How targets are chosen, unless it is said.
pub const STRATEGY: &str = "hybrid_mesh";
/// What a first token may take, beside twice what its prompt takes an empty target.
pub const TTFT_SLO: Duration = Duration::from_secs(30);
/// Bytes of a target's host with its port.
pub const HOST_BYTES_MAX: usize = 262;
/// Bytes that a client may still send after its connection's last response.
pub const LINGER_BYTES_MAX: usize = 1024 * 1024;
/// Pause after an accept that failed, for the want of file descriptors above all.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What is known of the targets is not believed when it is older: whoever puts it
/// together has stopped.
pub const SNAPSHOT_AGE_MAX: Duration = Duration::from_secs(10);
/// What is known of the targets is put together at least so often.
pub const SNAPSHOT_PERIOD: Duration = Duration::from_secs(1);
/// How often an engine is asked for its metrics.
pub const SIGNAL_PERIOD: Duration = Duration::from_secs(1);
/// The same where there are few of them.
pub const SIGNAL_PERIOD_SMALL: Duration = Duration::from_millis(250);
/// So many are few.
pub const SIGNAL_FLEET_SMALL: usize = 8;
/// How often one is asked that has no page which is known.
pub const SIGNAL_PERIOD_UNRECOGNISED: Duration = Duration::from_secs(10);
/// States of GPUs that wait to be taken in.
pub const NVML_STATES_MAX: usize = 4;
/// How long a page of metrics may take.
pub const SIGNAL_WAIT: Duration = Duration::from_secs(2);
/// Targets whose signals stand one by one on the page of metrics.
pub const SIGNAL_SERIES_TARGETS_MAX: usize = 64;
/// Bytes of a client's `X-Request-Id`; a longer one is replaced.
pub const REQUEST_ID_BYTES_MAX: usize = 128;
/// Characters of a path that are told.
pub const TOLD_PATH_BYTES_MAX: usize = 200;
/// Spans that wait to be exported; more are left out and counted.
pub const SPANS_WAITING_MAX: usize = 8192;
/// Spans in one request to a collector.
pub const SPANS_EXPORTED_MAX: usize = 512;
/// How long spans gather.
pub const EXPORT_PAUSE: Duration = Duration::from_millis(250);
/// How long a collector may take.
pub const EXPORT_WAIT: Duration = Duration::from_secs(3);
/// Bytes of a collector's answer.
pub const EXPORT_BYTES_MAX: usize = 64 * 1024;

/// How long the gateway waits, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waits {
    /// For the whole head of a request, from its first byte on.
    pub head: Duration,
    /// For the next request on a client's connection.
    pub idle: Duration,
    /// For more of a request's body.
    pub request_body: Duration,
    /// For a connection to a target.
    pub connect: Duration,
    /// For the head of a target's response: an engine may queue for long.
    pub response_head: Duration,
    /// For more of a target's response.
    pub response_body: Duration,
    /// For a client to take what is sent to it.
    pub client_write: Duration,
    /// For a client to close after its connection's last response.
    pub linger: Duration,
    /// How old an idle connection to a target may be. Common engines' servers close
    /// theirs after five seconds; one that is closed while a request travels fails it.
    pub idle_upstream: Duration,
    /// For the first byte of a request on a connection that is idle when a drain begins.
    pub drain_idle: Duration,
}

impl Default for Waits {
    fn default() -> Waits {
        let seconds = Duration::from_secs;
        Waits {
            head: seconds(10),
            idle: seconds(75),
            request_body: seconds(30),
            connect: seconds(3),
            response_head: seconds(600),
            response_body: seconds(300),
            client_write: seconds(60),
            linger: seconds(2),
            idle_upstream: seconds(4),
            drain_idle: Duration::from_millis(250),
        }
    }
}
