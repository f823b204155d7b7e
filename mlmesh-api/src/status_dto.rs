//! `ml status` and lists of runs.

use std::collections::BTreeMap;

use mlmesh_model::Phase;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{RunSummaryDto, wire};

/// Schema name of [`StatusDto`].
pub const STATUS_SCHEMA: &str = "mlmesh.status/1";
/// Schema name of [`RunsDto`].
pub const RUNS_SCHEMA: &str = "mlmesh.runs/1";

/// How the daemon stands: counts and the runs that matter now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StatusDto {
    /// [`STATUS_SCHEMA`].
    pub schema: String,
    /// Runs by phase; parents of sweeps are not counted.
    pub counts: CountsDto,
    /// Live runs, the next queued ones and the newest ended ones.
    pub runs: Vec<RunSummaryDto>,
    /// State of prewarming; null where there is none.
    #[schemars(schema_with = "wire::object_or_null")]
    pub prewarm: Option<serde_json::Value>,
}

/// Runs by phase. Every phase is always there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct CountsDto {
    /// Accepted, waiting.
    pub queued: u64,
    /// Leased, being prepared.
    pub starting: u64,
    /// The command runs; of services, whether they are ready or not.
    pub running: u64,
    /// Outputs are being collected.
    pub finishing: u64,
    /// Ended well.
    pub completed: u64,
    /// Ended by their own doing.
    pub failed: u64,
    /// Ended because somebody asked.
    pub cancelled: u64,
    /// Ended by the machine.
    pub interrupted: u64,
}

impl CountsDto {
    /// Runs in `phase`.
    pub fn of(&self, phase: Phase) -> u64 {
        match phase {
            Phase::Queued => self.queued,
            Phase::Starting => self.starting,
            Phase::Running => self.running,
            Phase::Finishing => self.finishing,
            Phase::Completed => self.completed,
            Phase::Failed => self.failed,
            Phase::Cancelled => self.cancelled,
            Phase::Interrupted => self.interrupted,
            // The command of a service runs in these, too; its counts are in `running`.
            Phase::Ready | Phase::Draining => 0,
        }
    }
}

impl From<&BTreeMap<Phase, u64>> for CountsDto {
    fn from(counts: &BTreeMap<Phase, u64>) -> Self {
        let of = |phase| counts.get(&phase).copied().unwrap_or(0);
        Self {
            queued: of(Phase::Queued),
            starting: of(Phase::Starting),
            running: of(Phase::Running) + of(Phase::Ready) + of(Phase::Draining),
            finishing: of(Phase::Finishing),
            completed: of(Phase::Completed),
            failed: of(Phase::Failed),
            cancelled: of(Phase::Cancelled),
            interrupted: of(Phase::Interrupted),
        }
    }
}

/// A page of runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunsDto {
    /// [`RUNS_SCHEMA`].
    pub schema: String,
    /// Newest first; points of a sweep in sweep order.
    pub runs: Vec<RunSummaryDto>,
    /// Give this as `cursor` for the next page; null on the last one.
    pub next_cursor: Option<u64>,
}
