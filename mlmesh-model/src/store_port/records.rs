//! What the [`Store`](super::Store) keeps beside runs: audit rows, data, pins, what is told of
//! ends, repetitions.

use serde::{Deserialize, Serialize};

use crate::{
    AttemptNumber, CommitId, DepsDigest, Digest, FencingToken, Micros, Name, ObjectId, Owner,
    Reproduction, Run, RunId, SignedStatement, Tenant,
};

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
    /// Digests of copied datasets that are registered, and of all data and weights that
    /// plans name.
    pub datasets: Vec<Digest>,
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
