//! What control refuses or fails at, for callers.

use mlmesh_model::{Denied, Phase, PlanDigest, Refusal, RunId, StoreError, Trust};
use serde::Serialize;

/// A submission that is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Accepted {
    /// The run, or the parent of the sweep.
    pub id: RunId,
    /// Digest of the plan, or of the sweep.
    pub plan_sha256: PlanDigest,
    /// Points of the sweep, or replicas of the service, in order; empty for a single run.
    pub children: Vec<RunId>,
    /// The level it can reach, and why no higher one.
    pub trust: Trust,
    /// False when an earlier request with this idempotency key was answered again.
    pub fresh: bool,
}

/// What the job path refuses or fails at.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Preflight refused; nothing was enqueued.
    #[error("refused: {}", messages(.0))]
    Refused(Vec<Refusal>),
    /// No such run of this tenant.
    #[error("no run `{0}`")]
    NoRun(RunId),
    /// No replica of that name lives.
    #[error("no service `{0}`")]
    NoService(String),
    /// The run is in a phase in which this cannot be done.
    #[error("cannot {action} run `{run}`: it is {phase}; {allowed}")]
    Phase {
        /// `cancel` or `retry`.
        action: &'static str,
        /// The run.
        run: RunId,
        /// Where it stands.
        phase: Phase,
        /// In which phases it could be done.
        allowed: &'static str,
    },
    /// The caller's role does not allow it.
    #[error(transparent)]
    Denied(#[from] Box<Denied>),
    /// The daemon is going down and takes nothing new.
    #[error("the daemon is shutting down")]
    ShuttingDown,
    /// The store failed or refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Others may read the secret store.
    #[error("`{}` has mode {mode:04o}; the secret store is a file of mode 0600\nhint: take it back with `chmod 600`, and replace the values that others may have read", path.display())]
    SecretsOpen {
        /// The file.
        path: std::path::PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file of the data directory could not be read or written.
    #[error("{action}: {source}")]
    Io {
        /// What was being done, with its path.
        action: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl ControlError {
    /// The stable word of the API and of `ml --json`.
    pub fn code(&self) -> &str {
        match self {
            Self::Refused(refusals) => refusals
                .first()
                .map_or("refused", |refusal| refusal.code.as_str()),
            Self::NoRun(_) | Self::Store(StoreError::NoRun(_)) => "run_not_found",
            Self::NoService(_) => "not_found",
            Self::Phase { .. } => "phase_not_allowed",
            Self::Denied(_) => "forbidden",
            Self::ShuttingDown => "shutting_down",
            Self::Store(StoreError::IdempotencyMismatch(_)) => "idempotency_mismatch",
            Self::Store(StoreError::StaleToken { .. }) => "stale_token",
            Self::Store(StoreError::Unavailable(_)) => "store_unavailable",
            Self::Store(_) => "store_failed",
            Self::SecretsOpen { .. } => "key_mode",
            Self::Io { .. } => "data_directory_failed",
        }
    }
}

fn messages(refusals: &[Refusal]) -> String {
    refusals
        .iter()
        .map(|refusal| refusal.message.as_str())
        .collect::<Vec<_>>()
        .join("; ")
}
