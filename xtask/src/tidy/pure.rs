//! Pure crates touch no clock, file, network or runtime: their dependencies are an
//! allow list, and their code is searched for what the standard library offers.

use super::Finding;
use super::arrows::{Edge, EdgeKind};
use super::sources::{Sources, line_of, positions};

const PURE: &[&str] = &[
    "mlmesh-model",
    "mlmesh-recipe",
    "mlmesh-strategy",
    "mlmesh-sched",
    "mlmesh-route",
    "mlmesh-member",
];

/// What a pure crate may use from outside: data, parsing and hashing.
const ALLOWED: &[&str] = &[
    "serde",
    "serde_json",
    "serde-saphyr",
    "sha2",
    "strsim",
    "thiserror",
    "smallvec",
    "toml",
];

const BANNED: &[&str] = &[
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "std::env",
    "std::io::stdin",
    "std::io::stdout",
    "SystemTime",
    "Instant",
    "tokio::",
    "rand::",
    "getrandom",
];

/// Finds dependencies that are neither ours nor on the list. Those of tests are free.
pub(crate) fn check_dependencies(edges: &[Edge]) -> Vec<Finding> {
    edges
        .iter()
        .filter(|edge| PURE.contains(&edge.from.as_str()) && edge.kind != EdgeKind::Test)
        .filter(|edge| !edge.internal && !ALLOWED.contains(&edge.to.as_str()))
        .map(|edge| {
            Finding::error(
                format!("{}/Cargo.toml", edge.from),
                format!(
                    "pure crate depends on `{}`; allowed are {}",
                    edge.to,
                    ALLOWED.join(", ")
                ),
            )
        })
        .collect()
}

/// Finds uses of the outside world in the code of pure crates.
pub(crate) fn check_sources(sources: &Sources) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in sources
        .product()
        .filter(|file| PURE.contains(&file.package))
    {
        for word in BANNED {
            for position in positions(&file.code, word)
                .filter(|position| is_word(&file.code, *position, word.len()))
            {
                let place = format!("{}:{}", file.path, line_of(&file.code, position));
                findings.push(Finding::error(
                    place,
                    format!("`{word}` in a pure crate; time, ids and input come in as arguments"),
                ));
            }
        }
    }
    findings
}

/// `Instant` is a finding, `InstantReply` is not.
fn is_word(code: &str, position: usize, length: usize) -> bool {
    let word =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    let bytes = code.as_bytes();
    let before = position.checked_sub(1).and_then(|index| bytes.get(index));
    let opens = bytes[position..position + length].ends_with(b":");
    !word(before) && (opens || !word(bytes.get(position + length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_in_a_pure_crate_is_found() {
        let edge = |from: &str, to: &str, kind| Edge {
            from: from.to_owned(),
            to: to.to_owned(),
            kind,
            internal: false,
        };
        assert_eq!(
            check_dependencies(&[edge("mlmesh-sched", "tokio", EdgeKind::Normal)]).len(),
            1
        );
        assert!(check_dependencies(&[edge("mlmesh-sched", "proptest", EdgeKind::Test)]).is_empty());
        assert!(check_dependencies(&[edge("mlmesh-store", "tokio", EdgeKind::Normal)]).is_empty());
    }

    #[test]
    fn the_clock_in_a_pure_crate_is_found() {
        let sources = Sources::sample(&[
            (
                "mlmesh-sched/src/lib.rs",
                "use std::time::Instant;\nfn a() { std::fs::read(x); }",
            ),
            (
                "mlmesh-model/src/lib.rs",
                "struct InstantReply; // Instant\n#[cfg(test)]\nmod tests { use std::fs; }",
            ),
            ("mlmesh-store/src/lib.rs", "use std::fs;"),
        ]);
        let found: Vec<String> = check_sources(&sources)
            .iter()
            .map(|finding| finding.place.clone())
            .collect();
        assert_eq!(
            found,
            ["mlmesh-sched/src/lib.rs:2", "mlmesh-sched/src/lib.rs:1"]
        );
    }
}
