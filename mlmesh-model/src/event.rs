//! What happened, in the order in which it was committed.

use serde::{Deserialize, Serialize};

use crate::{Cause, Micros, Owner, Phase, RunId, Sequence, TellingState, Tenant};

/// One committed event. `seq` is set by the store and grows by commit order, so
/// that a reader who has seen `seq` asks for what lies after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its place in the order; 0 until the store has assigned one.
    pub seq: Sequence,
    /// When it happened.
    pub time: Micros,
    /// Whose it is.
    pub tenant: Tenant,
    /// Who caused it.
    pub owner: Owner,
    /// The run it concerns.
    pub run: Option<RunId>,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EventKind {
    /// A run moved.
    RunPhase {
        /// The phase it is in now.
        phase: Phase,
        /// Why, where there is a why.
        cause: Option<Cause>,
        /// Tries so far.
        attempt: u32,
    },
    /// A sweep was accepted.
    SweepAccepted {
        /// Number of points.
        children: u32,
    },
    /// A commit became complete in the content store.
    CommitStored {
        /// Its id.
        commit: crate::CommitId,
        /// Files in it.
        files: u64,
    },
    /// A dataset was registered or removed.
    DatasetChanged {
        /// Its name.
        name: String,
        /// Its version.
        version: String,
        /// `registered` or `removed`.
        change: String,
    },
    /// Somebody was told of a run's end, or could not be.
    EndTold {
        /// What came of it.
        state: TellingState,
        /// How often it was tried.
        tries: u32,
    },
    /// The daemon came up.
    DaemonStarted {
        /// Its version.
        version: String,
    },
    /// Something about security: a failed key, a refused connection.
    Security {
        /// Stable word, such as `auth_failed`.
        code: String,
        /// Where it came from.
        remote: String,
    },
}
