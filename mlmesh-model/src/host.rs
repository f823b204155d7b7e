//! What a node is: recorded beside what ran on it.

use serde::{Deserialize, Serialize};

use crate::{Gpu, NodeId};

/// Facts of the machine and of the boot that an attempt ran under. Read once when a
/// daemon starts; what the machine does not say is null.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// The node's name in leases.
    pub node: NodeId,
    /// The machine's own name.
    pub hostname: String,
    /// This boot (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// The distribution, such as `Debian GNU/Linux 12 (bookworm)`.
    pub os: Option<String>,
    /// Release of the kernel, such as `6.1.0-18-amd64`.
    pub kernel: String,
    /// Instruction set, such as `x86_64`.
    pub architecture: String,
    /// Model of the processor.
    pub cpu_model: Option<String>,
    /// Processors that the daemon may use.
    pub cpus: u64,
    /// Bytes of memory in all.
    pub memory_bytes: u64,
    /// GPUs that were there.
    pub gpus: Vec<Gpu>,
    /// Version of their driver.
    pub gpu_driver: Option<String>,
    /// Why there is no driver, when there is none.
    pub gpu_absent: Option<String>,
}
