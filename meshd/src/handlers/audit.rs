//! The audit trail: pages of it, and the check of the whole chain.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use mlmesh_api::{AUDIT_SCHEMA, AUDIT_VERDICT_SCHEMA, AuditDto, AuditRowDto, AuditVerdictDto};
use mlmesh_control::Caller;
use mlmesh_model::{AuditRow, Store, StoreError};
use mlmesh_store::{AuditDefect, AuditHead, verify_chain};
use tokio::runtime::Handle;

use super::page_rows;
use crate::daemon::Daemon;
use crate::http::body::blocking;
use crate::http::query::Query;
use crate::logs::logged_rows;
use crate::reply::{ApiResult, ok};

/// Rows that the check reads at once.
const ROWS_READ_MAX: u32 = 1000;

pub(crate) async fn list(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    RawQuery(query): RawQuery,
) -> ApiResult<Response> {
    let query = Query::parse(query.as_deref(), &["after", "limit"])?;
    let after = query.number("after", "the number of a row")?.unwrap_or(0);
    let limit = page_rows(&query)?;
    let rows = daemon.store.audit_rows(after, limit).await?;
    let full = rows.len() as u32 >= limit;
    Ok(ok(&AuditDto {
        schema: AUDIT_SCHEMA.to_owned(),
        next_cursor: rows.last().filter(|_| full).map(|row| row.n),
        rows: rows
            .iter()
            .filter(|row| row.note.tenant == caller.tenant)
            .map(AuditRowDto::from)
            .collect(),
    }))
}

/// Walks the chain and compares it with the rows that `audit.log` saw, then its end
/// with the store's own note of it. All of the log's rows count, not the last alone:
/// whoever cuts the trail off and goes on with it leaves an end that fits.
pub(crate) async fn verify(State(daemon): State<Arc<Daemon>>) -> ApiResult<Response> {
    let head = daemon.open_store.audit_head().await?;
    let logs = daemon.root.join("logs");
    let store = Arc::clone(&daemon.store);
    let runtime = Handle::current();
    let (verdict, failure) = blocking(move || {
        let logged = logged_rows(&logs);
        let last = logged.last_key_value().map(|(n, hash)| (*n, *hash));
        let mut rows = Rows::new(store, runtime);
        let mut rewritten = None;
        let seen = rows.by_ref().inspect(|row| {
            if logged.get(&row.n).is_some_and(|hash| *hash != row.hash) {
                rewritten.get_or_insert(row.n);
            }
        });
        let verdict = verify_chain(seen, last);
        let verdict = match (verdict, rewritten) {
            (Ok(_), Some(n)) => Err(AuditDefect::Rewritten { n }),
            (verdict, _) => verdict,
        };
        (verdict, rows.failure)
    })
    .await?;
    if let Some(failure) = failure {
        return Err(failure.into());
    }
    Ok(ok(&verdict_dto(verdict, head)))
}

fn verdict_dto(verdict: Result<AuditHead, AuditDefect>, noted: AuditHead) -> AuditVerdictDto {
    let rows = verdict.as_ref().map_or(noted.n, |found| found.n);
    let defect = match verdict {
        Err(defect) => Some(defect),
        // Rows may have been added since the note was read, never removed.
        Ok(found) if found.n < noted.n => Some(AuditDefect::Truncated {
            expected: noted.n,
            found: found.n,
        }),
        Ok(found) if found.n == noted.n && found.hash != noted.hash => {
            Some(AuditDefect::Rewritten { n: noted.n })
        }
        Ok(_) => None,
    };
    AuditVerdictDto {
        schema: AUDIT_VERDICT_SCHEMA.to_owned(),
        ok: defect.is_none(),
        rows,
        first_bad: defect.as_ref().map(first_bad),
        message: defect.map_or_else(String::new, |defect| defect.to_string()),
    }
}

fn first_bad(defect: &AuditDefect) -> u64 {
    match *defect {
        AuditDefect::Missing { expected, .. } | AuditDefect::OutOfOrder { expected, .. } => {
            expected
        }
        AuditDefect::Edited { n } | AuditDefect::Unlinked { n } | AuditDefect::Rewritten { n } => n,
        AuditDefect::Truncated { found, .. } => found + 1,
    }
}

/// The rows of the store, a page at a time, for a reader that is not asynchronous.
struct Rows {
    store: Arc<dyn Store>,
    runtime: Handle,
    page: std::vec::IntoIter<AuditRow>,
    after: u64,
    failure: Option<StoreError>,
}

impl Rows {
    fn new(store: Arc<dyn Store>, runtime: Handle) -> Self {
        Self {
            store,
            runtime,
            page: Vec::new().into_iter(),
            after: 0,
            failure: None,
        }
    }
}

impl Iterator for Rows {
    type Item = AuditRow;

    fn next(&mut self) -> Option<AuditRow> {
        if self.page.len() == 0 {
            let read = self.store.audit_rows(self.after, ROWS_READ_MAX);
            match self.runtime.block_on(read) {
                Ok(rows) => self.page = rows.into_iter(),
                Err(error) => self.failure = Some(error),
            }
        }
        let row = self.page.next()?;
        self.after = row.n;
        Some(row)
    }
}
