//! What the store refuses or fails at.

use std::io;
use std::path::{Path, PathBuf};

use mlmesh_model::{Digest, ObjectId};

/// What the store refuses or fails at.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refused.
    #[error("object store: {action} `{}`", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another process has the store open for writing.
    #[error("the object store `{}` is in use by another process\nhint: one daemon writes to a store, `ml doctor` shows which", path.display())]
    InUse {
        /// Folder of the store.
        path: PathBuf,
    },
    /// A store of another version.
    #[error("the object store `{}` has format `{found}`, this program reads `mlmesh-objects 1`", path.display())]
    Format {
        /// Folder of the store.
        path: PathBuf,
        /// First line of its `format` file.
        found: String,
    },
    /// A store that was opened for reading was asked to write.
    #[error("the object store is open for reading only")]
    ReadOnly,
    /// Content that has another digest than it says.
    #[error(
        "content that is said to be object `{expected}` has the digest `{actual}`\nhint: the file changed while it was sent, take the snapshot again"
    )]
    Digest {
        /// The digest that was named.
        expected: ObjectId,
        /// The digest of the bytes.
        actual: Digest,
    },
    /// It is not there.
    #[error("object `{0}` is not in the store")]
    Missing(ObjectId),
    /// It is there and no longer what its digest says.
    #[error(
        "object `{0}` is damaged in the store\nhint: send it again; `ml doctor --objects` looks for more damage"
    )]
    Corrupt(ObjectId),
    /// The caller did not let it go on.
    #[error("the reading of the store was stopped")]
    Stopped,
    /// Larger than the caller takes.
    #[error("object `{id}` has {size} bytes, {bytes_max} are allowed")]
    TooLarge {
        /// The object.
        id: ObjectId,
        /// Its size.
        size: u64,
        /// The most that was allowed.
        bytes_max: u64,
    },
    /// A tree whose objects have not all arrived.
    #[error("the tree lists {} objects that are not in the store, such as `{}`\nhint: send them first", missing.len(), missing.first().map(ToString::to_string).unwrap_or_default())]
    Incomplete {
        /// The objects, each once.
        missing: Vec<ObjectId>,
    },
    /// A tree that a checkout could not or must not write.
    #[error("tree entry `{}`: {rule}", path.escape_debug())]
    Entry {
        /// Path of the entry.
        path: String,
        /// What is wrong with it.
        rule: String,
    },
    /// What is stored as a commit is no tree.
    #[error("the listing of a commit")]
    Tree(#[from] crate::tree::TreeError),
    /// The transfer broke the rules of its form.
    #[error("the transfer")]
    Frame(#[from] crate::frame::FrameError),
}

pub(crate) fn io_error(action: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}
