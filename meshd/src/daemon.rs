//! What every handler reaches: the parts of one daemon, put together once.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use mlmesh_api::ScrubDto;
use mlmesh_cas::{NodeSnapshots, ObjectStore};
use mlmesh_control::Control;
use mlmesh_model::{Clock, Executor, Owner, RunId, Sequence, Store};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::http::front::{OnceInAWhile, RequestIds};
use crate::keys::KeyRing;
use crate::logs::LogSender;
use crate::metrics::Metrics;
use crate::permissions::PermissionsFile;
use crate::stores::OpenStore;

/// One daemon.
pub(crate) struct Daemon {
    pub(crate) control: Arc<Control>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) open_store: OpenStore,
    pub(crate) objects: Arc<ObjectStore>,
    pub(crate) snapshots: Arc<NodeSnapshots>,
    pub(crate) executor: Arc<dyn Executor>,
    pub(crate) clock: Arc<dyn Clock>,
    /// The user whom this process belongs to.
    pub(crate) owner: Owner,
    pub(crate) keys: KeyRing,
    pub(crate) permissions: PermissionsFile,
    pub(crate) key_failures: OnceInAWhile,
    pub(crate) request_ids: RequestIds,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) logs: LogSender,
    pub(crate) root: PathBuf,
    /// Free bytes below which the daemon is not ready.
    pub(crate) disk_reserve: u64,
    /// Bytes of points that an attempt may post.
    pub(crate) attempt_bytes_max: u64,
    /// Sequence of the newest committed event.
    pub(crate) commits: watch::Receiver<Sequence>,
    pub(crate) event_streams: Arc<Semaphore>,
    pub(crate) stopping: Stopping,
    pub(crate) scrub: Mutex<ScrubDto>,
    /// Owns what outlives a request: event streams.
    pub(crate) tasks: TaskTracker,
}

impl Daemon {
    /// The folder of a run.
    pub(crate) fn run_folder(&self, run: RunId) -> PathBuf {
        self.root.join("data/experiments").join(run.to_string())
    }
}

/// The wish to go down.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stopping {
    token: CancellationToken,
    stop_jobs: Arc<AtomicBool>,
}

impl Stopping {
    /// Begins to go down; with `stop_jobs` live runs are cancelled first.
    pub(crate) fn begin(&self, stop_jobs: bool) {
        if stop_jobs {
            self.stop_jobs.store(true, Ordering::Release);
        }
        self.token.cancel();
    }

    pub(crate) fn token(&self) -> &CancellationToken {
        &self.token
    }

    pub(crate) fn stops_jobs(&self) -> bool {
        self.stop_jobs.load(Ordering::Acquire)
    }
}
