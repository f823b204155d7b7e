//! Events as they come over the WebSocket, one JSON text frame each.

use mlmesh_model::{Cause, CommitId, Event, EventKind, Phase, RunId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{TellingStateDto, Timestamp, wire};

/// Schema name of [`EventDto`].
pub const EVENT_SCHEMA: &str = "mlmesh.event/1";

/// Schema name of [`EventsDto`].
pub const EVENTS_SCHEMA: &str = "mlmesh.events/1";

/// A page of events, for a reader without a WebSocket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventsDto {
    /// [`EVENTS_SCHEMA`].
    pub schema: String,
    /// Events in commit order.
    pub events: Vec<EventDto>,
    /// Give this as `after` for what follows, now or later.
    pub next_cursor: u64,
}

/// One committed event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventDto {
    /// [`EVENT_SCHEMA`].
    pub schema: String,
    /// Its place in the order; give the last one seen as `after` to resume.
    pub seq: u64,
    /// When it happened.
    pub time: Timestamp,
    /// Whose it is.
    pub tenant: String,
    /// Who caused it.
    pub owner: String,
    /// The run it concerns.
    #[schemars(schema_with = "wire::run_id_or_null")]
    pub run: Option<RunId>,
    /// What happened.
    pub event: EventKindDto,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EventKindDto {
    /// A run moved.
    RunPhase {
        /// The phase it is in now.
        #[schemars(schema_with = "wire::phase")]
        phase: Phase,
        /// Why.
        #[schemars(schema_with = "wire::cause_or_null")]
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
        #[schemars(schema_with = "wire::digest")]
        commit: CommitId,
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
    /// Somebody was told of a run's end, or could not be; `ml info` has the answer.
    EndTold {
        /// What came of it.
        state: TellingStateDto,
        /// How often it was tried.
        tries: u32,
    },
    /// The daemon came up.
    DaemonStarted {
        /// Its version.
        version: String,
    },
    /// Something about security.
    Security {
        /// Stable word.
        code: String,
        /// Where it came from.
        remote: String,
    },
}

impl From<&Event> for EventDto {
    fn from(event: &Event) -> Self {
        Self {
            schema: EVENT_SCHEMA.to_owned(),
            seq: event.seq.0,
            time: event.time.into(),
            tenant: event.tenant.to_string(),
            owner: event.owner.to_string(),
            run: event.run,
            event: EventKindDto::from(&event.kind),
        }
    }
}

impl From<&EventKind> for EventKindDto {
    fn from(kind: &EventKind) -> Self {
        match kind.clone() {
            EventKind::RunPhase {
                phase,
                cause,
                attempt,
            } => Self::RunPhase {
                phase,
                cause,
                attempt,
            },
            EventKind::SweepAccepted { children } => Self::SweepAccepted { children },
            EventKind::CommitStored { commit, files } => Self::CommitStored { commit, files },
            EventKind::DatasetChanged {
                name,
                version,
                change,
            } => Self::DatasetChanged {
                name,
                version,
                change,
            },
            EventKind::EndTold { state, tries } => Self::EndTold {
                state: state.into(),
                tries,
            },
            EventKind::DaemonStarted { version } => Self::DaemonStarted { version },
            EventKind::Security { code, remote } => Self::Security { code, remote },
        }
    }
}
