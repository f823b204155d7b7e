//! Trees, commits, objects, packs, the stat cache and chunked transfer.
//!
//! Two halves that share only the form of a tree. The client's: [`snapshot`] looks
//! at a folder and names it by its commit id. The daemon's: [`ObjectStore`] keeps
//! objects and listings, checks trees out, prunes and scrubs. Between them travel
//! frames ([`FrameWriter`], [`FrameReader`]), chunk lists and pieces of uploads;
//! how they travel is not this crate's business. Everything blocks: a caller with
//! an async runtime leaves it first.
//!
//! ```text
//! client   snapshot ─▶ Tree ──────────┐                  ┌─ missing_objects ─▶ ids
//! wire                 listing, frames, chunk lists, pieces
//! daemon   ObjectStore ◀─ put_listing ┴ receive, put_from_chunks, upload
//!          checkout · prune · scrub · lease
//! ```

mod checkout;
mod chunks;
mod commits;
mod compare;
mod copies;
mod damage;
mod error;
mod fault;
mod format;
mod frame;
mod fuzz;
mod hash;
mod lease;
mod links;
mod node;
mod pack;
mod place;
mod prune;
mod reader;
mod recover;
mod rules;
mod scrub;
mod secrets;
mod snapshot;
mod stat_cache;
mod store;
mod touched;
mod transfer;
mod tree;
mod upload;
mod walk;

pub use checkout::CheckedOut;
pub use chunks::{
    BASES_MAX, CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, CHUNKED_BYTES_MIN,
    CHUNKS_MAX, ChunkManifest, chunk_manifest,
};
pub use copies::Copied;
pub use error::StoreError;
pub use fault::CRASH_POINTS;
pub use frame::{FRAME_VERSION, FrameError, FrameLimits, FrameReader, FrameWriter, Record};
pub use lease::{Lease, SyncGuard};
pub use links::link_stays_inside;
pub use node::NodeSnapshots;
pub use prune::{PruneOptions, Pruned};
pub use reader::ObjectReader;
pub use recover::Recovery;
pub use scrub::{Defect, ScrubProgress};
pub use secrets::SCAN_BYTES_MAX;
pub use snapshot::{Checksum, Options, Rules, Snapshot, SnapshotError, checksum, snapshot};
pub use store::{Added, LOOSE_BYTES_MIN, ObjectStore};
pub use touched::GRACE_MAX;
pub use transfer::{FRAME_BODY_BYTES, FRAME_RECORDS, SyncPlan};
pub use tree::{
    COMPONENT_BYTES_MAX, Change, LINK_BYTES_MAX, Mode, PATH_BYTES_MAX, PathRule, TREE_BYTES_MAX,
    TREE_HEADER, Tree, TreeEntry, TreeError, check_path,
};
pub use upload::{Sender, Upload};
