//! SQLite: one file in WAL mode with full synchronisation, one connection that
//! writes in groups, a few reader connections on blocking threads.
//!
//! ```text
//!   write ─┬► bounded channel ──► writer thread ─┬► the pen: its connection ──► meshd.db-wal,
//!          └─ nobody waits: on this thread ──────┘                             fdatasync
//!   read ──► permit ──► blocking thread ── a connection of the pool (query_only)
//! ```
//!
//! A thread of the runtime that writes gives its other tasks away first, so that they
//! go on however long the disk takes; one at most does so at a time.
//!
//! A connection that failed is dropped; the writer opens another one for the next
//! group, so the store works again when the disk does.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use mlmesh_model::{BoxFuture, Sequence, StoreError};
use rusqlite::config::DbConfig;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, OpenFlags, ToSql};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::audit::AuditHead;
use crate::facts::{FactQueries, FactWords, KnownQueries};
use crate::group::{Job, Tx, Writer, gathered, gone, reason_of, run_group};
use crate::migrate::{self, migrate};
use crate::read;
use crate::rows::read_columns;
use crate::sql::{Cell, Param, Row, Sql, ready};

/// Readers at work at once, each with its connection.
const READERS_MAX: usize = 4;

/// Statements that a connection keeps compiled.
const STATEMENTS_CACHED_MAX: usize = 64;

/// Length of the write-ahead log, at which it is checkpointed, too.
const LOG_BYTES: u64 = 16 << 20;

/// How long a connection waits for a lock that another process holds.
const BUSY_MAX: Duration = Duration::from_secs(5);

/// The store of a daemon without further configuration.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    pub(crate) writer: Writer<SqliteSession>,
    thread: Option<std::thread::JoinHandle<()>>,
    readers: Arc<Mutex<Vec<SqliteSession>>>,
    permits: Arc<Semaphore>,
    committed: watch::Receiver<Sequence>,
}

impl SqliteStore {
    /// Opens or creates the database and brings it to this program's schema.
    /// Blocks; its methods need a tokio runtime.
    pub fn open(path: &Path) -> Result<Arc<Self>, StoreError> {
        let mut session = SqliteSession::open(path)?;
        let newest = ready(prepare(&mut session))?;
        lengthen_log(path);
        let (writer, waiting) = Writer::new();
        let (committed_now, committed) = watch::channel(newest);
        let pen = Arc::new(Pen::new(path, session, committed_now));
        let writer = writer.with_way_past({
            let pen = Arc::clone(&pen);
            Box::new(move |job| pen.write_here(job))
        });
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || pen.write_groups(waiting))
            .map_err(|error| StoreError::Unavailable(format!("start the writer: {error}")))?;
        Ok(Arc::new(Self {
            path: path.to_owned(),
            writer,
            thread: Some(thread),
            readers: Arc::new(Mutex::new(Vec::new())),
            permits: Arc::new(Semaphore::new(READERS_MAX)),
            committed,
        }))
    }

    /// Changes when events have been committed; holds the newest one's sequence.
    pub fn watch(&self) -> watch::Receiver<Sequence> {
        self.committed.clone()
    }

    /// The store's own note of where the audit chain ends.
    pub fn audit_head(&self) -> BoxFuture<'_, Result<AuditHead, StoreError>> {
        self.read(|sql| Box::pin(read::audit_head(sql)))
    }

    pub(crate) fn read<T, W>(&self, work: W) -> BoxFuture<'_, Result<T, StoreError>>
    where
        T: Send + 'static,
        W: for<'t> FnOnce(&'t mut SqliteSession) -> LocalBoxFuture<'t, Result<T, StoreError>>
            + Send
            + 'static,
    {
        Box::pin(async move {
            let permit = Arc::clone(&self.permits).acquire_owned().await;
            let (readers, path) = (Arc::clone(&self.readers), self.path.clone());
            let reading = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                let pooled = locked(&readers).pop();
                let mut session = match pooled {
                    Some(session) => session,
                    None => SqliteSession::open_reader(&path)?,
                };
                let outcome = ready(read_once(&mut session, work));
                if !matches!(outcome, Err(StoreError::Unavailable(_))) {
                    locked(&readers).push(session);
                }
                outcome
            });
            reading.await.map_err(|_| gone())?
        })
    }
}

impl Drop for SqliteStore {
    /// Lets the writer finish what it has been handed.
    fn drop(&mut self) {
        self.writer.close();
        if let Some(thread) = self.thread.take() {
            // A panic of the writer has been reported by its own thread.
            let _ = thread.join();
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn read_once<T, W>(session: &mut SqliteSession, work: W) -> Result<T, StoreError>
where
    W: for<'t> FnOnce(&'t mut SqliteSession) -> LocalBoxFuture<'t, Result<T, StoreError>>,
{
    session.batch(SqliteSession::BEGIN_READ).await?;
    let outcome = work(session).await;
    session.batch("COMMIT").await?;
    outcome
}

async fn prepare(session: &mut SqliteSession) -> Result<Sequence, StoreError> {
    session.batch(SqliteSession::BEGIN_WRITE).await?;
    migrate(session, &migrate::SQLITE).await?;
    let newest = read::last_event(session).await?;
    session.batch("COMMIT").await?;
    Ok(newest)
}

/// Gives the write-ahead log the length that it has from its first checkpoint on. A
/// commit then overwrites blocks, whose flush takes half the time of one that makes the
/// file longer. Zeros are no frame, so that recovery stops where it did. On a disk that
/// is full, or where the log cannot be opened, it stays as it is.
///
/// Nobody else may use the database meanwhile.
fn lengthen_log(database: &Path) {
    let mut log = database.as_os_str().to_owned();
    log.push("-wal");
    let lengthen = || -> io::Result<()> {
        let mut log = OpenOptions::new().append(true).open(&log)?;
        let length = log.metadata()?.len();
        let mut zeros = io::repeat(0).take(LOG_BYTES.saturating_sub(length));
        io::copy(&mut zeros, &mut log)
            .and_then(|_| log.sync_data())
            .or_else(|error| log.set_len(length).and(Err(error)))
    };
    if let Err(error) = lengthen() {
        tracing::debug!(%error, "the write-ahead log keeps its length");
    }
}

/// The connection that writes. Whoever holds its lock is the one writer: the writer's
/// thread, or a thread that asks while that has nothing to do.
struct Pen {
    path: PathBuf,
    hand: Mutex<Hand>,
    /// The thread has jobs and holds the lock or waits for it.
    is_taken: AtomicBool,
    committed: watch::Sender<Sequence>,
}

struct Hand {
    /// `None` after a failure: to be opened again.
    tx: Option<Tx<SqliteSession>>,
    /// Writes of the newest group.
    last_group: usize,
}

impl Pen {
    fn new(path: &Path, session: SqliteSession, committed: watch::Sender<Sequence>) -> Self {
        let tx = Some(Tx::new(session));
        Self {
            path: path.to_owned(),
            hand: Mutex::new(Hand { tx, last_group: 0 }),
            is_taken: AtomicBool::new(false),
            committed,
        }
    }

    /// The writer thread: until the store is dropped, or a write panicked.
    fn write_groups(&self, mut waiting: mpsc::Receiver<Job<SqliteSession>>) {
        while let Some(first) = waiting.blocking_recv() {
            self.is_taken.store(true, Ordering::Release);
            // What a write that panicked left behind is used by nobody.
            let Ok(mut hand) = self.hand.lock() else {
                return;
            };
            let group = gathered(first, &mut waiting);
            self.write(&mut hand, group);
            drop(hand);
            self.is_taken.store(false, Ordering::Release);
        }
    }

    /// Writes a job on this thread when nobody else writes or is about to, and gives it
    /// back otherwise. While the newest group had several, callers come faster than the
    /// disk: then they wait for each other, and share flushes.
    fn write_here(&self, job: Job<SqliteSession>) -> Option<Job<SqliteSession>> {
        let flavor = Handle::try_current().map(|handle| handle.runtime_flavor());
        // A runtime of one thread has nobody to give its other tasks to.
        if !matches!(flavor, Ok(RuntimeFlavor::MultiThread))
            || self.is_taken.load(Ordering::Acquire)
        {
            return Some(job);
        }
        let Ok(mut hand) = self.hand.try_lock() else {
            return Some(job);
        };
        if hand.last_group > 1 {
            return Some(job);
        }
        // A panic leaves the lock poisoned and the caller without an answer, just as
        // one on the writer's thread: the store is gone.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            tokio::task::block_in_place(|| self.write(&mut hand, vec![job]));
            drop(hand);
        }));
        None
    }

    fn write(&self, hand: &mut Hand, group: Vec<Job<SqliteSession>>) {
        hand.last_group = group.len();
        if hand.tx.is_none() {
            match SqliteSession::open(&self.path) {
                Ok(session) => hand.tx = Some(Tx::new(session)),
                Err(error) => {
                    tracing::error!(%error, "store cannot be opened again");
                    for job in group {
                        job.refuse(&reason_of(&error));
                    }
                    return;
                }
            }
        }
        if let Some(open) = &mut hand.tx
            && let Err(error) = ready(run_group(open, group, &self.committed))
        {
            tracing::error!(%error, "store write failed");
            hand.tx = None;
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) struct SqliteSession {
    connection: Connection,
}

impl SqliteSession {
    fn open(path: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let session = Self::connect(path, flags)?;
        // The WAL is flushed at each commit (FULL), checkpointed every 16 MiB and
        // cut back to that size afterwards.
        session.pragmas(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
             PRAGMA wal_autocheckpoint = 4000; PRAGMA cache_size = -8000; \
             PRAGMA temp_store = MEMORY;",
        )?;
        session.pragmas(&format!("PRAGMA journal_size_limit = {LOG_BYTES};"))?;
        Ok(session)
    }

    fn open_reader(path: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let session = Self::connect(path, flags)?;
        session.pragmas("PRAGMA query_only = 1; PRAGMA temp_store = MEMORY;")?;
        Ok(session)
    }

    fn connect(path: &Path, flags: OpenFlags) -> Result<Self, StoreError> {
        let connection = Connection::open_with_flags(path, flags).map_err(store_error)?;
        connection.busy_timeout(BUSY_MAX).map_err(store_error)?;
        // One plan for a statement whatever its values: else it is prepared anew for
        // each value that a partial index could depend on.
        connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)
            .map_err(store_error)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_CACHED_MAX);
        Ok(Self { connection })
    }

    fn pragmas(&self, text: &str) -> Result<(), StoreError> {
        self.connection.execute_batch(text).map_err(store_error)
    }

    fn statement(&self, sql: &str) -> Result<rusqlite::CachedStatement<'_>, StoreError> {
        self.connection.prepare_cached(sql).map_err(store_error)
    }
}

static FACTS: KnownQueries = KnownQueries::new();

/// The words for what stands inside JSON are those of the index `runs_facts`.
const FACT_WORDS: FactWords = FactWords {
    params: "json_extract(plan, '$.params')",
    tags: "json_extract(labels, '$.tags')",
    level: "COALESCE(json_extract(trust, '$.level'), json_type(trust))",
    priority: "CASE WHEN placement IS NOT NULL THEN \
               COALESCE(json_extract(placement, '$.priority'), 0) END",
    thin: "INDEXED BY runs_facts WHERE phase >= 0 AND",
    wide: "NOT INDEXED WHERE phase >= 0 AND",
    listed: "SELECT value FROM json_each($2)",
};

impl Sql for SqliteSession {
    const LOCK_HEAD: &'static str = "SELECT seq, audit_n, audit_hash FROM head";
    const LOCK_QUEUED: &'static str =
        "SELECT q.seq FROM queue q JOIN runs r ON r.seq = q.seq WHERE r.id = $1";
    const RUNS_BY_ID: &'static str = concat!(
        "SELECT ",
        read_columns!(),
        " FROM runs WHERE id IN (SELECT value FROM json_each($1)) ORDER BY seq"
    );
    const RUNS_BY_SEQ: &'static str = concat!(
        "SELECT ",
        read_columns!(),
        " FROM runs WHERE seq IN (SELECT value FROM json_each($1)) ORDER BY seq"
    );
    const POSSESSED: &'static str = "SELECT object FROM possessions WHERE tenant = $1 AND \
         owner = $2 AND object IN (SELECT unhex(value) FROM json_each($3))";
    // Without the condition the conflict would be one of a join.
    const POSSESS: &'static str = "INSERT INTO possessions (tenant, owner, object) \
         SELECT $1, $2, unhex(value) FROM json_each($3) WHERE true \
         ON CONFLICT (tenant, owner, object) DO NOTHING";
    const BEGIN_WRITE: &'static str = "BEGIN IMMEDIATE";
    const BEGIN_READ: &'static str = "BEGIN";

    fn facts(columns: i64) -> FactQueries {
        FACTS.of(&FACT_WORDS, columns)
    }

    async fn batch(&mut self, sql: &'static str) -> Result<(), StoreError> {
        // Migrations are several statements; everything else is one, kept compiled.
        if sql.contains(';') {
            return self.connection.execute_batch(sql).map_err(store_error);
        }
        self.statement(sql)?
            .raw_execute()
            .map(drop)
            .map_err(store_error)
    }

    async fn run(&mut self, sql: &'static str, params: &[Param<'_>]) -> Result<u64, StoreError> {
        let mut statement = self.statement(sql)?;
        bind(&mut statement, params)?;
        let touched = statement.raw_execute().map_err(store_error)?;
        Ok(touched as u64)
    }

    async fn run_each(
        &mut self,
        sql: &'static str,
        rows: &[Vec<Param<'_>>],
    ) -> Result<Option<usize>, StoreError> {
        let mut statement = self.statement(sql)?;
        for (place, params) in rows.iter().enumerate() {
            bind(&mut statement, params)?;
            if statement.raw_execute().map_err(store_error)? == 0 {
                return Ok(Some(place));
            }
        }
        Ok(None)
    }

    async fn rows(
        &mut self,
        sql: &'static str,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, StoreError> {
        let mut statement = self.statement(sql)?;
        bind(&mut statement, params)?;
        let columns = statement.column_count();
        let mut found = Vec::new();
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next().map_err(store_error)? {
            let mut cells = Vec::with_capacity(columns);
            for column in 0..columns {
                cells.push(cell(row.get_ref(column).map_err(store_error)?)?);
            }
            found.push(Row::new(cells));
        }
        Ok(found)
    }
}

fn bind(statement: &mut rusqlite::Statement<'_>, params: &[Param<'_>]) -> Result<(), StoreError> {
    debug_assert_eq!(statement.parameter_count(), params.len());
    for (place, param) in params.iter().enumerate() {
        debug_assert_eq!(
            statement.parameter_name(place + 1),
            Some(format!("${}", place + 1).as_str()),
            "parameters appear in the order of their numbers"
        );
        statement
            .raw_bind_parameter(place + 1, param)
            .map_err(store_error)?;
    }
    Ok(())
}

impl ToSql for Param<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Int(value) => ValueRef::Integer(*value),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

fn cell(value: ValueRef<'_>) -> Result<Cell, StoreError> {
    match value {
        ValueRef::Null => Ok(Cell::Null),
        ValueRef::Integer(value) => Ok(Cell::Int(value)),
        ValueRef::Text(bytes) => String::from_utf8(bytes.to_vec())
            .map(Cell::Text)
            .map_err(|_| StoreError::Damaged("a text is not UTF-8".into())),
        ValueRef::Blob(bytes) => Ok(Cell::Bytes(bytes.to_vec())),
        ValueRef::Real(value) => Err(StoreError::Damaged(format!(
            "a column holds {value}, and no column holds fractions"
        ))),
    }
}

/// What fails for reasons outside the file can be tried again; everything else
/// means that the file is not what this program wrote.
fn store_error(error: rusqlite::Error) -> StoreError {
    let outside = matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DiskFull
                | ErrorCode::ReadOnly
                | ErrorCode::CannotOpen
                | ErrorCode::SystemIoFailure
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::OutOfMemory
                | ErrorCode::FileLockingProtocolFailed
                | ErrorCode::PermissionDenied
                | ErrorCode::OperationAborted
        )
    );
    if outside {
        StoreError::Unavailable(format!("SQLite: {error}"))
    } else {
        StoreError::Damaged(format!("SQLite: {error}"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::crash::WriteKind;

    /// How SQLite would carry out a statement on a new database.
    pub(crate) fn query_plans() -> impl Fn(&str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meshd.db");
        drop(SqliteStore::open(&path).unwrap());
        let connection = rusqlite::Connection::open(&path).unwrap();
        move |sql| {
            let _ = &directory;
            let mut statement = connection
                .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
                .unwrap();
            let lines = statement.raw_query().mapped(|row| row.get::<_, String>(3));
            lines.map(Result::unwrap).collect::<Vec<_>>().join("\n")
        }
    }

    fn is_gone(outcome: &Result<(), StoreError>) -> bool {
        matches!(outcome, Err(StoreError::Unavailable(_)))
    }

    #[test]
    fn after_a_write_that_panicked_there_is_no_store() {
        for first in [WriteKind::Submit, WriteKind::Other] {
            let directory = tempfile::tempdir().unwrap();
            let store = SqliteStore::open(&directory.path().join("meshd.db")).unwrap();
            let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
            runtime.block_on(async {
                let torn = store
                    .writer
                    .write::<(), _>(first, |_| panic!("a write that is a bug"));
                assert!(is_gone(&torn.await));
                for kind in [WriteKind::Submit, WriteKind::Other, WriteKind::Submit] {
                    let next = store.writer.write(kind, |_| Box::pin(async { Ok(()) }));
                    assert!(is_gone(&next.await), "{first:?}, {kind:?}");
                }
            });
        }
    }
}
