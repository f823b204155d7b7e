//! Trees, commits and the content store.

mod fault;
mod hash;
mod rules;
mod secrets;
mod snapshot;
mod stat_cache;
mod tree;
mod walk;

pub use fault::CRASH_POINTS;
pub use secrets::SCAN_BYTES_MAX;
pub use snapshot::{Checksum, Options, Rules, Snapshot, SnapshotError, checksum, snapshot};
pub use tree::{
    COMPONENT_BYTES_MAX, LINK_BYTES_MAX, Mode, PATH_BYTES_MAX, PathRule, TREE_BYTES_MAX, TREE_HEADER, Tree,
    TreeEntry, TreeError, check_path, link_stays_inside,
};
