//! One digest from `ml explain` to the manifest, which anybody can recompute.

use super::place::{Place, Refusals, python};
use serde_json::Value;

/// `plan_sha256` of a run or of a point.
const PLAN_SHA256: &str = r#"
import hashlib, json, sys
plan = json.loads(sys.argv[1])["plan"]
text = json.dumps(plan, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
print(hashlib.sha256(text.encode()).hexdigest())
"#;

/// The digest of a sweep from those of its points.
const SWEEP_SHA256: &str = r#"
import hashlib, sys
print(hashlib.sha256("".join(sys.argv[1:]).encode()).hexdigest())
"#;

/// The commit id of a folder.
const COMMIT: &str = r#"
import hashlib, os, sys
root, lines = sys.argv[1], []
for folder, names, files in os.walk(root):
    for name in files + [name for name in names if os.path.islink(os.path.join(folder, name))]:
        path = os.path.join(folder, name)
        link = os.path.islink(path)
        data = os.fsencode(os.readlink(path)) if link else open(path, "rb").read()
        mode = "link" if link else "755" if os.stat(path).st_mode & 0o100 else "644"
        lines.append((os.fsencode(os.path.relpath(path, root)), f"{mode} {len(data)} {hashlib.sha256(data).hexdigest()} "))
text = b"mlmesh-tree 1\n" + b"".join(head.encode() + path + b"\n" for path, head in sorted(lines))
print(hashlib.sha256(text).hexdigest())
"#;

const MORE: &str = r#"params: {lr: 0.10, word: "ü \"q\" € \\ /", big: 9007199254740991, flag: true}
env: {OMP_NUM_THREADS: "1", ODD: "a\tb=c"}
resources: {cpus: 0.5, memory: 256MiB, time: 1m}
tolerance: {accuracy: {abs: 0}}
retries: 1
"#;

#[test]
fn the_digest_of_a_plan_is_one_everywhere_and_python_finds_it_too() {
    let place = Place::up();
    let recipe = place.strict("one", "print('done')", MORE);
    let explained = place.json(&["explain", &recipe]);
    let digest = text(&explained["experiment"]["plan_sha256"]);
    let queued = place.json(&["queue", "--plan", &format!("sha256:{digest}"), &recipe]);
    let id = text(&queued["id"]);
    place.ml(&["watch", &id]).exits(0);
    let info = place.json(&["info", &id]);
    let file = place
        .data()
        .join("data/experiments")
        .join(&id)
        .join("run_manifest.json");
    let manifest: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(manifest, info["manifest"]);
    let point = &explained["points"][0];
    for (place, seen) in [
        ("queue", &queued["plan_sha256"]),
        ("point", &point["plan_sha256"]),
        ("run", &info["plan_sha256"]),
        ("manifest", &manifest["plan_sha256"]),
    ] {
        assert_eq!(text(seen), digest, "{place}");
    }
    for (place, holder) in [("explain", point), ("run", &info), ("manifest", &manifest)] {
        assert_eq!(
            python(PLAN_SHA256, &[holder.to_string()]),
            digest,
            "{place}"
        );
    }
    let plan = &info["plan"];
    assert_eq!(plan["params"]["lr"], "0.10", "a number stays as typed");
    for beside in [
        "owner",
        "priority",
        "retries",
        "tolerance",
        "node",
        "executor",
    ] {
        assert!(plan[beside].is_null(), "{beside} is no part of a plan");
    }
}

#[test]
fn a_sweep_is_the_digest_of_its_points_in_order() {
    let place = Place::up();
    let recipe = place.strict(
        "sweep",
        "print('done')",
        "params: {lr: 0.1}\nsweep: {lr: [0.01, 0.1, 1.0], seed: [1, 2]}",
    );
    let explained = place.json(&["explain", &recipe]);
    let points = explained["points"].as_array().unwrap();
    let digests: Vec<String> = points
        .iter()
        .map(|point| text(&point["plan_sha256"]))
        .collect();
    assert_eq!(digests.len(), 6);
    let whole = text(&explained["experiment"]["plan_sha256"]);
    assert_eq!(python(SWEEP_SHA256, &digests), whole);
    let queued = place.json(&["queue", "--plan", &whole, &recipe]);
    let id = text(&queued["id"]);
    place.ml(&["watch", &id]).exits(0);
    assert_eq!(text(&place.json(&["info", &id])["plan_sha256"]), whole);
    let list = place.json(&["list", "--parent", &id]);
    let ran: Vec<String> = list["runs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| text(&run["plan_sha256"]))
        .collect();
    assert_eq!(ran, digests, "children in the order of the sweep");
}

#[test]
fn only_what_determines_the_result_moves_the_digest() {
    let place = Place::up();
    let under = |policy: &str, recipe: &str, options: &[&str]| {
        let explain = ["explain", recipe, "--json", "--repro-policy", policy];
        let mut command = place.command(&[&explain, options].concat());
        let answer = super::place::answer(command.env("TOKEN", "value-of-token"));
        text(&answer.exits(0).json()["experiment"]["plan_sha256"])
    };
    let digest = |recipe: &str, options: &[&str]| under("relaxed", recipe, options);
    // A recipe's own text is a part of the tree unless it is left out.
    place.write(".mlignore", "*.yaml\n");
    let with = |more: &str| place.strict("move", "print('done')", more);
    let plain = with("resources: {cpus: 1}");
    let first = digest(&plain, &[]);
    assert_eq!(digest(&plain, &["--priority", "9"]), first);
    for same in [
        "retries: 3",
        "retries: 3\nretry_on: [exit]",
        "tolerance: {accuracy: {abs: 0.5}}",
        "limits: recorded",
    ] {
        assert_eq!(digest(&with(same), &[]), first, "{same}");
    }
    // An absent `network:` is resolved by the policy, and the plan holds the outcome.
    let closed = digest(&with("network: none"), &[]);
    assert_eq!(under("strict", &with(""), &[]), closed);
    let mut seen = std::collections::BTreeMap::from([(first, "plain"), (closed, "closed")]);
    for other in [
        "resources: {cpus: 2}",
        "resources: {memory: 128MiB}",
        "resources: {time: 1m}",
        "secrets: [TOKEN]",
        "env: {TOKEN: x}",
        "env: {TOKEN: y}",
        "outputs: [a.txt]",
        "params: {lr: 1}",
        "params: {lr: 1.0}",
        "network: [example.org]",
    ] {
        let recipe = with(other);
        if let Some(twin) = seen.insert(digest(&recipe, &[]), other) {
            panic!("{other} has the digest of {twin}");
        }
    }
    let recipe = with("resources: {cpus: 1}");
    for set in ["seed=8", "seed=9"] {
        assert!(seen.insert(digest(&recipe, &["--set", set]), set).is_none());
    }
    place.write("more.txt", "an untracked file is part of the tree");
    assert!(seen.insert(digest(&recipe, &[]), "tree").is_none());
}

#[test]
fn a_plan_that_moved_is_refused() {
    let place = Place::up();
    let recipe = place.strict("moved", "print(1)", "params: {lr: 1}");
    let explained = place.json(&["explain", &recipe]);
    let plan = format!("sha256:{}", text(&explained["experiment"]["plan_sha256"]));
    let queue = |options: &[&str]| {
        place.ml(&[&["queue", "--plan", &plan, &recipe, "--json"], options].concat())
    };
    assert_eq!(
        queue(&["--set", "lr=2"]).exits(3).refusals(),
        ["plan_moved"]
    );
    place.write("moved.py", "print(2)");
    let moved = queue(&[]).exits(3);
    assert_eq!(moved.refusals(), ["plan_moved"]);
    assert_eq!(place.json(&["list"])["runs"], serde_json::json!([]));
    place.write("moved.py", "print(1)");
    queue(&[]).exits(0);
}

#[test]
fn ten_lines_of_python_know_the_commit() {
    let place = Place::up();
    place.write("src/a b.py", "print(1)\n");
    place.write("src.txt", "sorts before the folder's files");
    place.write("src/sub/ünï.bin", [0, 159, 255]);
    place.write("empty", "");
    let tool = place.write("tools/run.sh", "#!/bin/sh\n");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(tool, mode).unwrap();
    std::os::unix::fs::symlink("src/a b.py", place.project().join("latest")).unwrap();
    std::os::unix::fs::symlink("src", place.project().join("folder")).unwrap();
    let synced = place.json(&["sync"]);
    assert_eq!(python(COMMIT, &[place.project()]), text(&synced["commit"]));
    assert_eq!(synced["files"], 9);
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("no text: {value}"))
        .to_owned()
}
