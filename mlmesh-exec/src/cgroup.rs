//! Control groups of version 1 and 2: where limits can be set, setting them,
//! reading back what the kernel took, and removing them.
//!
//! One group per attempt and hierarchy, made by the attempt's supervisor below
//! the first ancestor of our own group in which that is possible. In version 2 a
//! group that holds processes cannot hand controllers on (the "no internal
//! processes" rule of the kernel's `cgroup-v2` document), so the search climbs.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::process::read_short;

/// The limits that control groups can enforce, with their controllers.
pub(crate) const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

const CPU_PERIOD_US: u64 = 100_000;

/// Where groups for attempts can be made for one controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) version: u8,
    /// Where groups are made.
    pub(crate) folder: PathBuf,
    /// The group that we are in ourselves.
    pub(crate) home: PathBuf,
}

/// For each of [`CONTROLLERS`] the base, or why there is none.
pub(crate) fn bases() -> Vec<(&'static str, Result<Base, String>)> {
    let mounts = mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default());
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    CONTROLLERS
        .into_iter()
        .map(|controller| (controller, base(controller, &mounts, &own)))
        .collect()
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    /// The part of the hierarchy that is mounted.
    root: String,
    /// Controllers of a version 1 hierarchy; `None` for version 2.
    controllers: Option<Vec<String>>,
}

fn mounts(mountinfo: &str) -> Vec<Mount> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (place, kind) = line.split_once(" - ")?;
            let mut place = place.split(' ').skip(3);
            let root = place.next()?.to_owned();
            let point = PathBuf::from(place.next()?);
            let mut kind = kind.split(' ');
            let controllers = match kind.next()? {
                "cgroup" => Some(kind.nth(1)?.split(',').map(str::to_owned).collect()),
                "cgroup2" => None,
                _ => return None,
            };
            Some(Mount {
                point,
                root,
                controllers,
            })
        })
        .collect()
}

fn base(controller: &str, mounts: &[Mount], own: &str) -> Result<Base, String> {
    let version_1 = mounts.iter().find(|mount| {
        mount
            .controllers
            .as_ref()
            .is_some_and(|names| names.iter().any(|name| name == controller))
    });
    let version_2 = mounts.iter().find(|mount| mount.controllers.is_none());
    let (version, mount) = match (version_1, version_2) {
        (Some(mount), _) => (1, mount),
        (None, Some(mount)) => (2, mount),
        (None, None) => return Err("no control groups are mounted".to_owned()),
    };
    let group = own_group(own, (version == 1).then_some(controller))
        .ok_or_else(|| "our own control group is not listed".to_owned())?;
    let below = group.strip_prefix(mount.root.as_str()).unwrap_or("");
    let lowest = mount.point.join(below.trim_start_matches('/'));
    let mut why = String::new();
    for folder in lowest
        .ancestors()
        .take_while(|folder| folder.starts_with(&mount.point))
    {
        match probe(controller, version, folder) {
            Ok(()) => {
                return Ok(Base {
                    version,
                    folder: folder.to_owned(),
                    home: lowest,
                });
            }
            Err(error) if why.is_empty() => {
                why = format!(
                    "cannot limit {controller} below `{}`: {error}",
                    folder.display()
                );
            }
            Err(_) => {}
        }
    }
    Err(why)
}

/// Our group in a hierarchy: lines of `/proc/self/cgroup` are `id:controllers:path`.
fn own_group<'a>(own: &'a str, controller: Option<&str>) -> Option<&'a str> {
    own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (names, path) = (parts.next()?, parts.next()?);
        let ours = match controller {
            Some(controller) => names.split(',').any(|name| name == controller),
            None => names.is_empty(),
        };
        ours.then_some(path)
    })
}

fn probe(controller: &str, version: u8, folder: &Path) -> io::Result<()> {
    if version == 2 {
        let handed_on = fs::read_to_string(folder.join("cgroup.subtree_control"))?;
        if !handed_on.split_whitespace().any(|name| name == controller) {
            fs::write(
                folder.join("cgroup.subtree_control"),
                format!("+{controller}"),
            )?;
        }
    }
    // Two executors of one process may look at the same time.
    static LOOKS: AtomicU64 = AtomicU64::new(0);
    let look = LOOKS.fetch_add(1, Ordering::Relaxed);
    let process = std::process::id();
    let group = folder.join(format!("mlmesh-probe-{process}-{look}-{controller}"));
    fs::create_dir(&group)?;
    let there = fs::metadata(group.join(limit_file(controller, version)));
    fs::remove_dir(&group)?;
    there.map(|_| ())
}

fn limit_file(controller: &str, version: u8) -> &'static str {
    match (controller, version) {
        ("cpu", 2) => "cpu.max",
        ("cpu", _) => "cpu.cfs_quota_us",
        ("memory", 2) => "memory.max",
        ("memory", _) => "memory.limit_in_bytes",
        _ => "pids.max",
    }
}

/// Makes the group if it is not there, sets the limit and returns what the
/// kernel took, in the unit of `asked`: thousandths of a CPU, bytes, processes.
pub(crate) fn set(version: u8, group: &Path, name: &str, asked: u64) -> io::Result<u64> {
    match fs::create_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let file = group.join(limit_file(name, version));
    match (name, version) {
        ("cpu", version) => set_cpu(version, group, &file, asked),
        ("memory", 2) => {
            fs::write(&file, asked.to_string())?;
            // Without this the job could go on in swap. Kernels without swap lack the file.
            drop(fs::write(group.join("memory.swap.max"), "0"));
            number(&file)
        }
        ("memory", _) => {
            fs::write(&file, asked.to_string())?;
            drop(fs::write(
                group.join("memory.memsw.limit_in_bytes"),
                asked.to_string(),
            ));
            number(&file)
        }
        _ => {
            fs::write(&file, asked.to_string())?;
            number(&file)
        }
    }
}

fn set_cpu(version: u8, group: &Path, file: &Path, asked_milli: u64) -> io::Result<u64> {
    // The kernel refuses quotas below one millisecond.
    let quota = (asked_milli.saturating_mul(CPU_PERIOD_US) / 1000).max(1000);
    let (quota, period) = if version == 2 {
        fs::write(file, format!("{quota} {CPU_PERIOD_US}"))?;
        let text = fs::read_to_string(file)?;
        let mut parts = text.split_whitespace();
        (parse(parts.next())?, parse(parts.next())?)
    } else {
        let period_file = group.join("cpu.cfs_period_us");
        let mut period = number(&period_file)?;
        if period != CPU_PERIOD_US {
            fs::write(&period_file, CPU_PERIOD_US.to_string())?;
            period = number(&period_file)?;
        }
        fs::write(file, quota.to_string())?;
        (number(file)?, period)
    };
    Ok(quota.saturating_mul(1000) / period.max(1))
}

fn number(file: &Path) -> io::Result<u64> {
    let text = read_short(file)?;
    parse(Some(String::from_utf8_lossy(&text).trim()))
}

fn parse(text: Option<&str>) -> io::Result<u64> {
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the limit did not stay set"))
}

/// Moves the calling process, which has one thread, into a group. False when there is
/// no such group.
///
/// Version 1 takes the thread alone and at once. To move a whole process the kernel
/// first waits until no other starts or ends one, 7 to 20 ms on a machine at rest.
pub(crate) fn join(version: u8, group: &Path) -> io::Result<bool> {
    let list = if version == 2 {
        "cgroup.procs"
    } else {
        "tasks"
    };
    match OpenOptions::new().write(true).open(group.join(list)) {
        Ok(mut list) => list.write_all(b"0").map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// How often the kernel ended a process of the group for memory.
pub(crate) fn oom_kills(version: u8, group: &Path) -> u64 {
    let file = if version == 2 {
        "memory.events"
    } else {
        "memory.oom_control"
    };
    fs::read_to_string(group.join(file))
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
        .unwrap_or(0)
}

/// Removes a group; one that is gone is fine. The kernel keeps a group busy for
/// a moment after its last process has ended.
pub(crate) fn remove(group: &Path) -> io::Result<()> {
    const TRIES: u32 = 50;
    let mut tries = 0;
    loop {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries < TRIES => {
                tries += 1;
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
33 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
34 25 0:29 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
35 25 0:30 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw
36 25 0:31 / /proc rw - proc proc rw
";

    #[test]
    fn hierarchies_are_found_in_mountinfo() {
        let mounts = mounts(MOUNTINFO);
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[1].root, "/docker/x");
        assert_eq!(
            mounts[0].controllers.as_deref(),
            Some(&["rw".to_owned(), "cpu".to_owned(), "cpuacct".to_owned()][..])
        );
        assert_eq!(mounts[2].controllers, None);
    }

    #[test]
    fn our_group_is_found_per_hierarchy() {
        let own = "5:cpu,cpuacct:/a\n4:memory:/b:c\n0::/d\n";
        assert_eq!(own_group(own, Some("cpu")), Some("/a"));
        assert_eq!(own_group(own, Some("memory")), Some("/b:c"));
        assert_eq!(own_group(own, Some("pids")), None);
        assert_eq!(own_group(own, None), Some("/d"));
    }

    /// Plain files stand in for the kernel's: what is written, in which form, and
    /// what is made of what is read back. The kernel itself is asked in
    /// `tests/it/limits.rs`, in the version that the machine has.
    #[test]
    fn version_2_takes_quota_and_period_in_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let group = folder.path().join("group");
        assert_eq!(set(2, &group, "cpu", 1500).unwrap(), 1500);
        let text = fs::read_to_string(group.join("cpu.max")).unwrap();
        assert_eq!(text, "150000 100000");
        assert_eq!(set(2, &group, "memory", 4096).unwrap(), 4096);
        assert_eq!(set(2, &group, "pids", 7).unwrap(), 7);
        let swap = fs::read_to_string(group.join("memory.swap.max")).unwrap();
        assert_eq!(swap, "0");
        fs::write(group.join("memory.events"), "oom 2\noom_kill 1\n").unwrap();
        assert_eq!(oom_kills(2, &group), 1);
        assert_eq!(oom_kills(1, &group), 0);
    }

    #[test]
    fn without_control_groups_the_reason_is_said() {
        let error = base("cpu", &[], "").unwrap_err();
        assert_eq!(error, "no control groups are mounted");
    }
}
