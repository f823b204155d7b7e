//! Group commit: many writes, one transaction, one flush.
//!
//! ```text
//!   callers ──Job──► bounded channel ──► writer: BEGIN, lock head
//!                                          per job: SAVEPOINT, work, RELEASE | ROLLBACK TO
//!                                        head back, COMMIT ──► every job's answer
//! ```
//!
//! A backend may offer a way past the line: a submission that finds nobody waiting is
//! then written where it is asked for, as a group of one, and saves two wake-ups.
//!
//! A job that is refused leaves nothing behind and does not spoil the group. When
//! the database itself fails, the whole group is rolled back and everybody is
//! told that the store is unavailable; nobody is answered before the commit.

use futures_util::future::LocalBoxFuture;
use mlmesh_model::{AuditNote, BoxFuture, Event, Sequence, StoreError};
use tokio::sync::{mpsc, oneshot, watch};

use crate::audit::{AuditHead, chained};
use crate::crash::{self, Stage, WriteKind};
use crate::sql::{Param, Sql, to_json};

/// Writes that share one commit at most.
const GROUP_MAX: usize = 256;

/// Writes that wait for the writer at most; further callers wait to hand in.
const WRITES_WAITING_MAX: usize = 1024;

/// An open write transaction, or a session between two.
pub(crate) struct Tx<S> {
    pub(crate) sql: S,
    pub(crate) head: Head,
}

/// The row from which sequences and the audit chain go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    seq: u64,
    audit: AuditHead,
}

impl<S: Sql> Tx<S> {
    pub(crate) fn new(sql: S) -> Self {
        let audit = AuditHead {
            n: 0,
            hash: crate::audit::AUDIT_START,
        };
        Self {
            sql,
            head: Head { seq: 0, audit },
        }
    }

    /// Takes the next sequence.
    pub(crate) fn next_seq(&mut self) -> Sequence {
        self.head.seq += 1;
        Sequence(self.head.seq)
    }

    /// Writes an event and gives it its sequence.
    pub(crate) async fn emit(&mut self, event: &Event) -> Result<(), StoreError> {
        self.emit_all(std::slice::from_ref(event)).await
    }

    /// The same for several, in order.
    pub(crate) async fn emit_all(&mut self, events: &[Event]) -> Result<(), StoreError> {
        let mut rows = Vec::with_capacity(events.len());
        for event in events {
            rows.push(vec![
                Param::count(self.next_seq().0),
                Param::Int(event.time.0),
                Param::text(event.tenant.as_str()),
                Param::text(event.owner.as_str()),
                Param::or_null(event.run.map(|run| Param::owned(run.to_string()))),
                Param::owned(to_json(&event.kind)?),
            ]);
        }
        const INSERT: &str = "INSERT INTO events (seq, time, tenant, owner, run, kind) \
                              VALUES ($1, $2, $3, $4, $5, $6)";
        self.sql.run_each(INSERT, &rows).await?;
        Ok(())
    }

    /// Chains and writes an audit row.
    pub(crate) async fn audit(&mut self, note: AuditNote) -> Result<(), StoreError> {
        let row = chained(self.head.audit, note).ok_or_else(|| {
            StoreError::Damaged("an audit note's time is beyond 2^53 microseconds".into())
        })?;
        let params = [
            Param::count(row.n),
            Param::owned(to_json(&row.note)?),
            Param::digest(&row.previous),
            Param::digest(&row.hash),
        ];
        const INSERT: &str = "INSERT INTO audit (n, note, previous, hash) VALUES ($1, $2, $3, $4)";
        self.sql.run(INSERT, &params).await?;
        self.head.audit = AuditHead {
            n: row.n,
            hash: row.hash,
        };
        Ok(())
    }

    async fn read_head(&mut self) -> Result<(), StoreError> {
        let row = self.sql.row(S::LOCK_HEAD, &[]).await?;
        let mut row = row.ok_or_else(|| StoreError::Damaged("the head row is gone".into()))?;
        self.head = Head {
            seq: row.number()?,
            audit: AuditHead {
                n: row.number()?,
                hash: row.digest()?,
            },
        };
        Ok(())
    }

    async fn write_head(&mut self) -> Result<(), StoreError> {
        let Head { seq, audit } = &self.head;
        let params = [
            Param::count(*seq),
            Param::count(audit.n),
            Param::digest(&audit.hash),
        ];
        const UPDATE: &str = "UPDATE head SET seq = $1, audit_n = $2, audit_hash = $3";
        self.sql.run(UPDATE, &params).await?;
        Ok(())
    }
}

/// The callers' side of the writer.
pub(crate) struct Writer<S> {
    jobs: Option<mpsc::Sender<Job<S>>>,
    at_once: Option<AtOnce<S>>,
}

/// Writes a job on the thread that asks, or gives it back for the line.
pub(crate) type AtOnce<S> = Box<dyn Fn(Job<S>) -> Option<Job<S>> + Send + Sync>;

impl<S> std::fmt::Debug for Writer<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = if self.jobs.is_some() {
            "open"
        } else {
            "closed"
        };
        write!(f, "Writer({state})")
    }
}

impl<S: 'static> Writer<S> {
    /// The two ends of the channel.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Job<S>>) {
        let (jobs, waiting) = mpsc::channel(WRITES_WAITING_MAX);
        let at_once = None;
        let jobs = Some(jobs);
        (Self { jobs, at_once }, waiting)
    }

    /// With a way past the line, for submissions that find it empty.
    pub(crate) fn with_way_past(self, at_once: AtOnce<S>) -> Self {
        let at_once = Some(at_once);
        Self { at_once, ..self }
    }

    /// Takes no more work; the writer ends with what it has been handed.
    pub(crate) fn close(&mut self) {
        self.jobs = None;
        self.at_once = None;
    }

    /// Hands work in and waits for its outcome.
    pub(crate) fn write<T, W>(
        &self,
        kind: WriteKind,
        work: W,
    ) -> BoxFuture<'_, Result<T, StoreError>>
    where
        T: Send + 'static,
        W: for<'t> FnOnce(&'t mut Tx<S>) -> LocalBoxFuture<'t, Result<T, StoreError>>
            + Send
            + 'static,
    {
        let (job, answered) = Job::new(kind, work);
        Box::pin(async move {
            let jobs = self.jobs.as_ref().ok_or_else(gone)?;
            // Other writes are the job path's: they gain more from a flush that they
            // share than from two wake-ups less.
            let is_alone = kind == WriteKind::Submit && jobs.capacity() == jobs.max_capacity();
            let left = match &self.at_once {
                Some(at_once) if is_alone => at_once(job),
                Some(_) | None => Some(job),
            };
            if let Some(job) = left {
                jobs.send(job).await.map_err(|_| gone())?;
            }
            answered.await.map_err(|_| gone())?
        })
    }
}

/// A write on its way to the writer.
pub(crate) struct Job<S> {
    kind: WriteKind,
    pending: Box<dyn Pending<Tx<S>> + Send>,
}

/// What a job's work came to, before the commit.
pub(crate) struct Worked {
    /// Refused or failed: what it wrote goes.
    failed: bool,
    /// The database does not work: the group goes.
    pub(crate) broken: Option<String>,
    pub(crate) answer: Answer,
}

/// Tells the caller: its own outcome, or why nothing was committed.
pub(crate) type Answer = Box<dyn FnOnce(Option<&str>)>;

/// Work on a session or a transaction and its caller, whatever the outcome's type.
pub(crate) trait Pending<C> {
    fn run(self: Box<Self>, context: &mut C) -> LocalBoxFuture<'_, Worked>;
    fn refuse(self: Box<Self>, reason: &str);
}

/// Pending work and the place where its outcome arrives.
pub(crate) fn call<C, T, W>(
    work: W,
) -> (
    Box<dyn Pending<C> + Send>,
    oneshot::Receiver<Result<T, StoreError>>,
)
where
    T: Send + 'static,
    W: for<'t> FnOnce(&'t mut C) -> LocalBoxFuture<'t, Result<T, StoreError>> + Send + 'static,
{
    let (answer, answered) = oneshot::channel();
    (Box::new(Call { work, answer }), answered)
}

struct Call<T, W> {
    work: W,
    answer: oneshot::Sender<Result<T, StoreError>>,
}

impl<C, T, W> Pending<C> for Call<T, W>
where
    T: Send + 'static,
    W: for<'t> FnOnce(&'t mut C) -> LocalBoxFuture<'t, Result<T, StoreError>> + 'static,
{
    fn run(self: Box<Self>, context: &mut C) -> LocalBoxFuture<'_, Worked> {
        let Self { work, answer } = *self;
        let outcome = work(context);
        Box::pin(async move {
            let outcome = outcome.await;
            let broken = match &outcome {
                Err(StoreError::Unavailable(reason)) => Some(reason.clone()),
                _ => None,
            };
            Worked {
                failed: outcome.is_err(),
                broken,
                answer: Box::new(move |reason| {
                    // The caller may have gone; its write stays what it is.
                    let _ = answer.send(match reason {
                        Some(reason) => Err(StoreError::Unavailable(reason.to_owned())),
                        None => outcome,
                    });
                }),
            }
        })
    }

    fn refuse(self: Box<Self>, reason: &str) {
        let _ = self
            .answer
            .send(Err(StoreError::Unavailable(reason.to_owned())));
    }
}

impl<S> Job<S> {
    /// A job and the place where its outcome arrives.
    pub(crate) fn new<T, W>(
        kind: WriteKind,
        work: W,
    ) -> (Self, oneshot::Receiver<Result<T, StoreError>>)
    where
        T: Send + 'static,
        W: for<'t> FnOnce(&'t mut Tx<S>) -> LocalBoxFuture<'t, Result<T, StoreError>>
            + Send
            + 'static,
    {
        let (pending, answered) = call(work);
        (Self { kind, pending }, answered)
    }

    /// Tells the caller that the store is unavailable; nothing was done.
    pub(crate) fn refuse(self, reason: &str) {
        self.pending.refuse(reason);
    }
}

/// The first job and those that wait behind it, up to [`GROUP_MAX`].
pub(crate) fn gathered<S>(first: Job<S>, jobs: &mut mpsc::Receiver<Job<S>>) -> Vec<Job<S>> {
    let mut group = vec![first];
    while group.len() < GROUP_MAX
        && let Ok(job) = jobs.try_recv()
    {
        group.push(job);
    }
    group
}

/// Runs a group in one transaction and answers everybody. An error means that
/// the session is to be opened anew; the callers have been told.
pub(crate) async fn run_group<S: Sql>(
    tx: &mut Tx<S>,
    group: Vec<Job<S>>,
    committed: &watch::Sender<Sequence>,
) -> Result<(), StoreError> {
    let kinds: Vec<WriteKind> = group.iter().map(|job| job.kind).collect();
    let mut answers = Vec::with_capacity(group.len());
    let mut jobs = group.into_iter();
    let outcome = work_and_commit(tx, &mut jobs, &mut answers, &kinds).await;
    if let Err(error) = outcome {
        let reason = reason_of(&error);
        for answer in answers {
            answer(Some(&reason));
        }
        for job in jobs {
            job.refuse(&reason);
        }
        return Err(error);
    }
    for answer in answers {
        answer(None);
    }
    committed.send_if_modified(|seq| {
        let newest = Sequence(tx.head.seq);
        std::mem::replace(seq, newest) != newest
    });
    Ok(())
}

async fn work_and_commit<S: Sql>(
    tx: &mut Tx<S>,
    jobs: &mut std::vec::IntoIter<Job<S>>,
    answers: &mut Vec<Answer>,
    kinds: &[WriteKind],
) -> Result<(), StoreError> {
    tx.sql.batch(S::BEGIN_WRITE).await?;
    tx.read_head().await?;
    let before = tx.head;
    // A job alone is the whole transaction: what it wrote goes with that.
    let is_alone = jobs.len() == 1;
    for job in jobs.by_ref() {
        let head = tx.head;
        if !is_alone {
            tx.sql.batch("SAVEPOINT job").await?;
        }
        let worked = job.pending.run(tx).await;
        answers.push(worked.answer);
        if let Some(reason) = worked.broken {
            return Err(StoreError::Unavailable(reason));
        }
        if worked.failed {
            tx.head = head;
        }
        match (is_alone, worked.failed) {
            (true, true) => return tx.sql.batch("ROLLBACK").await,
            (true, false) => {}
            (false, failed) => {
                if failed {
                    tx.sql.batch("ROLLBACK TO SAVEPOINT job").await?;
                }
                tx.sql.batch("RELEASE SAVEPOINT job").await?;
            }
        }
    }
    if tx.head != before {
        tx.write_head().await?;
    }
    for kind in kinds {
        crash::hit(*kind, Stage::BeforeCommit);
    }
    tx.sql.batch("COMMIT").await?;
    for kind in kinds {
        crash::hit(*kind, Stage::AfterCommit);
    }
    Ok(())
}

/// What callers are told of an error that hit the whole group.
pub(crate) fn reason_of(error: &StoreError) -> String {
    match error {
        StoreError::Unavailable(reason) => reason.clone(),
        other => other.to_string(),
    }
}

/// What is told when the store's thread is gone or dropped the request.
pub(crate) fn gone() -> StoreError {
    StoreError::Unavailable("the store stopped before it answered".into())
}
