//! The data directory: its tree, the lock that keeps a second daemon out, and
//! `meshd.json`.
//!
//! ```text
//!   DIR/meshd.json owner.key meshd.db daemon.lock
//!       tls/{ca.pem,server.pem,server.key}
//!       data/{experiments,datasets,objects,tracking,.prewarm,cache,backups}
//!       logs/{app,audit,access}.log
//! ```

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use mlmesh_api::DaemonFile;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, IFlags, flock, ioctl_getflags, ioctl_setflags};
use serde::{Deserialize, Serialize};

/// Folders of a data directory, parents first.
const FOLDERS: [&str; 10] = [
    "tls",
    "logs",
    "data",
    "data/experiments",
    "data/datasets",
    "data/objects",
    "data/tracking",
    "data/.prewarm",
    "data/cache",
    "data/backups",
];

const LOCK_FILE: &str = "daemon.lock";

/// An open data directory. While this lives, no other daemon can have it.
#[derive(Debug)]
pub(crate) struct DataDir {
    root: PathBuf,
    lock: File,
    record: LockRecord,
}

/// What `daemon.lock` says: who holds it (for people) and the port that was chosen.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct LockRecord {
    pid: u32,
    #[serde(default)]
    port: Option<u16>,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataDirError {
    /// Another daemon holds it.
    #[error(
        "`{root}` is held by another daemon (process {pid}); one data directory has one daemon\nhint: `ml status` asks that one, `ml down` stops it"
    )]
    Held { root: PathBuf, pid: u32 },
    /// It cannot be made or opened.
    #[error("open the data directory: `{path}`: {source}\nhint: {hint}", hint = hint(source))]
    Io { path: PathBuf, source: io::Error },
    /// Somebody took it away from the daemon that ran in it.
    #[error(
        "the data directory `{root}` was removed or replaced while the daemon ran in it\nhint: jobs that were started go on; put the directory back, or begin anew with `ml up`"
    )]
    Gone { root: PathBuf },
}

/// Which directory was opened. It is not the same any more when its lock file has
/// gone or is another one, whatever stands at its path now.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    root: PathBuf,
    lock: (u64, u64),
}

impl Place {
    /// An error that may pass, such as a file system that does not answer, is no proof.
    pub(crate) fn check(&self) -> Result<(), DataDirError> {
        let gone = match std::fs::symlink_metadata(self.root.join(LOCK_FILE)) {
            Ok(found) => (found.dev(), found.ino()) != self.lock,
            Err(error) => matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ),
        };
        if gone {
            let root = self.root.clone();
            return Err(DataDirError::Gone { root });
        }
        Ok(())
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "the folder must belong to the user who runs the daemon",
        io::ErrorKind::ReadOnlyFilesystem => "choose a folder that can be written: `--data-dir`",
        io::ErrorKind::StorageFull => "free some space on that file system",
        _ => "choose another folder with `--data-dir`",
    }
}

impl DataDir {
    /// Makes what is missing of the tree and takes the lock.
    pub(crate) fn open(root: &Path) -> Result<Self, DataDirError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| DataDirError::Io { path, source }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .map_err(failed(root))?;
        let root = root.canonicalize().map_err(failed(root))?;
        let lock_path = root.join(LOCK_FILE);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(failed(&lock_path))?;
        let mut text = String::new();
        lock.read_to_string(&mut text).map_err(failed(&lock_path))?;
        let mut record: LockRecord = serde_json::from_str(&text).unwrap_or_default();
        match take_lock(&lock, record.pid) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(DataDirError::Held {
                    root,
                    pid: record.pid,
                });
            }
            Err(errno) => return Err(failed(&lock_path)(errno.into())),
        }
        for folder in FOLDERS {
            make_folder(&root.join(folder)).map_err(failed(&root.join(folder)))?;
        }
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o700))
            .map_err(failed(&root))?;
        spread(&root.join("data/experiments"));
        close_to_others(&root).map_err(failed(&root))?;
        record.pid = std::process::id();
        let mut directory = Self { root, lock, record };
        directory.write_record().map_err(failed(&lock_path))?;
        directory.remove_daemon_file().map_err(failed(&lock_path))?;
        Ok(directory)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// What to look at to see whether it is still there.
    pub(crate) fn place(&self) -> io::Result<Place> {
        let lock = self.lock.metadata()?;
        Ok(Place {
            root: self.root.clone(),
            lock: (lock.dev(), lock.ino()),
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The port that an earlier start with `--port 0` chose.
    pub(crate) fn chosen_port(&self) -> Option<u16> {
        self.record.port
    }

    /// Keeps a port for every later start with `--port 0`.
    pub(crate) fn keep_port(&mut self, port: u16) -> io::Result<()> {
        self.record.port = Some(port);
        self.write_record()
    }

    /// Tells clients where the daemon is. A killed daemon's file is replaced.
    pub(crate) fn write_daemon_file(&self, file: &DaemonFile) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(file)?;
        text.push(b'\n');
        write_whole(&self.path(DaemonFile::NAME), &text, 0o600)
    }

    /// Removes `meshd.json`: nobody answers from here on.
    pub(crate) fn remove_daemon_file(&self) -> io::Result<()> {
        match std::fs::remove_file(self.path(DaemonFile::NAME)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn write_record(&mut self) -> io::Result<()> {
        let mut text = serde_json::to_vec(&self.record)?;
        text.push(b'\n');
        self.lock.rewind()?;
        self.lock.write_all(&text)?;
        self.lock.set_len(text.len() as u64)?;
        self.lock.sync_data()
    }
}

/// How long the lock of a daemon that is dead is waited for.
const DEAD_HOLDER_WAIT: Duration = Duration::from_secs(5);

/// Takes the lock. A daemon that was killed while it started a child process
/// holds it until that child has executed its program: when the recorded holder
/// is dead, the lock is about to be free and is waited for.
fn take_lock(lock: &File, holder: u32) -> Result<(), rustix::io::Errno> {
    let deadline = Instant::now() + DEAD_HOLDER_WAIT;
    loop {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK)
                if !is_alive(holder) && Instant::now() < deadline =>
            {
                std::thread::park_timeout(Duration::from_millis(2));
            }
            outcome => return outcome,
        }
    }
}

/// Whether the process exists and is no zombie.
fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let state = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.trim_start().chars().next());
        !matches!(state, Some('Z' | 'X'))
    })
}

fn make_folder(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other,
    }
}

/// Asks ext4 to place each run's folder in another part of the disk. In one part the
/// search for a free inode walks over all that were removed within the last minute,
/// which many short runs make thousands of: that search was a third of what a run
/// that does nothing cost. Other file systems refuse, and have no need of it.
fn spread(folder: &Path) {
    let Ok(folder) = File::open(folder) else {
        return;
    };
    if let Ok(flags) = ioctl_getflags(&folder)
        && !flags.contains(IFlags::TOPDIR)
    {
        let _ = ioctl_setflags(&folder, flags | IFlags::TOPDIR);
    }
}

/// Takes from others what an earlier version left readable. Keys and secrets are not
/// among it: one that others could read is refused where it is used, not mended.
fn close_to_others(root: &Path) -> io::Result<()> {
    let mut files: Vec<PathBuf> = ["meshd.db", "meshd.db-wal", "meshd.db-shm"]
        .map(|name| root.join(name))
        .into();
    for folder in ["logs", "tls"] {
        for entry in std::fs::read_dir(root.join(folder))? {
            files.push(entry?.path());
        }
    }
    for path in files {
        match path.symlink_metadata() {
            Ok(facts) if facts.is_file() && facts.permissions().mode() & 0o077 != 0 => {
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes a file so that a reader sees the old one or the new one, never a part.
pub(crate) fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let temporary = PathBuf::from(name);
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_the_documented_one_and_private() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("a/b");
        let directory = DataDir::open(&root).unwrap();
        for folder in FOLDERS.iter().chain([&""]) {
            let mode = directory
                .path(folder)
                .metadata()
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o700, "{folder}");
        }
        let mut names: Vec<_> = std::fs::read_dir(&root)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["daemon.lock", "data", "logs", "tls"]);
    }

    #[test]
    fn a_second_daemon_is_kept_out_and_told_who_is_in() {
        let outer = tempfile::tempdir().unwrap();
        let first = DataDir::open(outer.path()).unwrap();
        let error = DataDir::open(outer.path()).unwrap_err();
        assert!(
            matches!(&error, DataDirError::Held { pid, .. } if *pid == std::process::id()),
            "{error}"
        );
        drop(first);
        assert!(DataDir::open(outer.path()).is_ok());
    }

    #[test]
    fn a_chosen_port_stays() {
        let outer = tempfile::tempdir().unwrap();
        let mut directory = DataDir::open(outer.path()).unwrap();
        assert_eq!(directory.chosen_port(), None);
        directory.keep_port(4242).unwrap();
        drop(directory);
        assert_eq!(
            DataDir::open(outer.path()).unwrap().chosen_port(),
            Some(4242)
        );
    }
}
