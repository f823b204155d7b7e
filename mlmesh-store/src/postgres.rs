//! PostgreSQL: the same statements over a few connections, driven by one thread
//! with a runtime of its own.
//!
//! ```text
//!   write ──► bounded channel ──► writer: one connection, group commit
//!   read  ──► bounded channel ──► readers: a connection each, one snapshot a read
//!                                 poller: newest sequence each second (other daemons' commits)
//! ```
//!
//! Several daemons may share a database. Each group begins by locking the `head`
//! row, so sequences and the audit chain follow the order of commits; a claim
//! takes the queue row with `FOR UPDATE SKIP LOCKED`, so that a row in somebody
//! else's hands is refused instead of waited for. When the server is away every
//! call fails as unavailable, and connections are tried again with backoff.
//!
//! What `sslmode` of the connection string means is said in [`crate::postgres_tls`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures_util::future::{LocalBoxFuture, join_all, try_join_all};
use mlmesh_model::{BoxFuture, Sequence, StoreError};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, Config, Statement};

use crate::audit::AuditHead;
use crate::facts::{FactQueries, FactWords, KnownQueries};
use crate::group::{Job, Pending, Tx, Writer, gathered, gone, reason_of, run_group};
use crate::migrate::{self, migrate};
use crate::postgres_tls::{self, Tls};
use crate::read;
use crate::rows::read_columns;
use crate::sql::{Cell, Param, Row, Sql};

/// Connections that read.
const READERS: usize = 3;

/// Reads that wait for a connection at most; further callers wait to hand in.
const READS_WAITING_MAX: usize = 1024;

/// Statements in flight at once when many rows are written.
const PIPELINE_MAX: usize = 256;

/// How long a connection attempt may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Pause after a failed connection attempt: doubles from the first to the last.
const BACKOFF_FIRST: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// How often the newest sequence is read, for the commits of other daemons.
const POLL_EVERY: Duration = Duration::from_secs(1);

/// Limits of a session: no wait for another daemon's lock is endless, and a
/// transaction whose daemon has vanished gives its locks back.
const SESSION: &str = "SET lock_timeout = '10s'; \
     SET idle_in_transaction_session_timeout = '30s'; SET client_min_messages = warning; \
     SELECT set_config('synchronous_commit', 'on', false) \
     WHERE current_setting('synchronous_commit') = 'off'";

type ReadJob = Box<dyn Pending<PostgresSession> + Send>;

/// The store of daemons that share a server.
#[derive(Debug)]
pub struct PostgresStore {
    pub(crate) writer: Writer<PostgresSession>,
    reads: Option<mpsc::Sender<ReadJob>>,
    thread: Option<std::thread::JoinHandle<()>>,
    committed: watch::Receiver<Sequence>,
}

impl PostgresStore {
    /// Connects and brings the schema to this program's version. `config` is a
    /// connection string such as `host=/run/postgresql user=mlmesh dbname=mlmesh`.
    pub async fn connect(config: &str) -> Result<Arc<Self>, StoreError> {
        let (mut config, tls) = postgres_tls::read(config)?;
        config.connect_timeout(CONNECT_MAX);
        config.application_name("mlmesh");
        let (writer, writes_waiting) = Writer::new();
        let (reads, reads_waiting) = mpsc::channel(READS_WAITING_MAX);
        let (committed_now, committed) = watch::channel(Sequence(0));
        let (started, start) = oneshot::channel();
        let unavailable =
            |error: std::io::Error| StoreError::Unavailable(format!("start the store: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(unavailable)?;
        let thread = std::thread::Builder::new()
            .name("store-postgres".into())
            .spawn(move || {
                runtime.block_on(async {
                    let mut link = Link::new(config, tls);
                    match prepare(&mut link).await {
                        Ok((session, newest)) => {
                            committed_now.send_replace(newest);
                            let _ = started.send(Ok(()));
                            let writer = write_groups(
                                link.another(),
                                session,
                                writes_waiting,
                                &committed_now,
                            );
                            serve(link, writer, reads_waiting, &committed_now).await;
                        }
                        Err(error) => {
                            let _ = started.send(Err(error));
                        }
                    }
                });
            })
            .map_err(unavailable)?;
        // Made first, so that the thread is joined also when the start failed.
        let store = Arc::new(Self {
            writer,
            reads: Some(reads),
            thread: Some(thread),
            committed,
        });
        start.await.map_err(|_| gone())??;
        Ok(store)
    }

    /// Changes when events have been committed; holds the newest one's sequence.
    /// Own commits show at once, those of other daemons within a second.
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
        W: for<'t> FnOnce(&'t mut PostgresSession) -> LocalBoxFuture<'t, Result<T, StoreError>>
            + Send
            + 'static,
    {
        let (job, answered) = crate::group::call(work);
        Box::pin(async move {
            let reads = self.reads.as_ref().ok_or_else(gone)?;
            reads.send(job).await.map_err(|_| gone())?;
            answered.await.map_err(|_| gone())?
        })
    }
}

impl Drop for PostgresStore {
    /// Lets the writer finish what it has been handed.
    fn drop(&mut self) {
        self.writer.close();
        self.reads = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by itself.
            let _ = thread.join();
        }
    }
}

async fn prepare(link: &mut Link) -> Result<(PostgresSession, Sequence), StoreError> {
    let mut session = link.open().await?;
    session.batch(PostgresSession::BEGIN_WRITE).await?;
    // Two daemons that start at once migrate one after the other.
    session
        .batch("SELECT pg_advisory_xact_lock(hashtext('mlmesh'), hashtext('migrate'))")
        .await?;
    migrate(&mut session, &migrate::POSTGRES).await?;
    let newest = read::last_event(&mut session).await?;
    session.batch("COMMIT").await?;
    Ok((session, newest))
}

/// Runs writer, readers and poller until the store is dropped.
async fn serve(
    link: Link,
    writer: impl Future<Output = ()>,
    reads_waiting: mpsc::Receiver<ReadJob>,
    committed: &watch::Sender<Sequence>,
) {
    let reads_waiting = Mutex::new(reads_waiting);
    let readers = (0..READERS).map(|_| answer_reads(link.another(), &reads_waiting));
    let work = async { tokio::join!(writer, join_all(readers)) };
    tokio::select! {
        _ = work => {}
        () = poll(link.another(), committed) => {}
    }
}

async fn write_groups(
    mut link: Link,
    session: PostgresSession,
    mut waiting: mpsc::Receiver<Job<PostgresSession>>,
    committed: &watch::Sender<Sequence>,
) {
    let mut tx = Some(Tx::new(session));
    while let Some(first) = waiting.recv().await {
        let group = gathered(first, &mut waiting);
        tx = tx.filter(|tx| !tx.sql.client.is_closed());
        if tx.is_none() {
            match link.open().await {
                Ok(session) => tx = Some(Tx::new(session)),
                Err(error) => {
                    let reason = reason_of(&error);
                    for job in group {
                        job.refuse(&reason);
                    }
                    continue;
                }
            }
        }
        if let Some(open) = &mut tx
            && let Err(error) = run_group(open, group, committed).await
        {
            tracing::error!(%error, "store write failed");
            tx = None;
        }
    }
}

async fn answer_reads(mut link: Link, waiting: &Mutex<mpsc::Receiver<ReadJob>>) {
    let mut session: Option<PostgresSession> = None;
    loop {
        let next = waiting.lock().await.recv().await;
        let Some(job) = next else { return };
        session = session.filter(|session| !session.client.is_closed());
        let begun = begin_read(&mut link, session.take()).await;
        match begun {
            Err(error) => job.refuse(&reason_of(&error)),
            Ok(mut open) => {
                let worked = job.run(&mut open).await;
                // A failed statement has ended the transaction's use; both ways
                // lead to a session that can read again.
                let ended = open.batch("COMMIT").await;
                if ended.is_ok() && worked.broken.is_none() {
                    session = Some(open);
                }
                (worked.answer)(None);
            }
        }
    }
}

async fn begin_read(
    link: &mut Link,
    session: Option<PostgresSession>,
) -> Result<PostgresSession, StoreError> {
    let mut session = match session {
        Some(session) => session,
        None => link.open().await?,
    };
    session.batch(PostgresSession::BEGIN_READ).await?;
    Ok(session)
}

/// Tells watchers of what other daemons committed. Never returns.
async fn poll(mut link: Link, committed: &watch::Sender<Sequence>) {
    let mut session: Option<PostgresSession> = None;
    let mut ticks = tokio::time::interval(POLL_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        session = session.filter(|session| !session.client.is_closed());
        if session.is_none() {
            session = link.open().await.ok();
        }
        let Some(open) = &mut session else { continue };
        match read::last_event(open).await {
            Ok(newest) => {
                committed.send_if_modified(|seq| {
                    let is_newer = newest > *seq;
                    *seq = newest.max(*seq);
                    is_newer
                });
            }
            Err(_) => session = None,
        }
    }
}

/// The way to the server: opens sessions, and after a failure not at once again.
struct Link {
    config: Config,
    tls: Tls,
    failed: Option<Failed>,
}

struct Failed {
    reason: String,
    retry_at: Instant,
    pause: Duration,
}

impl Link {
    fn new(config: Config, tls: Tls) -> Self {
        Self {
            config,
            tls,
            failed: None,
        }
    }

    /// A way of its own to the same server.
    fn another(&self) -> Self {
        Self::new(self.config.clone(), self.tls.clone())
    }

    async fn open(&mut self) -> Result<PostgresSession, StoreError> {
        if let Some(failed) = &self.failed
            && Instant::now() < failed.retry_at
        {
            return Err(StoreError::Unavailable(failed.reason.clone()));
        }
        let opened = PostgresSession::open(&self.config, self.tls.clone()).await;
        self.failed = match &opened {
            Ok(_) => None,
            Err(error) => {
                let pause = match &self.failed {
                    Some(failed) => (failed.pause * 2).min(BACKOFF_MAX),
                    None => BACKOFF_FIRST,
                };
                Some(Failed {
                    reason: reason_of(error),
                    retry_at: Instant::now() + pause,
                    pause,
                })
            }
        };
        opened
    }
}

/// A connection and the task that carries its bytes.
pub(crate) struct PostgresSession {
    client: Client,
    statements: HashMap<&'static str, Statement>,
    _carrier: JoinSet<()>,
}

impl PostgresSession {
    async fn open(config: &Config, tls: Tls) -> Result<Self, StoreError> {
        let connecting = Box::pin(config.connect(tls));
        let (client, connection) = connecting.await.map_err(store_error)?;
        let mut carrier = JoinSet::new();
        carrier.spawn(async move {
            if let Err(error) = connection.await {
                tracing::warn!(%error, "connection to PostgreSQL ended");
            }
        });
        client.batch_execute(SESSION).await.map_err(store_error)?;
        Ok(Self {
            client,
            statements: HashMap::new(),
            _carrier: carrier,
        })
    }

    async fn statement(&mut self, sql: &'static str) -> Result<Statement, StoreError> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql).await.map_err(store_error)?;
        self.statements.insert(sql, statement.clone());
        Ok(statement)
    }
}

static FACTS: KnownQueries = KnownQueries::new();

const FACT_WORDS: FactWords = FactWords {
    params: "CAST(CAST(plan AS JSON) -> 'params' AS TEXT)",
    tags: "CAST(CAST(labels AS JSON) -> 'tags' AS TEXT)",
    level: "COALESCE(CAST(trust AS JSON) ->> 'level', json_typeof(CAST(trust AS JSON)))",
    priority: "CASE WHEN placement IS NOT NULL THEN \
               COALESCE(CAST(CAST(placement AS JSON) ->> 'priority' AS BIGINT), 0) END",
    thin: "WHERE",
    wide: "WHERE",
    listed: "SELECT CAST(value AS BIGINT) FROM \
             json_array_elements_text(CAST(CAST($2 AS TEXT) AS JSON))",
};

impl Sql for PostgresSession {
    const LOCK_HEAD: &'static str = "SELECT seq, audit_n, audit_hash FROM head FOR UPDATE";
    const LOCK_QUEUED: &'static str = "SELECT q.seq FROM queue q JOIN runs r ON r.seq = q.seq \
                                       WHERE r.id = $1 FOR UPDATE OF q SKIP LOCKED";
    const RUNS_BY_ID: &'static str = concat!(
        "SELECT ",
        read_columns!(),
        " FROM runs WHERE id IN \
         (SELECT json_array_elements_text(CAST(CAST($1 AS TEXT) AS JSON))) ORDER BY seq"
    );
    const RUNS_BY_SEQ: &'static str = concat!(
        "SELECT ",
        read_columns!(),
        " FROM runs WHERE seq IN (SELECT CAST(value AS BIGINT) FROM \
         json_array_elements_text(CAST(CAST($1 AS TEXT) AS JSON))) ORDER BY seq"
    );
    // A query of its own for each object is a look-up in the index. Joined, the list may be
    // met by reading all that the owner has.
    const POSSESSED: &'static str = "SELECT (SELECT object FROM possessions WHERE tenant = $1 \
         AND owner = $2 AND object = decode(value, 'hex')) FROM \
         json_array_elements_text(CAST(CAST($3 AS TEXT) AS JSON))";
    const POSSESS: &'static str = "INSERT INTO possessions (tenant, owner, object) \
         SELECT CAST($1 AS TEXT), CAST($2 AS TEXT), decode(value, 'hex') FROM \
         json_array_elements_text(CAST(CAST($3 AS TEXT) AS JSON)) \
         ON CONFLICT (tenant, owner, object) DO NOTHING";
    const BEGIN_WRITE: &'static str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";
    const BEGIN_READ: &'static str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

    fn facts(columns: i64) -> FactQueries {
        FACTS.of(&FACT_WORDS, columns)
    }

    async fn batch(&mut self, sql: &'static str) -> Result<(), StoreError> {
        self.client.batch_execute(sql).await.map_err(store_error)
    }

    async fn run(&mut self, sql: &'static str, params: &[Param<'_>]) -> Result<u64, StoreError> {
        let statement = self.statement(sql).await?;
        let touched = self.client.execute(&statement, &as_dyn(params)).await;
        touched.map_err(store_error)
    }

    async fn run_each(
        &mut self,
        sql: &'static str,
        rows: &[Vec<Param<'_>>],
    ) -> Result<Option<usize>, StoreError> {
        let statement = self.statement(sql).await?;
        for (chunk_place, chunk) in rows.chunks(PIPELINE_MAX).enumerate() {
            let (client, statement) = (&self.client, &statement);
            let sent = chunk.iter().map(|params| async move {
                let params = as_dyn(params);
                client.execute(statement, &params).await
            });
            let touched = try_join_all(sent).await.map_err(store_error)?;
            if let Some(place) = touched.iter().position(|touched| *touched == 0) {
                return Ok(Some(chunk_place * PIPELINE_MAX + place));
            }
        }
        Ok(None)
    }

    async fn rows(
        &mut self,
        sql: &'static str,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, StoreError> {
        let statement = self.statement(sql).await?;
        let found = self.client.query(&statement, &as_dyn(params)).await;
        let found = found.map_err(store_error)?;
        found.iter().map(row).collect()
    }
}

fn as_dyn<'a>(params: &'a [Param<'_>]) -> Vec<&'a (dyn ToSql + Sync)> {
    params
        .iter()
        .map(|param| param as &(dyn ToSql + Sync))
        .collect()
}

fn row(row: &tokio_postgres::Row) -> Result<Row, StoreError> {
    let mut cells = Vec::with_capacity(row.len());
    for (place, column) in row.columns().iter().enumerate() {
        let cell = match *column.type_() {
            Type::INT8 => row
                .try_get::<_, Option<i64>>(place)
                .map(|v| v.map(Cell::Int)),
            Type::TEXT => row
                .try_get(place)
                .map(|v: Option<String>| v.map(Cell::Text)),
            Type::BYTEA => row
                .try_get(place)
                .map(|v: Option<Vec<u8>>| v.map(Cell::Bytes)),
            ref other => {
                return Err(StoreError::Damaged(format!(
                    "column `{}` has type `{other}`",
                    column.name()
                )));
            }
        };
        cells.push(cell.map_err(store_error)?.unwrap_or(Cell::Null));
    }
    Ok(Row::new(cells))
}

impl ToSql for Param<'_> {
    fn to_sql(
        &self,
        kind: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Self::Null => Ok(IsNull::Yes),
            Self::Int(value) if *kind == Type::INT4 => i32::try_from(*value)?.to_sql(kind, out),
            Self::Int(value) => value.to_sql(kind, out),
            // PostgreSQL's texts cannot hold the character NUL.
            Self::Text(text) if text.contains('\0') => {
                text.replace('\0', "\u{fffd}").to_sql(kind, out)
            }
            Self::Text(text) => text.as_ref().to_sql(kind, out),
            Self::Bytes(bytes) => bytes.to_sql(kind, out),
        }
    }

    fn accepts(kind: &Type) -> bool {
        matches!(
            *kind,
            Type::INT8 | Type::INT4 | Type::TEXT | Type::BYTEA | Type::VARCHAR
        )
    }

    to_sql_checked!();
}

/// What fails for reasons outside the data can be tried again; everything else
/// means that the data are not what this program wrote.
pub(crate) fn store_error(error: tokio_postgres::Error) -> StoreError {
    let Some(server) = error.as_db_error() else {
        return StoreError::Unavailable(format!("PostgreSQL: {}", with_sources(&error)));
    };
    // Classes of SQLSTATE: connection, authorisation, no such database, read-only
    // transaction, conflict, resources, limits, state, intervention, system.
    const OUTSIDE: [&str; 11] = [
        "08", "28", "3D", "25006", "40", "53", "54", "55", "57", "58", "42501",
    ];
    let code = server.code().code();
    let text = format!("PostgreSQL: {} ({code})", server.message());
    if OUTSIDE.iter().any(|class| code.starts_with(class)) {
        StoreError::Unavailable(text)
    } else {
        StoreError::Damaged(text)
    }
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
