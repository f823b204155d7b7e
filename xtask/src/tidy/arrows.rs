//! Which crate may use which: the arrows of the map in `ARCHITECTURE.md`.

use cargo_metadata::{DependencyKind, Metadata};

use super::Finding;

/// A dependency between two packages, or of one of ours on one from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Edge {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) kind: EdgeKind,
    /// Whether `to` is a package of this workspace.
    pub(crate) internal: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EdgeKind {
    Normal,
    Build,
    Test,
}

/// The allowed arrows. A crate that is not named here is not allowed at all, so that
/// a new crate is a decision and not an accident.
const ALLOWED: &[(&str, &[&str])] = &[
    ("mlmesh-model", &[]),
    ("mlmesh-recipe", &["mlmesh-model"]),
    ("mlmesh-strategy", &["mlmesh-model"]),
    (
        "mlmesh-sched",
        &["mlmesh-model", "mlmesh-recipe", "mlmesh-strategy"],
    ),
    ("mlmesh-route", &["mlmesh-model", "mlmesh-strategy"]),
    ("mlmesh-member", &["mlmesh-model"]),
    ("mlmesh-cas", &["mlmesh-model"]),
    ("mlmesh-proof", &["mlmesh-model", "mlmesh-cas"]),
    ("mlmesh-store", &["mlmesh-model"]),
    ("mlmesh-exec", &["mlmesh-model", "mlmesh-recipe"]),
    ("mlmesh-telemetry", &["mlmesh-model"]),
    (
        "mlmesh-gateway",
        &["mlmesh-model", "mlmesh-route", "mlmesh-telemetry"],
    ),
    (
        "mlmesh-control",
        &["mlmesh-model", "mlmesh-sched", "mlmesh-proof"],
    ),
    ("mlmesh-bench", &["mlmesh-model"]),
    ("mlmesh-mesh", &["mlmesh-model", "mlmesh-member"]),
    ("mlmesh-plugin", &["mlmesh-strategy"]),
    ("mlmesh-api", &["mlmesh-model"]),
    (
        "mlmesh-sim",
        &[
            "mlmesh-model",
            "mlmesh-sched",
            "mlmesh-route",
            "mlmesh-member",
        ],
    ),
    (
        "mlmesh-testkit",
        &[
            "mlmesh-model",
            "mlmesh-cas",
            "mlmesh-control",
            "mlmesh-store",
        ],
    ),
    (
        "meshd",
        &[
            "mlmesh-api",
            "mlmesh-cas",
            "mlmesh-control",
            "mlmesh-exec",
            "mlmesh-gateway",
            "mlmesh-member",
            "mlmesh-mesh",
            "mlmesh-model",
            "mlmesh-plugin",
            "mlmesh-proof",
            "mlmesh-recipe",
            "mlmesh-route",
            "mlmesh-sched",
            "mlmesh-store",
            "mlmesh-strategy",
            "mlmesh-telemetry",
        ],
    ),
    (
        "ml",
        &[
            "mlmesh-api",
            "mlmesh-recipe",
            "mlmesh-cas",
            "mlmesh-proof",
            "mlmesh-bench",
            "mlmesh-sim",
            "mlmesh-model",
        ],
    ),
    ("xtask", &[]),
];

/// Tests of any crate may use the test clusters; nothing else may.
const TESTKIT: &str = "mlmesh-testkit";

/// Tests that put real parts behind a port.
const ALLOWED_IN_TESTS: &[(&str, &[&str])] = &[("mlmesh-control", &["mlmesh-store"])];

/// The dependencies that the manifests of the workspace declare.
pub(crate) fn edges(metadata: &Metadata) -> Vec<Edge> {
    let ours = metadata.workspace_packages();
    let mut edges = Vec::new();
    for package in &ours {
        for dependency in &package.dependencies {
            edges.push(Edge {
                from: package.name.to_string(),
                to: dependency.name.clone(),
                kind: match dependency.kind {
                    DependencyKind::Development => EdgeKind::Test,
                    DependencyKind::Build => EdgeKind::Build,
                    _ => EdgeKind::Normal,
                },
                internal: ours
                    .iter()
                    .any(|other| other.name.as_str() == dependency.name),
            });
        }
    }
    edges
}

/// Finds every arrow that the map does not have.
pub(crate) fn check(edges: &[Edge]) -> Vec<Finding> {
    edges
        .iter()
        .filter(|edge| edge.internal && !is_allowed(edge))
        .map(forbidden)
        .collect()
}

fn is_allowed(edge: &Edge) -> bool {
    let stands_in = |table: &[(&str, &[&str])]| {
        table
            .iter()
            .any(|(from, allowed)| *from == edge.from && allowed.contains(&edge.to.as_str()))
    };
    let in_test = edge.kind == EdgeKind::Test;
    stands_in(ALLOWED) || (in_test && (edge.to == TESTKIT || stands_in(ALLOWED_IN_TESTS)))
}

fn forbidden(edge: &Edge) -> Finding {
    let allowed = ALLOWED.iter().find(|(from, _)| *from == edge.from);
    let rule = match allowed {
        None => "this crate is not on the map".to_owned(),
        Some((_, [])) => "this crate may use no other of ours".to_owned(),
        Some((_, allowed)) => format!("allowed are {}", allowed.join(", ")),
    };
    Finding::error(
        format!("{}/Cargo.toml", edge.from),
        format!("dependency on `{}`; {rule}", edge.to),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(from: &str, to: &str, kind: EdgeKind) -> Edge {
        Edge {
            from: from.to_owned(),
            to: to.to_owned(),
            kind,
            internal: true,
        }
    }

    #[test]
    fn an_arrow_that_is_not_on_the_map_is_found() {
        let found = check(&[edge("mlmesh-sched", "mlmesh-store", EdgeKind::Normal)]);
        assert_eq!(found.len(), 1);
        assert!(found[0].text.contains("`mlmesh-store`"), "{}", found[0]);
    }

    #[test]
    fn tests_may_use_the_testkit_and_programs_may_not() {
        assert!(check(&[edge("mlmesh-cas", "mlmesh-testkit", EdgeKind::Test)]).is_empty());
        assert_eq!(
            check(&[edge("mlmesh-cas", "mlmesh-testkit", EdgeKind::Normal)]).len(),
            1
        );
        assert_eq!(
            check(&[edge("mlmesh-cas", "mlmesh-store", EdgeKind::Test)]).len(),
            1
        );
    }

    #[test]
    fn an_unknown_crate_is_found() {
        assert_eq!(
            check(&[edge("mlmesh-utils", "mlmesh-model", EdgeKind::Normal)]).len(),
            1
        );
    }

    #[test]
    fn the_map_has_no_circle() {
        fn reaches(from: &str, to: &str) -> bool {
            ALLOWED
                .iter()
                .filter(|(name, _)| *name == from)
                .any(|(_, next)| next.iter().any(|name| *name == to || reaches(name, to)))
        }
        for (name, _) in ALLOWED {
            assert!(!reaches(name, name), "{name} reaches itself");
        }
    }
}
