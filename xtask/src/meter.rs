//! Measuring pairs of commands: wall and CPU time of children and of a daemon, read
//! from `/proc`.
//!
//! The kernel counts CPU time there in ticks of 10 ms. A round therefore repeats its
//! command until a tick is small against it, and the figure is per repetition.

use std::fs;
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Pid;

/// Ticks a second in `/proc`, fixed by the kernel's interface.
const TICKS_PER_SECOND: f64 = 100.0;

/// The first field that [`stat`] gives, and the one with the parent's pid.
const FIRST_FIELD: usize = 3;
const PARENT_FIELD: usize = 4;

const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// Seconds that one repetition took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    pub wall: f64,
    pub cpu: f64,
}

/// Whose CPU time counts.
#[derive(Debug, Clone, Copy)]
pub enum Clock {
    /// Our children that have ended, and theirs.
    Children,
    /// The same and a daemon that works for them.
    ChildrenAndDaemon(Pid),
}

impl Clock {
    fn seconds(self) -> Result<f64> {
        match self {
            Clock::Children => children(),
            Clock::ChildrenAndDaemon(pid) => Ok(children()? + process(pid)?),
        }
    }
}

/// Runs `work`, which repeats something `times`, and returns what one repetition took.
pub fn measure(clock: Clock, times: u32, mut work: impl FnMut() -> Result<()>) -> Result<Sample> {
    let cpu = clock.seconds()?;
    let start = Instant::now();
    for _ in 0..times {
        work()?;
    }
    let wall = start.elapsed().as_secs_f64();
    let cpu = clock.seconds()? - cpu;
    Ok(Sample {
        wall: wall / f64::from(times),
        cpu: cpu / f64::from(times),
    })
}

/// Lets two sides take turns and returns the median of each, after one round that
/// does not count.
pub fn paired(
    rounds: usize,
    mut ours: impl FnMut() -> Result<Sample>,
    mut peer: impl FnMut() -> Result<Sample>,
) -> Result<(Sample, Sample)> {
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let pair = (ours()?, peer()?);
        if round > 0 {
            left.push(pair.0);
            right.push(pair.1);
        }
    }
    Ok((median(&left), median(&right)))
}

fn median(samples: &[Sample]) -> Sample {
    let middle = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        let half = values.len() / 2;
        if values.len() % 2 == 1 {
            values[half]
        } else {
            (values[half - 1] + values[half]) / 2.0
        }
    };
    Sample {
        wall: middle(samples.iter().map(|sample| sample.wall).collect()),
        cpu: middle(samples.iter().map(|sample| sample.cpu).collect()),
    }
}

/// CPU seconds of a process and its threads, of its children that have ended, and of
/// those that run: the daemon's supervisors are the children of one of its own.
pub fn process(pid: Pid) -> Result<f64> {
    let mut total = own_and_ended(&stat(&pid.as_raw_nonzero().to_string())?);
    let mut parents = vec![f64::from(pid.as_raw_nonzero().get())];
    let everybody = everybody()?;
    while let Some(parent) = parents.pop() {
        for (pid, fields) in &everybody {
            if fields.get(PARENT_FIELD - FIRST_FIELD) == Some(&parent) {
                total += own_and_ended(fields);
                parents.push(*pid);
            }
        }
    }
    Ok(total)
}

fn own_and_ended(fields: &[f64]) -> f64 {
    sum(fields, &[14, 15, 16, 17])
}

/// The pid and the fields of each process; one that ends meanwhile is left out.
fn everybody() -> Result<Vec<(f64, Vec<f64>)>> {
    let entries = fs::read_dir("/proc").context("read /proc")?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names
        .filter_map(|name| Some((name.parse().ok()?, stat(&name).ok()?)))
        .collect())
}

/// Memory that a process holds, in bytes.
pub fn resident(pid: Pid) -> Result<u64> {
    memory(pid, "VmRSS:")
}

/// The most memory that a process has held so far, in bytes.
pub fn resident_peak(pid: Pid) -> Result<u64> {
    memory(pid, "VmHWM:")
}

/// Waits for the end of a child; how it ended and the most memory that it held.
pub fn watch_memory(child: &mut Child) -> Result<(ExitStatus, u64)> {
    let pid = Pid::from_child(child);
    let mut peak = 0;
    loop {
        // A process that has just ended has no memory to read any more.
        peak = peak.max(resident_peak(pid).unwrap_or(0));
        match child.try_wait()? {
            Some(status) => return Ok((status, peak)),
            None => thread::sleep(LOOK_INTERVAL),
        }
    }
}

fn memory(pid: Pid, name: &str) -> Result<u64> {
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .with_context(|| format!("{path} has no `{name}`"))?;
    let kib: u64 = line
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .with_context(|| format!("`{name}` is `{line}`"))?;
    Ok(kib * 1024)
}

fn children() -> Result<f64> {
    Ok(sum(&stat("self")?, &[16, 17]))
}

/// The fields of `/proc/PID/stat` from the third on; the second may contain blanks.
fn stat(pid: &str) -> Result<Vec<f64>> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let (_, rest) = text
        .rsplit_once(") ")
        .with_context(|| format!("{path} is `{text}`"))?;
    Ok(rest
        .split_whitespace()
        .map(|field| field.parse().unwrap_or_default())
        .collect())
}

/// Adds fields by their number in proc(5), which counts from 1.
fn sum(fields: &[f64], numbers: &[usize]) -> f64 {
    numbers
        .iter()
        .filter_map(|number| fields.get(number - FIRST_FIELD))
        .sum::<f64>()
        / TICKS_PER_SECOND
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn sample(wall: f64) -> Sample {
        Sample {
            wall,
            cpu: wall / 2.0,
        }
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(
            median(&[sample(3.0), sample(1.0), sample(100.0)]),
            sample(3.0)
        );
        assert_eq!(median(&[sample(3.0), sample(1.0)]), sample(2.0));
    }

    #[test]
    fn sides_take_turns_and_the_first_round_does_not_count() {
        let order = std::cell::RefCell::new(String::new());
        let mut first = true;
        let (ours, peer) = paired(
            2,
            || {
                order.borrow_mut().push('o');
                let wall = if std::mem::take(&mut first) {
                    99.0
                } else {
                    1.0
                };
                Ok(sample(wall))
            },
            || {
                order.borrow_mut().push('p');
                Ok(sample(2.0))
            },
        )
        .unwrap();
        assert_eq!(order.into_inner(), "opopop");
        assert_eq!((ours.wall, peer.wall), (1.0, 2.0));
    }

    #[test]
    fn the_work_of_children_is_counted() {
        let busy = || {
            let status = Command::new("sh")
                .args(["-c", "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done"])
                .status()?;
            anyhow::ensure!(status.success());
            Ok(())
        };
        let spent = measure(Clock::Children, 1, busy).unwrap();
        assert!(spent.cpu > 0.0 && spent.wall > 0.0, "{spent:?}");
        let this = rustix::process::getpid();
        let (now, peak) = (resident(this).unwrap(), resident_peak(this).unwrap());
        assert!(now > 0 && peak > 0, "{now} {peak}");
    }
}
