//! Files that the client uploads: below one folder of the attempt, beside the spool.
//!
//! Every path is resolved by the kernel beneath that folder and through no link, so
//! that neither a request nor a job that has put a link there leads elsewhere. A file
//! is written beside its place and renamed, so that half of one is never seen. They
//! are not flushed: they mean what files of the output directory mean.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, renameat,
    statat, unlinkat,
};
use rustix::io::Errno;
use serde_json::{Value, json};

use super::wire::Fault;

/// Their folder in that of the attempt.
pub(crate) const ARTIFACTS: &str = "artifacts";
/// Bytes of one file.
const FILE_BYTES_MAX: u64 = 64 << 30;
const DEPTH_MAX: usize = 64;
const COPY_BYTES: usize = 64 << 10;
/// What is half written, in the folder of the attempt's artifacts itself.
const PARTS: &str = ".parts";

/// The artifacts of one attempt.
pub(super) struct Artifacts {
    root: PathBuf,
    parts: AtomicU64,
}

/// A path in a request: names, none of which leads up or away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ArtifactPath(PathBuf);

impl ArtifactPath {
    /// Refuses what MLflow's own server refuses.
    pub(super) fn of(text: &str) -> Result<Self, Fault> {
        let refused = || Fault::invalid("Invalid path");
        let path = Path::new(text.trim_matches('/'));
        let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
        let hidden = path.starts_with(PARTS);
        let odd = text.contains(['\0', '\\', '%']) || text.contains("://");
        if odd || hidden || !path.components().all(plain) || path.components().count() > DEPTH_MAX {
            return Err(refused());
        }
        Ok(Self(path.components().collect()))
    }

    pub(super) fn join(&self, other: &Self) -> Self {
        Self(self.0.join(&other.0))
    }

    pub(super) fn as_path(&self) -> &Path {
        &self.0
    }

    fn is_root(&self) -> bool {
        self.0.as_os_str().is_empty()
    }
}

impl Artifacts {
    pub(super) fn of(attempt: &Path) -> Self {
        Self {
            root: attempt.join(ARTIFACTS),
            parts: AtomicU64::new(0),
        }
    }

    /// Takes a file in, whole or not at all.
    pub(super) fn store(&self, path: &ArtifactPath, body: &mut impl Read) -> Result<(), Fault> {
        if path.is_root() {
            return Err(Fault::invalid("Invalid path"));
        }
        let root = self.root().map_err(failed)?;
        let parts = folder_at(&root, Path::new(PARTS)).map_err(failed)?;
        let part = self.parts.fetch_add(1, Ordering::Relaxed).to_string();
        let stored = self.fill(&root, &parts, &part, path, body);
        if stored.is_err() {
            let _ = unlinkat(&parts, &part, AtFlags::empty());
        }
        stored
    }

    fn fill(
        &self,
        root: &OwnedFd,
        parts: &OwnedFd,
        part: &str,
        path: &ArtifactPath,
        body: &mut impl Read,
    ) -> Result<(), Fault> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(parts, part, flags, Mode::from_raw_mode(0o600)).map_err(failed)?;
        let mut file = File::from(file);
        let mut buffer = vec![0_u8; COPY_BYTES];
        let mut bytes = 0_u64;
        loop {
            let length = body.read(&mut buffer).map_err(failed)?;
            if length == 0 {
                break;
            }
            bytes += length as u64;
            if bytes > FILE_BYTES_MAX {
                return Err(Fault::exhausted(format!(
                    "an artifact has at most {FILE_BYTES_MAX} bytes"
                )));
            }
            file.write_all(&buffer[..length]).map_err(failed)?;
        }
        let above = path.0.parent().unwrap_or(Path::new(""));
        let folder = folders_at(root, above).map_err(failed)?;
        let name = path.0.file_name().unwrap_or_default();
        renameat(parts, part, &folder, name).map_err(failed)
    }

    /// Opens a file; says how long it is.
    pub(super) fn open(&self, path: &ArtifactPath) -> Result<(File, u64), Fault> {
        let absent = || Fault::absent(format!("No such artifact: '{}'", path.0.display()));
        let root = self.existing_root().map_err(failed)?.ok_or_else(absent)?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match beneath(&root, &path.0, flags) {
            Ok(file) => File::from(file),
            Err(error) if is_absent(error) => return Err(absent()),
            Err(error) => return Err(failed(error)),
        };
        let facts = file.metadata().map_err(failed)?;
        if !facts.is_file() {
            return Err(absent());
        }
        Ok((file, facts.len()))
    }

    /// What is in a folder, by name; nothing where there is none. They are told by
    /// their names, or from where the caller sees the folder.
    pub(super) fn list(
        &self,
        path: &ArtifactPath,
        seen_as: Option<&Path>,
    ) -> Result<Vec<Value>, Fault> {
        let Some(root) = self.existing_root().map_err(failed)? else {
            return Ok(Vec::new());
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = match beneath(&root, &path.0, flags) {
            Ok(folder) => folder,
            Err(error) if is_absent(error) => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut files = Vec::new();
        for entry in Dir::read_from(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            if matches!(name, "." | "..") || (path.is_root() && name == PARTS) {
                continue;
            }
            let facts = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            let shown = seen_as.map_or(PathBuf::from(name), |above| above.join(name));
            let shown = shown.to_string_lossy().into_owned();
            match FileType::from_raw_mode(facts.st_mode) {
                FileType::Directory => {
                    files.push((shown.clone(), json!({"path": shown, "is_dir": true})))
                }
                FileType::RegularFile => files.push((
                    shown.clone(),
                    json!({"path": shown, "is_dir": false, "file_size": facts.st_size}),
                )),
                // Only a job that writes past us makes others.
                _ => {}
            }
        }
        files.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(files.into_iter().map(|(_, json)| json).collect())
    }

    /// Removes a file, or a folder with all that is in it.
    pub(super) fn remove(&self, path: &ArtifactPath) -> Result<(), Fault> {
        if path.is_root() {
            return Err(Fault::invalid("Invalid path"));
        }
        let Some(root) = self.existing_root().map_err(failed)? else {
            return Ok(());
        };
        let above = path.0.parent().unwrap_or(Path::new(""));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = match beneath(&root, above, flags) {
            Ok(folder) => folder,
            Err(error) if is_absent(error) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let name = path.0.file_name().unwrap_or_default();
        remove_at(&folder, Path::new(name), DEPTH_MAX).map_err(failed)
    }

    fn root(&self) -> io::Result<OwnedFd> {
        match std::fs::create_dir(&self.root) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        self.existing_root()?
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn existing_root(&self) -> io::Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(CWD, &self.root, flags, Mode::empty()) {
            Ok(root) => Ok(Some(root)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Regular files below an attempt's artifacts, as paths from there.
pub(crate) fn uploaded(attempt: &Path) -> io::Result<Vec<PathBuf>> {
    let root = attempt.join(ARTIFACTS);
    let mut files = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(folder) = open.pop() {
        let listing = match std::fs::read_dir(root.join(&folder)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            listing => listing?,
        };
        for entry in listing {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() && path != Path::new(PARTS) {
                open.push(path);
            } else if kind.is_file() {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn beneath(root: impl AsFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, flags, Mode::empty(), resolve)
}

fn folder_at(above: impl AsFd, name: &Path) -> io::Result<OwnedFd> {
    match mkdirat(&above, name, Mode::from_raw_mode(0o700)) {
        Err(error) if error != Errno::EXIST => return Err(error.into()),
        _ => {}
    }
    Ok(beneath(
        above,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
    )?)
}

fn folders_at(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let mut folder = root.try_clone()?;
    for part in path.components() {
        folder = folder_at(&folder, Path::new(part.as_os_str()))?;
    }
    Ok(folder)
}

fn remove_at(folder: &OwnedFd, name: &Path, depth: usize) -> io::Result<()> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) if depth > 0 => {}
        Err(error) => return Err(error.into()),
    }
    let inner = beneath(
        folder,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
    )?;
    for entry in Dir::read_from(&inner)? {
        let entry = entry?;
        let bytes = entry.file_name().to_bytes();
        if bytes != b"." && bytes != b".." {
            let name = std::ffi::OsStr::from_bytes(bytes);
            remove_at(&inner, Path::new(name), depth - 1)?;
        }
    }
    Ok(unlinkat(folder, name, AtFlags::REMOVEDIR)?)
}

fn is_absent(error: Errno) -> bool {
    // A link in the way, or a file where a folder is asked for.
    matches!(
        error,
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV
    )
}

fn failed(error: impl Into<io::Error>) -> Fault {
    let error = error.into();
    match error.kind() {
        // The request's own fault: it named a file as a folder, or a link is there.
        io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => {
            Fault::invalid("Invalid path")
        }
        _ if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            Fault::invalid("Invalid path")
        }
        _ => Fault::unavailable(format!("store an artifact: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> ArtifactPath {
        ArtifactPath::of(text).unwrap()
    }

    #[test]
    fn paths_lead_nowhere_else() {
        for bad in [
            "../a",
            "a/../../b",
            "a\\b",
            "a%2fb",
            "a\0b",
            "file://x",
            ".parts/0",
            "./../x",
        ] {
            assert!(ArtifactPath::of(bad).is_err(), "{bad}");
        }
        assert_eq!(path("/a//b/./c"), path("a/b/c"));
    }

    #[test]
    fn a_file_comes_back_and_a_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secret"), "x").unwrap();
        let artifacts = Artifacts::of(folder.path());
        artifacts.store(&path("m/a.txt"), &mut &b"one"[..]).unwrap();
        artifacts.store(&path("m/a.txt"), &mut &b"two"[..]).unwrap();
        let (mut file, length) = artifacts.open(&path("m/a.txt")).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), length), ("two", 3));
        assert_eq!(uploaded(folder.path()).unwrap(), [PathBuf::from("m/a.txt")]);

        let m = folder.path().join(ARTIFACTS).join("m");
        std::os::unix::fs::symlink(folder.path(), m.join("out")).unwrap();
        std::os::unix::fs::symlink(folder.path().join("secret"), m.join("s")).unwrap();
        assert!(artifacts.open(&path("m/out/secret")).is_err());
        assert!(artifacts.open(&path("m/s")).is_err());
        assert!(artifacts.store(&path("m/out/new"), &mut &b"x"[..]).is_err());
        assert!(!folder.path().join("new").exists());
        // A link in the place of a file is replaced, not written through.
        artifacts.store(&path("m/s"), &mut &b"y"[..]).unwrap();
        assert_eq!(
            std::fs::read_to_string(folder.path().join("secret")).unwrap(),
            "x"
        );
        let names: Vec<Value> = artifacts.list(&path("m"), None).unwrap();
        assert_eq!(names.len(), 2, "{names:?}");
        artifacts.remove(&path("m")).unwrap();
        assert!(folder.path().join("secret").exists());
        assert_eq!(uploaded(folder.path()).unwrap(), [] as [PathBuf; 0]);
    }
}
