//! Where a run stands, the one table of allowed moves, and why a run ended.

use serde::{Deserialize, Serialize};

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Accepted and durable; waits for its turn.
    Queued,
    /// Leased to a node: checkout, environment, data verification.
    Starting,
    /// The command runs.
    Running,
    /// The command ended: outputs are collected, the manifest written.
    Finishing,
    /// Ended with exit code 0 and everything that was declared.
    Completed,
    /// Ended otherwise by its own doing.
    Failed,
    /// Ended because somebody asked.
    Cancelled,
    /// Ended by the machine: reboot, power, a lost supervisor.
    Interrupted,
    /// A service: it has answered as it should, and is offered.
    Ready,
    /// A service: it is offered no more and finishes what it has begun.
    Draining,
}

/// All phases, in the order in which they are shown. Their places are their numbers in
/// the store, so that a new one comes last.
pub const PHASES: [Phase; 10] = [
    Phase::Queued,
    Phase::Starting,
    Phase::Running,
    Phase::Finishing,
    Phase::Completed,
    Phase::Failed,
    Phase::Cancelled,
    Phase::Interrupted,
    Phase::Ready,
    Phase::Draining,
];

impl Phase {
    /// Whether a run may move from this phase to `next`. The only table.
    ///
    /// Moves back to `queued` are retries: from `starting`, `running` and
    /// `finishing` by the recipe's `retries`, from an ended phase (other than
    /// `completed`) by a person.
    pub const fn may_become(self, next: Self) -> bool {
        use Phase::*;
        matches!(
            (self, next),
            (Queued, Starting | Failed | Cancelled)
                | (
                    Starting,
                    Queued | Running | Failed | Cancelled | Interrupted
                )
                | (Running, Queued | Ready | Draining | Finishing | Interrupted)
                | (Ready, Queued | Draining | Finishing | Interrupted)
                | (Draining, Queued | Finishing | Interrupted)
                | (
                    Finishing,
                    Queued | Completed | Failed | Cancelled | Interrupted
                )
                | (Failed | Cancelled | Interrupted, Queued)
        )
    }

    /// Whether the run has ended (a person may still retry it).
    pub const fn is_ended(self) -> bool {
        matches!(
            self,
            Self::Completed | Self::Failed | Self::Cancelled | Self::Interrupted
        )
    }

    /// Whether the run holds a node's resources.
    pub const fn is_live(self) -> bool {
        matches!(
            self,
            Self::Starting | Self::Running | Self::Ready | Self::Draining | Self::Finishing
        )
    }

    /// The name used in the API, the CLI, metrics and the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Finishing => "finishing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }

    /// Whether the command may be running.
    pub const fn executes(self) -> bool {
        matches!(self, Self::Running | Self::Ready | Self::Draining)
    }

    /// The phase of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        PHASES.into_iter().find(|phase| phase.as_str() == name)
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a run ended other than by exit code 0, or why it was put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The command exited with a code other than 0.
    Exit,
    /// The command died of a signal that nobody of ours sent.
    Signal,
    /// The kernel ended it for memory.
    OutOfMemory,
    /// Its time limit ended it.
    Timeout,
    /// Somebody cancelled it.
    Cancelled,
    /// `ml down --stop-jobs`.
    Shutdown,
    /// Its supervisor vanished without a record.
    Lost,
    /// The machine was restarted.
    Reboot,
    /// A declared output matched nothing.
    OutputMissing,
    /// A dataset was not what its checksum says.
    DatasetChanged,
    /// The checkout or the working directory could not be made.
    PrepareFailed,
    /// The node could not prepare it: no space, no file descriptors, a disk that
    /// became read-only. That passes, so it is tried again without using a retry up.
    NodeFault,
    /// The environment could not be built.
    EnvironmentFailed,
    /// The isolation or a limit that the run requires could not be had.
    IsolationFailed,
    /// The command could not be executed (absent, not executable).
    CommandNotFound,
    /// The outputs could not be stored.
    CollectFailed,
    /// A run it waits for did not complete.
    DependencyFailed,
    /// Weights were not what their digest says.
    ModelChanged,
    /// A service did not answer as it should within its time.
    NotReady,
    /// A service was asked for this long, and no longer.
    Expired,
}

/// All causes.
pub const CAUSES: [Cause; 20] = [
    Cause::Exit,
    Cause::Signal,
    Cause::OutOfMemory,
    Cause::Timeout,
    Cause::Cancelled,
    Cause::Shutdown,
    Cause::Lost,
    Cause::Reboot,
    Cause::OutputMissing,
    Cause::DatasetChanged,
    Cause::PrepareFailed,
    Cause::NodeFault,
    Cause::EnvironmentFailed,
    Cause::IsolationFailed,
    Cause::CommandNotFound,
    Cause::CollectFailed,
    Cause::DependencyFailed,
    Cause::ModelChanged,
    Cause::NotReady,
    Cause::Expired,
];

impl Cause {
    /// The name used everywhere.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exit => "exit",
            Self::Signal => "signal",
            Self::OutOfMemory => "out_of_memory",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Shutdown => "shutdown",
            Self::Lost => "lost",
            Self::Reboot => "reboot",
            Self::OutputMissing => "output_missing",
            Self::DatasetChanged => "dataset_changed",
            Self::PrepareFailed => "prepare_failed",
            Self::NodeFault => "node_fault",
            Self::EnvironmentFailed => "environment_failed",
            Self::IsolationFailed => "isolation_failed",
            Self::CommandNotFound => "command_not_found",
            Self::CollectFailed => "collect_failed",
            Self::DependencyFailed => "dependency_failed",
            Self::ModelChanged => "model_changed",
            Self::NotReady => "not_ready",
            Self::Expired => "expired",
        }
    }

    /// The cause of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        CAUSES.into_iter().find(|cause| cause.as_str() == name)
    }

    /// The phase in which a run with this cause ends.
    pub const fn end_phase(self) -> Phase {
        match self {
            Self::Cancelled | Self::Shutdown | Self::DependencyFailed | Self::Expired => {
                Phase::Cancelled
            }
            Self::Lost | Self::Reboot | Self::NodeFault => Phase::Interrupted,
            Self::Exit
            | Self::Signal
            | Self::OutOfMemory
            | Self::Timeout
            | Self::OutputMissing
            | Self::DatasetChanged
            | Self::PrepareFailed
            | Self::EnvironmentFailed
            | Self::IsolationFailed
            | Self::CommandNotFound
            | Self::CollectFailed
            | Self::ModelChanged
            | Self::NotReady => Phase::Failed,
        }
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// How the command itself ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl Exit {
    /// The code a shell would show: the exit code, or 128 + signal.
    pub const fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_ones_serde_writes() {
        for phase in PHASES {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.as_str());
            assert_eq!(Phase::from_name(phase.as_str()), Some(phase));
        }
        for cause in CAUSES {
            assert_eq!(serde_json::to_value(cause).unwrap(), cause.as_str());
            assert_eq!(Cause::from_name(cause.as_str()), Some(cause));
        }
    }

    #[test]
    fn completed_is_final_and_every_live_phase_can_end() {
        assert!(
            PHASES
                .into_iter()
                .all(|next| !Phase::Completed.may_become(next))
        );
        for phase in PHASES.into_iter().filter(|phase| phase.is_live()) {
            assert!(phase.may_become(Phase::Interrupted), "{phase}");
            assert!(phase.may_become(Phase::Queued), "{phase}");
        }
        assert!(PHASES.into_iter().all(|phase| !phase.may_become(phase)));
        for cause in CAUSES {
            assert!(cause.end_phase().is_ended());
        }
    }
}
