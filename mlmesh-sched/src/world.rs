//! The facts that preflight needs besides the submission itself. The shell collects
//! them; nothing here knows where they come from.

use std::collections::{BTreeMap, BTreeSet};

use mlmesh_model::{Abilities, Dataset, Interpreter, LockFacts, Phase, PlanModel, RunId};

use crate::Capacity;

/// What is true of the daemon, its machine and the caller when a submission is judged.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Interpreters found on the machine.
    pub interpreters: Vec<Interpreter>,
    /// Datasets registered by the tenant.
    pub datasets: Vec<Dataset>,
    /// What the executor can enforce.
    pub abilities: Abilities,
    /// What the node has.
    pub capacity: Capacity,
    /// What became of each entry of `after:`.
    pub after: BTreeMap<String, ParentSeen>,
    /// Names of secrets whose value the daemon holds.
    pub secrets: BTreeSet<String>,
    /// Whether the tree is complete in the content store.
    pub commit_complete: bool,
    /// The lock file as the daemon read it from the tree.
    pub lock: LockSeen,
    /// Whether the caller is the user that the daemon runs as.
    pub caller_is_daemon_owner: bool,
    /// Whether the daemon executes commands of `on_finish`.
    pub hook_commands: bool,
    /// Whether the caller's tenant has a service of this name that has not ended.
    pub service_open: bool,
    /// The weights that a service names.
    pub model: ModelSeen,
    /// What is going on now.
    pub load: Load,
}

/// Weights as the daemon found them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ModelSeen {
    /// The recipe names none.
    #[default]
    NotAsked,
    /// No run has this id or prefix, or the caller may not read what it put out.
    NoRun,
    /// The run has put out no such file.
    NoOutput(RunId),
    /// No recorded run is known to have put this file out.
    Unrecorded,
    /// They are in the content store, and a recorded run put them out.
    Found(PlanModel),
}

/// The lock file that `environment:` names, as the daemon found it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LockSeen {
    /// Not looked for: the tree is not here yet, so the client's facts stand.
    #[default]
    NotRead,
    /// The tree has no such file.
    Missing,
    /// What it pins.
    Read(LockFacts),
}

/// A run that another one waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParentSeen {
    /// No run has this id or prefix.
    Unknown,
    /// Several runs begin with this prefix.
    Ambiguous(u32),
    /// The run, and where it stands.
    Found {
        /// Its id.
        id: RunId,
        /// Its phase.
        phase: Phase,
    },
}

/// What is going on on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Runs that wait.
    pub queued: u64,
    /// CPU thousandths not held by a live attempt.
    pub free_cpu_milli: u64,
    /// Bytes of memory not held by a live attempt.
    pub free_memory_bytes: u64,
    /// GPUs not held by a live attempt.
    pub free_gpus: u32,
}
