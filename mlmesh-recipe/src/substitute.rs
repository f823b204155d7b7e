//! `${param}` and `${seed}` in the elements of a command. There is no shell, so
//! every other `$` is a character like any other.

use mlmesh_model::{Experiment, Refusal, Seed};

use crate::error::{code, shown};
use crate::expand::Point;
use crate::rules::is_identifier;
use crate::table::did_you_mean;

/// Bytes of one argument after substitution: what Linux passes to a program.
pub const ARGUMENT_BYTES_MAX: usize = 128 * 1024 - 1;

/// The command of one point. Values are put in as text; nothing in them is read
/// again, so a value may hold `$`, quotes or spaces.
///
/// # Errors
/// A reference to a name that the point does not have, an argument that no
/// program can be given.
pub fn substitute(experiment: &Experiment, point: &Point) -> Result<Vec<String>, Refusal> {
    let mut argv = Vec::with_capacity(experiment.command.len());
    for element in &experiment.command {
        let mut argument = String::with_capacity(element.len());
        for piece in pieces(element) {
            match piece {
                Piece::Literal(text) => argument.push_str(text),
                Piece::Reference(name) => argument.push_str(&value(point, name)?),
            }
            if argument.len() > ARGUMENT_BYTES_MAX || argument.contains('\0') {
                return Err(Refusal::new(
                    code::ARGUMENT,
                    format!(
                        "the argument `{}` has more than {ARGUMENT_BYTES_MAX} bytes or holds a zero byte after substitution",
                        shown(element)
                    ),
                    "put long values into a file of the project and name the file",
                ));
            }
        }
        argv.push(argument);
    }
    Ok(argv)
}

fn value(point: &Point, name: &str) -> Result<String, Refusal> {
    if name == "seed" {
        return match point.seed {
            Seed::Value(seed) => Ok(seed.to_string()),
            Seed::None | Seed::Absent => Err(Refusal::new(
                code::REFERENCE,
                "`${seed}` is used and the recipe gives no seed",
                "add `seed: 7` to the recipe",
            )),
        };
    }
    point
        .params
        .get(name)
        .map(ToString::to_string)
        .ok_or_else(|| {
            let known = point.params.keys().map(String::as_str).chain(["seed"]);
            Refusal::new(
                code::REFERENCE,
                format!(
                    "`${{{}}}` names no parameter{}",
                    shown(name),
                    did_you_mean(name, known)
                ),
                "add it to `params:`",
            )
        })
}

/// Puts in what only the machine knows at a start. A name that is not among `values`
/// stays as it stands.
pub fn fill(text: &str, values: &std::collections::BTreeMap<String, String>) -> String {
    let mut filled = String::with_capacity(text.len());
    for piece in pieces(text) {
        match piece {
            Piece::Literal(text) => filled.push_str(text),
            Piece::Reference(name) => match values.get(name) {
                Some(value) => filled.push_str(value),
                None => filled.extend(["${", name, "}"]),
            },
        }
    }
    filled
}

/// A part of a command's element.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    Literal(&'a str),
    /// The name between `${` and `}`.
    Reference(&'a str),
}

/// Cuts an element at its references. `${` that is not followed by an identifier
/// and `}` is literal.
pub(crate) fn pieces(element: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = element;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        if let Some((name, tail)) = reference(rest) {
            rest = tail;
            return Some(Piece::Reference(name));
        }
        // A `$` at the start is literal here, so the search begins behind it.
        let skip = usize::from(rest.starts_with('$'));
        let end = rest[skip..]
            .find('$')
            .map_or(rest.len(), |found| found + skip);
        let (literal, tail) = rest.split_at(end);
        rest = tail;
        Some(Piece::Literal(literal))
    })
}

fn reference(text: &str) -> Option<(&str, &str)> {
    let inner = text.strip_prefix("${")?;
    // Identifiers are short: the search for `}` stops soon after their end.
    let end = inner
        .bytes()
        .take(crate::rules::IDENTIFIER_BYTES_MAX + 1)
        .position(|byte| byte == b'}')?;
    let name = &inner[..end];
    is_identifier(name).then(|| (name, &inner[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(element: &str) -> String {
        pieces(element)
            .map(|piece| match piece {
                Piece::Literal(text) => text.to_owned(),
                Piece::Reference(name) => format!("<{name}>"),
            })
            .collect()
    }

    #[test]
    fn only_a_braced_identifier_is_a_reference() {
        for (element, expected) in [
            ("${lr}", "<lr>"),
            ("--lr=${lr}!", "--lr=<lr>!"),
            ("$${lr}", "$<lr>"),
            ("${a}${b}", "<a><b>"),
            ("$HOME", "$HOME"),
            ("$$", "$$"),
            ("${", "${"),
            ("${}", "${}"),
            ("${a b}", "${a b}"),
            ("${lr:-1}", "${lr:-1}"),
            ("${1a}", "${1a}"),
            ("$(rm -rf /)", "$(rm -rf /)"),
            ("${${lr}}", "${<lr>}"),
            ("é${lr}é$", "é<lr>é$"),
            ("${é}", "${é}"),
        ] {
            assert_eq!(joined(element), expected, "{element}");
        }
    }
}
