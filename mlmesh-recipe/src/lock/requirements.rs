//! `requirements.txt` with `--hash=`: lines as pip joins and strips them.

use super::{Pin, is_hash, is_project_name, is_version};
use crate::error::shown;

/// Options that a lock may carry: they change nothing about what is pinned.
const HARMLESS_OPTIONS: &[&str] = &["--require-hashes"];

/// Every requirement, and every line that is something else.
pub(super) fn read(text: &str) -> Vec<Pin> {
    let mut pins: Vec<Pin> = logical_lines(text)
        .into_iter()
        .filter_map(|line| pin(&line))
        .collect();
    let odd = text
        .split("\r\n")
        .flat_map(str::chars)
        .find(|character| is_odd_break(*character));
    pins.extend(odd.map(odd_break));
    pins
}

/// Characters at which Python ends a line and other readers do not: behind one, a
/// comment here is a requirement there.
fn is_odd_break(character: char) -> bool {
    matches!(
        character,
        '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
    )
}

fn odd_break(character: char) -> Pin {
    let shown = character.escape_default();
    Pin {
        requirement: String::new(),
        name: "the file".to_owned(),
        hashes: Vec::new(),
        loose: Some(format!(
            "it holds `{shown}`, at which some readers end a line"
        )),
    }
}

/// A requirement with what its continuation lines add, and its first line.
struct Line {
    number: usize,
    text: String,
}

/// Joins continued lines and drops comments. As in pip, a comment line ends the
/// requirement that it interrupts.
fn logical_lines(text: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut open: Option<Line> = None;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (index, physical) in text.split('\n').enumerate() {
        let physical = physical.strip_suffix('\r').unwrap_or(physical);
        let line = open.get_or_insert_with(|| Line {
            number: index + 1,
            text: String::new(),
        });
        let comment = physical.trim_start().starts_with('#');
        match physical.strip_suffix('\\') {
            Some(continued) if !comment => line.text.push_str(continued),
            _ => {
                if !comment {
                    line.text.push_str(physical);
                }
                lines.extend(open.take());
            }
        }
    }
    lines.extend(open);
    for line in &mut lines {
        line.text = without_comment(&line.text).trim().to_owned();
    }
    lines.retain(|line| !line.text.is_empty());
    lines
}

/// Cuts at a `#` that follows white space; one inside a word belongs to an address.
fn without_comment(line: &str) -> &str {
    let mut after_space = true;
    for (index, character) in line.char_indices() {
        if character == '#' && after_space {
            return &line[..index];
        }
        after_space = character.is_whitespace();
    }
    line
}

fn pin(line: &Line) -> Option<Pin> {
    if line.text.starts_with('-') {
        return option(line);
    }
    let (requirement, options) = match line.text.find(" --") {
        Some(start) => line.text.split_at(start),
        None => (line.text.as_str(), ""),
    };
    let requirement = requirement.trim();
    let (hashes, foreign) = hashes(options);
    let (name, mut loose) = pinned(requirement);
    if line.text.contains("${") {
        loose = Some(format!("line {}: an environment variable", line.number));
    }
    if let Some(foreign) = foreign {
        loose = Some(format!(
            "line {}: `{}` is no hash",
            line.number,
            shown(&foreign)
        ));
    }
    Some(Pin {
        requirement: requirement.to_owned(),
        name,
        hashes,
        loose,
    })
}

/// A line that is an option: one that brings in more than the lock's bytes say
/// is a requirement without a hash.
fn option(line: &Line) -> Option<Pin> {
    let word = line
        .text
        .split([' ', '=', '\t'])
        .next()
        .unwrap_or(&line.text);
    if HARMLESS_OPTIONS.contains(&word) {
        return None;
    }
    let reason = match word {
        "-e" | "--editable" => "a folder, whose content has no hash",
        "-r" | "--requirement" | "-c" | "--constraint" => {
            "another file, which the digest of this one does not cover"
        }
        "-i" | "--index-url" | "--extra-index-url" | "-f" | "--find-links" | "--no-index"
        | "--trusted-host" => "where packages come from is the machine's setting, not the lock's",
        _ => "an option, which a lock does not carry",
    };
    Some(Pin {
        requirement: line.text.clone(),
        name: word.to_owned(),
        hashes: Vec::new(),
        loose: Some(format!("line {}: {reason}", line.number)),
    })
}

/// The hashes among the options of a requirement, and the first thing that is none.
fn hashes(options: &str) -> (Vec<String>, Option<String>) {
    let mut hashes = Vec::new();
    let mut words = options.split_whitespace();
    while let Some(word) = words.next() {
        let hash = match word.strip_prefix("--hash") {
            Some("") => words.next().unwrap_or(""),
            Some(rest) => rest.strip_prefix('=').unwrap_or(rest),
            None => return (hashes, Some(word.to_owned())),
        };
        if !is_hash(hash) {
            return (hashes, Some(word.to_owned()));
        }
        hashes.push(hash.to_ascii_lowercase());
    }
    (hashes, None)
}

/// The name of a requirement, and why it names no single version.
fn pinned(requirement: &str) -> (String, Option<String>) {
    let (specifier, _marker) = requirement.split_once(';').unwrap_or((requirement, ""));
    let end = specifier
        .find(|character: char| {
            !(character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.'))
        })
        .unwrap_or(specifier.len());
    let (name, rest) = specifier.split_at(end);
    let rest = rest.trim();
    if !is_project_name(name) || rest.starts_with(['/', '\\', ':']) {
        let shown = requirement.to_owned();
        return (
            shown,
            Some("a path or an address, not a name with a version".to_owned()),
        );
    }
    let version = match rest.strip_prefix('[') {
        Some(extras) => match extras.split_once(']') {
            Some((_, version)) => version.trim(),
            None => rest,
        },
        None => rest,
    };
    if version.starts_with('@') {
        return (
            name.to_owned(),
            Some("an address; a lock names versions".to_owned()),
        );
    }
    let version = version
        .strip_prefix('(')
        .and_then(|version| version.strip_suffix(')'))
        .unwrap_or(version);
    let exact = version
        .strip_prefix("===")
        .or_else(|| version.strip_prefix("=="))
        .is_some_and(|version| is_version(version.trim()));
    let loose = (!exact).then(|| "not one version; write `==`".to_owned());
    (name.to_owned(), loose)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_joined_and_comments_dropped_as_pip_does() {
        let text = "# head\na==1 \\\n  --hash=x \\\n  # via b\nb==2  # why\nc @ https://x#egg\n\n  \\\nd==1";
        let lines: Vec<(usize, String)> = logical_lines(text)
            .into_iter()
            .map(|line| (line.number, line.text))
            .collect();
        let expected = [
            (2, "a==1   --hash=x"),
            (5, "b==2"),
            (6, "c @ https://x#egg"),
            (8, "d==1"),
        ];
        assert_eq!(
            lines,
            expected.map(|(number, text)| (number, text.to_owned()))
        );
    }
}
