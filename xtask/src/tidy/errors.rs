//! Every error code stands in `docs/errors.md`.
//!
//! A code is a snake-case word. It is declared in one of the files of [`DECLARATIONS`]
//! as a constant or as the value of a match arm, or written as `code: "word"` where an
//! error is made.

use std::collections::BTreeMap;

use super::Finding;
use super::sources::{Sources, line_of, positions};

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
        let marks: &[&str] = if DECLARATIONS.contains(&file.path) {
            &["code: \"", "=> \"", ": &str = \"", "&'static str = \""]
        } else {
            &["code: \""]
        };
        for mark in marks {
            for position in positions(&file.text, mark) {
                let start = position + mark.len();
                let word = file.text[start..].split('"').next().unwrap_or_default();
                if is_code(word) {
                    codes.entry(word.to_owned()).or_insert_with(|| {
                        format!("{}:{}", file.path, line_of(&file.text, position))
                    });
                }
            }
        }
    }
    codes
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
    fn headings_document_too() {
        assert_eq!(documented("## `a_b`\n| `c` | x |\ntext `d`"), ["a_b", "c"]);
    }
}
