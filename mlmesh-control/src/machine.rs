//! What this machine has, when no setting says otherwise.

use mlmesh_model::{Accelerators, HostFacts};
use mlmesh_sched::Capacity;

use crate::config::ControlConfig;

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

/// Reads what the machine says of itself. Blocking.
pub(crate) fn host_facts(config: &ControlConfig, accelerators: &dyn Accelerators) -> HostFacts {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let line = |path: &str| text(path).trim().to_owned();
    let driver = accelerators.driver();
    HostFacts {
        node: config.node.clone(),
        hostname: line("/proc/sys/kernel/hostname"),
        boot_id: config.boot_id.clone(),
        os: os_name(&text("/etc/os-release")),
        kernel: line("/proc/sys/kernel/osrelease"),
        architecture: std::env::consts::ARCH.to_owned(),
        cpu_model: cpu_model(&text("/proc/cpuinfo")),
        cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64),
        memory_bytes: total_bytes(&text("/proc/meminfo")).unwrap_or(0),
        gpus: accelerators.gpus().unwrap_or_default(),
        gpu_driver: driver.as_ref().ok().cloned(),
        gpu_absent: driver.err(),
    }
}

fn os_name(os_release: &str) -> Option<String> {
    let name = os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(name.trim_matches('"').to_owned())
}

/// Processors of other makes than x86 may have no such line.
fn cpu_model(cpuinfo: &str) -> Option<String> {
    let (_, model) = cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == "model name")?;
    Some(model.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_from_what_the_system_says() {
        let release = "NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        assert_eq!(
            os_name(release).as_deref(),
            Some("Debian GNU/Linux 12 (bookworm)")
        );
        assert_eq!(os_name(""), None);
        let info = "processor\t: 0\nmodel name\t: Some CPU @ 2.40GHz\nflags : a\n";
        assert_eq!(cpu_model(info).as_deref(), Some("Some CPU @ 2.40GHz"));
        assert_eq!(cpu_model("CPU part : 0xd0c\n"), None);
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:       16316412 kB\nMemFree: 1 kB\n";
        assert_eq!(total_bytes(text), Some(16_316_412 * 1_024));
        assert_eq!(total_bytes("MemFree: 1 kB\n"), None);
        assert!(memory_bytes() > 0);
    }
}
