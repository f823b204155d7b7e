//! Points of runs read back, drawn, and runs found by them.

use std::fs;

use serde_json::Value;

use crate::mesh::Mesh;

/// Logs many points with one spike, waits for a file, logs one more.
const MANY: &str = r#"
import json, os, sys, time
with open("metrics.jsonl", "w") as f:
    for step in range(-5, 5000):
        f.write(json.dumps({"name": "loss", "value": 1e9 if step == 3210 else step % 7, "step": step}) + "\n")
    f.flush()
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.01)
    f.write(json.dumps({"name": "loss", "value": -3}) + "\n")
open("out.txt", "w").write("x")
"#;

fn points(mesh: &Mesh, run: &str) -> Value {
    let answer = mesh.ml(&["metrics", run, "loss", "--points", "50", "--json"]);
    answer.exits(0).json()["metrics"][0].clone()
}

fn steps(series: &Value) -> Vec<i64> {
    let points = series["points"].as_array().unwrap().iter();
    points
        .map(|point| point["step"].as_i64().unwrap())
        .collect()
}

#[test]
fn points_are_read_while_a_run_lives_and_when_its_folder_is_gone() {
    let mesh = Mesh::up();
    mesh.place.write("many.py", MANY);
    let gate = mesh.place.path("gate");
    let recipe = format!(
        "experiment:\n  name: many\n  command: [python3, many.py, {}]\n  seed: none\n",
        gate.display()
    );
    mesh.place.write("many.yaml", recipe);
    let run = mesh.queue("many.yaml");
    mesh.wait("all points to be there", || {
        points(&mesh, &run)["total"] == 5005
    });
    let live = points(&mesh, &run);
    assert_eq!(live["exact"], false);
    let seen = steps(&live);
    assert!(seen.len() <= 200, "{}", seen.len());
    assert_eq!((seen[0], seen.last()), (-5, Some(&4999)));
    assert!(seen.contains(&3210), "the spike is gone: {seen:?}");
    fs::write(&gate, "").unwrap();
    mesh.wait_for_phase(&run, "completed");
    fs::remove_dir_all(mesh.place.data().join("data/experiments").join(&run)).unwrap();
    let kept = points(&mesh, &run);
    assert_eq!(kept["total"], 5006);
    let last = kept["points"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&last["step"], &last["value"]),
        (&5000.into(), &Value::from(-3.0))
    );
    assert!(steps(&kept).contains(&3210));
    let csv = mesh.ml(&["metrics", &run, "loss", "--csv"]).exits(0).stdout;
    assert!(
        csv.starts_with("metric,step,time,value\nloss,-5,,2\n"),
        "{}",
        &csv[..80]
    );
}

#[test]
fn runs_are_found_by_their_metrics_in_the_order_asked_for_and_drawn() {
    let mesh = Mesh::up();
    let job = "import json, sys\nv = float(sys.argv[1])\nopen('metrics.jsonl', 'w').write(\
        json.dumps({'name': 'accuracy', 'value': v / 10, 'step': 0}) + '\\n')\nopen('out.txt', 'w').write('x')\n";
    mesh.place.write("score.py", job);
    let recipe = "experiment:\n  name: score\n  command: [python3, score.py, '${a}']\n  seed: none\n  \
        params: {a: 0}\n  sweep: {a: [5, 9, 7]}\n";
    mesh.place.write("score.yaml", recipe);
    let answer = mesh.ml(&["queue", "--wait", "-q", "score.yaml"]).exits(0);
    let sweep = answer.stdout.trim();
    let list = ["list", "--where", "metrics.accuracy > 0.6", "--sort"];
    for (order, expected) in [
        ("metrics.accuracy", [7, 9]),
        ("metrics.accuracy:desc", [9, 7]),
    ] {
        let arguments: Vec<&str> = list.iter().copied().chain([order, "--json"]).collect();
        let found = mesh.ml(&arguments).exits(0).json();
        let found: Vec<i64> = found["runs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|run| run["params"]["a"].as_i64().unwrap())
            .collect();
        assert_eq!(found, expected, "{order}");
    }
    mesh.ml(&["list", "--where", "metrics.accuracy >"]).exits(2);
    let page = mesh.place.path("sweep.html");
    let plot = mesh.ml(&["plot", sweep, "-o", page.to_str().unwrap(), "--json"]);
    let plot = plot.exits(0).json();
    assert_eq!(
        (&plot["parallel"], &plot["metrics"][0]),
        (&true.into(), &"accuracy".into())
    );
    let page = fs::read_to_string(page).unwrap();
    assert_eq!(page.matches("<svg").count(), 2);
    assert_eq!(page.matches("class=\"key\"").count(), 3);
}
