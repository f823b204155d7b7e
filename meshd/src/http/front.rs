//! What every request passes: a request id, the bounds of its head, its key, and on
//! the way out a count and a line in `access.log`.
//!
//! ```text
//!   request ─► id ─► target short enough? ─► open route? ─no─► key known? ─► handler
//!                                                 └──────yes────────────────────┘
//!   answer ◄─ x-request-id ◄─ count, access.log ◄──────────────────────────────┘
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use mlmesh_api::{Timestamp, error_code};
use mlmesh_control::Caller;
use mlmesh_model::{
    ApiKey, AttemptNumber, AttemptRef, BuiltIn, Digest, Event, EventKind, FencingToken, Permission,
    Sequence, Tenant,
};
use serde::Serialize;

use super::body::until;
use super::listener::Remote;
use crate::daemon::Daemon;
use crate::handlers::metrics::Shown;
use crate::keys::{Known, find_token};
use crate::limits::{AUTH_FAILURE_RECORD_INTERVAL, TARGET_BYTES_MAX};
use crate::logs::LogFile;
use crate::needs::{Needs, needs};
use crate::reply::{AnsweredCode, ApiError, ApiResult};

/// Target of the trace of what each request passes, one `step` after the other.
const WAY: &str = "meshd::way";

/// The middleware around every route and around what is no route.
pub(crate) async fn front(
    State(daemon): State<Arc<Daemon>>,
    mut request: Request,
    next: Next,
) -> Response {
    let begun = Instant::now();
    let id = daemon.request_ids.next();
    let mut record = AccessRecord::of(&daemon, &request, id.clone());
    let checked = check(&daemon, &mut request, &mut record).await;
    let mut response = match checked {
        Ok(standing) => {
            tracing::debug!(target: WAY, step = "handle", request = record.id);
            handle(&daemon, standing, request, next).await
        }
        Err(error) => error.into_response(),
    };
    let duration = begun.elapsed();
    record.status = response.status().as_u16();
    record.duration_us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    record.code = response
        .extensions_mut()
        .remove::<AnsweredCode>()
        .map(|code| code.0);
    daemon.metrics.request(record.status, duration);
    tracing::debug!(target: WAY, step = "record", request = record.id, status = record.status);
    if let Ok(mut line) = serde_json::to_vec(&record) {
        line.push(b'\n');
        daemon.logs.line(LogFile::Access, line);
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

/// The key of a request and the permission by which it came in; none on routes that
/// are open, and with tokens of attempts, which end with the attempt.
pub(crate) type Standing = Option<(Digest, Option<Permission>)>;

/// Has the request answered. A read that is still waiting when its key is revoked, or
/// its holder's role narrowed, ends then, and so does a download that runs. A write is
/// carried out: it was allowed when it came.
async fn handle(
    daemon: &Arc<Daemon>,
    standing: Standing,
    request: Request,
    next: Next,
) -> Response {
    let Some((sha256, permission)) = standing.filter(|_| request.method() == Method::GET) else {
        return next.run(request).await;
    };
    let keys = Arc::clone(daemon);
    let lost = async move { keys.keys.lost(sha256, permission).await };
    tokio::select! {
        biased;
        response = next.run(request) => response.map(|body| until(lost, body)),
        () = daemon.keys.lost(sha256, permission) => unauthenticated(
            "the API key was revoked, or may not do this any more",
        )
        .into_response(),
    }
}

async fn check(
    daemon: &Daemon,
    request: &mut Request,
    record: &mut AccessRecord,
) -> ApiResult<Standing> {
    let target = request
        .uri()
        .path_and_query()
        .map_or(0, |target| target.as_str().len());
    if target > TARGET_BYTES_MAX {
        return Err(ApiError::new(
            StatusCode::URI_TOO_LONG,
            error_code::BAD_PARAMETER,
            format!("path and query have {target} bytes, {TARGET_BYTES_MAX} are taken"),
            "ask for less at once",
        ));
    }
    tracing::debug!(target: WAY, step = "bound", request = record.id);
    let needs = needs(request.method(), request.extensions().get::<MatchedPath>());
    if needs == Needs::Nothing {
        return Ok(None);
    }
    match admitted(daemon, request, needs, record).await {
        Err(error) if error.status == StatusCode::UNAUTHORIZED => {
            failed_key(daemon, record).await;
            Err(error)
        }
        checked => checked,
    }
}

/// Finds out who shows the key of this request, and whether they may make it.
async fn admitted(
    daemon: &Daemon,
    request: &mut Request,
    needs: Needs,
    record: &mut AccessRecord,
) -> ApiResult<Standing> {
    let shown = request
        .headers()
        .get(header::AUTHORIZATION)
        .ok_or_else(|| unauthenticated("the request shows no API key"))?;
    let shown = shown
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map_or("", |(_, key)| key.trim())
        .to_owned();
    let (known, attempt) = match daemon.keys.find(&shown) {
        Some(known) => (known, None),
        None => {
            let key = find_token(&*daemon.store, &shown).await?;
            let key = key.ok_or_else(|| unauthenticated("the API key is not known"))?;
            record.key = Some(key.name.clone());
            let attempt = own_attempt(&key, request, needs)?;
            (Known::attempt(key), Some(attempt))
        }
    };
    let key = known.key;
    record.key = Some(key.name.clone());
    tracing::debug!(target: WAY, step = "authenticate", request = record.id, key = key.name);
    tracing::debug!(target: WAY, step = "authorise", request = record.id);
    let standing = attempt.is_none().then(|| (key.sha256, needs.of_user()));
    let caller = Caller {
        daemon_owner: attempt.is_none() && key.owner == daemon.owner,
        tenant: key.tenant,
        owner: key.owner,
        key: key.name,
        remote: remote(request),
        role: known.role,
        permissions: known.permissions,
    };
    if let (None, Some(permission)) = (attempt, needs.of_user())
        && !caller.may(permission)
    {
        return Err(refused(&caller, permission, request));
    }
    request.extensions_mut().insert(caller);
    request.extensions_mut().insert(Shown(attempt));
    request.extensions_mut().insert(standing);
    Ok(standing)
}

fn unauthenticated(message: &str) -> ApiError {
    ApiError::new(
        StatusCode::UNAUTHORIZED,
        error_code::UNAUTHENTICATED,
        message,
        "send `Authorization: Bearer KEY`; `owner.key` in the data directory holds one, an admin makes others: `ml key add`",
    )
}

/// What a role does not allow.
fn refused(caller: &Caller, permission: Permission, request: &Request) -> ApiError {
    if permission.is_of_attempts() {
        return ApiError::new(
            StatusCode::FORBIDDEN,
            error_code::FORBIDDEN,
            "points are an attempt's own: only its token may add some, and this is another key",
            "a job with `api: true` finds its token in the file that MLMESH_TOKEN_FILE names",
        );
    }
    let path = request.extensions().get::<MatchedPath>();
    let path = path.map_or("/", MatchedPath::as_str);
    let what = format!("`{} {path}`", request.method());
    caller.denied(permission, what).into()
}

/// The attempt of a token, where the request is one that its token may make.
fn own_attempt(key: &ApiKey, request: &Request, needs: Needs) -> ApiResult<AttemptRef> {
    let refused = || {
        ApiError::new(
            StatusCode::FORBIDDEN,
            error_code::FORBIDDEN,
            "the token of an attempt reaches its own run only: GET of the run and of its attempts, POST of its metrics",
            "name the run by its whole id, or use an API key",
        )
    };
    let run = key.run.ok_or_else(refused)?;
    let number = AttemptNumber::of_key_name(&key.name).ok_or_else(refused)?;
    let allowed = BuiltIn::Attempt.permissions();
    let is_taken = needs.of_attempt().is_some_and(|one| allowed.has(one));
    let is_own = request.uri().path().split('/').nth(3) == Some(&*run.to_string());
    if !is_taken || !is_own {
        return Err(refused());
    }
    Ok(AttemptRef {
        run,
        number,
        // An attempt is found by its number; what fences it is that its token is gone.
        token: FencingToken(0),
    })
}

/// A failed key always counts; the event log has one in a while, so that nobody can
/// fill the store without a key.
async fn failed_key(daemon: &Daemon, record: &AccessRecord) {
    daemon
        .metrics
        .auth_failures_total
        .fetch_add(1, Ordering::Relaxed);
    if !daemon.key_failures.is_due(daemon.clock.monotonic_us()) {
        return;
    }
    tracing::warn!(remote = %record.remote, "a request showed no key that is known");
    let event = Event {
        seq: Sequence(0),
        time: daemon.clock.now(),
        tenant: Tenant::default(),
        owner: daemon.owner.clone(),
        run: None,
        kind: EventKind::Security {
            code: error_code::UNAUTHENTICATED.to_owned(),
            remote: record.remote.clone(),
        },
    };
    if let Err(error) = daemon.store.record(Some(event), None).await {
        tracing::warn!(%error, "a failed key could not be recorded");
    }
}

/// Lets something through once in [`AUTH_FAILURE_RECORD_INTERVAL`].
#[derive(Debug, Default)]
pub(crate) struct OnceInAWhile {
    next_us: AtomicU64,
}

impl OnceInAWhile {
    fn is_due(&self, now_us: u64) -> bool {
        let next = self.next_us.load(Ordering::Relaxed);
        let later = now_us + AUTH_FAILURE_RECORD_INTERVAL.as_micros() as u64;
        now_us >= next
            && self
                .next_us
                .compare_exchange(next, later, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

/// Names requests: a part for the process and a number.
#[derive(Debug)]
pub(crate) struct RequestIds {
    process: String,
    number: AtomicU64,
}

impl RequestIds {
    pub(crate) fn new(random: u32) -> Self {
        Self {
            process: format!("{random:08x}"),
            number: AtomicU64::new(1),
        }
    }

    fn next(&self) -> String {
        format!(
            "{}-{}",
            self.process,
            self.number.fetch_add(1, Ordering::Relaxed)
        )
    }
}

/// A line of `access.log`. Queries are left out, bodies and keys too.
#[derive(Debug, Serialize)]
struct AccessRecord {
    time: Timestamp,
    id: String,
    remote: String,
    method: String,
    path: String,
    key: Option<String>,
    status: u16,
    code: Option<String>,
    duration_us: u64,
}

impl AccessRecord {
    fn of(daemon: &Daemon, request: &Request, id: String) -> Self {
        Self {
            time: Timestamp(daemon.clock.now()),
            id,
            remote: remote(request),
            method: request.method().as_str().chars().take(16).collect(),
            path: request.uri().path().chars().take(256).collect(),
            key: None,
            status: 0,
            code: None,
            duration_us: 0,
        }
    }
}

fn remote(request: &Request) -> String {
    request
        .extensions()
        .get::<Remote>()
        .map_or_else(|| "local".to_owned(), |remote| remote.0.ip().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_recorded_once_in_a_while() {
        let gate = OnceInAWhile::default();
        let later = 5 + AUTH_FAILURE_RECORD_INTERVAL.as_micros() as u64;
        assert!(gate.is_due(5));
        assert!(!gate.is_due(6));
        assert!(!gate.is_due(later - 1));
        assert!(gate.is_due(later));
    }
}
