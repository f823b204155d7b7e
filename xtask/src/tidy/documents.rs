//! The documents that every tree has, and the dependencies that have a reason.

use super::Finding;
use super::sources::Sources;

const WANTED: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "docs/BENCHMARKS.md",
    "docs/DECISIONS.md",
    "docs/FEATURES.md",
    "docs/cli.md",
    "docs/errors.md",
];

/// Finds absent documents, and dependencies of the root manifest that
/// `docs/DECISIONS.md` does not give a row.
pub(crate) fn check(sources: &Sources) -> Vec<Finding> {
    let absent = WANTED
        .iter()
        .filter(|path| sources.text(path).is_none())
        .map(|path| Finding::error(*path, "is not there"));
    let decisions = sources.text("docs/DECISIONS.md").unwrap_or_default();
    let manifest = sources.text("Cargo.toml").unwrap_or_default();
    let unexplained = dependencies(manifest)
        .filter(|name| {
            !decisions
                .lines()
                .any(|line| line.starts_with('|') && line.contains(&format!("`{name}`")))
        })
        .map(|name| {
            Finding::error(
                "docs/DECISIONS.md",
                format!("dependency `{name}` has no row with its reason"),
            )
        });
    absent.chain(unexplained).collect()
}

/// The outside dependencies of the workspace, by line: each is one line there.
fn dependencies(manifest: &str) -> impl Iterator<Item = &str> {
    manifest
        .lines()
        .skip_while(|line| line.trim() != "[workspace.dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.contains("path = ") && !line.starts_with('#'))
        .filter_map(|line| line.split_once('=').map(|(name, _)| name.trim()))
        .filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unexplained_dependency_is_found() {
        let mut files: Vec<(&str, &str)> = WANTED.iter().map(|path| (*path, "")).collect();
        files.retain(|(path, _)| *path != "docs/DECISIONS.md");
        files.push(("docs/DECISIONS.md", "| `serde` | data | – |"));
        files.push(("Cargo.toml", "[workspace.dependencies]\nours = { path = \"ours\" }\nserde = \"1\"\nlibc = \"0.2\"\n\n[profile.dev]\nx = 1"));
        let found = check(&Sources::sample(&files));
        assert_eq!(found.len(), 1);
        assert!(found[0].text.contains("`libc`"));
    }

    #[test]
    fn an_absent_document_is_found() {
        assert_eq!(check(&Sources::default()).len(), WANTED.len());
    }
}
