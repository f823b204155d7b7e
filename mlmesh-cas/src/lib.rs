//! Trees, commits and the content store.

mod checkout;
mod chunks;
mod commits;
mod fault;
mod format;
mod frame;
mod hash;
mod lease;
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
mod tree;
mod upload;
mod walk;

pub use checkout::CheckedOut;
pub use chunks::{
    BASES_MAX, CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, CHUNKED_BYTES_MIN, CHUNKS_MAX,
    ChunkManifest, chunk_manifest,
};
pub use fault::CRASH_POINTS;
pub use frame::{FRAME_VERSION, FrameError, FrameLimits, FrameReader, FrameWriter, Record};
pub use lease::{Lease, SyncGuard};
pub use prune::{PruneOptions, Pruned};
pub use reader::ObjectReader;
pub use recover::Recovery;
pub use scrub::{Defect, ScrubProgress};
pub use secrets::SCAN_BYTES_MAX;
pub use snapshot::{Checksum, Options, Rules, Snapshot, SnapshotError, checksum, snapshot};
pub use store::{Added, LOOSE_BYTES_MIN, ObjectStore, StoreError};
pub use touched::GRACE_MAX;
pub use tree::{
    COMPONENT_BYTES_MAX, LINK_BYTES_MAX, Mode, PATH_BYTES_MAX, PathRule, TREE_BYTES_MAX, TREE_HEADER, Tree,
    TreeEntry, TreeError, check_path, link_stays_inside,
};
pub use upload::Upload;
