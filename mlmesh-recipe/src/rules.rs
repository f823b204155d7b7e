//! The rules that single values obey: names, relative paths, globs.
//!
//! Each takes text as typed and gives the fault; the place is the caller's.

use crate::error::{Fault, shown};

/// Bytes of a path, a glob or a mount.
pub(crate) const PATH_BYTES_MAX: usize = 1024;
/// Bytes of a parameter's or variable's name.
pub(crate) const IDENTIFIER_BYTES_MAX: usize = 64;

/// `[A-Za-z_][A-Za-z0-9_]*`, the form of what `${…}` and an environment can name.
pub(crate) fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= IDENTIFIER_BYTES_MAX
        && bytes
            .next()
            .is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// The name of a parameter or of a sweep's axis.
pub(crate) fn param_name(text: &str) -> Result<(), Fault> {
    if is_identifier(text) {
        return Ok(());
    }
    let hint = match suggestion(text) {
        Some(name) => format!("write `{name}`"),
        None => "write a name like `learning_rate`".to_owned(),
    };
    Err(Fault::new(
        format!(
            "`{}` is not a parameter's name; a name is up to {IDENTIFIER_BYTES_MAX} of `A-Za-z0-9_` and does not start with a digit",
            shown(text)
        ),
        hint,
    ))
}

/// The name of an environment variable or of a secret.
pub(crate) fn variable_name(text: &str) -> Result<(), Fault> {
    if !is_identifier(text) {
        let hint = match suggestion(text) {
            Some(name) => format!("write `{name}`"),
            None => "write a name like `OMP_NUM_THREADS`".to_owned(),
        };
        return Err(Fault::new(
            format!(
                "`{}` is not a variable's name; a name is up to {IDENTIFIER_BYTES_MAX} of `A-Za-z0-9_` and does not start with a digit",
                shown(text)
            ),
            hint,
        ));
    }
    if text.starts_with("MLMESH_") {
        return Err(Fault::new(
            format!(
                "`{}` is reserved; names that start with `MLMESH_` are set by mlmesh",
                shown(text)
            ),
            "choose another name; the job finds its seed in `MLMESH_SEED` and its folder in `MLMESH_OUTPUT_DIR`",
        ));
    }
    Ok(())
}

fn suggestion(text: &str) -> Option<String> {
    let name: String = text
        .chars()
        .map(|character| {
            if matches!(character, '-' | '.' | ' ') {
                '_'
            } else {
                character
            }
        })
        .collect();
    is_identifier(&name).then_some(name)
}

/// A path below the working directory.
pub(crate) fn relative_path(text: &str) -> Result<(), Fault> {
    let fault = |rule: &str, hint: &str| Err(Fault::new(format!("`{}` {rule}", shown(text)), hint));
    if text.is_empty() || text.len() > PATH_BYTES_MAX {
        return fault(
            &format!("has {} bytes; a path has 1 to {PATH_BYTES_MAX}", text.len()),
            "write a path relative to the project, like `data/digits`",
        );
    }
    if text.chars().any(char::is_control) {
        return fault("holds a control character; a path has none", "remove it");
    }
    if text.starts_with('/') {
        return fault(
            "is absolute; a path is relative to the project",
            "write it without the leading `/`; data outside of the project is registered with `ml data add`",
        );
    }
    if text.starts_with('~') {
        return fault(
            "starts with `~`, which is not expanded; a path is relative to the project",
            "write a path like `data/digits`",
        );
    }
    for part in text.split('/') {
        match part {
            ".." => {
                return fault(
                    "leaves the project; `..` is not allowed in a path",
                    "write a path below the project",
                );
            }
            "." | "" => {
                return fault(
                    "has an empty part or a part `.`; each part of a path is a name",
                    "write it like `data/digits`",
                );
            }
            _ => {}
        }
    }
    Ok(())
}

/// A glob below the working directory: a relative path with `*`, `?`, `[…]`, `{…}`.
pub(crate) fn glob(text: &str) -> Result<(), Fault> {
    if let Some(folder) = text.strip_suffix('/') {
        return Err(Fault::new(
            format!(
                "`{}` ends with `/`; an output is a glob of files",
                shown(text)
            ),
            format!("write `{}/**`", shown(folder)),
        ));
    }
    relative_path(text)?;
    let mut class = false;
    let mut braces = 0_usize;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => {
                characters.next().ok_or_else(|| unbalanced(text, "\\"))?;
            }
            ']' if class => class = false,
            _ if class => {}
            '[' => class = true,
            '{' => braces += 1,
            '}' if braces == 0 => return Err(unbalanced(text, "}")),
            '}' => braces -= 1,
            _ => {}
        }
    }
    if class || braces > 0 {
        return Err(unbalanced(text, if class { "[" } else { "{" }));
    }
    Ok(())
}

fn unbalanced(text: &str, character: &str) -> Fault {
    Fault::new(
        format!(
            "`{}` is not a glob; its `{character}` stands alone",
            shown(text)
        ),
        format!("close it, or write `\\{character}` for the character itself"),
    )
}

/// Whether one of two relative paths is, or lies in, the other.
pub(crate) fn overlap(one: &str, two: &str) -> bool {
    one.split('/')
        .zip(two.split('/'))
        .all(|(one, two)| one == two)
}

/// An interpreter version such as `3.11` or `3.11.4`.
pub(crate) fn python_version(text: &str) -> Result<(), Fault> {
    let parts: Vec<&str> = text.split('.').collect();
    let numbers = parts
        .iter()
        .all(|part| crate::units::whole(part, 999).is_some());
    if numbers && matches!(parts.as_slice(), ["3", _] | ["3", _, _]) {
        return Ok(());
    }
    Err(Fault::new(
        format!(
            "`{}` is not a Python version; it is `3.minor` or `3.minor.patch`",
            shown(text)
        ),
        "write it like `\"3.11\"`; `python3 --version` shows what is there",
    ))
}

/// A dataset's version.
pub(crate) fn dataset_version(text: &str) -> Result<(), Fault> {
    let good = (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'+'));
    if good {
        return Ok(());
    }
    Err(Fault::new(
        format!(
            "`{}` is not a version; a version is up to 64 of `A-Za-z0-9._+-`",
            shown(text)
        ),
        "write the version under which `ml data add` registered it",
    ))
}

/// A run that `after:` names: an id, a prefix of one, or `@last`.
pub(crate) fn run_reference(text: &str) -> Result<(), Fault> {
    let prefix = (1..=mlmesh_model::RunId::LEN).contains(&text.len())
        && text
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7'));
    if prefix || text == "@last" {
        return Ok(());
    }
    Err(Fault::new(
        format!(
            "`{}` does not name a run; a run is an id, the start of one, or `@last`",
            shown(text)
        ),
        "`ml list` shows the ids",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_project() {
        for good in ["a", "data/digits", "a.b/..c", "räume/x"] {
            assert_eq!(relative_path(good), Ok(()), "{good}");
        }
        for bad in [
            "", "/a", "~/a", "..", "a/..", "a//b", "./a", ".", "a/", "a\nb", "a\u{7f}",
        ] {
            assert!(relative_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn globs_are_balanced_relative_paths() {
        for good in [
            "model.npz",
            "plots/*.svg",
            "**/*.txt",
            "a[!]x]",
            "{a,b}/c",
            r"a\[b",
        ] {
            assert_eq!(glob(good), Ok(()), "{good}");
        }
        for bad in ["../x", "plots/", "a[", "a{b", "a}", r"a\"] {
            assert!(glob(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mounts_overlap_by_whole_parts() {
        assert!(overlap("data", "data/a"));
        assert!(overlap("data/a", "data/a"));
        assert!(!overlap("data/a", "data/ab"));
        assert!(!overlap("a/b", "a/c/b"));
    }

    #[test]
    fn versions_of_python_are_three_point_something() {
        for good in ["3.11", "3.10", "3.11.4"] {
            assert_eq!(python_version(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "3",
            "2.7",
            "python3.11",
            "3.x",
            "3.11.4.1",
            ">=3.11",
            "3.011",
        ] {
            assert!(python_version(bad).is_err(), "{bad}");
        }
    }
}
