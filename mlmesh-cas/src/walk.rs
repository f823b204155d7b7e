//! Walking a folder: which files there are, and their stat. Reads no contents
//! but those of ignore files and the targets of links.
//!
//! Every folder is opened relative to the root without following links; files
//! are looked at relative to their folder. One folder is open at a time.

use std::collections::HashSet;
use std::ffi::CStr;
use std::io::{self, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use ignore::gitignore::Gitignore;
use rustix::fs::{
    AtFlags, FileType, Mode as Permissions, OFlags, RawDir, ResolveFlags, openat, openat2,
    readlinkat, statat,
};
use rustix::io::Errno;

use crate::links::link_stays_inside;
use crate::rules::{self, FolderRules, GITIGNORE, MLIGNORE, Verdict};
use crate::secrets;
use crate::snapshot::{Options, Rules, SnapshotError};
use crate::stat_cache::FileStat;
use crate::tree::{LINK_BYTES_MAX, PATH_BYTES_MAX};

/// A file or link that belongs to the snapshot.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) path: String,
    pub(crate) stat: FileStat,
    pub(crate) kind: FoundKind,
    /// A `!path` of a `.mlignore` lets it in whatever it holds.
    pub(crate) demanded: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FoundKind {
    File,
    Symlink { target: String },
}

/// What a walk has found, sorted by path.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    pub(crate) found: Vec<Found>,
    /// Paths whose names say that they are secrets.
    pub(crate) secrets: Vec<String>,
    pub(crate) warnings: Vec<String>,
}

const IGNORE_FILE_BYTES_MAX: u64 = 1 << 20;
const DIRECTORY_BUFFER_BYTES: usize = 32 << 10;

/// Lists what belongs to a snapshot of the folder `root`.
pub(crate) fn walk(root: BorrowedFd<'_>, options: &Options) -> Result<Walk, SnapshotError> {
    let exclude = options
        .exclude
        .iter()
        .map(|path| normalised(path))
        .collect();
    let mut walker = Walker {
        root,
        rules: options.rules,
        exclude,
        pending: vec![Folder {
            path: String::new(),
            rules: None,
        }],
        walk: Walk::default(),
        names: Names::default(),
    };
    while let Some(folder) = walker.pending.pop() {
        walker.folder(&folder)?;
    }
    let mut walk = walker.walk;
    walk.found.sort_by(|left, right| left.path.cmp(&right.path));
    walk.secrets.sort_unstable();
    Ok(walk)
}

/// Opens `path` below `root`; no part of it may be a link.
pub(crate) fn open_beneath(
    root: impl AsFd,
    path: &str,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match openat2(&root, path, flags, Permissions::empty(), resolve) {
        // Old kernels and some container filters do not know the call.
        Err(Errno::NOSYS | Errno::PERM) => openat(&root, path, flags, Permissions::empty()),
        result => result,
    }
}

struct Folder {
    /// Relative, with `/` at its end; empty for the root.
    path: String,
    rules: Option<Rc<FolderRules>>,
}

struct Walker<'a> {
    root: BorrowedFd<'a>,
    rules: Rules,
    exclude: HashSet<String>,
    pending: Vec<Folder>,
    walk: Walk,
    names: Names,
}

/// The names of one folder, NUL-terminated one behind the other.
#[derive(Default)]
struct Names {
    bytes: Vec<u8>,
    entries: Vec<(usize, FileType)>,
    has_mlignore: bool,
    has_gitignore: bool,
    has_pyvenv: bool,
}

impl Walker<'_> {
    fn folder(&mut self, folder: &Folder) -> Result<(), SnapshotError> {
        let path = if folder.path.is_empty() {
            "."
        } else {
            folder.path.trim_end_matches('/')
        };
        let error = |source: Errno| SnapshotError::read(path, source.into());
        let descriptor = open_beneath(self.root, path, OFlags::DIRECTORY).map_err(error)?;
        let mut names = std::mem::take(&mut self.names);
        names.read(descriptor.as_fd()).map_err(error)?;
        let is_environment = names.has_pyvenv && !folder.path.is_empty();
        if !is_environment {
            let rules = self.folder_rules(descriptor.as_fd(), folder, &names)?;
            for (start, kind) in &names.entries {
                let name = names.name(*start);
                self.entry(descriptor.as_fd(), folder, rules.as_ref(), name, *kind)?;
            }
        }
        self.names = names;
        Ok(())
    }

    fn entry(
        &mut self,
        descriptor: BorrowedFd<'_>,
        folder: &Folder,
        rules: Option<&Rc<FolderRules>>,
        name: &CStr,
        kind: FileType,
    ) -> Result<(), SnapshotError> {
        let text = name.to_string_lossy();
        let mut path = String::with_capacity(folder.path.len() + text.len() + 1);
        path.push_str(&folder.path);
        path.push_str(&text);
        let mut stat = None;
        let mut kind = kind;
        if !matches!(kind, FileType::Directory | FileType::Symlink) {
            let seen = statat(descriptor, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|source| SnapshotError::read(&path, source.into()))?;
            kind = FileType::from_raw_mode(seen.st_mode);
            stat = Some(FileStat::of(&seen));
        }
        let is_folder = kind == FileType::Directory;
        if text == ".git" || (is_folder && rules::folder_is_skipped(&text)) {
            return Ok(());
        }
        if !self.exclude.is_empty() && self.exclude.contains(&path) {
            return Ok(());
        }
        let verdict = rules.map_or(Verdict::Included, |rules| rules.verdict(&path, is_folder));
        if verdict == Verdict::Ignored {
            return Ok(());
        }
        if name.to_str().is_err() {
            return Err(SnapshotError::NotUtf8 {
                path: name.to_bytes().escape_ascii().to_string(),
            });
        }
        if path.len() > PATH_BYTES_MAX {
            return Err(SnapshotError::PathTooLong { path });
        }
        let demanded = verdict == Verdict::Demanded;
        match (kind, stat) {
            (FileType::Directory, _) => {
                path.push('/');
                self.pending.push(Folder {
                    path,
                    rules: rules.cloned(),
                });
            }
            (FileType::Symlink, _) => self.symlink(descriptor, name, path)?,
            (FileType::RegularFile, Some(stat)) => {
                if !demanded && self.rules == Rules::Project && secrets::name_is_secret(&text) {
                    self.walk.secrets.push(path);
                } else {
                    self.walk.found.push(Found {
                        path,
                        stat,
                        kind: FoundKind::File,
                        demanded,
                    });
                }
            }
            (kind, _) => {
                return Err(SnapshotError::SpecialFile {
                    path,
                    kind: special_kind(kind),
                });
            }
        }
        Ok(())
    }

    fn symlink(
        &mut self,
        descriptor: BorrowedFd<'_>,
        name: &CStr,
        path: String,
    ) -> Result<(), SnapshotError> {
        let target = readlinkat(descriptor, name, Vec::new())
            .map_err(|source| SnapshotError::read(&path, source.into()))?;
        let target = match target.into_string() {
            Ok(target)
                if target.len() as u64 <= LINK_BYTES_MAX && link_stays_inside(&path, &target) =>
            {
                target
            }
            Ok(target) => return Err(SnapshotError::LinkLeaves { path, target }),
            Err(error) => {
                let target = error.into_cstring().to_bytes().escape_ascii().to_string();
                return Err(SnapshotError::LinkLeaves { path, target });
            }
        };
        let stat = FileStat {
            size: target.len() as u64,
            mtime_ns: 0,
            ctime_ns: 0,
            inode: 0,
            mode: 0,
        };
        self.walk.found.push(Found {
            path,
            stat,
            kind: FoundKind::Symlink { target },
            demanded: false,
        });
        Ok(())
    }

    /// The rules that hold inside `folder`: its own ignore files before those above.
    fn folder_rules(
        &mut self,
        descriptor: BorrowedFd<'_>,
        folder: &Folder,
        names: &Names,
    ) -> Result<Option<Rc<FolderRules>>, SnapshotError> {
        if self.rules == Rules::Dataset || !(names.has_mlignore || names.has_gitignore) {
            return Ok(folder.rules.clone());
        }
        let mut matchers = [Gitignore::empty(), Gitignore::empty()];
        for (matcher, (name, present)) in matchers.iter_mut().zip([
            (MLIGNORE, names.has_mlignore),
            (GITIGNORE, names.has_gitignore),
        ]) {
            if !present {
                continue;
            }
            let path = format!("{}{name}", folder.path);
            let text = read_ignore_file(descriptor, name)
                .map_err(|source| SnapshotError::read(&path, source))?;
            let (compiled, bad) = rules::compile(&text);
            *matcher = compiled;
            for bad in bad {
                if name == MLIGNORE {
                    return Err(SnapshotError::Pattern {
                        path,
                        line: bad.line,
                        message: bad.message,
                    });
                }
                self.walk.warnings.push(format!(
                    "{path}:{}: pattern left out: {}",
                    bad.line, bad.message
                ));
            }
        }
        let [mlignore, gitignore] = matchers;
        if mlignore.is_empty() && gitignore.is_empty() {
            return Ok(folder.rules.clone());
        }
        Ok(Some(FolderRules::new(
            folder.rules.clone(),
            folder.path.len(),
            mlignore,
            gitignore,
        )))
    }
}

impl Names {
    fn read(&mut self, folder: BorrowedFd<'_>) -> rustix::io::Result<()> {
        self.bytes.clear();
        self.entries.clear();
        (self.has_mlignore, self.has_gitignore, self.has_pyvenv) = (false, false, false);
        let mut buffer = [MaybeUninit::uninit(); DIRECTORY_BUFFER_BYTES];
        let mut listing = RawDir::new(folder, &mut buffer);
        while let Some(entry) = listing.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes_with_nul();
            match name {
                b".\0" | b"..\0" => continue,
                b".mlignore\0" => self.has_mlignore = true,
                b".gitignore\0" => self.has_gitignore = true,
                b"pyvenv.cfg\0" => self.has_pyvenv = true,
                _ => {}
            }
            self.entries.push((self.bytes.len(), entry.file_type()));
            self.bytes.extend_from_slice(name);
        }
        Ok(())
    }

    fn name(&self, start: usize) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes[start..]).unwrap_or_default()
    }
}

fn read_ignore_file(folder: BorrowedFd<'_>, name: &str) -> io::Result<Vec<u8>> {
    let file = std::fs::File::from(open_beneath(folder, name, OFlags::empty())?);
    let mut text = Vec::new();
    file.take(IGNORE_FILE_BYTES_MAX + 1)
        .read_to_end(&mut text)?;
    if text.len() as u64 > IGNORE_FILE_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "an ignore file has at most 1 MiB",
        ));
    }
    Ok(text)
}

fn normalised(path: &str) -> String {
    path.split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect::<Vec<_>>()
        .join("/")
}

const fn special_kind(kind: FileType) -> &'static str {
    match kind {
        FileType::Fifo => "a named pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "not a file, a folder or a symbolic link",
    }
}
