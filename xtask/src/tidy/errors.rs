//! Every error code stands in `docs/errors.md`.
//!
//! A code is a snake-case word. It is written as `code: "word"`, as the first word that
//! a constructor of [`CONSTRUCTORS`] is given, in an arm of a function named `code`, as
//! a constant of a module named `code`, or as a constant or an arm in one of the files
//! of [`DECLARATIONS`].

use std::collections::BTreeMap;

use super::Finding;
use super::sources::{RustFile, Sources, line_of, positions};

/// Calls whose first literal is a code.
const CONSTRUCTORS: &[&str] = &[
    "Refusal::new(",
    "deny(",
    "ErrorBody::new(",
    "ApiError::new(",
    "Failure::failed(",
    "Self::failed(",
];
const DECLARATIONS: &[&str] = &[
    "mlmesh-api/src/error_code.rs",
    "mlmesh-model/src/refusal.rs",
];
const DOCUMENT: &str = "docs/errors.md";

pub(crate) fn check(sources: &Sources) -> Vec<Finding> {
    let documented = documented(sources.text(DOCUMENT).unwrap_or_default());
    codes(sources)
        .into_iter()
        .filter(|(code, _)| !documented.contains(code))
        .map(|(code, place)| {
            Finding::error(
                place,
                format!("error code `{code}` has no row in {DOCUMENT}"),
            )
        })
        .collect()
}

/// Every code with the first place that declares it.
fn codes(sources: &Sources) -> BTreeMap<String, String> {
    let mut codes = BTreeMap::new();
    for file in sources.product().filter(|file| file.package != "xtask") {
        for position in literals(&file) {
            let word = file.text[position..].split('"').next().unwrap_or_default();
            if is_code(word) {
                let place = format!("{}:{}", file.path, line_of(&file.text, position));
                codes.entry(word.to_owned()).or_insert(place);
            }
        }
    }
    codes
}

/// Where the literals begin that stand where a code is expected.
fn literals(file: &RustFile<'_>) -> Vec<usize> {
    let after =
        |mark: &'static str| positions(&file.text, mark).map(move |position| position + mark.len());
    let mut found: Vec<usize> = after("code: \"").collect();
    for constructor in CONSTRUCTORS {
        found.extend(after(constructor).filter_map(|start| first_literal(&file.text, start)));
    }
    if DECLARATIONS.contains(&file.path) {
        found.extend(after("=> \"").chain(after("str = \"")));
    }
    for (head, mark) in [("fn code(", "=> \""), ("mod code {", "str = \"")] {
        for start in after(head) {
            let body = start..start + body_length(&file.code[start..]);
            found.extend(after(mark).filter(|position| body.contains(position)));
        }
    }
    found
}

/// The first literal among a call's leading arguments, which are short names.
fn first_literal(text: &str, start: usize) -> Option<usize> {
    let quote = text[start..].find('"')?;
    let before = &text[start..start + quote];
    let plain =
        |letter: char| letter.is_alphanumeric() || letter.is_whitespace() || "_:,".contains(letter);
    before.chars().all(plain).then_some(start + quote + 1)
}

/// How far it is to the brace that closes the first one.
fn body_length(code: &str) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth <= 1 => return at,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

fn is_code(word: &str) -> bool {
    word.starts_with(|first: char| first.is_ascii_lowercase())
        && word
            .chars()
            .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_')
}

/// The words in backticks at the start of a heading or of a table's row.
fn documented(document: &str) -> Vec<String> {
    document
        .lines()
        .filter_map(|line| {
            line.strip_prefix("| `")
                .or_else(|| line.trim_start_matches('#').strip_prefix(" `"))
        })
        .filter_map(|rest| rest.split('`').next())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_undocumented_code_is_found() {
        let sources = Sources::sample(&[
            (
                "mlmesh-api/src/error_code.rs",
                "const A: &str = \"not_found\";\nfn b() { match x { X => \"too_large\" } }",
            ),
            (
                "meshd/src/main.rs",
                "Error { code: \"port_taken\" }\n#[cfg(test)]\nmod tests { code: \"only_in_tests\" }",
            ),
            (
                "docs/errors.md",
                "| code | meaning | hint |\n|---|---|---|\n| `not_found` | … | … |\n",
            ),
        ]);
        let found: Vec<String> = check(&sources)
            .into_iter()
            .map(|finding| finding.place)
            .collect();
        assert_eq!(
            found,
            ["meshd/src/main.rs:1", "mlmesh-api/src/error_code.rs:2"]
        );
    }

    #[test]
    fn codes_are_found_wherever_they_are_made() {
        let sources = Sources::sample(&[(
            "a/src/lib.rs",
            "fn a() { Refusal::new(\n    \"from_constructor\", format!(\"x\")); Refusal::new(code, f(\"no_code\")) }\n\
             fn b() { deny(Level::L3, \"from_deny\", x) }\n\
             fn code(&self) -> &str { match self { A { .. } => \"from_arm\" } }\n\
             fn other() { match self { A => \"no_code\" } }\n\
             mod code { pub const A: &str = \"from_module\"; }\nconst B: &str = \"no_code\";",
        )]);
        let found: Vec<String> = codes(&sources).into_keys().collect();
        assert_eq!(
            found,
            ["from_arm", "from_constructor", "from_deny", "from_module"]
        );
    }

    #[test]
    fn headings_document_too() {
        assert_eq!(documented("## `a_b`\n| `c` | x |\ntext `d`"), ["a_b", "c"]);
    }
}
