//! What the daemon asks of the machine it runs on: its name, its boot, its
//! interpreters.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mlmesh_api::settings::Settings;
use mlmesh_control::{Capacity, Interpreters};
use mlmesh_exec::find_interpreter;
use mlmesh_model::{Accelerators, Interpreter, NodeId};

/// Versions of Python that are looked for when a refusal lists what there is.
const MINOR_VERSIONS: std::ops::RangeInclusive<u32> = 8..=20;
/// How long what was found, or was not, is believed. Asking an interpreter costs a
/// process each.
const KEPT: Duration = Duration::from_secs(300);
/// How long a version that was not found is believed to be absent: somebody who was
/// told so may install it now.
const ABSENT_KEPT: Duration = Duration::from_secs(10);
/// Versions that are remembered as absent.
const ABSENT_MAX: usize = 64;

/// Interpreters on the search path, in pyenv and in uv.
#[derive(Default)]
pub(crate) struct MachineInterpreters {
    listed: Mutex<Option<(Instant, Vec<Interpreter>)>>,
    absent: Mutex<BTreeMap<String, Instant>>,
}

impl Interpreters for MachineInterpreters {
    fn find(&self, version: &str) -> Option<Interpreter> {
        if !is_version(version) {
            return None;
        }
        let mut absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
        absent.retain(|_, since| since.elapsed() < ABSENT_KEPT);
        if absent.contains_key(version) {
            return None;
        }
        // Held, so that many who ask for the same absent version look once.
        let found = find_interpreter(version);
        if found.is_none() && absent.len() < ABSENT_MAX {
            absent.insert(version.to_owned(), Instant::now());
        }
        found
    }

    fn all(&self) -> Vec<Interpreter> {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((since, interpreters)) = &*listed
            && since.elapsed() < KEPT
        {
            return interpreters.clone();
        }
        let names = names_that_lie_about();
        let interpreters: Vec<Interpreter> = MINOR_VERSIONS
            .map(|minor| format!("3.{minor}"))
            .filter(|version| names.contains(version))
            .filter_map(|version| find_interpreter(&version))
            .collect();
        *listed = Some((Instant::now(), interpreters.clone()));
        interpreters
    }
}

/// Up to three numbers with points between them.
fn is_version(text: &str) -> bool {
    let parts: Vec<&str> = text.split('.').collect();
    let is_number = |part: &&str| {
        (1..=4).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
    };
    parts.len() <= 3 && parts.iter().all(is_number)
}

/// Versions `3.N` that file names promise. Only these are worth a process.
fn names_that_lie_about() -> BTreeSet<String> {
    let home = std::env::var_os("HOME")
        .map(PathBuf::from)
        .unwrap_or_default();
    let pyenv = std::env::var_os("PYENV_ROOT").map_or_else(|| home.join(".pyenv"), PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([pyenv.join("versions"), home.join(".local/share/uv/python")])
        .chain(["/usr/bin", "/usr/local/bin"].map(PathBuf::from))
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let (_, after) = name.split_once("3.")?;
            let minor: String = after.chars().take_while(char::is_ascii_digit).collect();
            (!minor.is_empty()).then(|| format!("3.{minor}"))
        })
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_versions_are_looked_for() {
        for good in ["3", "3.11", "3.11.7"] {
            assert!(is_version(good), "{good}");
        }
        for bad in ["", "3.", ".3", "3.x", "3.1.1.1", "3/../x", "99999"] {
            assert!(!is_version(bad), "{bad}");
        }
    }

    #[test]
    fn an_absent_version_is_asked_for_once() {
        let interpreters = MachineInterpreters::default();
        assert_eq!(interpreters.find("2.99"), None);
        let begun = Instant::now();
        assert_eq!(interpreters.find("2.99"), None);
        assert!(
            begun.elapsed() < Duration::from_millis(50),
            "{:?}",
            begun.elapsed()
        );
    }
}
