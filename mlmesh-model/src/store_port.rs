//! The port to the metadata store: runs, the queue, attempts, events, audit,
//! datasets, keys, idempotency.
//!
//! Each method is one transaction. What a method has returned is on disk. The
//! queue is a table of the store: a run and its place in the queue appear
//! together, and a claim takes the place and writes the lease together.
//!
//! ```text
//!   submit ──► queued ──claim──► starting ──advance──► … ──advance──► ended
//!                 ▲                              │
//!                 └──────────requeue─────────────┘   (token grows with each claim)
//! ```

mod asks;
mod records;

use std::collections::BTreeMap;

use crate::{
    ApiKey, Attempt, BoxFuture, Digest, Event, FencingToken, KeyChange, Labels, MetricSummary,
    Micros, Name, ObjectId, Owner, Phase, Reproduction, Run, RunId, Sequence, SignedStatement,
    Tenant, User, UserChange,
};

pub use asks::*;
pub use records::*;

/// Runs, queue, events, audit and catalog of a daemon. Conformance suite:
/// `mlmesh-store/tests/it/conformance.rs`, run on every backend.
pub trait Store: Send + Sync {
    /// Writes runs, their queue rows, events and the audit row; all or nothing.
    /// Runs arrive with `seq` 0 and get one each, in the order given. A repeated
    /// idempotency key of the tenant with the same `request_sha256` returns the
    /// first outcome; with another one it is [`StoreError::IdempotencyMismatch`].
    fn submit(&self, submit: Submit) -> BoxFuture<'_, Result<Submitted, StoreError>>;

    /// Takes over runs that have ended elsewhere, with their attempts; all or nothing.
    /// They get a `seq` each, in the order given; a sweep's phase and times follow from
    /// its points. An id that is known already is [`StoreError::RunExists`].
    fn import(&self, import: Import) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Takes a queued run for a node: phase `starting`, attempt + 1, token + 1,
    /// queue row gone. [`StoreError::NotQueued`] when it is not there any more.
    fn claim(&self, claim: Claim) -> BoxFuture<'_, Result<Attempt, StoreError>>;

    /// Moves a run along the phase table under its lease. A token that is not
    /// the run's newest is [`StoreError::StaleToken`]; a move that the table
    /// does not allow is [`StoreError::MoveNotAllowed`]. Nothing changes then.
    fn advance(&self, advance: Advance) -> BoxFuture<'_, Result<Run, StoreError>>;

    /// Ends queued runs (cancel, failed dependency), or puts ended ones back
    /// (`ml retry`): moves that need no lease, all in one transaction. A run that
    /// cannot be moved stays as it is and does not hold up the others; when runs
    /// were given and none moved, nothing is written unless live ones are told too.
    /// A request whose key was committed before changes nothing; its runs come back
    /// as they stand.
    fn move_unleased(&self, change: UnleasedMove) -> BoxFuture<'_, Result<Moved, StoreError>>;

    /// What a request with this key was answered, by the [`Asked::key`] of the
    /// transaction that carried it out. Another request's key is
    /// [`StoreError::IdempotencyMismatch`].
    fn answered(
        &self,
        tenant: &Tenant,
        key: &str,
        request_sha256: Digest,
    ) -> BoxFuture<'_, Result<Option<String>, StoreError>>;

    /// Replaces the metric summaries of a live or ended run under its token.
    fn set_metrics(
        &self,
        run: RunId,
        token: FencingToken,
        metrics: BTreeMap<String, MetricSummary>,
    ) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The run with exactly this id.
    fn run(&self, tenant: &Tenant, id: RunId) -> BoxFuture<'_, Result<Option<Run>, StoreError>>;

    /// Those of these runs that are there, in order of acceptance.
    fn runs_by_id(
        &self,
        tenant: &Tenant,
        ids: Vec<RunId>,
    ) -> BoxFuture<'_, Result<Vec<Run>, StoreError>>;

    /// Ids that begin with `prefix`, at most `limit`, newest first.
    fn ids_by_prefix(
        &self,
        tenant: &Tenant,
        prefix: &str,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<RunId>, StoreError>>;

    /// Runs, newest first, without the points of sweeps unless asked for.
    fn runs(&self, query: RunQuery) -> BoxFuture<'_, Result<Vec<Run>, StoreError>>;

    /// Runs of every kind that match an expression, in the order asked for. A cursor
    /// whose run is gone is [`StoreError::NoPlace`] where the order is not that of
    /// acceptance.
    fn find(&self, search: RunSearch) -> BoxFuture<'_, Result<Vec<Run>, StoreError>>;

    /// How many runs stand in each phase; parents are not counted.
    fn counts(&self, tenant: &Tenant) -> BoxFuture<'_, Result<BTreeMap<Phase, u64>, StoreError>>;

    /// How many points of a sweep stand in each phase; `None` when it is no sweep.
    fn sweep_counts(
        &self,
        tenant: &Tenant,
        sweep: RunId,
    ) -> BoxFuture<'_, Result<Option<BTreeMap<Phase, u64>>, StoreError>>;

    /// All queued and live runs of all tenants in order of acceptance: what a
    /// daemon needs to go on after a restart.
    fn open_runs(&self) -> BoxFuture<'_, Result<Vec<Run>, StoreError>>;

    /// Attempts of a run, oldest first.
    fn attempts(&self, run: RunId) -> BoxFuture<'_, Result<Vec<Attempt>, StoreError>>;

    /// Events after `after`, oldest first, at most `limit`.
    fn events(
        &self,
        tenant: &Tenant,
        after: Sequence,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<Event>, StoreError>>;

    /// Sequence of the newest event.
    fn last_event(&self) -> BoxFuture<'_, Result<Sequence, StoreError>>;

    /// Writes an event and an audit row that belong to no other transaction.
    fn record(
        &self,
        event: Option<Event>,
        audit: Option<AuditNote>,
    ) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Audit rows after `after`, oldest first.
    fn audit_rows(
        &self,
        after: u64,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<AuditRow>, StoreError>>;

    /// Registers a dataset; the same name, version and checksum again is no change,
    /// another checksum under the same name and version is [`StoreError::DatasetExists`].
    fn put_dataset(
        &self,
        dataset: Dataset,
        audit: AuditNote,
    ) -> BoxFuture<'_, Result<(), StoreError>>;

    /// All datasets of the tenant, by name and version.
    fn datasets(&self, tenant: &Tenant) -> BoxFuture<'_, Result<Vec<Dataset>, StoreError>>;

    /// Removes a dataset; false when there was none.
    fn remove_dataset(
        &self,
        tenant: &Tenant,
        name: &Name,
        version: &str,
        audit: AuditNote,
    ) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Adds or replaces an API key.
    fn put_key(&self, key: ApiKey, audit: AuditNote) -> BoxFuture<'_, Result<(), StoreError>>;

    /// All keys that are not revoked.
    fn keys(&self) -> BoxFuture<'_, Result<Vec<ApiKey>, StoreError>>;

    /// All users, removed ones too.
    fn users(&self) -> BoxFuture<'_, Result<Vec<User>, StoreError>>;

    /// Changes a user together with its audit row, and gives what stands there then. A
    /// change that changes nothing writes nothing. What would leave a tenant without an
    /// admin is [`StoreError::LastAdmin`].
    fn change_user(
        &self,
        change: UserChange,
        audit: AuditNote,
    ) -> BoxFuture<'_, Result<User, StoreError>>;

    /// Changes a key of a user together with its audit row. A name that another key has
    /// or had is [`StoreError::KeyExists`].
    fn change_key(
        &self,
        change: KeyChange,
        audit: AuditNote,
    ) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Notes that somebody has sent these objects whole.
    fn possess(
        &self,
        tenant: &Tenant,
        owner: &Owner,
        objects: Vec<ObjectId>,
    ) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Which of these objects somebody has sent whole.
    fn possesses(
        &self,
        tenant: &Tenant,
        owner: &Owner,
        objects: Vec<ObjectId>,
    ) -> BoxFuture<'_, Result<Vec<bool>, StoreError>>;

    /// The key of the run's live attempt, if it has one. It appears with the claim
    /// and is gone with the move to a phase in which nothing is live.
    fn attempt_key(&self, run: RunId) -> BoxFuture<'_, Result<Option<ApiKey>, StoreError>>;

    /// Marks a run or a tree, so that prune keeps it; false when it was marked
    /// already. An unknown run is [`StoreError::NoRun`].
    fn pin(&self, pin: Pin, audit: AuditNote) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Takes the mark away; false when there was none.
    fn unpin(
        &self,
        tenant: &Tenant,
        target: PinTarget,
        audit: AuditNote,
    ) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// All marks of the tenant, oldest first.
    fn pins(&self, tenant: &Tenant) -> BoxFuture<'_, Result<Vec<Pin>, StoreError>>;

    /// Keeps what came of a repetition and what it makes of the original's trust
    /// ([`Trust::judged`](crate::Trust::judged)). False, and nothing changes, when it was judged before or is
    /// no repetition of that run.
    fn judge(
        &self,
        judgement: Reproduction,
        audit: AuditNote,
    ) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// The repetitions of a run, oldest first; and the run itself, if it is one. They
    /// stay when the repetition is pruned, and go with the run that was repeated.
    fn repetitions(
        &self,
        tenant: &Tenant,
        run: RunId,
    ) -> BoxFuture<'_, Result<Vec<Repetition>, StoreError>>;

    /// Keeps a signed statement about a repetition that was judged, and names its signer
    /// in the original's trust where it rests on this repetition. The first one stays:
    /// false, and nothing changes, when there is one or nothing was judged.
    fn attest(
        &self,
        tenant: &Tenant,
        repetition: RunId,
        statement: SignedStatement,
        audit: AuditNote,
    ) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Repetitions of all tenants that have ended and are not judged: what a daemon that
    /// died before has left.
    fn unjudged(&self) -> BoxFuture<'_, Result<Vec<Run>, StoreError>>;

    /// Ends of all tenants that somebody is still to be told of, oldest first. They are
    /// noted with the submission, and open again when the run is put back.
    fn untold(&self) -> BoxFuture<'_, Result<Vec<Untold>, StoreError>>;

    /// Keeps what came of telling an end. What belongs to an earlier life of the run is
    /// dropped.
    fn told(&self, told: Told) -> BoxFuture<'_, Result<(), StoreError>>;

    /// What came of telling the end of a run, or of every run whose end could not be told
    /// yet or ever, newest first, at most a hundred.
    fn tellings(
        &self,
        tenant: &Tenant,
        run: Option<RunId>,
    ) -> BoxFuture<'_, Result<Vec<Telling>, StoreError>>;

    /// Changes what people wrote on a run, and gives what stands there then. A change
    /// whose key was committed before changes nothing and gives what was answered
    /// then. An unknown run is [`StoreError::NoRun`].
    fn label(&self, change: LabelChange) -> BoxFuture<'_, Result<Labels, StoreError>>;

    /// Commits and objects that runs and pins refer to: what prune must keep.
    fn references(&self) -> BoxFuture<'_, Result<References, StoreError>>;

    /// Removes runs that ended before `ended_before`, with their attempts; returns
    /// their ids. A pinned run stays, and with a point of it the whole sweep.
    fn prune_runs(
        &self,
        tenant: &Tenant,
        ended_before: Micros,
        audit: AuditNote,
    ) -> BoxFuture<'_, Result<Vec<RunId>, StoreError>>;

    /// Writes and reads back one row: what `/health/ready` asks.
    fn check(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// What a store refuses or fails at.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The run is not known to this tenant.
    #[error("no run `{0}`")]
    NoRun(RunId),
    /// A submission brought an id that a run already has.
    #[error("run `{0}` exists already")]
    RunExists(RunId),
    /// Somebody else took it, or it was cancelled.
    #[error("run `{0}` is not queued")]
    NotQueued(RunId),
    /// A result under an old lease.
    #[error("run `{run}` is held under token {newest:?}; {given:?} is an old one")]
    StaleToken {
        /// The run.
        run: RunId,
        /// The token that came.
        given: FencingToken,
        /// The token that counts.
        newest: FencingToken,
    },
    /// A move outside the phase table.
    #[error("run `{run}` cannot go from `{from}` to `{to}`")]
    MoveNotAllowed {
        /// The run.
        run: RunId,
        /// Where it stands.
        from: Phase,
        /// Where it was to go.
        to: Phase,
    },
    /// The run at which a page ended has been removed since.
    #[error("the run at which the last page ended, number {}, is gone", .0.0)]
    NoPlace(Sequence),
    /// The idempotency key was used for another request.
    #[error("idempotency key `{0}` was used for another request")]
    IdempotencyMismatch(String),
    /// The tags of a run would be more than a run may have.
    #[error(
        "the run would have {tags} tags; at most {} are kept",
        Labels::TAGS_MAX
    )]
    TooManyTags {
        /// How many there would be.
        tags: usize,
    },
    /// Name and version are taken by other data.
    #[error("dataset `{name}` version `{version}` is registered with checksum {checksum}")]
    DatasetExists {
        /// Its name.
        name: Name,
        /// Its version.
        version: String,
        /// The checksum on record.
        checksum: Digest,
    },
    /// The name is taken, also by somebody who was removed.
    #[error("user `{name}` {}", if *.removed { "was removed; the name stays theirs" } else { "is there already, with another role" })]
    UserExists {
        /// The name.
        name: Owner,
        /// Whether they were removed.
        removed: bool,
    },
    /// No such user, or one that was removed.
    #[error("no user `{0}`")]
    NoUser(Owner),
    /// Nobody could change anything any more.
    #[error("`{0}` is the last admin")]
    LastAdmin(Owner),
    /// A key of that name is or was there.
    #[error("a key `{0}` is or was there")]
    KeyExists(String),
    /// No key of that name is accepted.
    #[error("no key `{0}`")]
    NoKey(String),
    /// The disk is full or read-only, the server is away: retry later.
    #[error("store is unavailable: {0}")]
    Unavailable(String),
    /// The store holds something that it cannot have written.
    #[error("store is damaged: {0}")]
    Damaged(String),
}
