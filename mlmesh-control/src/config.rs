//! What control is given at its start: settings, ports, and who calls.

use std::path::PathBuf;
use std::sync::Arc;

use mlmesh_model::{
    Accelerators, Clock, Denied, Executor, Interpreter, Name, NodeId, Owner, Permission,
    Permissions, Prober, Snapshots, Store, Tenant,
};
use mlmesh_sched::Capacity;

/// Settings of the job path.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// The daemon's name; stands in leases.
    pub node: NodeId,
    /// Boot of the machine (`/proc/sys/kernel/random/boot_id`); stands in leases.
    pub boot_id: String,
    /// The data directory, which holds `data/experiments`.
    pub data_dir: PathBuf,
    /// What attempts may use; absent means what the machine has.
    pub capacity: Option<Capacity>,
    /// Between SIGTERM and SIGKILL, in milliseconds.
    pub grace_ms: u64,
    /// Whether commands of `on_finish` are executed.
    pub hook_commands: bool,
    /// Where jobs that ask for it reach the daemon; without one none gets a token.
    pub api: Option<ApiAddress>,
}

/// Where jobs reach the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiAddress {
    /// `https://` with a host that the certificate names.
    pub url: String,
    /// The certificate of the daemon's authority.
    pub ca: PathBuf,
}

/// Between SIGTERM and SIGKILL when nothing else is set.
pub const GRACE_MS_DEFAULT: u64 = 5_000;

/// The parts that control drives.
#[derive(Clone)]
pub struct Ports {
    /// Runs, queue, events.
    pub store: Arc<dyn Store>,
    /// Where attempts run.
    pub executor: Arc<dyn Executor>,
    /// The content store.
    pub snapshots: Arc<dyn Snapshots>,
    /// GPUs of the node.
    pub accelerators: Arc<dyn Accelerators>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Interpreters of the machine.
    pub interpreters: Arc<dyn Interpreters>,
    /// Asks services whether they answer.
    pub prober: Arc<dyn Prober>,
    /// Draws 64 random bits for a run id.
    pub random: Arc<dyn Fn() -> u64 + Send + Sync>,
}

/// Finds interpreters on the machine. Blocking; called off the runtime.
pub trait Interpreters: Send + Sync {
    /// The interpreter of that version, such as `3.11`.
    fn find(&self, version: &str) -> Option<Interpreter>;

    /// All that can be found, for the hint of a refusal.
    fn all(&self) -> Vec<Interpreter>;
}

/// Who calls, as authentication found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Who pays.
    pub tenant: Tenant,
    /// Who asks.
    pub owner: Owner,
    /// Public name of the key shown; `local` without one.
    pub key: String,
    /// Address, or `local`.
    pub remote: String,
    /// Whether this is the user the daemon itself runs as. Where the host cannot
    /// keep users apart, only this one may queue.
    pub daemon_owner: bool,
    /// The caller's role.
    pub role: Name,
    /// What that role may do.
    pub permissions: Permissions,
}

impl Caller {
    /// Whether the caller may do that.
    pub fn may(&self, permission: Permission) -> bool {
        self.permissions.has(permission)
    }

    /// Whether something of that owner is the caller's own, or may be reached all the
    /// same.
    pub fn reaches(&self, owner: &Owner, others: Permission) -> bool {
        *owner == self.owner || self.may(others)
    }

    /// Refuses what [`Self::reaches`] does not allow.
    pub fn reach(
        &self,
        owner: &Owner,
        others: Permission,
        what: impl FnOnce() -> String,
    ) -> Result<(), Denied> {
        if self.reaches(owner, others) {
            return Ok(());
        }
        Err(self.denied(others, format!("{} of `{owner}`", what())))
    }

    /// The refusal of something that needs this permission.
    pub fn denied(&self, permission: Permission, what: String) -> Denied {
        Denied {
            what,
            permission,
            who: self.owner.clone(),
            role: self.role.clone(),
        }
    }
}
