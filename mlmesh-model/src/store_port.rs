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

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::filter::{Filter, Sort};
use crate::{
    ApiKey, Attempt, AttemptNumber, BoxFuture, Cause, CommitId, DepsDigest, Digest, Event, Exit,
    FencingToken, Isolation, KeyChange, Labels, Logged, MetricSummary, Micros, Name, NodeId,
    ObjectId, Owner, Phase, Reproduction, Run, RunId, Sequence, SignedStatement, Tenant, Trust,
    User, UserChange,
};

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
    /// ([`Trust::judged`]). False, and nothing changes, when it was judged before or is
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

/// Input of [`Store::import`].
#[derive(Debug, Clone)]
pub struct Import {
    /// Runs in order; a parent stands before its children. All but parents have ended.
    pub runs: Vec<Run>,
    /// Their attempts.
    pub attempts: Vec<Attempt>,
    /// Who imported what.
    pub audit: AuditNote,
}

/// Input of [`Store::submit`].
#[derive(Debug, Clone)]
pub struct Submit {
    /// Runs in order; a parent stands before its children.
    pub runs: Vec<Run>,
    /// Unique per tenant.
    pub idempotency_key: Option<String>,
    /// Digest of the request body, to tell a retry from a reuse of the key.
    pub request_sha256: Digest,
    /// The audit row of this submission.
    pub audit: AuditNote,
}

/// Output of [`Store::submit`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submitted {
    /// The run, or the parent of the sweep.
    pub id: RunId,
    /// False when an earlier request with this key was answered again.
    pub fresh: bool,
}

/// Input of [`Store::claim`].
#[derive(Debug, Clone)]
pub struct Claim {
    /// The run.
    pub run: RunId,
    /// Who takes it.
    pub node: NodeId,
    /// Its boot.
    pub boot_id: String,
    /// Hash of the attempt's token, for a run whose placement asks for one. It is
    /// written with the claim.
    pub token_sha256: Option<Digest>,
    /// Now.
    pub time: Micros,
}

/// Input of [`Store::advance`]. Fields that are `None` stay as they are.
#[derive(Debug, Clone)]
pub struct Advance {
    /// The run.
    pub run: RunId,
    /// The lease.
    pub token: FencingToken,
    /// The next phase, or several that follow each other in one transaction.
    pub to: Vec<Phase>,
    /// Now.
    pub time: Micros,
    /// What is recorded with the move.
    pub record: RunUpdate,
    /// For a move back to `queued`: not before this time.
    pub not_before: Option<Micros>,
}

/// What a move records in the run and its newest attempt.
#[derive(Debug, Clone, Default)]
pub struct RunUpdate {
    /// Why.
    pub cause: Option<Cause>,
    /// For people.
    pub message: Option<String>,
    /// How the command ended.
    pub exit: Option<Exit>,
    /// When the command started.
    pub started_at: Option<Micros>,
    /// When it ended.
    pub ended_at: Option<Micros>,
    /// The level that held.
    pub trust: Option<Trust>,
    /// Final metric summaries.
    pub metrics: Option<BTreeMap<String, MetricSummary>>,
    /// The outputs' listing.
    pub outputs: Option<ObjectId>,
    /// The manifest's digest.
    pub manifest_sha256: Option<Digest>,
    /// Isolation and limits that held.
    pub isolation: Option<Isolation>,
    /// What the job has said of its run.
    pub logged: Option<Logged>,
}

/// Input of [`Store::move_unleased`].
#[derive(Debug, Clone)]
pub struct UnleasedMove {
    /// The runs, each with the phase that it must be in.
    pub runs: Vec<(RunId, Phase)>,
    /// The phase they go to.
    pub to: Phase,
    /// Now.
    pub time: Micros,
    /// Why.
    pub cause: Option<Cause>,
    /// For people.
    pub message: String,
    /// What a person asked for, when one did.
    pub asked: Option<Asked>,
}

/// A person's request, recorded in the transaction that carries it out.
#[derive(Debug, Clone)]
pub struct Asked {
    /// An audit row for each thing that was named.
    pub audit: Vec<AuditNote>,
    /// The request's idempotency key, if it has one.
    pub key: Option<AnsweredKey>,
    /// Whether live runs are told as well, so that it counts although nothing moves.
    pub tells_live: bool,
}

/// An idempotency key and what every request with it is answered.
#[derive(Debug, Clone)]
pub struct AnsweredKey {
    /// Unique per tenant, together with the keys of submissions.
    pub key: String,
    /// Digest of the request.
    pub request_sha256: Digest,
    /// The answer, in its caller's own form.
    pub answer: String,
}

/// Input of [`Store::label`].
#[derive(Debug, Clone)]
pub struct LabelChange {
    /// The run.
    pub run: RunId,
    /// Tags that are set.
    pub set: BTreeMap<String, String>,
    /// Tags that are taken away; one that is not there is no error.
    pub remove: Vec<String>,
    /// The note that is written; an empty one takes it away.
    pub note: Option<String>,
    /// The request's idempotency key and its digest, if it has one.
    pub key: Option<(String, Digest)>,
    /// Its audit row, which says whose the run is.
    pub audit: AuditNote,
}

/// Output of [`Store::move_unleased`].
#[derive(Debug, Default)]
pub struct Moved {
    /// Runs that moved, as they stand now, in the order given.
    pub runs: Vec<Run>,
    /// Runs that stay as they are, and why.
    pub refused: Vec<(RunId, StoreError)>,
}

/// Which runs are read.
#[derive(Debug, Clone)]
pub struct RunQuery {
    /// Whose.
    pub tenant: Tenant,
    /// Only those in these phases; empty means all.
    pub phases: Vec<Phase>,
    /// Points of this sweep, in sweep order, instead of the top level.
    pub parent: Option<RunId>,
    /// Only those of this owner.
    pub owner: Option<Owner>,
    /// Only those accepted before this one (a cursor). With `parent`: after it.
    pub cursor: Option<Sequence>,
    /// At most this many.
    pub limit: u32,
}

/// Input of [`Store::find`].
#[derive(Debug, Clone)]
pub struct RunSearch {
    /// Whose.
    pub tenant: Tenant,
    /// Only those that match; all without it.
    pub filter: Option<Filter>,
    /// In this order, equal ones by `seq` in the same direction; newest first without it.
    pub sort: Option<Sort>,
    /// Only those after this one in that order (a cursor).
    pub cursor: Option<Sequence>,
    /// At most this many.
    pub limit: u32,
    /// What `2d ago` counts from.
    pub now: Micros,
}

/// What an audit row says, before the store chains it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditNote {
    /// When.
    pub time: Micros,
    /// Whose tenant.
    pub tenant: Tenant,
    /// Who.
    pub owner: Owner,
    /// Which key, by its public name; `local` without one.
    pub key: String,
    /// From where: an address, or `local`.
    pub remote: String,
    /// The action, such as `run.submit`.
    pub action: String,
    /// What it was done to: a run id, a dataset, a key name.
    pub subject: String,
    /// Digest of details (the request body); never the details themselves.
    pub details_sha256: Option<Digest>,
}

/// A chained audit row: `hash` is SHA-256 over the canonical JSON of
/// `{"n", "note", "previous"}`, where `previous` is the hash of row `n - 1`
/// (64 zeros for the first).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRow {
    /// From 1, without a gap.
    pub n: u64,
    /// What happened.
    pub note: AuditNote,
    /// Hash of the row before.
    pub previous: Digest,
    /// Hash of this row.
    pub hash: Digest,
}

/// A registered dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dataset {
    /// Whose.
    pub tenant: Tenant,
    /// Who registered it.
    pub owner: Owner,
    /// Its name.
    pub name: Name,
    /// Its version.
    pub version: String,
    /// Digest of the file, or of the directory's listing.
    pub checksum: Digest,
    /// Whether it is a directory.
    pub directory: bool,
    /// Where it lies: an absolute path on the daemon's machine. Of a copied one, where
    /// it was copied from.
    pub path: String,
    /// Whether the content store has it, so that it does not need its path any more.
    #[serde(default)]
    pub copied: bool,
    /// What people say of it.
    #[serde(default)]
    pub about: DatasetAbout,
    /// Bytes in all.
    pub bytes: u64,
    /// Files in all.
    pub files: u64,
    /// When it was registered.
    pub registered_at: Micros,
}

/// What people say of a dataset. Nothing is computed from it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetAbout {
    /// What it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Under which licence it may be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// Where it came from, usually a URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Words to find it by, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

impl DatasetAbout {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// An end that somebody is to be told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Untold {
    /// The run or the sweep, as it stands.
    pub run: Run,
    /// How often it was put back; counts the ends that are told.
    pub life: u32,
    /// How often it was tried.
    pub tries: u32,
}

/// What came of a try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The run or the sweep.
    pub run: RunId,
    /// Of [`Untold`].
    pub life: u32,
    /// How often it was tried.
    pub tries: u32,
    /// Where that leads.
    pub state: TellingState,
    /// What was answered or said, cut.
    pub message: String,
    /// When.
    pub time: Micros,
}

/// Where telling an end stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TellingState {
    /// It is to be tried, perhaps again.
    Waiting,
    /// Somebody has taken it.
    Delivered,
    /// It was tried often enough.
    Failed,
    /// The recipe asks for other ends.
    NotWanted,
}

/// What came of telling the end of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telling {
    /// The run or the sweep.
    pub run: RunId,
    /// Where it stands.
    pub state: TellingState,
    /// How often it was tried.
    pub tries: u32,
    /// What was answered or said.
    pub message: String,
    /// Of the last try, else of the submission.
    pub time: Micros,
}

/// A run that repeats another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repetition {
    /// The repetition.
    pub run: RunId,
    /// The run that it repeats.
    pub original: RunId,
    /// What came of it, once that is judged.
    pub judgement: Option<Reproduction>,
    /// What somebody signed about it.
    pub statement: Option<SignedStatement>,
}

/// A mark that keeps something from prune.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Whose.
    pub tenant: Tenant,
    /// Who pinned it.
    pub owner: Owner,
    /// What is kept.
    pub target: PinTarget,
    /// When it was pinned.
    pub time: Micros,
}

/// What a pin keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PinTarget {
    /// A run with its record, its tree and its outputs; of a sweep every point.
    Run(RunId),
    /// A tree.
    Commit(CommitId),
}

/// What must not be pruned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct References {
    /// Trees of runs, and pinned ones.
    pub commits: Vec<CommitId>,
    /// Listings of outputs.
    pub outputs: Vec<ObjectId>,
    /// Digests of environments, each with the run or the sweep that was planned with it.
    pub environments: Vec<(RunId, DepsDigest)>,
    /// Digests of copied datasets that are registered, and of all that plans name.
    pub datasets: Vec<Digest>,
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

/// A lease as executors carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptRef {
    /// The run.
    pub run: RunId,
    /// Which try.
    pub number: AttemptNumber,
    /// Its lease.
    pub token: FencingToken,
}
