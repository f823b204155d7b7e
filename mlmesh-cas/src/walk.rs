//! Walking a folder: which files there are, and their stat. Reads no contents
//! but those of ignore files and the targets of links.
//!
//! Every folder is opened relative to the root without following links; files
//! are looked at relative to their folder. One folder is open at a time, so the
//! files of a folder come before what lies in the folders below it ([`order`]).

use std::borrow::Cow;
use std::cmp::Ordering;
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
pub(crate) struct Seen<'a> {
    pub(crate) path: &'a str,
    pub(crate) stat: FileStat,
    /// Where a link leads.
    pub(crate) target: Option<&'a str>,
    /// A `!path` of a `.mlignore` lets it in whatever it holds.
    pub(crate) demanded: bool,
}

/// What a walk tells besides.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    /// Paths whose names say that they are secrets.
    pub(crate) secrets: Vec<String>,
    pub(crate) warnings: Vec<String>,
}

const IGNORE_FILE_BYTES_MAX: u64 = 1 << 20;
const DIRECTORY_BUFFER_BYTES: usize = 32 << 10;

/// Calls `see` with each file and link that belongs to a snapshot of the folder
/// `root`, in the order that [`order`] tells.
pub(crate) fn walk(
    root: BorrowedFd<'_>,
    options: &Options,
    see: impl FnMut(Seen<'_>),
) -> Result<Walk, SnapshotError> {
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
        path: String::new(),
        see,
    };
    let mut names = Names::default();
    while let Some(folder) = walker.pending.pop() {
        walker.folder(&folder, &mut names)?;
    }
    Ok(walker.walk)
}

/// Which of two paths a walk sees first: a folder's own files stand before what
/// lies below its folders, and both are sorted by the bytes of their names, those
/// of folders with a `/` at the end.
pub(crate) fn order(left: &str, right: &str) -> Ordering {
    let (left, right) = (left.as_bytes(), right.as_bytes());
    let same = left
        .iter()
        .zip(right)
        .take_while(|(left, right)| left == right);
    let same = same.count();
    let folder = left[..same].iter().rposition(|byte| *byte == b'/');
    let start = folder.map_or(0, |slash| slash + 1);
    let (left, right) = (&left[start..], &right[start..]);
    let lies_deeper = |path: &[u8]| path.contains(&b'/');
    (lies_deeper(left), left).cmp(&(lies_deeper(right), right))
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

struct Walker<'a, See> {
    root: BorrowedFd<'a>,
    rules: Rules,
    exclude: HashSet<String>,
    pending: Vec<Folder>,
    walk: Walk,
    /// The path that is looked at; kept, so that a file costs no allocation.
    path: String,
    see: See,
}

/// The names of one folder, NUL-terminated one behind the other.
#[derive(Default)]
struct Names {
    bytes: Vec<u8>,
    /// In the order of the walk once they are read.
    entries: Vec<Name>,
    has_mlignore: bool,
    has_gitignore: bool,
    has_pyvenv: bool,
}

/// Where a name stands in [`Names`].
#[derive(Clone, Copy)]
struct Name {
    /// The first bytes of [`sorted`], big-endian: they nearly always tell the order.
    head: u128,
    start: usize,
    /// One behind its NUL.
    end: usize,
    kind: FileType,
}

impl<See: FnMut(Seen<'_>)> Walker<'_, See> {
    fn folder(&mut self, folder: &Folder, names: &mut Names) -> Result<(), SnapshotError> {
        let path = if folder.path.is_empty() {
            "."
        } else {
            folder.path.trim_end_matches('/')
        };
        let error = |source: Errno| SnapshotError::read(path, source.into());
        let descriptor = open_beneath(self.root, path, OFlags::DIRECTORY).map_err(error)?;
        names.read(descriptor.as_fd()).map_err(error)?;
        let is_environment = names.has_pyvenv && !folder.path.is_empty();
        if is_environment {
            return Ok(());
        }
        let rules = self.folder_rules(descriptor.as_fd(), folder, names)?;
        let pending = self.pending.len();
        for name in &names.entries {
            let (name, kind) = (names.text(*name), name.kind);
            self.entry(descriptor.as_fd(), folder, rules.as_ref(), name, kind)?;
        }
        // The last one is taken first.
        self.pending[pending..].reverse();
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
        let text = match name.to_str() {
            Ok(text) => Cow::Borrowed(text),
            Err(_) => name.to_string_lossy(),
        };
        let mut path = std::mem::take(&mut self.path);
        path.clear();
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
        let is_skipped = text == ".git"
            || (is_folder && rules::folder_is_skipped(&text))
            || (!self.exclude.is_empty() && self.exclude.contains(&path));
        let verdict = match rules {
            Some(rules) if !is_skipped => rules.verdict(&path, is_folder),
            _ => Verdict::Included,
        };
        if is_skipped || verdict == Verdict::Ignored {
            self.path = path;
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
            (FileType::Directory, _) => self.pending.push(Folder {
                path: format!("{path}/"),
                rules: rules.cloned(),
            }),
            (FileType::Symlink, _) => self.symlink(descriptor, name, &path)?,
            (FileType::RegularFile, Some(stat)) => {
                if !demanded && self.rules == Rules::Project && secrets::name_is_secret(&text) {
                    self.walk.secrets.push(path.clone());
                } else {
                    (self.see)(Seen {
                        path: &path,
                        stat,
                        target: None,
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
        self.path = path;
        Ok(())
    }

    fn symlink(
        &mut self,
        descriptor: BorrowedFd<'_>,
        name: &CStr,
        path: &str,
    ) -> Result<(), SnapshotError> {
        let target = readlinkat(descriptor, name, Vec::new())
            .map_err(|source| SnapshotError::read(path, source.into()))?;
        let leaves = |target: String| SnapshotError::LinkLeaves {
            path: path.to_owned(),
            target,
        };
        let target = target
            .into_string()
            .map_err(|error| leaves(error.into_cstring().to_bytes().escape_ascii().to_string()))?;
        if target.len() as u64 > LINK_BYTES_MAX || !link_stays_inside(path, &target) {
            return Err(leaves(target));
        }
        (self.see)(Seen {
            path,
            stat: FileStat::of_link(&target),
            target: Some(&target),
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
            let name = entry.file_name();
            match name.to_bytes() {
                b"." | b".." => continue,
                b".mlignore" => self.has_mlignore = true,
                b".gitignore" => self.has_gitignore = true,
                b"pyvenv.cfg" => self.has_pyvenv = true,
                _ => {}
            }
            let mut kind = entry.file_type();
            if kind == FileType::Unknown {
                // Some file systems do not say; the order needs to know.
                let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
                kind = FileType::from_raw_mode(stat.st_mode);
            }
            self.push(name, kind);
        }
        let bytes = &self.bytes;
        let name = |name: &Name| sorted(&bytes[name.start..name.end - 1], name.kind);
        self.entries.sort_unstable_by(|left, right| {
            let heads = left.head.cmp(&right.head);
            heads.then_with(|| name(left).cmp(name(right)))
        });
        Ok(())
    }

    fn push(&mut self, name: &CStr, kind: FileType) {
        let mut head = [0; size_of::<u128>()];
        for (byte, of_name) in head.iter_mut().zip(sorted(name.to_bytes(), kind)) {
            *byte = of_name;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name.to_bytes_with_nul());
        self.entries.push(Name {
            head: u128::from_be_bytes(head),
            start,
            end: self.bytes.len(),
            kind,
        });
    }

    fn text(&self, name: Name) -> &CStr {
        CStr::from_bytes_with_nul(&self.bytes[name.start..name.end]).unwrap_or_default()
    }
}

/// What a name is sorted by: its bytes, and a `/` behind those of a folder.
fn sorted(name: &[u8], kind: FileType) -> impl Iterator<Item = u8> {
    let slash = (kind == FileType::Directory).then_some(b'/');
    name.iter().copied().chain(slash)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_goes_in_the_order_that_is_told() {
        let paths = [
            "a",
            "b.",
            "ab",
            "a-/a",
            "a-/b/c",
            "a./a",
            "a0/a",
            "a0/a0",
            "c/a-/x",
            "c/a/x",
            "c/a",
            "c/a.",
            "a_name_of_more_than_sixteen_bytes",
            "a_name_of_more_than_sixteen_bytes_",
            "a_name_of_more_than_sixteen_bytes-",
            "long_name_of_a_folder/x",
            "long_name_of_a_folder-/x",
            "long_name_of_a_folder0/x",
            "\u{e9}/x",
            "z",
        ];
        let folder = tempfile::tempdir().unwrap();
        for path in paths {
            // What is a folder of another path already stays one.
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            if !path.exists() {
                std::fs::write(path, "").unwrap();
            }
        }
        let root = std::fs::File::open(folder.path()).unwrap();
        let mut seen: Vec<String> = Vec::new();
        walk(root.as_fd(), &Options::project(None), |file| {
            seen.push(file.path.to_owned());
        })
        .unwrap();
        assert!(seen.len() > 15, "{seen:?}");
        assert!(
            seen.is_sorted_by(|left, right| order(left, right) == Ordering::Less),
            "{seen:?}"
        );
        for (place, left) in seen.iter().enumerate() {
            for (other, right) in seen.iter().enumerate() {
                assert_eq!(order(left, right), place.cmp(&other), "{left} {right}");
            }
        }
    }
}
