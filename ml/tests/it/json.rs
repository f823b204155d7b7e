//! What each verb says with `--json`, beside those of a run's way (`runs.rs`).

use serde_json::Value;

use crate::golden;
use crate::mesh::Mesh;
use crate::shape::shape;

/// Verbs whose data are a text that another program reads as it is.
const PLAIN: &[&str] = &["completions", "man"];
/// Verbs that `runs.rs`, `daemon.rs`, `bench.rs` and `sim.rs` hold, and the contract's tests.
const ELSEWHERE: &[&str] = &[
    "bench",
    "deps",
    "explain",
    "info",
    "list",
    "status",
    "outputs",
    "compare",
    "reproduce",
    "doctor",
    "down",
    "pin",
    "unpin",
    "tag",
    "note",
    "route",
    "sim",
];
/// Tells changes as they come (`following.rs`), or goes on until it is interrupted.
const FOLLOWING: &[&str] = &["watch", "monitor"];

/// A service of one replica.
const PAGES: &str = "\
service:
  name: pages
  command: [python3, -m, http.server, --bind, \"${host}\", \"${port_http}\"]
  ports: {http: auto}
  ready: {path: /}
  drain: 1s
";

#[test]
fn every_other_verb_has_its_form_in_json() {
    let mesh = Mesh::up();
    let recipe = mesh.recipe("small", &["ok"], "outputs: [model.txt]");
    let sleeper = mesh.recipe("sleeper", &["forever"], "");
    mesh.place.write("numbers.csv", "1\n2\n");
    let data = mesh.place.project().join("numbers.csv");
    let data = data.to_str().unwrap();
    let mut text = String::new();
    let mut seen: Vec<String> = Vec::new();
    let mut say_at = |mesh: &Mesh, arguments: &[&str]| {
        let asked: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        let said = mesh.ml(&asked).exits(0).stdout;
        let lines = serde_json::Deserializer::from_str(&said).into_iter::<Value>();
        // Of lines that repeat each other, the first.
        let mut shapes: Vec<Value> = Vec::new();
        for line in lines {
            let line = shape(&line.expect("a line of JSON"));
            if !shapes.contains(&line) {
                shapes.push(line);
            }
        }
        assert!(!shapes.is_empty(), "{arguments:?} says nothing");
        for shape in &shapes {
            let schema = shape["schema"].as_str();
            assert!(
                schema.is_some_and(|name| name.starts_with("mlmesh.")),
                "{shape:#}"
            );
        }
        let shapes: Vec<String> = shapes.iter().map(|shape| format!("{shape:#}\n")).collect();
        text.push_str(&format!(
            "$ ml {} --json\n{}\n",
            arguments.join(" "),
            shapes.concat()
        ));
        seen.push(arguments[0].to_owned());
    };
    let mut say = |arguments: &[&str]| say_at(&mesh, arguments);
    say(&["up", "--port", "0"]);
    say(&["init", "other"]);
    say(&["sync"]);
    say(&["recipe", "check", &recipe]);
    say(&["queue", &recipe, "--wait"]);
    say(&["run", &recipe]);
    say(&["validate", "--task", "@last"]);
    say(&["metrics", "@last"]);
    say(&["plot", "@last", "-o", "x.svg"]);
    say(&["export", "@last", "-o", "x.zip"]);
    say(&["export", "--verify", "x.zip"]);
    say(&["key", "show"]);
    say(&["user", "add", "bob", "--role", "viewer"]);
    say(&["user", "role", "bob", "member"]);
    say(&["user", "list"]);
    say(&["user", "show"]);
    say(&["user", "show", "bob"]);
    say(&["user", "permissions", "show"]);
    say(&["user", "permissions", "reload"]);
    let add = ["key", "add", "--user", "bob", "--name", "bob-1"];
    say(&[&add[..], &["-o", "bob.json"]].concat());
    say(&["key", "list"]);
    say(&["key", "rotate", "bob-1", "-o", "bob-2.json"]);
    say(&["key", "revoke", "bob-1"]);
    say(&["user", "remove", "bob"]);
    say(&["data", "add", "numbers", "1", data]);
    say(&["data", "list"]);
    say(&["data", "show", "numbers"]);
    say(&["data", "verify", "numbers", "1"]);
    say(&["data", "remove", "numbers", "1"]);
    say(&["secret", "list"]);
    say(&["logs", "@last"]);
    let asleep = mesh.queue(&sleeper);
    mesh.wait_for_phase(&asleep, "running");
    say(&["cancel", "@last"]);
    mesh.ml(&["watch", "@last"]);
    say(&["retry", "@last"]);
    mesh.ml(&["cancel", "@last"]).exits(0);
    mesh.ml(&["watch", "@last"]);
    say(&["events"]);
    say(&["audit", "verify"]);
    say(&["config", "explain"]);
    say(&["prune", "--dry-run"]);
    mesh.place.write("pages.yaml", PAGES);
    say(&["service", "start", "pages.yaml"]);
    say(&["service", "list"]);
    say(&["service", "endpoints"]);
    say(&["model", "list"]);
    say(&["service", "scale", "pages", "1"]);
    say(&["service", "stop", "pages"]);
    let file = mesh.place.project().join("x.zip");
    let elsewhere = Mesh::up();
    elsewhere.place.write("x.zip", std::fs::read(file).unwrap());
    say_at(&elsewhere, &["import", "x.zip"]);
    golden::check("verbs.txt", &mesh.place.redacted(&text));

    let help = mesh.ml(&["--help"]).exits(0).stdout;
    let verbs = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    for line in verbs.take_while(|line| !line.is_empty()) {
        let verb = line.split_whitespace().next().unwrap();
        let known = [PLAIN, ELSEWHERE, FOLLOWING, &["help"]].concat();
        assert!(
            seen.iter().any(|seen| seen == verb) || known.contains(&verb),
            "nothing holds the JSON of `ml {verb}`"
        );
    }
}
