//! Reading everything that the content store holds: how far it is, what is damaged.

use mlmesh_model::{CommitId, Digest, RunId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Timestamp, wire};

/// Schema name of [`ScrubDto`].
pub const SCRUB_SCHEMA: &str = "mlmesh.scrub/1";

/// The newest reading of the whole content store. The daemon forgets it when it ends;
/// what was found damaged stays marked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ScrubDto {
    /// [`SCRUB_SCHEMA`].
    pub schema: String,
    /// Where it stands.
    pub state: ScrubStateDto,
    /// Null before the first.
    pub started_at: Option<Timestamp>,
    /// Null until it has ended.
    pub ended_at: Option<Timestamp>,
    /// Objects and listings that were read.
    pub objects: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// About how many there are.
    pub bytes_total: u64,
    /// Why it failed; null otherwise.
    pub error: Option<String>,
    /// Damage that was found.
    pub defects_total: u64,
    /// The first thousand of it.
    pub defects: Vec<DefectDto>,
}

/// Where a reading stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScrubStateDto {
    /// None was asked for since the daemon started.
    Never,
    /// It goes on.
    Running,
    /// Everything was read.
    Done,
    /// It could not be read to the end.
    Failed,
}

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DefectDto {
    /// What it is.
    pub kind: DefectKindDto,
    /// The object or commit; null for an index.
    #[schemars(schema_with = "wire::digest_or_null")]
    pub object: Option<Digest>,
    /// The file and what is wrong with it.
    pub message: String,
    /// Trees and outputs that need it, the first few.
    #[schemars(schema_with = "wire::digests")]
    pub commits: Vec<CommitId>,
    /// Runs of the caller's tenant with one of these, the first few.
    #[schemars(schema_with = "wire::run_ids")]
    pub runs: Vec<RunId>,
}

/// Kinds of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DefectKindDto {
    /// An object is not what its id says.
    Object,
    /// The listing of a commit is not what its id says.
    Listing,
    /// An index; it is made anew from what it indexes.
    Index,
    /// A listing names an object that is not there.
    Missing,
}
