//! What the project is made of: how many packages, from where, under which licence.

use cargo_metadata::Metadata;

use super::Finding;

const PACKAGES_MAX: usize = 400;

/// Licences that a dependency may have. MPL-2.0 asks only for changes to its own files.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// What the rules need to know of a package.
#[derive(Debug, Clone)]
pub(crate) struct Package {
    name: String,
    licence: Option<String>,
    origin: Origin,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    Workspace,
    Registry,
    Other(String),
}

pub(crate) fn packages(metadata: &Metadata) -> Vec<Package> {
    metadata
        .packages
        .iter()
        .map(|package| Package {
            name: format!("{} {}", package.name, package.version),
            licence: package.license.clone(),
            origin: match &package.source {
                None if metadata.workspace_members.contains(&package.id) => Origin::Workspace,
                None => Origin::Other(package.manifest_path.to_string()),
                Some(source) if source.is_crates_io() => Origin::Registry,
                Some(source) => Origin::Other(source.to_string()),
            },
        })
        .collect()
}

/// Finds packages from elsewhere and licences that are not on the list.
pub(crate) fn check(packages: &[Package]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in packages {
        if let Origin::Other(source) = &package.origin {
            findings.push(Finding::error(
                &package.name,
                format!(
                    "comes from `{source}`; allowed are cargo's own registry and this workspace"
                ),
            ));
        }
        match package.licence.as_deref() {
            None => findings.push(Finding::error(&package.name, "names no licence")),
            Some(licence) => match satisfied(licence) {
                Some(true) => {}
                Some(false) => {
                    findings.push(Finding::error(
                        &package.name,
                        format!("licence `{licence}`; allowed are {}", LICENCES.join(", ")),
                    ));
                }
                None => findings.push(Finding::error(
                    &package.name,
                    format!("licence `{licence}` is no licence expression"),
                )),
            },
        }
    }
    findings
}

/// Finds a lock file that has grown too long.
pub(crate) fn check_lock(lock: &str) -> Vec<Finding> {
    match lock.lines().filter(|line| *line == "[[package]]").count() {
        0 => vec![Finding::error("Cargo.lock", "lists no packages")],
        count if count >= PACKAGES_MAX => vec![Finding::error(
            "Cargo.lock",
            format!("{count} packages; fewer than {PACKAGES_MAX} are allowed"),
        )],
        _ => Vec::new(),
    }
}

/// Whether an SPDX expression can be met with the allowed licences; `None` when it
/// cannot be read. The old form `MIT/Apache-2.0` means `OR`.
fn satisfied(expression: &str) -> Option<bool> {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let (value, rest) = either(&words)?;
    rest.is_empty().then_some(value)
}

/// `both (OR both)*`
fn either<'a>(words: &'a [&'a str]) -> Option<(bool, &'a [&'a str])> {
    let (mut value, mut rest) = both(words)?;
    while let Some((&"OR", after)) = rest.split_first() {
        let (next, left) = both(after)?;
        value |= next;
        rest = left;
    }
    Some((value, rest))
}

/// `one (AND one)*`
fn both<'a>(words: &'a [&'a str]) -> Option<(bool, &'a [&'a str])> {
    let (mut value, mut rest) = one(words)?;
    while let Some((&"AND", after)) = rest.split_first() {
        let (next, left) = one(after)?;
        value &= next;
        rest = left;
    }
    Some((value, rest))
}

/// `( either )`, or a licence with or without an exception.
fn one<'a>(words: &'a [&'a str]) -> Option<(bool, &'a [&'a str])> {
    match words {
        ["(", inner @ ..] => match either(inner)? {
            (value, [")", rest @ ..]) => Some((value, rest)),
            _ => None,
        },
        [name, "WITH", exception, rest @ ..] => Some((
            LICENCES.contains(&format!("{name} WITH {exception}").as_str()),
            rest,
        )),
        ["OR" | "AND" | "WITH" | ")", ..] | [] => None,
        [name, rest @ ..] => Some((LICENCES.contains(name), rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licence_expressions_are_read() {
        for (expression, expected) in [
            ("MIT", Some(true)),
            ("MIT/Apache-2.0", Some(true)),
            ("GPL-3.0 OR MIT", Some(true)),
            ("GPL-3.0", Some(false)),
            ("MIT AND GPL-3.0", Some(false)),
            ("Apache-2.0 AND ISC", Some(true)),
            ("(GPL-3.0 OR MIT) AND BSD-3-Clause", Some(true)),
            ("Apache-2.0 WITH LLVM-exception", Some(true)),
            ("GPL-2.0 WITH Classpath-exception-2.0", Some(false)),
            ("MIT OR", None),
            ("(MIT", None),
            ("", None),
        ] {
            assert_eq!(satisfied(expression), expected, "{expression}");
        }
    }

    #[test]
    fn foreign_packages_and_licences_are_found() {
        let package = |licence: Option<&str>, origin| Package {
            name: "x 1.0.0".to_owned(),
            licence: licence.map(str::to_owned),
            origin,
        };
        assert!(
            check(&[
                package(Some("MIT"), Origin::Registry),
                package(Some("MPL-2.0"), Origin::Workspace)
            ])
            .is_empty()
        );
        assert_eq!(check(&[package(None, Origin::Registry)]).len(), 1);
        assert_eq!(
            check(&[package(Some("AGPL-3.0"), Origin::Registry)]).len(),
            1
        );
        assert_eq!(
            check(&[package(Some("MIT"), Origin::Other("git".to_owned()))]).len(),
            1
        );
    }

    #[test]
    fn a_long_lock_file_is_found() {
        assert!(check_lock(&"[[package]]\n".repeat(PACKAGES_MAX - 1)).is_empty());
        assert_eq!(check_lock(&"[[package]]\n".repeat(PACKAGES_MAX)).len(), 1);
        assert_eq!(check_lock("").len(), 1);
    }
}
