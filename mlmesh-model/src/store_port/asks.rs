//! What the methods of [`Store`](super::Store) that write and find runs are given, and what
//! they answer.

use std::collections::BTreeMap;

use crate::filter::{Filter, Sort};
use crate::{
    Attempt, AuditNote, Cause, Digest, Exit, FencingToken, Isolation, Logged, MetricSummary,
    Micros, NodeId, ObjectId, Owner, Phase, Run, RunId, Sequence, StoreError, Tenant, Trust,
};

/// Input of [`Store::import`](crate::Store::import).
#[derive(Debug, Clone)]
pub struct Import {
    /// Runs in order; a parent stands before its children. All but parents have ended.
    pub runs: Vec<Run>,
    /// Their attempts.
    pub attempts: Vec<Attempt>,
    /// Who imported what.
    pub audit: AuditNote,
}

/// Input of [`Store::submit`](crate::Store::submit).
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

/// Output of [`Store::submit`](crate::Store::submit).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submitted {
    /// The run, or the parent of the sweep.
    pub id: RunId,
    /// False when an earlier request with this key was answered again.
    pub fresh: bool,
}

/// Input of [`Store::claim`](crate::Store::claim).
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

/// Input of [`Store::advance`](crate::Store::advance). Fields that are `None` stay as they are.
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

/// Input of [`Store::move_unleased`](crate::Store::move_unleased).
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

/// Input of [`Store::label`](crate::Store::label).
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

/// Output of [`Store::move_unleased`](crate::Store::move_unleased).
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

/// Input of [`Store::find`](crate::Store::find).
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
