//! What came of telling the ends of runs.

use mlmesh_model::{RunId, Telling, TellingState};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Timestamp, wire};

/// Schema name of [`TellingsDto`].
pub const TELLINGS_SCHEMA: &str = "mlmesh.tellings/1";

/// What came of telling ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TellingsDto {
    /// [`TELLINGS_SCHEMA`].
    pub schema: String,
    /// Newest first.
    pub tellings: Vec<TellingDto>,
}

/// What came of telling the end of one run or sweep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TellingDto {
    /// The run or sweep.
    #[schemars(schema_with = "wire::run_id")]
    pub run: RunId,
    /// Where it stands.
    pub state: TellingStateDto,
    /// How often it was tried.
    pub tries: u32,
    /// What was answered or said, cut; empty before the first try.
    pub message: String,
    /// Of the last try, else of the submission.
    pub time: Timestamp,
}

/// Where telling an end stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TellingStateDto {
    /// It is to be tried, perhaps again.
    Waiting,
    /// Somebody has taken it.
    Delivered,
    /// It was tried often enough.
    Failed,
    /// The recipe asks for other ends.
    NotWanted,
}

impl From<TellingState> for TellingStateDto {
    fn from(state: TellingState) -> Self {
        match state {
            TellingState::Waiting => Self::Waiting,
            TellingState::Delivered => Self::Delivered,
            TellingState::Failed => Self::Failed,
            TellingState::NotWanted => Self::NotWanted,
        }
    }
}

impl From<&Telling> for TellingDto {
    fn from(telling: &Telling) -> Self {
        Self {
            run: telling.run,
            state: telling.state.into(),
            tries: telling.tries,
            message: telling.message.clone(),
            time: telling.time.into(),
        }
    }
}
