//! Which files of a folder belong to a snapshot.
//!
//! `.git`, `__pycache__` and folders with a `pyvenv.cfg` never do. A project's
//! `.mlignore` and `.gitignore` files (gitignore syntax, in any folder) leave out
//! more; the nearest file that has a word on a path decides, and all `.mlignore`
//! files stand before all `.gitignore` files. As in git, nothing below a folder
//! that is left out can come back. Ignore files outside the tree are not read,
//! since the same tree must give the same commit on every machine.

use std::path::Path;
use std::rc::Rc;

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

/// What the rules say of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// No rule speaks of it.
    Included,
    /// A line `!path` of a `.mlignore` asks for it, even if it looks like a secret.
    Demanded,
    /// It stays out.
    Ignored,
}

/// The ignore files of one folder and, behind it, of the folders above.
#[derive(Debug)]
pub(crate) struct FolderRules {
    above: Option<Rc<FolderRules>>,
    /// Bytes of the folder's own path with its `/`; 0 for the root.
    prefix_bytes: usize,
    mlignore: Gitignore,
    gitignore: Gitignore,
}

/// A line that is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BadPattern {
    pub(crate) line: usize,
    pub(crate) message: String,
}

pub(crate) const MLIGNORE: &str = ".mlignore";
pub(crate) const GITIGNORE: &str = ".gitignore";

/// Whether a folder of this name is never part of a snapshot.
pub(crate) fn folder_is_skipped(name: &str) -> bool {
    name == ".git" || name == "__pycache__"
}

impl FolderRules {
    pub(crate) fn new(
        above: Option<Rc<Self>>,
        prefix_bytes: usize,
        mlignore: Gitignore,
        gitignore: Gitignore,
    ) -> Rc<Self> {
        Rc::new(Self {
            above,
            prefix_bytes,
            mlignore,
            gitignore,
        })
    }

    /// Asks the rules about `path`, which lies below the folder.
    pub(crate) fn verdict(&self, path: &str, is_folder: bool) -> Verdict {
        match self.first_word(path, is_folder, |rules| &rules.mlignore) {
            Some(true) => return Verdict::Ignored,
            Some(false) => return Verdict::Demanded,
            None => {}
        }
        match self.first_word(path, is_folder, |rules| &rules.gitignore) {
            Some(true) => Verdict::Ignored,
            Some(false) | None => Verdict::Included,
        }
    }

    /// Whether the nearest matcher that speaks of `path` leaves it out.
    fn first_word(
        &self,
        path: &str,
        is_folder: bool,
        matcher: impl Fn(&Self) -> &Gitignore,
    ) -> Option<bool> {
        let mut rules = Some(self);
        while let Some(folder) = rules {
            match matcher(folder).matched(Path::new(&path[folder.prefix_bytes..]), is_folder) {
                Match::Ignore(_) => return Some(true),
                Match::Whitelist(_) => return Some(false),
                Match::None => rules = folder.above.as_deref(),
            }
        }
        None
    }
}

/// Compiles the text of an ignore file. Bad lines are left out and returned.
pub(crate) fn compile(text: &[u8]) -> (Gitignore, Vec<BadPattern>) {
    // A matcher rooted at `.` takes paths as they are, relative to its folder.
    let mut builder = GitignoreBuilder::new(".");
    let mut bad = Vec::new();
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line_number = index + 1;
        let message = match std::str::from_utf8(line) {
            Err(_) => Some("it is not UTF-8".to_owned()),
            Ok(line) => {
                let line = line.strip_suffix('\r').unwrap_or(line);
                builder
                    .add_line(None, line)
                    .err()
                    .map(|error| error.to_string())
            }
        };
        if let Some(message) = message {
            bad.push(BadPattern {
                line: line_number,
                message,
            });
        }
    }
    match builder.build() {
        Ok(matcher) => (matcher, bad),
        Err(error) => {
            bad.push(BadPattern {
                line: 0,
                message: error.to_string(),
            });
            (Gitignore::empty(), bad)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(text: &str) -> Gitignore {
        let (matcher, bad) = compile(text.as_bytes());
        assert_eq!(bad, []);
        matcher
    }

    #[test]
    fn nearest_file_decides_and_mlignore_stands_first() {
        let root = FolderRules::new(
            None,
            0,
            matcher("keep.log\n!/data/.env\n"),
            matcher("*.log\n/build\n.env\n"),
        );
        assert_eq!(root.verdict("a.log", false), Verdict::Ignored);
        assert_eq!(root.verdict("data/x.log", false), Verdict::Ignored);
        assert_eq!(root.verdict("build", true), Verdict::Ignored);
        assert_eq!(root.verdict("src/build", true), Verdict::Included);
        assert_eq!(root.verdict("data/.env", false), Verdict::Demanded);

        let data = FolderRules::new(
            Some(root),
            5,
            Gitignore::empty(),
            matcher("!b.log\n!keep.log\n"),
        );
        assert_eq!(data.verdict("data/a.log", false), Verdict::Ignored);
        assert_eq!(data.verdict("data/b.log", false), Verdict::Included);
        assert_eq!(
            data.verdict("data/keep.log", false),
            Verdict::Ignored,
            "mlignore above wins"
        );
    }

    #[test]
    fn a_bad_line_is_named_and_the_others_stand() {
        let (matcher, bad) = compile(b"# comment\n\n*.log\n[z-a]\n\xff\n");
        assert_eq!(bad.iter().map(|bad| bad.line).collect::<Vec<_>>(), [4, 5]);
        assert!(matcher.matched("x.log", false).is_ignore());
    }
}
