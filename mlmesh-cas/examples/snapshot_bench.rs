//! CPU time of syncing 10,000 small files, client and store together, beside
//! `git add` and `git write-tree` on the same files in the same run.
//!
//! `cargo run --release -p mlmesh-cas --example snapshot_bench [FILES] [BYTES] [REPEATS]`
//!
//! Each phase is what a sync does: snapshot, have-check, frames for what is
//! missing, storing them, storing the listing. The transport is not part of it.
//! Same and changed are medians of REPEATS. CPU of git comes in ticks of 10 ms, and
//! its first run pays the file system for 10,000 loose files.
#![expect(clippy::print_stdout, reason = "the table is what the program is for")]

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use mlmesh_cas::{FrameLimits, ObjectStore, Options, snapshot};
use rustix::time::{ClockId, clock_gettime};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let count = arguments.next().map_or(Ok(10_000), |text| text.parse())?;
    let bytes = arguments.next().map_or(Ok(1_024), |text| text.parse())?;
    let repeats = arguments.next().map_or(Ok(7), |text| text.parse())?;
    let folder = tempfile::tempdir()?;
    let project = folder.path().join("project");
    write_project(&project, count, bytes)?;
    let store = ObjectStore::open(&folder.path().join("objects"))?;
    let options = Options::project(Some(folder.path().join("stat")));
    git(&project, &["init", "-q"])?;

    println!("{count} files of {bytes} bytes     mlmesh CPU   wall     git CPU   wall   ratio");
    let print = |name: &str, repeats: usize, change: bool| -> Result<()> {
        let mut rows = Vec::new();
        for repeat in 0..repeats {
            for index in (repeat..if change { count } else { 0 }).step_by(100) {
                fs::write(path_of(&project, index), content(index + count, bytes))?;
            }
            let ours = measure(own_cpu_ms, || sync(&project, &store, &options))?;
            let theirs = measure(children_cpu_ms, || {
                git(&project, &["add", "-A"])?;
                git(&project, &["write-tree"])
            })?;
            rows.push([ours.0, ours.1, theirs.0, theirs.1]);
        }
        let median = |column: usize| {
            let mut values: Vec<f64> = rows.iter().map(|row| row[column]).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let [ours, ours_wall, theirs, theirs_wall] = [0, 1, 2, 3].map(median);
        println!(
            "{name:<22} {ours:>10.1} ms {ours_wall:>5.0} ms {theirs:>8.1} ms {theirs_wall:>4.0} ms {:>6.2}",
            ours / theirs
        );
        Ok(())
    };
    print("first", 1, false)?;
    print("same", repeats, false)?;
    print("1 % changed", repeats, true)
}

fn sync(project: &Path, store: &ObjectStore, options: &Options) -> Result<()> {
    let seen = snapshot(project, options)?;
    if store.has_commit(seen.commit)? {
        return Ok(());
    }
    let missing = store.missing_objects(seen.tree())?;
    for indices in seen.plan_sync(&missing).frames {
        let frame = seen.write_frame(&indices, Vec::new())?;
        store.receive(&frame[..], FrameLimits::default())?;
    }
    store.put_listing(seen.commit, &seen.tree().canonical_bytes())?;
    Ok(())
}

/// CPU and wall time of `work` in milliseconds.
fn measure(
    cpu_ms: impl Fn() -> Result<f64>,
    work: impl FnOnce() -> Result<()>,
) -> Result<(f64, f64)> {
    let (cpu, wall) = (cpu_ms()?, Instant::now());
    work()?;
    Ok((cpu_ms()? - cpu, wall.elapsed().as_secs_f64() * 1e3))
}

fn own_cpu_ms() -> Result<f64> {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Ok(time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6)
}

/// Of children that have ended, in the 10 ms ticks of proc(5).
fn children_cpu_ms() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace();
    let ticks: Vec<u64> = fields
        .skip(13)
        .take(2)
        .map(str::parse)
        .collect::<std::result::Result<_, _>>()?;
    Ok(ticks.iter().sum::<u64>() as f64 * 10.0)
}

fn git(project: &Path, arguments: &[&str]) -> Result<()> {
    let status = Command::new("git")
        .arg("-C")
        .arg(project)
        .args(arguments)
        .stdout(Stdio::null())
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("git {arguments:?}: {status}").into())
    }
}

fn write_project(project: &Path, count: usize, bytes: usize) -> Result<()> {
    for index in 0..count {
        let path = path_of(project, index);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, content(index, bytes))?;
    }
    Ok(fs::write(
        project.join(".gitignore"),
        "*.pyc\n/build/\n.venv/\n",
    )?)
}

fn path_of(project: &Path, index: usize) -> std::path::PathBuf {
    project.join(format!("src/part{:03}/module_{index:05}.py", index / 50))
}

fn content(seed: usize, bytes: usize) -> Vec<u8> {
    let mut text = String::with_capacity(bytes + 32);
    let mut state = seed as u64 * 2 + 1;
    while text.len() < bytes {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        text.push_str(&format!("value_{:x} = {}\n", state >> 40, state >> 33));
    }
    text.truncate(bytes);
    text.into_bytes()
}
