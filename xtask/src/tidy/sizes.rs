//! How long a Rust file may be: it aims at 600 lines, and above 1000 it is two things.

use super::Finding;
use super::sources::Sources;

const LINES_AIM: usize = 600;
const LINES_MAX: usize = 1000;

pub(crate) fn check(sources: &Sources) -> Vec<Finding> {
    sources
        .all()
        .filter(|(path, _)| path.ends_with(".rs"))
        .filter_map(|(path, text)| match text.lines().count() {
            lines if lines > LINES_MAX => {
                Some(Finding::error(path, format!("{lines} lines; at most {LINES_MAX} are allowed\nhint: this file is two things, give each its own")))
            }
            lines if lines > LINES_AIM => Some(Finding::warning(path, format!("{lines} lines; files aim at {LINES_AIM}"))),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    #[test]
    fn long_files_are_found() {
        let sources = Sources::sample(&[
            ("a/src/good.rs", &"\n".repeat(LINES_AIM)),
            ("a/src/long.rs", &"\n".repeat(LINES_AIM + 1)),
            ("a/src/too_long.rs", &"\n".repeat(LINES_MAX + 1)),
            ("a/data.json", &"\n".repeat(LINES_MAX + 1)),
        ]);
        let found: Vec<(String, Severity)> = check(&sources)
            .into_iter()
            .map(|finding| (finding.place, finding.severity))
            .collect();
        assert_eq!(
            found,
            [
                ("a/src/long.rs".to_owned(), Severity::Warning),
                ("a/src/too_long.rs".to_owned(), Severity::Error)
            ]
        );
    }
}
