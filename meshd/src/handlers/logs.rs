//! Logs of attempts, page by page; a page that would be empty waits for something.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use mlmesh_api::LogPageDto;
use mlmesh_control::Caller;
use mlmesh_model::{AttemptNumber, AttemptRef, ExecError, LogPage, Permission, Run};

use super::run_name::{self, reached};
use super::wait::Looks;
use crate::daemon::Daemon;
use crate::http::query::{PathParts, Query};
use crate::limits::{LOG_BYTES_DEFAULT, LOG_BYTES_MAX};
use crate::reply::{ApiError, ApiResult, ok};

pub(crate) async fn page(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
    RawQuery(query): RawQuery,
) -> ApiResult<Response> {
    let query = Query::parse(query.as_deref(), &["attempt", "from", "max", "wait_ms"])?;
    let asked = query.parsed::<u32>("attempt", "the number of an attempt")?;
    let from = query.number("from", "a place in the log")?.unwrap_or(0);
    let bytes_max = query.number("max", "a number of bytes")?;
    let bytes_max = bytes_max
        .unwrap_or(LOG_BYTES_DEFAULT)
        .clamp(1, LOG_BYTES_MAX);
    let mut looks = Looks::of(&daemon, &query)?;
    let closed = Permission::OutputsReadOthers;
    let first = reached(&daemon, &caller, path.first(), closed, "to read the log of").await?;
    let id = first.id;
    let mut run = Some(first);
    loop {
        let current = match run.take() {
            Some(run) => run,
            None => run_name::run(&daemon, &caller, &id.to_string()).await?,
        };
        let number = asked.unwrap_or(current.attempts);
        let page = read(&daemon, &current, number, from, bytes_max).await?;
        let has_news = !page.lines.is_empty() || page.complete;
        if has_news || !looks.again().await {
            return Ok(ok(&LogPageDto::new(id, number, &page)));
        }
    }
}

async fn read(
    daemon: &Daemon,
    run: &Run,
    number: u32,
    from: u64,
    bytes_max: u64,
) -> ApiResult<LogPage> {
    let nothing = |complete| LogPage {
        lines: Vec::new(),
        next: from,
        complete,
    };
    if number == 0 && run.attempts == 0 {
        return Ok(nothing(run.phase.is_ended()));
    }
    let attempts = daemon.store.attempts(run.id).await?;
    let attempt = attempts
        .iter()
        .find(|attempt| attempt.number == AttemptNumber(number))
        .ok_or_else(|| {
            ApiError::not_found(
                format!("run `{}` has no attempt {number}", run.id),
                format!("it has had {}", attempts.len()),
            )
        })?;
    let lease = AttemptRef {
        run: run.id,
        number: attempt.number,
        token: attempt.token,
    };
    match daemon.executor.read_log(lease, from, bytes_max).await {
        // Leased, and its folder is not made yet, or was pruned since.
        Err(ExecError::NoAttempt(_)) => Ok(nothing(attempt.ended_at.is_some())),
        other => Ok(other?),
    }
}
