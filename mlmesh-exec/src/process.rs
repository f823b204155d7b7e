//! Processes of this machine: who they are, who descends from whom, and how a
//! whole tree is ended.
//!
//! A pid alone names nobody, since pids are given again. Together with the start
//! time and the boot it names one process for ever.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// A process that can be told from every other one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessIdentity {
    pub(crate) pid: i32,
    /// Clock ticks since boot at which it started (field 22 of `/proc/PID/stat`).
    pub(crate) start_time: u64,
    pub(crate) boot_id: String,
}

impl ProcessIdentity {
    /// This process.
    pub(crate) fn of_self() -> io::Result<Self> {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let stat = Stat::of(pid)?;
        Ok(Self {
            pid,
            start_time: stat.start_time,
            boot_id: boot_id()?,
        })
    }

    /// Whether it still runs. A zombie does not.
    pub(crate) fn lives(&self) -> bool {
        boot_id().is_ok_and(|boot| boot == self.boot_id)
            && Stat::of(self.pid)
                .is_ok_and(|stat| stat.start_time == self.start_time && !stat.zombie)
    }
}

/// Identity of this boot.
pub(crate) fn boot_id() -> io::Result<String> {
    let text = read_short(Path::new("/proc/sys/kernel/random/boot_id"))?;
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}

/// Reads a file of the kernel's that is shorter than a page. It has no length to be
/// asked for, and says all that it has in one read.
pub(crate) fn read_short(path: &Path) -> io::Result<Vec<u8>> {
    const BYTES_MAX: usize = 4096;
    let mut text = vec![0; BYTES_MAX];
    let length = File::open(path)?.read(&mut text)?;
    text.truncate(length);
    Ok(text)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    parent: i32,
    start_time: u64,
    zombie: bool,
}

impl Stat {
    fn of(pid: i32) -> io::Result<Self> {
        Self::parse(&read_short(Path::new(&format!("/proc/{pid}/stat")))?)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unknown form of stat"))
    }

    /// The name in the second field may hold anything, also parentheses and
    /// spaces; the fields are counted from its last parenthesis on.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let end = text.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(text.get(end + 1..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        let start_time = fields.nth(17)?.parse().ok()?;
        Some(Self {
            parent,
            start_time,
            zombie: matches!(state, "Z" | "X"),
        })
    }
}

/// Pids that are there now.
fn pids() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// All living descendants of `ancestor`.
pub(crate) fn descendants(ancestor: i32) -> Vec<i32> {
    let mut children: BTreeMap<i32, Vec<(i32, bool)>> = BTreeMap::new();
    for pid in pids() {
        if let Ok(stat) = Stat::of(pid) {
            children
                .entry(stat.parent)
                .or_default()
                .push((pid, stat.zombie));
        }
    }
    let mut found = Vec::new();
    let mut open = vec![ancestor];
    while let Some(parent) = open.pop() {
        for (pid, zombie) in children.remove(&parent).unwrap_or_default() {
            open.push(pid);
            if !zombie {
                found.push(pid);
            }
        }
    }
    found
}

/// Living processes whose environment began with all of `settings` (`NAME=value`).
pub(crate) fn with_environment(settings: &[String]) -> Vec<i32> {
    let holds = |pid: &i32| {
        fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environment| {
            settings.iter().all(|setting| {
                environment
                    .split(|byte| *byte == 0)
                    .any(|entry| entry == setting.as_bytes())
            })
        })
    };
    let living = |pid: &i32| Stat::of(*pid).is_ok_and(|stat| !stat.zombie);
    pids().into_iter().filter(holds).filter(living).collect()
}

/// Pids listed in a `cgroup.procs` file.
pub(crate) fn in_cgroup(folder: &Path) -> Vec<i32> {
    fs::read_to_string(folder.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect()
}

/// Sends a signal; a process that is gone already is no error.
pub(crate) fn signal(pid: i32, signal: Signal) {
    // Pid 0 and negative pids would mean groups; no caller has such.
    if let Some(pid) = Pid::from_raw(pid).filter(|pid| pid.as_raw_nonzero().get() > 1) {
        let _ = kill_process(pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let text = b"12 (a) b (c)) S 7 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 0 0";
        assert_eq!(
            Stat::parse(text),
            Some(Stat {
                parent: 7,
                start_time: 4242,
                zombie: false
            })
        );
        assert_eq!(Stat::parse(b"12 (a"), None);
    }

    #[test]
    fn this_process_lives_and_its_past_life_does_not() {
        let me = ProcessIdentity::of_self().unwrap();
        assert!(me.lives());
        let before = ProcessIdentity {
            start_time: me.start_time + 1,
            ..me.clone()
        };
        assert!(!before.lives());
        let elsewhere = ProcessIdentity {
            boot_id: "other".into(),
            ..me
        };
        assert!(!elsewhere.lives());
    }

    #[test]
    fn a_child_is_a_descendant() {
        let me = ProcessIdentity::of_self().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(descendants(me.pid).contains(&pid));
        signal(pid, Signal::KILL);
        child.wait().unwrap();
        assert!(!descendants(me.pid).contains(&pid));
    }
}
