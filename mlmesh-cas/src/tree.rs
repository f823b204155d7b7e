//! Trees: the listing of a folder, its byte form and the commit id.
//!
//! The byte form is text, so that ten lines of any language compute a commit id:
//!
//! ```text
//! mlmesh-tree 1
//! 644 12 <64 hex digits of the content's SHA-256> src/train.py
//! 755 40 <...> tools/run.sh
//! link 8 <SHA-256 of the target's bytes> latest
//! ```
//!
//! One line per file, `mode SP size SP digest SP path LF`, sorted by the bytes of
//! the path. Modes are `644`, `755` (the owner may execute it) and `link`; sizes
//! are plain decimals; the object of a symbolic link is the bytes of its target.
//! Paths are UTF-8, relative, separated by `/`. In them a backslash is written
//! `\\` and each control byte (below 0x20, and 0x7f) `\xHH` in lower case;
//! nothing else is escaped. Folders are not listed, so an empty one is not part
//! of a tree. The SHA-256 of these bytes is the commit id.
//!
//! [`Tree::parse`] accepts exactly what [`Tree::canonical_bytes`] writes.

use std::collections::HashSet;

use mlmesh_model::{CommitId, Digest, ObjectId};

/// The sorted listing of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree {
    /// Sorted by the bytes of the path, each path once.
    pub entries: Vec<TreeEntry>,
}

/// One file or symbolic link of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeEntry {
    /// Relative, UTF-8, separated by `/`.
    pub path: String,
    /// What the entry is; permissions are normalised.
    pub mode: Mode,
    /// Bytes of the content, or of the link's target.
    pub size: u64,
    /// Digest of the content, or of the link's target.
    pub object: ObjectId,
}

/// What a tree remembers of a file's mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// A plain file, 0644 in a checkout.
    File,
    /// A file that its owner may execute, 0755 in a checkout.
    Executable,
    /// A symbolic link whose target stays inside the tree.
    Symlink,
}

/// How a path differs between two trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Only the later tree has it.
    Added,
    /// Only the earlier tree has it.
    Removed,
    /// Content or mode differ.
    Changed,
}

/// First line of every listing; the number is the version of the form.
pub const TREE_HEADER: &str = "mlmesh-tree 1\n";
/// The longest listing that is read, about two million files.
pub const TREE_BYTES_MAX: u64 = 256 << 20;
/// The longest path of an entry.
pub const PATH_BYTES_MAX: usize = 4096;
/// The longest part of a path between two `/`.
pub const COMPONENT_BYTES_MAX: usize = 255;
/// The longest target of a symbolic link.
pub const LINK_BYTES_MAX: u64 = 4095;

/// Why bytes are not the listing of a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// The first line is not the one of this version.
    #[error("the listing does not start with `mlmesh-tree 1`")]
    Header,
    /// More bytes than anything may list.
    #[error("the listing has {bytes} bytes, {TREE_BYTES_MAX} are allowed")]
    TooLong {
        /// Length of the input.
        bytes: u64,
    },
    /// A line that breaks the form.
    #[error("line {line} of the listing: {rule}")]
    Line {
        /// Counted from 1, the header included.
        line: usize,
        /// What is wrong with it.
        rule: &'static str,
    },
    /// A path that a tree may not hold.
    #[error("path `{}` in a tree: {rule}", path.escape_debug())]
    Path {
        /// The path.
        path: String,
        /// The rule that it breaks.
        rule: PathRule,
    },
}

/// What a path in a tree must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathRule {
    /// Starts or ends with `/`, holds `//`, or is empty.
    #[error("it must be relative, with no empty part")]
    Empty,
    /// Holds `.` or `..` as a part.
    #[error("`.` and `..` are not allowed in it")]
    Dots,
    /// Holds `.git` as a part.
    #[error("`.git` is never part of a tree")]
    Git,
    /// Holds a NUL byte.
    #[error("a NUL byte is not allowed in it")]
    Nul,
    /// Longer than file systems allow.
    #[error("a path has at most 4096 bytes, each part at most 255")]
    TooLong,
    /// Not after the path before it.
    #[error("paths must be sorted by their bytes and stand once")]
    Order,
    /// Another entry is a file where this one needs a folder.
    #[error("another entry is a file where this path needs a folder")]
    UnderFile,
}

impl Tree {
    /// Sorts `entries` and checks every rule of a tree.
    pub fn from_entries(entries: Vec<TreeEntry>) -> Result<Self, TreeError> {
        let tree = Self::sorted(entries);
        tree.check()?;
        Ok(tree)
    }

    /// Sorts `entries` that make a tree.
    pub(crate) fn sorted(mut entries: Vec<TreeEntry>) -> Self {
        entries.sort_unstable_by(|left, right| left.path.cmp(&right.path));
        Self { entries }
    }

    /// The byte form described at the head of this file.
    pub fn canonical_bytes(&self) -> Vec<u8> {
        let paths: usize = self.entries.iter().map(|entry| entry.path.len()).sum();
        let mut bytes = Vec::with_capacity(TREE_HEADER.len() + paths + self.entries.len() * 80);
        bytes.extend_from_slice(TREE_HEADER.as_bytes());
        for entry in &self.entries {
            bytes.extend_from_slice(entry.mode.text());
            bytes.push(b' ');
            push_decimal(entry.size, &mut bytes);
            bytes.push(b' ');
            push_hex(entry.object.0.as_bytes(), &mut bytes);
            bytes.push(b' ');
            push_escaped(&entry.path, &mut bytes);
            bytes.push(b'\n');
        }
        bytes
    }

    /// Reads a listing; refuses everything that [`Tree::canonical_bytes`] would not write.
    pub fn parse(bytes: &[u8]) -> Result<Self, TreeError> {
        if bytes.len() as u64 > TREE_BYTES_MAX {
            return Err(TreeError::TooLong {
                bytes: bytes.len() as u64,
            });
        }
        let body = bytes
            .strip_prefix(TREE_HEADER.as_bytes())
            .ok_or(TreeError::Header)?;
        if !body.is_empty() && !body.ends_with(b"\n") {
            return Err(TreeError::Line {
                line: 0,
                rule: "the last line must end with a line feed",
            });
        }
        let mut tree = Self::default();
        for (index, text) in body.split_inclusive(|byte| *byte == b'\n').enumerate() {
            let entry = parse_line(&text[..text.len() - 1]).map_err(|rule| TreeError::Line {
                line: index + 2,
                rule,
            })?;
            tree.entries.push(entry);
        }
        tree.check()?;
        Ok(tree)
    }

    /// The identity of this tree.
    pub fn commit_id(&self) -> CommitId {
        CommitId(Digest::of(&self.canonical_bytes()))
    }

    /// Bytes of all contents together.
    pub fn content_bytes(&self) -> u64 {
        self.entries
            .iter()
            .map(|entry| entry.size)
            .fold(0, u64::saturating_add)
    }

    /// The entry at `path`.
    pub fn entry(&self, path: &str) -> Option<&TreeEntry> {
        self.entries.get(self.index(path)?)
    }

    /// Where the entry at `path` stands.
    pub(crate) fn index(&self, path: &str) -> Option<usize> {
        self.entries
            .binary_search_by(|entry| entry.path.as_str().cmp(path))
            .ok()
    }

    /// What is different in `later`, in order of the paths.
    pub fn changes_to<'a>(&'a self, later: &'a Self) -> Vec<(&'a str, Change)> {
        let mut changes = Vec::new();
        let mut before = self.entries.iter().peekable();
        for entry in &later.entries {
            while let Some(gone) = before.next_if(|gone| gone.path < entry.path) {
                changes.push((gone.path.as_str(), Change::Removed));
            }
            match before.next_if(|same| same.path == entry.path) {
                None => changes.push((entry.path.as_str(), Change::Added)),
                Some(same) if same != entry => changes.push((entry.path.as_str(), Change::Changed)),
                Some(_) => {}
            }
        }
        changes.extend(before.map(|gone| (gone.path.as_str(), Change::Removed)));
        changes
    }

    /// Checks the rules of a tree, whose entries anybody may have changed.
    pub(crate) fn check(&self) -> Result<(), TreeError> {
        let error = |path: &str, rule| TreeError::Path {
            path: path.to_owned(),
            rule,
        };
        let mut previous = "";
        for entry in &self.entries {
            check_path(&entry.path).map_err(|rule| error(&entry.path, rule))?;
            if entry.path.as_str() <= previous {
                return Err(error(&entry.path, PathRule::Order));
            }
            previous = &entry.path;
        }
        self.check_folders(error)
    }

    /// Refuses `a` beside `a/b`. Each folder is looked up once.
    fn check_folders(&self, error: impl Fn(&str, PathRule) -> TreeError) -> Result<(), TreeError> {
        let mut known: HashSet<&str> = HashSet::new();
        for entry in &self.entries {
            let mut folder = entry.path.as_str();
            while let Some((parent, _)) = folder.rsplit_once('/') {
                if !known.insert(parent) {
                    break;
                }
                if self.entry(parent).is_some() {
                    return Err(error(&entry.path, PathRule::UnderFile));
                }
                folder = parent;
            }
        }
        Ok(())
    }
}

impl Mode {
    /// The word of the byte form.
    pub const fn word(self) -> &'static str {
        match self {
            Self::File => "644",
            Self::Executable => "755",
            Self::Symlink => "link",
        }
    }

    /// Its bytes.
    pub const fn text(self) -> &'static [u8] {
        self.word().as_bytes()
    }
}

/// Checks one path on its own.
pub fn check_path(path: &str) -> Result<(), PathRule> {
    if path.len() > PATH_BYTES_MAX {
        return Err(PathRule::TooLong);
    }
    for part in path.split('/') {
        match part {
            "" => return Err(PathRule::Empty),
            "." | ".." => return Err(PathRule::Dots),
            ".git" => return Err(PathRule::Git),
            _ if part.len() > COMPONENT_BYTES_MAX => return Err(PathRule::TooLong),
            _ if part.contains('\0') => return Err(PathRule::Nul),
            _ => {}
        }
    }
    Ok(())
}

pub(crate) fn parse_line(line: &[u8]) -> Result<TreeEntry, &'static str> {
    const FORM: &str = "it must be `mode SP size SP digest SP path`";
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let mut field = || fields.next().ok_or(FORM);
    let mode = match field()? {
        b"644" => Mode::File,
        b"755" => Mode::Executable,
        b"link" => Mode::Symlink,
        _ => return Err("the mode must be `644`, `755` or `link`"),
    };
    let size = parse_decimal(field()?).ok_or("the size must be a plain decimal below 2^64")?;
    if mode == Mode::Symlink && size > LINK_BYTES_MAX {
        return Err("the target of a link has at most 4095 bytes");
    }
    let digest = parse_hex(field()?).ok_or("the digest must be 64 lower-case hex digits")?;
    let path = unescape(field()?)
        .ok_or("the path must be UTF-8, control bytes and backslashes escaped, nothing else")?;
    Ok(TreeEntry {
        path,
        mode,
        size,
        object: ObjectId(digest),
    })
}

/// A decimal as [`push_decimal`] writes it: no sign, no leading zero.
fn parse_decimal(text: &[u8]) -> Option<u64> {
    let plain =
        text.iter().all(u8::is_ascii_digit) && (text.len() == 1 || text.first() != Some(&b'0'));
    if !plain {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn parse_hex(text: &[u8]) -> Option<Digest> {
    if text.len() != 64 {
        return None;
    }
    let mut bytes = [0_u8; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = lower_hex(pair[0])? << 4 | lower_hex(pair[1])?;
    }
    Some(Digest::from_bytes(bytes))
}

const fn lower_hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

const fn needs_escape(byte: u8) -> bool {
    byte < 0x20 || byte == 0x7f || byte == b'\\'
}

const HEX: &[u8; 16] = b"0123456789abcdef";

pub(crate) fn push_hex(bytes: &[u8], out: &mut Vec<u8>) {
    for byte in bytes {
        out.push(HEX[usize::from(byte >> 4)]);
        out.push(HEX[usize::from(byte & 15)]);
    }
}

fn push_decimal(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0_u8; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

fn push_escaped(path: &str, out: &mut Vec<u8>) {
    if !path.bytes().any(needs_escape) {
        out.extend_from_slice(path.as_bytes());
        return;
    }
    for byte in path.bytes() {
        match byte {
            b'\\' => out.extend_from_slice(b"\\\\"),
            _ if needs_escape(byte) => {
                out.extend_from_slice(b"\\x");
                push_hex(&[byte], out);
            }
            _ => out.push(byte),
        }
    }
}

/// The inverse of [`push_escaped`]; `None` for any other spelling.
fn unescape(text: &[u8]) -> Option<String> {
    if !text.iter().copied().any(needs_escape) {
        return Some(std::str::from_utf8(text).ok()?.to_owned());
    }
    let mut path = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'\\' {
            if needs_escape(*byte) {
                return None;
            }
            path.push(*byte);
            continue;
        }
        match rest {
            [b'\\', after @ ..] => {
                path.push(b'\\');
                rest = after;
            }
            [b'x', high, low, after @ ..] => {
                let byte = lower_hex(*high)? << 4 | lower_hex(*low)?;
                if byte == b'\\' || !needs_escape(byte) {
                    return None;
                }
                path.push(byte);
                rest = after;
            }
            _ => return None,
        }
    }
    String::from_utf8(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, mode: Mode, content: &[u8]) -> TreeEntry {
        TreeEntry {
            path: path.to_owned(),
            mode,
            size: content.len() as u64,
            object: ObjectId(Digest::of(content)),
        }
    }

    fn sample() -> Tree {
        Tree::from_entries(vec![
            entry("src/train.py", Mode::File, b"print(1)\n"),
            entry("latest", Mode::Symlink, b"src/train.py"),
            entry("a b\\c\n\u{7f}é", Mode::Executable, b""),
        ])
        .unwrap()
    }

    #[test]
    fn listing_reads_back_as_it_was() {
        let tree = sample();
        let bytes = tree.canonical_bytes();
        assert_eq!(Tree::parse(&bytes).unwrap(), tree);
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.starts_with("mlmesh-tree 1\n755 0 e3b0c442"), "{text}");
        assert!(text.contains(" a b\\\\c\\x0a\\x7fé\n"), "{text}");
    }

    #[test]
    fn empty_tree_is_its_header() {
        assert_eq!(Tree::default().canonical_bytes(), TREE_HEADER.as_bytes());
        assert_eq!(
            Tree::parse(TREE_HEADER.as_bytes()).unwrap(),
            Tree::default()
        );
    }

    #[test]
    fn paths_that_leave_the_tree_are_refused() {
        for (path, rule) in [
            ("/etc/passwd", PathRule::Empty),
            ("a//b", PathRule::Empty),
            ("a/", PathRule::Empty),
            ("", PathRule::Empty),
            ("../a", PathRule::Dots),
            ("a/../b", PathRule::Dots),
            ("./a", PathRule::Dots),
            (".git/config", PathRule::Git),
            ("a/.git", PathRule::Git),
            ("a\0b", PathRule::Nul),
            (&"a".repeat(256), PathRule::TooLong),
            (&"a/".repeat(2100), PathRule::TooLong),
        ] {
            let result = Tree::from_entries(vec![entry(path, Mode::File, b"")]);
            assert_eq!(
                result,
                Err(TreeError::Path {
                    path: path.to_owned(),
                    rule
                }),
                "{path}"
            );
        }
    }

    #[test]
    fn a_file_cannot_also_be_a_folder() {
        let entries = ["a", "a-b", "a/b"]
            .map(|path| entry(path, Mode::File, b""))
            .to_vec();
        let error = Tree::from_entries(entries).unwrap_err();
        assert_eq!(
            error,
            TreeError::Path {
                path: "a/b".into(),
                rule: PathRule::UnderFile
            }
        );
    }

    #[test]
    fn every_other_spelling_of_a_listing_is_refused() {
        let digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let good = format!("mlmesh-tree 1\n644 0 {digest} a\n");
        assert!(Tree::parse(good.as_bytes()).is_ok());
        let lines = [
            format!("644 0 {digest} b\n644 0 {digest} a\n"),
            format!("644 0 {digest} a\n644 0 {digest} a\n"),
            format!("644 00 {digest} a\n"),
            format!("644 +1 {digest} a\n"),
            format!("644  {digest} a\n"),
            format!("644 18446744073709551616 {digest} a\n"),
            format!("645 0 {digest} a\n"),
            format!("644 0 {} a\n", digest.to_uppercase()),
            format!("644 0 {digest} a"),
            format!("644 0 {digest} a\r\n"),
            format!("644 0 {digest} a\\x41\n"),
            format!("644 0 {digest} a\\x0A\n"),
            format!("644 0 {digest} a\\n\n"),
            format!("644 0 {digest} a\\\n"),
            format!("link 4096 {digest} a\n"),
            format!("644 0 {digest}\n"),
            "\n".to_owned(),
        ];
        for line in lines {
            assert!(
                Tree::parse(format!("mlmesh-tree 1\n{line}").as_bytes()).is_err(),
                "{line:?}"
            );
        }
        for other in ["", "mlmesh-tree 2\n", "mlmesh-tree 1", "mlmesh-tree 1\r\n"] {
            assert_eq!(
                Tree::parse(other.as_bytes()),
                Err(TreeError::Header),
                "{other:?}"
            );
        }
    }

    #[test]
    fn changes_between_trees_are_named_in_order() {
        let tree = |paths: &[(&str, &str)]| {
            Tree::from_entries(
                paths
                    .iter()
                    .map(|(path, text)| entry(path, Mode::File, text.as_bytes()))
                    .collect(),
            )
            .unwrap()
        };
        let (before, later) = (
            tree(&[("a", ""), ("b", ""), ("d", ""), ("e", "")]),
            tree(&[("b", "x"), ("c", ""), ("d", "")]),
        );
        let changes = [
            ("a", Change::Removed),
            ("b", Change::Changed),
            ("c", Change::Added),
            ("e", Change::Removed),
        ];
        assert_eq!(before.changes_to(&later), changes);
        assert_eq!(later.changes_to(&later), []);
    }
}
