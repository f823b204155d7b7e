//! What goes into the scheduler and what comes out of it.

use mlmesh_model::{Cause, Owner, Phase, Resources, RunId, Tenant};

use crate::Capacity;
use crate::retry::{Again, Outcome, Verdict};

/// A run as the scheduler sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its id.
    pub run: RunId,
    /// The sweep it is a point of.
    pub sweep: Option<RunId>,
    /// Who pays.
    pub tenant: Tenant,
    /// Who asked.
    pub owner: Owner,
    /// Larger goes first.
    pub priority: i32,
    /// What it takes of the node.
    pub resources: Resources,
    /// Runs that must complete first.
    pub after: Vec<RunId>,
    /// After which ends it is tried again, and how often.
    pub again: Again,
    /// How long it has waited already, in microseconds.
    pub waited_us: i64,
    /// How long it still waits before its next try, in microseconds. A run that
    /// waits so was started before: what it was queued after has completed.
    pub delay_us: i64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// These runs are queued, on disk, in order of acceptance.
    Submitted(Vec<Job>),
    /// An attempt of an earlier daemon holds a lease on this run.
    Reattached {
        /// The run.
        job: Box<Job>,
        /// Where it stands.
        phase: Phase,
        /// GPUs it holds.
        gpus: Vec<String>,
    },
    /// Where a run stands that was asked for with [`Effect::LookUp`].
    Seen {
        /// The run.
        run: RunId,
        /// Its phase; null when there is no such run.
        phase: Option<Phase>,
    },
    /// The store says that the lease, or the run, is not ours any more.
    LeaseLost(RunId),
    /// The command runs.
    Started(RunId),
    /// A service has answered as it should.
    Ready(RunId),
    /// A service is to end and finishes what it has begun.
    Draining(RunId),
    /// The command has ended.
    Exited(RunId),
    /// The attempt is over and everything it left is known.
    Finished {
        /// The run.
        run: RunId,
        /// How it is judged.
        outcome: Outcome,
    },
    /// The command was never executed and never will be under this attempt.
    NeverStarted(RunId),
    /// The record that [`Effect::Record`] asked for is on its way to the store.
    Recording(RunId),
    /// It is on disk.
    Recorded(RunId),
    /// Somebody wants the run to end.
    Cancel(RunId),
    /// Start nothing more.
    Drain,
    /// Start nothing more and stop what is live, cause `shutdown`.
    StopLive,
    /// The node has this from now on.
    CapacityChanged(Capacity),
    /// Time has passed; see [`Scheduler::wake_at`](crate::Scheduler::wake_at).
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Claim the run and start an attempt with these GPUs.
    Start {
        /// The run.
        run: RunId,
        /// UUIDs of the GPUs granted.
        gpus: Vec<String>,
    },
    /// Stop the run's live attempt.
    Stop {
        /// The run.
        run: RunId,
        /// Why.
        cause: Cause,
    },
    /// Record how the attempt ended and what follows.
    Record {
        /// The run.
        run: RunId,
        /// What follows.
        verdict: Verdict,
    },
    /// Record that a queued run has ended.
    EndQueued {
        /// The run.
        run: RunId,
        /// Why.
        cause: Cause,
    },
    /// Look up where this run or sweep stands, and answer with [`Event::Seen`].
    LookUp(RunId),
}

/// Effects in the order in which they are to be carried out.
pub type Effects = Vec<Effect>;
