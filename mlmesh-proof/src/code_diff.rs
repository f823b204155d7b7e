//! What differs between two trees of files: which files, and the lines of text files in
//! the unified form.
//!
//! The content comes from the caller, file by file, within bounds: a tree may hold
//! anything. What is not text, too large or too different is said so and not shown.

use std::collections::BTreeMap;

use imara_diff::{Algorithm, Diff, InternedInput};
use mlmesh_model::ListedFile;
use serde::Serialize;

/// A file that is not the same in both trees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileDifference {
    /// Its path.
    pub path: String,
    /// What became of it.
    pub change: FileChange,
    /// Changed lines with three around them; absent where `note` says why.
    pub diff: Option<String>,
    /// What is not shown, and why.
    pub note: Option<String>,
}

/// What became of a file on the way from the first tree to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileChange {
    /// Only the second tree has it.
    Added,
    /// Only the first tree has it.
    Removed,
    /// Both have it, with other bytes or another mode.
    Changed,
}

/// Files whose content is asked for; more are named only.
pub const DIFF_FILES_MAX: usize = 200;
/// Largest file whose content is asked for.
pub const DIFF_BYTES_MAX: u64 = 1 << 20;
/// Lines that are shown of one file.
const LINES_SHOWN_MAX: usize = 2_000;
/// Equal lines around a change.
const CONTEXT: usize = 3;

/// The files that differ, by path, and which of two each is. `read` gives the bytes of a
/// file's object.
pub fn compare_trees<E>(
    a: &[ListedFile],
    b: &[ListedFile],
    mut read: impl FnMut(&ListedFile) -> Result<Vec<u8>, E>,
) -> Result<Vec<FileDifference>, E> {
    let mut found = Vec::new();
    for (path, pair) in pairs(a, b) {
        let change = match pair {
            (Some(a), Some(b)) if a.sha256 == b.sha256 && a.mode == b.mode => continue,
            (Some(_), Some(_)) => FileChange::Changed,
            (None, _) => FileChange::Added,
            (_, None) => FileChange::Removed,
        };
        let (mut diff, mut note) = (None, mode_note(pair));
        let sides = [pair.0, pair.1];
        let is_same = matches!(pair, (Some(a), Some(b)) if a.sha256 == b.sha256);
        let largest = sides.iter().flatten().map(|file| file.size).max();
        if is_same {
        } else if found.len() >= DIFF_FILES_MAX {
            note = Some(format!("only the first {DIFF_FILES_MAX} files are shown"));
        } else if largest.unwrap_or(0) > DIFF_BYTES_MAX {
            note = Some(format!("not shown: larger than {DIFF_BYTES_MAX} bytes"));
        } else {
            let mut text = |file: Option<&ListedFile>| match file {
                Some(file) => read(file).map(|bytes| String::from_utf8(bytes).ok()),
                None => Ok(Some(String::new())),
            };
            match (text(pair.0)?, text(pair.1)?) {
                (Some(old), Some(new)) if !old.contains('\0') && !new.contains('\0') => {
                    diff = Some(unified(&old, &new));
                }
                _ => note = Some("binary files differ".to_owned()),
            }
        }
        found.push(FileDifference {
            path: path.to_owned(),
            change,
            diff,
            note,
        });
    }
    Ok(found)
}

type Pair<'a> = (Option<&'a ListedFile>, Option<&'a ListedFile>);

fn pairs<'a>(a: &'a [ListedFile], b: &'a [ListedFile]) -> BTreeMap<&'a str, Pair<'a>> {
    let mut pairs: BTreeMap<&str, Pair<'_>> = BTreeMap::new();
    for file in a {
        pairs.entry(&file.path).or_default().0 = Some(file);
    }
    for file in b {
        pairs.entry(&file.path).or_default().1 = Some(file);
    }
    pairs
}

fn mode_note(pair: Pair<'_>) -> Option<String> {
    match pair {
        (Some(a), Some(b)) if a.mode != b.mode => Some(format!("mode {} → {}", a.mode, b.mode)),
        _ => None,
    }
}

/// Two texts as hunks of the unified form: lines with ` `, `-` or `+` before them.
pub fn unified(old: &str, new: &str) -> String {
    let (old_lines, new_lines) = (lines(old), lines(new));
    hunks(&edits(old, new, old_lines.len()), &old_lines, &new_lines)
}

/// Lines with their ends, so that a missing last one is a difference.
fn lines(text: &str) -> Vec<&str> {
    text.split_inclusive('\n').collect()
}

/// A step from the old text to the new one; lines by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edit {
    Keep(usize),
    Remove(usize),
    Add(usize),
}

/// What leads from one text, of so many lines, to the other: the same in both
/// directions, whichever is asked for.
fn edits(old: &str, new: &str, old_lines: usize) -> Vec<Edit> {
    let is_mirrored = old > new;
    let (first, second) = if is_mirrored { (new, old) } else { (old, new) };
    let input = InternedInput::new(first, second);
    let mut diff = Diff::compute(Algorithm::Histogram, &input);
    diff.postprocess_lines(&input);
    let mut found = Vec::new();
    let mut kept_to = 0;
    for hunk in diff.hunks() {
        let hunk = if is_mirrored { hunk.invert() } else { hunk };
        let number = |line: u32| line as usize;
        let (removed, added) = (hunk.before, hunk.after);
        found.extend((kept_to..number(removed.start)).map(Edit::Keep));
        kept_to = number(removed.end);
        found.extend(removed.map(number).map(Edit::Remove));
        found.extend(added.map(number).map(Edit::Add));
    }
    found.extend((kept_to..old_lines).map(Edit::Keep));
    found
}

fn hunks(edits: &[Edit], old: &[&str], new: &[&str]) -> String {
    let is_change = |edit: &Edit| !matches!(edit, Edit::Keep(_));
    let mut text = String::new();
    let mut shown = 0;
    let mut at = 0;
    while let Some(first) = edits[at..].iter().position(is_change) {
        let begin = (at + first).saturating_sub(CONTEXT).max(at);
        let mut end = at + first + 1;
        // Changes that are near each other share a hunk.
        while let Some(next) = edits[end..].iter().position(is_change) {
            if next > 2 * CONTEXT {
                break;
            }
            end += next + 1;
        }
        let end = (end + CONTEXT).min(edits.len());
        if shown + (end - begin) > LINES_SHOWN_MAX {
            text.push_str("(more is not shown)\n");
            return text;
        }
        shown += end - begin;
        hunk(&mut text, &edits[..begin], &edits[begin..end], old, new);
        at = end;
    }
    text
}

fn hunk(text: &mut String, before: &[Edit], edits: &[Edit], old: &[&str], new: &[&str]) {
    let count =
        |edits: &[Edit], is: fn(&Edit) -> bool| edits.iter().filter(|edit| is(edit)).count();
    let in_old: fn(&Edit) -> bool = |edit| !matches!(edit, Edit::Add(_));
    let in_new: fn(&Edit) -> bool = |edit| !matches!(edit, Edit::Remove(_));
    let range = |is: fn(&Edit) -> bool| {
        let lines = count(edits, is);
        // A range without lines names the line before it.
        let first = count(before, is) + usize::from(lines > 0);
        format!("{first},{lines}")
    };
    text.push_str(&format!("@@ -{} +{} @@\n", range(in_old), range(in_new)));
    for edit in edits {
        let (sign, line) = match edit {
            Edit::Keep(line) => (' ', old[*line]),
            Edit::Remove(line) => ('-', old[*line]),
            Edit::Add(line) => ('+', new[*line]),
        };
        text.push(sign);
        text.push_str(line);
        if !line.ends_with('\n') {
            text.push_str("\n\\ No newline at end of file\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlmesh_model::Digest;
    use proptest::prelude::*;

    #[test]
    fn a_change_stands_with_the_lines_around_it() {
        let old: String = (1..=20).map(|line| format!("{line}\n")).collect();
        let new = old.replace("10\n", "ten\nand\n").replace("20\n", "20");
        assert_eq!(
            unified(&old, &new),
            "@@ -7,7 +7,8 @@\n 7\n 8\n 9\n-10\n+ten\n+and\n 11\n 12\n 13\n\
             @@ -17,4 +18,4 @@\n 17\n 18\n 19\n-20\n+20\n\\ No newline at end of file\n"
        );
        assert_eq!(unified(&old, &old), "");
        assert_eq!(unified("", "a\n"), "@@ -0,0 +1,1 @@\n+a\n");
    }

    #[test]
    fn texts_that_have_nothing_in_common_are_cut() {
        let text = |name: &str| -> String {
            (0..LINES_SHOWN_MAX)
                .map(|line| format!("{name} {line}\n"))
                .collect()
        };
        let diff = unified(&text("a"), &text("b"));
        assert!(diff.ends_with("(more is not shown)\n"), "{}", diff.len());
    }

    /// The new text, by the diff alone where it speaks.
    fn applied(old: &str, diff: &str) -> String {
        let old = lines(old);
        let (mut at, mut text) = (0, String::new());
        let mut rest = diff.split_inclusive('\n').peekable();
        while let Some(line) = rest.next() {
            if let Some(range) = line.strip_prefix("@@ -") {
                let (from, count) = range.split(' ').next().unwrap().split_once(',').unwrap();
                let (from, count): (usize, usize) = (from.parse().unwrap(), count.parse().unwrap());
                let begin = if count == 0 { from } else { from - 1 };
                old[at..begin].iter().for_each(|line| text.push_str(line));
                at = begin + count;
                continue;
            }
            let ends = rest.next_if(|next| next.starts_with('\\')).is_some();
            if !line.starts_with('-') {
                text.push_str(
                    line[1..]
                        .strip_suffix('\n')
                        .filter(|_| ends)
                        .unwrap_or(&line[1..]),
                );
            }
        }
        old[at..].iter().for_each(|line| text.push_str(line));
        text
    }

    fn mirrored(diff: &str) -> Vec<String> {
        let mut lines: Vec<String> = diff
            .lines()
            .filter(|line| !line.starts_with("@@"))
            .map(|line| match line.as_bytes().first() {
                Some(b'-') => format!("+{}", &line[1..]),
                Some(b'+') => format!("-{}", &line[1..]),
                _ => line.to_owned(),
            })
            .collect();
        lines.sort();
        lines
    }

    proptest! {
        #[test]
        fn a_diff_leads_from_one_text_to_the_other_and_back(
            old in "([abc]\n){0,12}[ab]?", new in "([abc]\n){0,12}[ab]?",
        ) {
            let diff = unified(&old, &new);
            prop_assert_eq!(applied(&old, &diff), new.clone(), "{}", diff);
            let mut there: Vec<String> = diff
                .lines()
                .filter(|line| !line.starts_with("@@"))
                .map(str::to_owned)
                .collect();
            there.sort();
            prop_assert_eq!(mirrored(&unified(&new, &old)), there);
        }
    }

    fn file(path: &str, mode: &str, content: &str) -> ListedFile {
        ListedFile {
            path: path.into(),
            mode: mode.into(),
            size: content.len() as u64,
            sha256: Digest::of(content.as_bytes()),
        }
    }

    #[test]
    fn files_are_named_by_what_became_of_them() {
        let contents = ["one\n", "two\n", "\0", "\u{1}\0", ""];
        let read = |file: &ListedFile| -> Result<Vec<u8>, ()> {
            let found = contents
                .iter()
                .find(|text| Digest::of(text.as_bytes()) == file.sha256);
            Ok(found.ok_or(())?.as_bytes().to_vec())
        };
        let mut large = file("large", "644", "x");
        large.size = DIFF_BYTES_MAX + 1;
        let a = [
            file("bin", "644", "\0"),
            file("gone", "644", "one\n"),
            file("mode", "644", "one\n"),
            file("same", "644", "two\n"),
            file("text", "644", "one\n"),
        ];
        let b = [
            file("bin", "644", "\u{1}\0"),
            large,
            file("mode", "755", "one\n"),
            file("new", "644", ""),
            file("same", "644", "two\n"),
            file("text", "644", "two\n"),
        ];
        let found = compare_trees(&a, &b, read).unwrap();
        let told: Vec<String> = found
            .iter()
            .map(|it| format!("{} {:?} {:?} {:?}", it.path, it.change, it.diff, it.note))
            .collect();
        assert_eq!(
            told,
            [
                r#"bin Changed None Some("binary files differ")"#,
                r#"gone Removed Some("@@ -1,1 +0,0 @@\n-one\n") None"#,
                r#"large Added None Some("not shown: larger than 1048576 bytes")"#,
                r#"mode Changed None Some("mode 644 → 755")"#,
                r#"new Added Some("") None"#,
                r#"text Changed Some("@@ -1,1 +1,1 @@\n-one\n+two\n") None"#,
            ]
        );
        assert_eq!(compare_trees(&a, &a, read).unwrap(), []);
    }
}
