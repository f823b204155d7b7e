//! The content store at full size: one large file and its changes, ten gigabytes at
//! once, hashing on one CPU and on all, a lookup among a million objects.
//!
//! It writes about 23 GB below the temporary folder (`TMPDIR` names another) and
//! removes them. Contents are random bytes, so that no file system makes them small.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Row;
use crate::mesh::Mesh;
use crate::meter::{resident_peak, watch_memory};
use crate::step;
use crate::workspace::Workspace;

const GB: u64 = 1_000_000_000;
const SPACE_NEEDED: u64 = 24 * GB;
const EDITS: u64 = 10;
/// Sizes of the files that make ten gigabytes.
const TEN: [u64; 7] = [4 * GB, GB, GB, GB, GB, GB, GB];
const HASHED_FILES: usize = 8;
const HASHED_BYTES: u64 = GB / 4;
const HASH_ROUNDS: usize = 3;
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
const OBJECTS: &str = "1000000";

pub(super) fn run(workspace: &Workspace) -> Result<Vec<Row>> {
    let stat = rustix::fs::statvfs(std::env::temp_dir()).context("ask for the free space")?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    ensure!(
        free > SPACE_NEEDED,
        "{} has {} GB free, this bench needs {}\nhint: name another folder in TMPDIR",
        std::env::temp_dir().display(),
        free / GB,
        SPACE_NEEDED / GB
    );
    let mut rows = one_file(workspace)?;
    rows.extend(ten_gigabytes(workspace)?);
    rows.push(hashing(workspace)?);
    rows.push(lookup(workspace)?);
    Ok(rows)
}

/// A file of one gigabyte: sent, cut off in the middle and resumed, changed.
fn one_file(workspace: &Workspace) -> Result<Vec<Row>> {
    let mesh = Mesh::new(workspace, "release")?;
    let daemon = mesh.up()?;
    let tree = project(&mesh, "one")?;
    let file = tree.join("data.bin");
    fill(&file, GB)?;

    let mut child = start(&mesh, &tree)?;
    let partial = mesh.data().join("data/objects/partial");
    while bytes_below(&partial)? < GB / 2 {
        ensure!(
            child.try_wait()?.is_none(),
            "the sync ended before it was cut off"
        );
        thread::sleep(LOOK_INTERVAL);
    }
    child.kill()?;
    child.wait()?;
    let resumed = sync(&mesh, &tree)?;

    let target = OpenOptions::new().write(true).open(&file)?;
    let mut changed = Vec::new();
    for edit in 0..EDITS {
        target.write_all_at(&[edit as u8], edit * (GB / EDITS) + GB / 20)?;
        changed.push(sync(&mesh, &tree)?);
    }
    let most = changed.iter().map(|sync| sync.sent).max().unwrap_or(0);
    let slowest = changed.iter().map(|sync| sync.wall).fold(0.0, f64::max);
    let client = changed.iter().map(|sync| sync.peak).max().unwrap_or(0);
    let stored = bytes_below(&mesh.data().join("data/objects"))?;
    let peak = resident_peak(daemon)?;
    mesh.down()?;
    Ok(vec![
        Row::alone(
            "1 GB file, cut off half way, then again",
            format!("{:.0} MB sent", megabytes(resumed.sent)),
            "resumable: about half",
        ),
        Row::alone(
            "one byte of it changed, most of 10 syncs",
            format!("{:.2} MB sent, {slowest:.1} s", megabytes(most)),
            "< 1 MB",
        ),
        Row::alone(
            "peak memory in that",
            format!(
                "client {:.0} MB, daemon {:.0} MB",
                megabytes(client),
                megabytes(peak)
            ),
            "< 100 MB each",
        ),
        Row::alone(
            "on disk after these 11 versions",
            format!("{:.2} GB", stored as f64 / 1e9),
            "–",
        ),
    ])
}

fn ten_gigabytes(workspace: &Workspace) -> Result<Vec<Row>> {
    let mesh = Mesh::new(workspace, "release")?;
    let daemon = mesh.up()?;
    let tree = project(&mesh, "ten")?;
    for (number, size) in TEN.iter().enumerate() {
        fill(&tree.join(format!("part_{number}.bin")), *size)?;
    }
    let synced = sync(&mesh, &tree)?;
    let peak = resident_peak(daemon)?;
    mesh.down()?;
    ensure!(
        synced.sent > 10 * GB,
        "only {} bytes were sent",
        synced.sent
    );
    Ok(vec![Row::alone(
        "10 GB, first sync, peak memory",
        format!(
            "client {:.0} MB, daemon {:.0} MB; {:.0} s, {:.0} MB/s",
            megabytes(synced.peak),
            megabytes(peak),
            synced.wall,
            megabytes(synced.sent) / synced.wall
        ),
        "< 100 MB each",
    )])
}

/// Two gigabytes whose stat cache is gone, on one CPU and on all. The daemon has
/// them, so that little but hashing is left; the files are read once before.
fn hashing(workspace: &Workspace) -> Result<Row> {
    let mesh = Mesh::new(workspace, "release")?;
    mesh.up()?;
    let tree = project(&mesh, "hashed")?;
    for number in 0..HASHED_FILES {
        fill(&tree.join(format!("part_{number}.bin")), HASHED_BYTES)?;
    }
    sync(&mesh, &tree)?;
    let cache = mesh.data().join("data/cache/stat");
    let timed = |through: &[&str]| -> Result<f64> {
        fs::remove_dir_all(&cache)?;
        let start = Instant::now();
        step::quiet(&mut sync_through(&mesh, &tree, through))?;
        Ok(start.elapsed().as_secs_f64())
    };
    let (mut one, mut all) = (f64::MAX, f64::MAX);
    for _ in 0..HASH_ROUNDS {
        one = one.min(timed(&["taskset", "-c", "0"])?);
        all = all.min(timed(&[])?);
    }
    mesh.down()?;
    let cpus = thread::available_parallelism()?;
    let bytes = megabytes(HASHED_BYTES) * HASHED_FILES as f64;
    Ok(Row::alone(
        "hashing 2 GB in 8 files, 1 CPU and all of them",
        format!(
            "{:.0} MB/s and {:.0} MB/s: × {:.2} with {cpus} CPUs",
            bytes / one,
            bytes / all,
            one / all
        ),
        "scales with cores",
    ))
}

fn lookup(workspace: &Workspace) -> Result<Row> {
    let build = [
        "build",
        "--release",
        "-p",
        "mlmesh-cas",
        "--example",
        "lookup_bench",
    ];
    step::run(
        "build the lookups",
        &mut step::cargo(&workspace.root, &build),
    )?;
    let folder = tempfile::tempdir().context("make a temporary directory")?;
    let mut program = Command::new(workspace.program("release", "examples/lookup_bench"));
    let line = step::read(program.arg(folder.path()).arg(OBJECTS))?;
    let seen: Value = serde_json::from_str(&line).with_context(|| format!("read `{line}`"))?;
    Ok(Row::alone(
        "lookup among 1,000,000 objects",
        format!(
            "p50 {} µs, p99 {} µs, longest of 20,000 {} µs; opened in {} ms",
            seen["p50_us"], seen["p99_us"], seen["max_us"], seen["open_ms"]
        ),
        "< 1 ms",
    ))
}

/// What one `ml sync` did.
struct Synced {
    sent: u64,
    peak: u64,
    wall: f64,
}

fn sync(mesh: &Mesh, tree: &Path) -> Result<Synced> {
    let begun = Instant::now();
    let mut child = start(mesh, tree)?;
    let (status, peak) = watch_memory(&mut child)?;
    let wall = begun.elapsed().as_secs_f64();
    let mut text = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut text)?;
    }
    ensure!(status.success(), "`ml sync` failed ({status})");
    let seen: Value = serde_json::from_str(&text).with_context(|| format!("read `{text}`"))?;
    let sent = seen["bytes_sent"]
        .as_u64()
        .with_context(|| format!("`bytes_sent` in `{text}`"))?;
    Ok(Synced { sent, peak, wall })
}

fn start(mesh: &Mesh, tree: &Path) -> Result<Child> {
    let mut command = sync_through(mesh, tree, &[]);
    command
        .stdout(Stdio::piped())
        .spawn()
        .context("start `ml sync`")
}

fn sync_through(mesh: &Mesh, tree: &Path, through: &[&str]) -> Command {
    let mut command = mesh.ml_through(through, &["sync", "--json"]);
    command.current_dir(tree);
    command
}

fn project(mesh: &Mesh, name: &str) -> Result<PathBuf> {
    let tree = mesh.folder().join(name);
    fs::create_dir_all(&tree)?;
    fs::write(tree.join("mlmesh.toml"), "")?;
    Ok(tree)
}

fn fill(path: &Path, bytes: u64) -> Result<()> {
    let mut random = File::open("/dev/urandom")?.take(bytes);
    let mut file = File::create(path)?;
    if io::copy(&mut random, &mut file)? != bytes {
        bail!("{} could not be filled", path.display());
    }
    Ok(())
}

/// Bytes that the files below a folder occupy; some of them may go meanwhile.
fn bytes_below(folder: &Path) -> Result<u64> {
    const BLOCK_BYTES: u64 = 512;
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.metadata() {
            Ok(found) if found.is_dir() => bytes += bytes_below(&entry.path())?,
            Ok(found) => bytes += found.blocks() * BLOCK_BYTES,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
