//! Words that a finished product does not contain.

use super::Finding;
use super::sources::{Sources, line_of, positions};

/// Each word is written in two pieces, so that this list does not find itself.
const WORDS: &[(&str, &str)] = &[
    (concat!("to", "do!"), "a missing part is a clear refusal"),
    (
        concat!("unimple", "mented!"),
        "a missing part is a clear refusal",
    ),
    (concat!("FIX", "ME"), "finish it, or file an issue"),
    (concat!("../sha", "red"), "the project stands alone"),
    (concat!("/wo", "rk/"), "the project stands alone"),
    (
        concat!("index.crates", ".io"),
        "clients know their registries",
    ),
    (
        concat!("static.crates", ".io"),
        "clients know their registries",
    ),
    (concat!("pypi", ".org"), "clients know their registries"),
    (
        concat!("files.python", "hosted"),
        "clients know their registries",
    ),
    (
        concat!("deb.debian", ".org"),
        "clients know their registries",
    ),
    (
        concat!("registry.npm", "js"),
        "clients know their registries",
    ),
];

/// Cargo writes its registry into the lock file.
const FREE: &[&str] = &["Cargo.lock"];

/// Finds the words in every text file of the project.
pub(crate) fn check(sources: &Sources) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in sources.all().filter(|(path, _)| !FREE.contains(path)) {
        for (word, reason) in WORDS {
            for position in positions(text, word).filter(|position| starts_a_path(text, *position))
            {
                findings.push(Finding::error(
                    format!("{path}:{}", line_of(text, position)),
                    format!("`{word}`; {reason}"),
                ));
            }
        }
    }
    findings
}

/// A word with a slash in front is only meant where a path begins: `a/b/` may
/// contain it, a string or a sentence that starts with it may not.
fn starts_a_path(text: &str, position: usize) -> bool {
    let first = text.as_bytes()[position];
    let before = position.checked_sub(1).map(|index| text.as_bytes()[index]);
    first != b'/'
        || !before.is_some_and(|byte| byte.is_ascii_alphanumeric() || b"_-.}$)*".contains(&byte))
}

/// Finds `.unwrap()` outside tests.
pub(crate) fn check_unwrap(sources: &Sources) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in sources.product() {
        for position in positions(&file.code, ".unwrap()") {
            let place = format!("{}:{}", file.path, line_of(&file.code, position));
            findings.push(Finding::error(
                place,
                "`.unwrap()` outside tests\nhint: return an error, or `expect` an invariant",
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_is_found_in_each_kind_of_file() {
        for (word, _) in WORDS {
            let sources = Sources::sample(&[("docs/a.md", &format!("one\ntwo `{word}` three"))]);
            let found = check(&sources);
            assert_eq!(found.len(), 1, "{word}");
            assert_eq!(found[0].place, "docs/a.md:2");
        }
    }

    #[test]
    fn the_middle_of_a_path_is_no_finding() {
        let path = format!("DIR/attempt{}x", concat!("/wo", "rk/"));
        assert!(check(&Sources::sample(&[("docs/a.md", &path)])).is_empty());
    }

    #[test]
    fn unwrap_is_found_outside_tests_only() {
        let sources = Sources::sample(&[
            (
                "a/src/lib.rs",
                "fn a() { b.unwrap(); }\n// .unwrap()\n#[cfg(test)]\nmod tests { fn c() { d.unwrap(); } }",
            ),
            ("a/tests/it/main.rs", "fn a() { b.unwrap(); }"),
        ]);
        let places: Vec<String> = check_unwrap(&sources)
            .into_iter()
            .map(|finding| finding.place)
            .collect();
        assert_eq!(places, ["a/src/lib.rs:1"]);
    }
}
