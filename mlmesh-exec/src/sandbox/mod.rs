//! The strict sandbox: a root of our own in namespaces of our own.
//!
//! What a job sees: `/usr` and its links, a few files of `/etc`, the interpreter
//! and the environment (all read-only), its datasets (read-only), and, writable,
//! its working directory, its checkpoints, a private HOME and `/tmp`. What it does
//! not see: the rest of the host's files, other processes, and, unless the network
//! is open, any device but its own loopback, where declared hosts have their doors.
//!
//! ```text
//!   /                tmpfs, read-only        /proc   of its own pid namespace, read-only
//!   /usr /etc …      read-only               /dev    null zero full random urandom shm
//!   /mlmesh/work     writable                /tmp    writable, private
//!   /mlmesh/checkpoints  writable            /mlmesh/home  writable, private
//! ```
//!
//! The walls are those of the kernel: the job is user 1000 of a user namespace
//! that maps to whoever runs the daemon, without any capability, unable to gain
//! one (`no_new_privs`, empty bounding set, no nested user namespaces). It does
//! not filter system calls and does not hide how long things take.

mod doors;
mod init;
mod root;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(crate) use doors::{Door, LOCALHOST, doors};
pub(crate) use init::{exit_of, run as run_init};

/// The working directory as a job in the sandbox sees it.
pub(crate) const WORK: &str = "/mlmesh/work";
/// The checkpoint directory.
pub(crate) const CHECKPOINTS: &str = "/mlmesh/checkpoints";
/// Token and certificate for the daemon's API.
pub(crate) const API: &str = "/mlmesh/api";
/// HOME.
pub(crate) const HOME: &str = "/mlmesh/home";
/// PATH after the environment's own.
pub(crate) const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is mounted into a sandbox besides the system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SandboxSpec {
    /// An empty folder of the host on which the new root is built.
    pub(crate) root: PathBuf,
    /// Whether the network namespace is new and empty.
    pub(crate) network_none: bool,
    /// The ways out of an empty network namespace.
    #[serde(default)]
    pub(crate) doors: Vec<Door>,
    /// Folders of the host that appear read-only at their own place: interpreters.
    pub(crate) system: Vec<PathBuf>,
    /// The daemon's data directory, hidden where one of the above would show it.
    pub(crate) hidden: PathBuf,
    /// Writable mounts.
    pub(crate) writable: Vec<Bind>,
    /// Read-only mounts, made after the writable ones.
    pub(crate) read_only: Vec<Bind>,
    /// Device files of granted GPUs.
    pub(crate) devices: Vec<PathBuf>,
}

/// A file or folder of the host and its place in the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bind {
    pub(crate) from: PathBuf,
    pub(crate) to: PathBuf,
}

impl Bind {
    pub(crate) fn new(from: impl Into<PathBuf>, to: impl Into<PathBuf>) -> Self {
        Self {
            from: from.into(),
            to: to.into(),
        }
    }
}
