//! Datasets, the audit trail, commits, and the daemon's own chores.

use std::collections::BTreeMap;

use mlmesh_model::{
    AuditRow, CommitId, Dataset, DatasetAbout, DepsDigest, Digest, Pin, PinTarget, RunId,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ErrorBody, Timestamp, wire};

/// Schema name of [`DatasetDto`].
pub const DATASET_SCHEMA: &str = "mlmesh.dataset/1";
/// Schema name of [`DatasetsDto`].
pub const DATASETS_SCHEMA: &str = "mlmesh.datasets/1";
/// Schema name of [`AuditDto`].
pub const AUDIT_SCHEMA: &str = "mlmesh.audit/1";
/// Schema name of [`AuditVerdictDto`].
pub const AUDIT_VERDICT_SCHEMA: &str = "mlmesh.audit_verdict/1";
/// Schema name of [`CommitDto`].
pub const COMMIT_SCHEMA: &str = "mlmesh.commit/1";
/// Schema name of [`AddedDto`].
pub const ADDED_SCHEMA: &str = "mlmesh.added/1";
/// Schema name of [`UploadDto`].
pub const UPLOAD_SCHEMA: &str = "mlmesh.upload/1";
/// Schema name of [`ChangedRunsDto`].
pub const CHANGED_RUNS_SCHEMA: &str = "mlmesh.changed_runs/1";
/// Schema name of [`CancelledDto`].
pub const CANCELLED_SCHEMA: &str = "mlmesh.cancelled/1";
/// Runs that one request to cancel names.
pub const CANCEL_NAMES_MAX: usize = 1_000;
/// Schema name of [`LabelsDto`].
pub const LABELS_SCHEMA: &str = "mlmesh.labels/1";
/// Schema name of [`PinDto`].
pub const PIN_SCHEMA: &str = "mlmesh.pin/1";
/// Schema name of [`PinsDto`].
pub const PINS_SCHEMA: &str = "mlmesh.pins/1";
/// Schema name of [`PruneDto`].
pub const PRUNE_SCHEMA: &str = "mlmesh.prune/1";
/// Schema name of [`StopDto`].
pub const STOP_SCHEMA: &str = "mlmesh.stop/1";

/// A registered dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DatasetDto {
    /// [`DATASET_SCHEMA`].
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Digest of the file, or of the directory's listing.
    #[schemars(schema_with = "wire::digest")]
    pub checksum: Digest,
    /// Whether it is a directory.
    pub directory: bool,
    /// Where it lies on the daemon's machine; of a copied one, where it came from.
    pub path: String,
    /// Whether the content store has it, so that it does not need its path.
    pub copied: bool,
    /// What people say of it.
    pub about: DatasetAboutDto,
    /// Bytes in all.
    pub bytes: u64,
    /// Files in all.
    pub files: u64,
    /// Who registered it.
    pub owner: String,
    /// When.
    pub registered_at: Timestamp,
}

impl From<&Dataset> for DatasetDto {
    fn from(dataset: &Dataset) -> Self {
        Self {
            schema: DATASET_SCHEMA.to_owned(),
            name: dataset.name.to_string(),
            version: dataset.version.clone(),
            checksum: dataset.checksum,
            directory: dataset.directory,
            path: dataset.path.clone(),
            copied: dataset.copied,
            about: dataset.about.clone().into(),
            bytes: dataset.bytes,
            files: dataset.files,
            owner: dataset.owner.to_string(),
            registered_at: dataset.registered_at.into(),
        }
    }
}

/// What people say of a dataset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DatasetAboutDto {
    /// What it is; at most 16,384 characters.
    #[schemars(
        length(min = 1, max = 16_384),
        regex(pattern = "^[^\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f]*$")
    )]
    pub description: Option<String>,
    /// Under which licence it may be used; at most 256 characters.
    #[schemars(
        length(min = 1, max = 256),
        regex(pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$")
    )]
    pub licence: Option<String>,
    /// Where it came from, usually a URL; at most 4,096 characters.
    #[schemars(
        length(min = 1, max = 4_096),
        regex(pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$")
    )]
    pub source: Option<String>,
    /// Words to find it by; at most 100 of 64 characters.
    #[schemars(
        length(max = 100),
        inner(
            length(min = 1, max = 64),
            regex(pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$")
        )
    )]
    pub tags: Vec<String>,
}

impl From<DatasetAbout> for DatasetAboutDto {
    fn from(about: DatasetAbout) -> Self {
        let DatasetAbout {
            description,
            licence,
            source,
            tags,
        } = about;
        Self {
            description,
            licence,
            source,
            tags,
        }
    }
}

impl From<DatasetAboutDto> for DatasetAbout {
    fn from(about: DatasetAboutDto) -> Self {
        let DatasetAboutDto {
            description,
            licence,
            source,
            mut tags,
        } = about;
        tags.sort_unstable();
        tags.dedup();
        Self {
            description,
            licence,
            source,
            tags,
        }
    }
}

/// The catalog, by name and version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DatasetsDto {
    /// [`DATASETS_SCHEMA`].
    pub schema: String,
    /// The datasets.
    pub datasets: Vec<DatasetDto>,
}

/// Schema name of [`ImportedDto`].
pub const IMPORTED_SCHEMA: &str = "mlmesh.imported/1";

/// An export without its contents, which were sent as objects and commits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportDto {
    /// `attestation.dsse.json`, byte by byte.
    pub envelope: String,
    /// The manifests, and statements of reproduction, by their names in the archive, byte
    /// by byte.
    pub manifests: std::collections::BTreeMap<String, String>,
}

/// What was imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImportedDto {
    /// [`IMPORTED_SCHEMA`].
    pub schema: String,
    /// The run or sweep.
    #[schemars(schema_with = "wire::run_id")]
    pub id: mlmesh_model::RunId,
    /// False when it was here already.
    pub fresh: bool,
    /// Runs, without the parent of a sweep.
    pub runs: u64,
    /// Who signed it.
    pub signer: String,
}

/// Registers what lies at `path` under a name and version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("anyOf" = [
    {"properties": {"copied": {"type": "null"}}},
    {"properties": {"checksum": {"type": "string"}}, "required": ["checksum"]},
]))]
pub struct RegisterDatasetDto {
    /// Its name.
    #[schemars(schema_with = "wire::name")]
    pub name: String,
    /// Its version.
    #[schemars(schema_with = "wire::name")]
    pub version: String,
    /// An absolute path on the daemon's machine.
    #[schemars(regex(pattern = "^/"))]
    pub path: String,
    /// What it has to be; other data are refused. Needed for a copied one.
    #[serde(default)]
    #[schemars(schema_with = "wire::digest_or_null")]
    pub checksum: Option<Digest>,
    /// The caller has sent the data to the content store: nothing is read at `path`.
    #[serde(default)]
    pub copied: Option<CopiedDto>,
    /// What people say of it; when it is absent, what was said before stays.
    #[serde(default)]
    pub about: DatasetAboutDto,
}

/// What was sent to the content store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CopiedDto {
    /// An object, whose digest is the checksum.
    File,
    /// A commit, whose id is the checksum.
    Folder,
}

/// A page of the audit trail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditDto {
    /// [`AUDIT_SCHEMA`].
    pub schema: String,
    /// Rows, oldest first.
    pub rows: Vec<AuditRowDto>,
    /// Give this as `after` for the next page; null on the last one.
    pub next_cursor: Option<u64>,
}

/// A chained audit row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditRowDto {
    /// From 1, without a gap.
    pub n: u64,
    /// When.
    pub time: Timestamp,
    /// Whose tenant.
    pub tenant: String,
    /// Who.
    pub owner: String,
    /// Which key, by its public name.
    pub key: String,
    /// From where.
    pub remote: String,
    /// The action.
    pub action: String,
    /// What it was done to.
    pub subject: String,
    /// Digest of details.
    #[schemars(schema_with = "wire::digest_or_null")]
    pub details_sha256: Option<Digest>,
    /// Hash of the row before.
    #[schemars(schema_with = "wire::digest")]
    pub previous: Digest,
    /// Hash of this row.
    #[schemars(schema_with = "wire::digest")]
    pub hash: Digest,
}

impl From<&AuditRow> for AuditRowDto {
    fn from(row: &AuditRow) -> Self {
        Self {
            n: row.n,
            time: row.note.time.into(),
            tenant: row.note.tenant.to_string(),
            owner: row.note.owner.to_string(),
            key: row.note.key.clone(),
            remote: row.note.remote.clone(),
            action: row.note.action.clone(),
            subject: row.note.subject.clone(),
            details_sha256: row.note.details_sha256,
            previous: row.previous,
            hash: row.hash,
        }
    }
}

/// Whether the audit trail is whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditVerdictDto {
    /// [`AUDIT_VERDICT_SCHEMA`].
    pub schema: String,
    /// Whether every row follows from the one before and none is missing.
    pub ok: bool,
    /// Rows checked.
    pub rows: u64,
    /// The first row that does not fit.
    pub first_bad: Option<u64>,
    /// What is wrong with it; empty when all is well.
    pub message: String,
}

/// A commit that is complete in the content store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CommitDto {
    /// [`COMMIT_SCHEMA`].
    pub schema: String,
    /// Its id.
    #[schemars(schema_with = "wire::digest")]
    pub commit: CommitId,
    /// Files in it.
    pub files: u64,
}

/// What a batch of frames has added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AddedDto {
    /// [`ADDED_SCHEMA`].
    pub schema: String,
    /// Objects that were not there before.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// How far an upload in pieces has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UploadDto {
    /// [`UPLOAD_SCHEMA`].
    pub schema: String,
    /// The next byte to send.
    pub offset: u64,
    /// Whether the object is in the store.
    pub complete: bool,
}

/// Which runs of a sweep are put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryDto {
    /// Only failed, cancelled and interrupted ones; completed ones are never put back.
    #[serde(default)]
    pub failed_only: bool,
}

/// Runs that a call changed: cancelled or put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChangedRunsDto {
    /// [`CHANGED_RUNS_SCHEMA`].
    pub schema: String,
    /// The run or sweep that the call named.
    #[schemars(schema_with = "wire::run_id")]
    pub id: RunId,
    /// The runs that changed, or are about to.
    #[schemars(schema_with = "wire::run_ids")]
    pub runs: Vec<RunId>,
}

/// Runs and sweeps to cancel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelDto {
    /// Ids, beginnings of ids, or `@last`; at most [`CANCEL_NAMES_MAX`].
    #[schemars(length(max = 1_000))]
    pub runs: Vec<String>,
}

/// What became of each name, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CancelledDto {
    /// [`CANCELLED_SCHEMA`].
    pub schema: String,
    /// One for each name.
    pub outcomes: Vec<CancelOutcomeDto>,
}

/// Runs that end, or why they do not: one of both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CancelOutcomeDto {
    /// What the name stands for, and the runs that end.
    pub changed: Option<ChangedRunsDto>,
    /// Why nothing of it can be cancelled.
    pub error: Option<ErrorBody>,
}

/// A change of what stands on a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeLabelsDto {
    /// Tags with their values; an empty value is one.
    #[serde(default)]
    #[schemars(schema_with = "wire::tags_to_set")]
    pub set: BTreeMap<String, String>,
    /// Names of tags that go; one that is not there is no error.
    #[serde(default)]
    #[schemars(schema_with = "wire::tags_to_remove")]
    pub remove: Vec<String>,
    /// The note from now on, empty for none; null leaves it as it is.
    #[serde(default)]
    #[schemars(schema_with = "wire::note_or_null")]
    pub note: Option<String>,
}

/// What stands on a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LabelsDto {
    /// [`LABELS_SCHEMA`].
    pub schema: String,
    /// The run.
    #[schemars(schema_with = "wire::run_id")]
    pub run: RunId,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Its note; empty for none.
    pub note: String,
}

/// What to keep from prune.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PinRequestDto {
    /// A run by id, the beginning of one or `@last`; a commit by its 64 hex digits.
    pub target: String,
}

/// A run or a commit that prune keeps: one of both is named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PinDto {
    /// [`PIN_SCHEMA`].
    pub schema: String,
    /// The run, which is kept with its record, its tree and its outputs.
    #[schemars(schema_with = "wire::run_id_or_null")]
    pub run: Option<RunId>,
    /// The commit.
    #[schemars(schema_with = "wire::digest_or_null")]
    pub commit: Option<CommitId>,
    /// Who pinned it.
    pub owner: String,
    /// When.
    pub pinned_at: Timestamp,
}

impl From<&Pin> for PinDto {
    fn from(pin: &Pin) -> Self {
        let (run, commit) = match pin.target {
            PinTarget::Run(run) => (Some(run), None),
            PinTarget::Commit(commit) => (None, Some(commit)),
        };
        Self {
            schema: PIN_SCHEMA.to_owned(),
            run,
            commit,
            owner: pin.owner.to_string(),
            pinned_at: pin.time.into(),
        }
    }
}

/// Everything that is pinned, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PinsDto {
    /// [`PINS_SCHEMA`].
    pub schema: String,
    /// The pins.
    pub pins: Vec<PinDto>,
}

/// What to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PruneRequestDto {
    /// Also runs that ended longer ago than this; absent removes no run.
    #[serde(default)]
    #[schemars(range(max = 9_007_199_254_740_991_u64))]
    pub ended_before_s: Option<u64>,
    /// Only say which runs would go.
    #[serde(default)]
    pub dry_run: bool,
    /// What was written or asked for within this time stays, whatever refers to it: a
    /// sync may be about to name it. At most an hour; absent means ten minutes.
    #[serde(default)]
    #[schemars(range(max = 9_007_199_254_740_991_u64))]
    pub grace_s: Option<u64>,
}

/// What was removed, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PruneDto {
    /// [`PRUNE_SCHEMA`].
    pub schema: String,
    /// Whether nothing was removed.
    pub dry_run: bool,
    /// Runs.
    #[schemars(schema_with = "wire::run_ids")]
    pub runs: Vec<RunId>,
    /// Environments that no run is planned with, by the digest of what is in them.
    #[serde(default)]
    #[schemars(schema_with = "wire::digests")]
    pub environments: Vec<DepsDigest>,
    /// Objects of the content store; null on a dry run, since only a prune finds them.
    pub objects: Option<u64>,
    /// Bytes that they took.
    pub bytes: Option<u64>,
}

/// How the daemon goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StopRequestDto {
    /// Cancel live runs, cause `shutdown`; otherwise they go on without the daemon.
    #[serde(default)]
    pub stop_jobs: bool,
}

/// The daemon goes down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StopDto {
    /// [`STOP_SCHEMA`].
    pub schema: String,
    /// Its process, which ends after the answer.
    pub pid: u32,
    /// Whether live runs are cancelled first.
    pub stop_jobs: bool,
}
