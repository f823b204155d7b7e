//! What the daemon asks of the machine it runs on: its name, its boot, its
//! interpreters.

use mlmesh_api::settings::Settings;
use mlmesh_control::{Capacity, Interpreters};
use mlmesh_exec::find_interpreter;
use mlmesh_model::{Accelerators, Interpreter, NodeId};

/// Versions of Python that are looked for when a refusal lists what there is.
const VERSIONS: std::ops::RangeInclusive<u32> = 8..=16;

/// Interpreters on the search path, in pyenv and in uv.
pub(crate) struct MachineInterpreters;

impl Interpreters for MachineInterpreters {
    fn find(&self, version: &str) -> Option<Interpreter> {
        find_interpreter(version)
    }

    fn all(&self) -> Vec<Interpreter> {
        VERSIONS
            .filter_map(|minor| find_interpreter(&format!("3.{minor}")))
            .collect()
    }
}

/// What attempts may use, where a setting says so; `None` leaves it to what there is.
pub(crate) fn capacity(settings: &Settings, accelerators: &dyn Accelerators) -> Option<Capacity> {
    let cpus = settings.count("daemon.cpus");
    let memory_bytes = settings.bytes("daemon.memory");
    if cpus == 0 && memory_bytes == 0 {
        return None;
    }
    let machine_cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
    let machine = rustix::system::sysinfo();
    let machine_bytes = (machine.totalram as u64).saturating_mul(u64::from(machine.mem_unit));
    let gpus = accelerators.gpus().unwrap_or_default();
    Some(Capacity {
        cpu_milli: if cpus == 0 { machine_cpus } else { cpus }.saturating_mul(1000),
        memory_bytes: if memory_bytes == 0 {
            machine_bytes
        } else {
            memory_bytes
        },
        gpus: gpus.into_iter().map(|gpu| gpu.uuid).collect(),
    })
}

/// The host's name, as far as a node's name can carry it.
pub(crate) fn host_name() -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let kept: String = name
        .chars()
        .filter(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.'))
        .take(64)
        .collect();
    kept.trim_start_matches(['-', '_', '.']).to_owned()
}

/// The name of this node: the setting, else the host's name, else `node`.
pub(crate) fn node(setting: &str) -> Result<NodeId, mlmesh_model::ParseIdError> {
    match setting {
        "" => host_name().parse().or_else(|_| "node".parse()),
        named => named.parse(),
    }
}

/// Tells one boot of the machine from the next.
pub(crate) fn boot_id() -> std::io::Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(text.trim().to_owned())
}
