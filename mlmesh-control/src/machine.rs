//! What this machine has, when no setting says otherwise.

use mlmesh_model::Accelerators;
use mlmesh_sched::Capacity;

/// Reads CPUs, memory and GPUs. Blocking.
pub(crate) fn capacity(accelerators: &dyn Accelerators) -> Capacity {
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
    let gpus = accelerators.gpus().unwrap_or_else(|reason| {
        tracing::info!(reason, "no gpus are offered");
        Vec::new()
    });
    Capacity {
        cpu_milli: cpus * 1_000,
        memory_bytes: memory_bytes(),
        gpus: gpus.into_iter().map(|gpu| gpu.uuid).collect(),
    }
}

/// The machine's memory, or what the daemon's own control group allows if less.
fn memory_bytes() -> u64 {
    let total = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| total_bytes(&text))
        .unwrap_or(0);
    let limits = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    limits
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok())
        .fold(total, u64::min)
}

fn total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:       16316412 kB\nMemFree: 1 kB\n";
        assert_eq!(total_bytes(text), Some(16_316_412 * 1_024));
        assert_eq!(total_bytes("MemFree: 1 kB\n"), None);
        assert!(memory_bytes() > 0);
    }
}
