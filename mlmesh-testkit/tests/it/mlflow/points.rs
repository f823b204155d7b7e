//! Points come back by one route from every place where a job logs, those of an attempt
//! and of no other, and a million of them without the daemon growing.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Value, json};

use super::completed;
use crate::site::{Site, WAIT_FOR_GO};

/// How much the daemon may grow while it takes in a million points and reads them back.
const GROWTH_KIB_MAX: u64 = 32 << 10;

/// What a run's points are: step and value of each, by metric.
fn points(site: &Site, run: &str) -> BTreeMap<String, Vec<(i64, Value)>> {
    let answer = site.json(&["metrics", run, "--points", "50"]);
    let series = answer["metrics"].as_array().unwrap().iter().map(|series| {
        assert_eq!(series["exact"], true, "{series}");
        let points = series["points"].as_array().unwrap().iter();
        let points = points.map(|point| (point["step"].as_i64().unwrap(), point["value"].clone()));
        (
            series["name"].as_str().unwrap().to_owned(),
            points.collect(),
        )
    });
    series.collect()
}

/// Each kind with names of its own, and one name to which all log.
const KINDS: &str = r#"
import http.client, json, os, pathlib, ssl, urllib.parse, urllib.request
environ, run = os.environ, os.environ["MLMESH_RUN_ID"]

def lines(path, *points):
    with open(path, "a") as file:
        for name, value, step in points:
            file.write(json.dumps({"name": name, "value": value, "step": step}) + "\n")

def post(*points):
    url = environ["MLMESH_API_URL"] + "/v1/runs/" + run + "/metrics"
    body = {"points": [{"name": name, "value": value, "step": step} for name, value, step in points]}
    token = pathlib.Path(environ["MLMESH_TOKEN_FILE"]).read_text()
    request = urllib.request.Request(url, json.dumps(body).encode(), {
        "Authorization": "Bearer " + token, "Content-Type": "application/json"})
    context = ssl.create_default_context(cafile=environ["MLMESH_API_CA"])
    urllib.request.urlopen(request, context=context).read()

def mlflow(*points):
    metrics = [{"key": name, "value": value, "timestamp": 1000, "step": step} for name, value, step in points]
    client = http.client.HTTPConnection(urllib.parse.urlsplit(environ["MLFLOW_TRACKING_URI"]).netloc)
    client.request("POST", "/api/2.0/mlflow/runs/log-batch", json.dumps({"run_id": run, "metrics": metrics}), {
        "Authorization": "Bearer " + environ["MLFLOW_TRACKING_TOKEN"], "Content-Type": "application/json"})
    assert client.getresponse().status == 200
"#;

const EACH: &str = r#"
from kinds import *
lines("metrics.jsonl", ("line", 1.5, 0), ("all", 1, 1))
lines("outputs/metrics.jsonl", ("output", 2.5, 3), ("all", 2, 2))
post(("posted", 3.5, 4), ("all", 3, 3))
mlflow(("flow", 4.5, 5), ("all", 4, 4))
"#;

#[test]
fn points_of_every_kind_are_read_from_a_live_run_and_from_an_ended_one() {
    let site = Site::up();
    site.write("kinds.py", KINDS);
    site.write("each.py", EACH);
    let script = format!("python3 each.py; echo x > \"$W/logged\"\n{WAIT_FOR_GO}");
    let recipe = site.recipe("each", &script, "network: open\napi: true");
    let run = site.queue(&recipe);
    site.wait_for_file("logged");
    let one = |step: i64, value: f64| vec![(step, json!(value))];
    let expected = BTreeMap::from([
        ("line".to_owned(), one(0, 1.5)),
        ("output".to_owned(), one(3, 2.5)),
        ("posted".to_owned(), one(4, 3.5)),
        ("flow".to_owned(), one(5, 4.5)),
        (
            "all".to_owned(),
            (1..=4).map(|step| (step, json!(step as f64))).collect(),
        ),
    ]);
    assert_eq!(points(&site, &run), expected, "live");
    site.go();
    completed(&site, &run);
    assert_eq!(points(&site, &run), expected, "ended");
}

/// The first attempt logs and fails, the second one logs late, the third one nothing.
const TRIES: &str = r#"
python3 - <<'END'
from kinds import *
import sys, time
w, attempt = pathlib.Path(environ["W"]), environ["MLMESH_ATTEMPT"]
if attempt == "1":
    lines("metrics.jsonl", ("loss", 1, 0))
    mlflow(("first", 1, 0))
if attempt == "2":
    (w / "second").write_text("x\n")
    while not (w / "log").exists(): time.sleep(0.01)
    lines("metrics.jsonl", ("loss", 2, 7))
    (w / "logged").write_text("x\n")
    while not (w / "go").exists(): time.sleep(0.01)
sys.exit(attempt != "3")
END
"#;

#[test]
fn points_are_those_of_the_last_attempt_from_its_first_moment_on() {
    let site = Site::up();
    site.write("kinds.py", KINDS);
    let recipe = site.recipe("tries", TRIES, "network: open");
    let run = site.queue(&recipe);
    site.wait_for_phase(&run, "failed");
    let names = |points: BTreeMap<String, _>| points.into_keys().collect::<Vec<_>>();
    assert_eq!(names(points(&site, &run)), ["first", "loss"]);
    site.ml(&["retry", &run]).exits(0);
    site.wait_for_file("second");
    assert_eq!(
        points(&site, &run),
        BTreeMap::new(),
        "it has logged nothing"
    );
    std::fs::write(site.path("w/log"), "").unwrap();
    site.wait_for_file("logged");
    let second = BTreeMap::from([("loss".to_owned(), vec![(7, json!(2.0))])]);
    assert_eq!(points(&site, &run), second, "live");
    site.go();
    site.wait_for_phase(&run, "failed");
    assert_eq!(points(&site, &run), second, "ended");
    site.ml(&["retry", &run]).exits(0);
    completed(&site, &run);
    assert_eq!(
        points(&site, &run),
        BTreeMap::new(),
        "the third one is bare"
    );
}

/// A million points with one spike up and one down.
const MILLION: &str = r#"
with open("metrics.jsonl", "w") as file:
    for step in range(1_000_000):
        value = {654_321: 1e9, 123_456: -1e9}.get(step, step % 1000)
        file.write('{"name":"loss","value":%r,"step":%d}\n' % (value, step))
"#;

#[test]
fn a_million_points_are_read_back_without_the_daemon_growing() {
    let mut site = Site::up();
    site.write("million.py", MILLION);
    let recipe = site.recipe("million", "exec python3 million.py\n", "");
    // What it needs for any run and any answer is there before.
    let before = site.queue(&site.recipe(
        "before",
        "echo '{\"name\":\"a\",\"value\":1}' > metrics.jsonl\n",
        "",
    ));
    completed(&site, &before);
    points(&site, &before);
    let daemon = site.daemon().pid();
    let idle = peak_kib(daemon);
    let begun = Instant::now();
    let run = site.queue(&recipe);
    let info = completed(&site, &run);
    let taken = begun.elapsed();
    let loss = json!({"last": 999.0, "min": -1e9, "max": 1e9, "steps": 1_000_000});
    assert_eq!(info["metrics"]["loss"], loss);
    let begun = Instant::now();
    let answer = site.json(&["metrics", &run, "loss", "--points", "500"]);
    let read = begun.elapsed();
    let growth = peak_kib(daemon) - idle;
    println!("a million points: run {taken:?}, read {read:?}, daemon {idle} KiB and {growth} more");
    let series = &answer["metrics"][0];
    assert_eq!(
        (&series["total"], &series["exact"]),
        (&json!(1_000_000), &json!(false))
    );
    let points = series["points"].as_array().unwrap();
    assert!(points.len() <= 2000, "{}", points.len());
    let at = |step: i64| points.iter().find(|point| point["step"] == step);
    assert_eq!(at(654_321).unwrap()["value"], json!(1e9));
    assert_eq!(at(123_456).unwrap()["value"], json!(-1e9));
    assert!(at(0).is_some() && at(999_999).is_some(), "its ends");
    assert!(growth <= GROWTH_KIB_MAX, "{growth} KiB");
}

/// The most that a process has had in memory.
fn peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.unwrap().trim().trim_end_matches(" kB");
    number.trim().parse().unwrap()
}
