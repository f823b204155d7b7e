//! Every bound of the front end, by name. What exceeds one is refused with that
//! bound in the message.

use std::time::Duration;

/// Connections that are open at once; further ones wait in the system's backlog.
pub(crate) const CONNECTIONS_MAX: usize = 1024;
/// A TLS handshake that takes longer is dropped.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A request's head that takes longer is dropped; so is a connection without requests.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// A body that takes longer is refused.
pub(crate) const BODY_TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes of a request's head: line and headers together.
pub(crate) const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Header fields of a request.
pub(crate) const HEADERS_MAX: usize = 64;
/// Bytes of a request's path and query.
pub(crate) const TARGET_BYTES_MAX: usize = 4 * 1024;
/// Bytes of a submission: a recipe with the lists that only the client knows.
pub(crate) const SUBMISSION_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Bytes of any other JSON body.
pub(crate) const JSON_BYTES_MAX: u64 = 64 * 1024;
/// Bytes of a batch of metric points.
pub(crate) const METRICS_BYTES_MAX: u64 = 1024 * 1024;
/// Bytes of an import: a statement over all files, and the manifests.
pub(crate) const IMPORT_BYTES_MAX: u64 = 128 * 1024 * 1024;
/// Runs that one request to cancel names.
pub(crate) const CANCEL_NAMES_MAX: usize = mlmesh_api::CANCEL_NAMES_MAX;
/// Bytes of a have-check: 32 for each object.
pub(crate) const HAVE_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Bytes of a batch of frames.
pub(crate) const BATCH_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Bytes of a tree's listing.
pub(crate) const LISTING_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Characters of an idempotency key.
pub(crate) const IDEMPOTENCY_KEY_CHARS_MAX: usize = 128;
/// Runs, audit rows or events of a page, at most.
pub(crate) const PAGE_ROWS_MAX: u32 = 500;
/// Runs, audit rows or events of a page, unless asked otherwise.
pub(crate) const PAGE_ROWS_DEFAULT: u32 = 100;
/// Log bytes of a page, at most.
pub(crate) const LOG_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Log bytes of a page, unless asked otherwise.
pub(crate) const LOG_BYTES_DEFAULT: u64 = 256 * 1024;
/// How long a call may wait for what it asks for.
pub(crate) const ANSWER_WAIT_MAX: Duration = Duration::from_secs(30);
/// How often a waiting call looks again where nothing is committed.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// The part of its wait that a call lets pass between two looks.
pub(crate) const LOOK_PAUSE_PART: u32 = 16;
/// Event streams that are open at once.
pub(crate) const EVENT_STREAMS_MAX: usize = 256;
/// A silent event stream is pinged this often.
pub(crate) const EVENT_PING_INTERVAL: Duration = Duration::from_secs(30);
/// A frame that an event stream cannot take for this long ends it.
pub(crate) const EVENT_SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a frame that a client may send on an event stream, where it has nothing to say.
pub(crate) const EVENT_FRAME_BYTES_MAX: usize = 4 * 1024;
/// Ended runs that `ml status` shows below the open ones.
pub(crate) const STATUS_ENDED_MAX: u32 = 20;
/// Queued and live runs that `ml status` shows.
pub(crate) const STATUS_OPEN_MAX: u32 = 50;
/// Failed keys that are written to the event log: one in this time, the rest counted.
pub(crate) const AUTH_FAILURE_RECORD_INTERVAL: Duration = Duration::from_secs(10);
/// Log lines that wait for the disk before the next ones are dropped (and counted).
pub(crate) const LOG_LINES_WAITING_MAX: usize = 8 * 1024;
/// Threads of the runtime.
pub(crate) const WORKER_THREADS: usize = 2;
/// Threads for calls that block: hashing, the content store.
pub(crate) const BLOCKING_THREADS_MAX: usize = 32;
/// The server's certificate is valid for so long.
pub(crate) const CERTIFICATE_DAYS: u64 = 397;
/// A certificate that expires within this time is replaced.
pub(crate) const CERTIFICATE_RENEW_DAYS: u64 = 60;
/// How often a running daemon looks at its certificate.
pub(crate) const CERTIFICATE_LOOK_INTERVAL: Duration = Duration::from_secs(12 * 3600);
/// How often a running daemon looks whether its data directory is still there.
pub(crate) const PLACE_LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How long a start waits for a port that something just gave up.
pub(crate) const PORT_WAIT: Duration = Duration::from_secs(2);
/// Bytes of a piece of a large object.
pub(crate) const PIECE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Bytes of a changed object's chunk list and new chunks.
pub(crate) const CHUNKS_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Objects that one batch brings.
pub(crate) const BATCH_RECORDS_MAX: u64 = 1 << 20;
/// Damage that a scrub names; the rest is counted.
pub(crate) const DEFECTS_MAX: usize = 1000;
/// Commits and runs that are named for one piece of damage.
pub(crate) const DEFECT_REFERENCES_MAX: usize = 20;
/// What was written within this time stays through a prune, unless asked otherwise.
pub(crate) const PRUNE_GRACE: Duration = Duration::from_secs(600);
/// How long the store may take to answer before the daemon is not ready.
pub(crate) const STORE_CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Users that are kept, removed ones too.
pub(crate) const USERS_MAX: usize = 10_000;

/// Keys that are accepted at once: each request is compared with all of them.
pub(crate) const KEYS_MAX: usize = 10_000;
/// How long requests under way may go on after the gateway was told to stop.
pub(crate) const GATEWAY_DRAIN_GRACE: Duration = Duration::from_secs(30);
/// Size of a usage log of the gateway, and how many older ones are kept.
pub(crate) const USAGE_LOG_BYTES_MAX: u64 = 64 << 20;
pub(crate) const USAGE_LOG_FILES_MAX: u32 = 16;
/// Ended requests that wait to be written; more are counted and not written.
pub(crate) const USAGE_LOG_LINES_MAX: usize = 16_384;
