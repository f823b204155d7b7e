//! What a job says of its run through MLflow stands in the record and the manifest, apart
//! from the recipe's parameters, and no value of a secret with it.

use serde_json::{Value, json};

use super::completed;
use crate::site::Site;

const SECRET: &str = "value-of-the-key";

/// Logs to its own run and to a further one.
const JOB: &str = r#"
import http.client, json, os, urllib.parse
environ, own = os.environ, os.environ["MLFLOW_RUN_ID"]
client = http.client.HTTPConnection(urllib.parse.urlsplit(environ["MLFLOW_TRACKING_URI"]).netloc)

def call(path, body):
    client.request("POST", "/api/2.0/mlflow/runs/" + path, json.dumps(body), {
        "Content-Type": "application/json", "Authorization": "Bearer " + environ.get("MLFLOW_TRACKING_TOKEN", "")})
    answer = client.getresponse()
    text = answer.read()
    assert answer.status == 200, text
    return json.loads(text)

def log(run, params, tags):
    pairs = lambda texts: [{"key": key, "value": value} for key, value in texts.items()]
    call("log-batch", {"run_id": run, "params": pairs(params), "tags": pairs(tags)})

log(own, {"lr": environ["LR"], "key": "<" + environ["KEY"] + ">", "long": "x" * 600}, {"team": "blue", "gone": "1"})
call("delete-tag", {"run_id": own, "key": "gone"})
for start in range(0, 600, 100):
    log(own, {f"p{number:03}": "1" for number in range(start, start + 100)}, {})
further = call("create", {"experiment_id": "0"})["run"]["info"]["run_id"]
log(further, {"lr": "7"}, {"team": "red"})
"#;

#[test]
fn parameters_and_tags_that_a_job_logs_are_claims_in_its_record() {
    let mut site = Site::new();
    site.set("KEY", SECRET);
    site.start();
    site.write("job.py", JOB);
    let queue = |lr: &str| {
        let script = format!("LR={lr} exec python3 job.py\n");
        let recipe = site.recipe(&format!("lr-{lr}"), &script, "secrets: [KEY]");
        let run = site.queue(&recipe);
        let info = completed(&site, &run);
        (run, info)
    };
    let (high, info) = queue("0.5");
    let (low, _) = queue("1e-2");
    let logged = &info["logged"];
    assert_eq!(logged["params"]["lr"], "0.5");
    assert_eq!(logged["params"]["key"], "<[redacted]>");
    assert_eq!(logged["params"]["long"], "x".repeat(500));
    assert_eq!(logged["params"].as_object().unwrap().len(), 500);
    assert_eq!(logged["tags"], json!({"team": "blue"}));
    assert_eq!(
        (&logged["left_out"], &logged["shortened"]),
        (&json!(103), &json!(1))
    );
    assert_eq!(info["manifest"]["logged"], *logged);
    assert_eq!(
        info["plan"]["params"],
        json!({}),
        "the plan has the recipe's"
    );
    assert!(!info.to_string().contains(SECRET));
    site.ml(&["validate", "--task", &high]).exits(0);

    let manifest = site
        .data_dir()
        .join(format!("data/experiments/{high}/run_manifest.json"));
    let shown = site
        .ml(&["info", manifest.to_str().unwrap(), "--json"])
        .exits(0);
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(shown["logged"], *logged);
    let text = site.ml(&["info", &high]).exits(0);
    for line in ["params.lr", "tags.team", "blue", "103 more were left out"] {
        assert!(text.stdout.contains(line), "{line}: {}", text.stdout);
    }

    let compared = site.ml(&["compare", &low, &high, "--json"]);
    let compared: Value = serde_json::from_str(&compared.stdout).unwrap();
    let differences = compared["differences"].as_array().unwrap().iter();
    let logged: Vec<_> = differences.filter(|it| it["group"] == "logged").collect();
    assert_eq!(logged.len(), 1, "{logged:?}");
    assert_eq!(
        (&logged[0]["name"], &logged[0]["a"], &logged[0]["b"]),
        (&json!("params.lr"), &json!("1e-2"), &json!("0.5"),)
    );

    let found = |expression: &str| -> Vec<String> {
        let list = site.json(&["list", "--where", expression]);
        let runs = list["runs"].as_array().unwrap().iter();
        runs.map(|run| run["id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(found("logged.params.lr > 0.1"), [high.as_str()]);
    assert_eq!(
        found("logged.params.lr = 0.01 and logged.tags.team = blue"),
        [low.as_str()]
    );
    assert_eq!(found("params.lr > 0"), Vec::<String>::new());

    // It travels with the run, as everything that the manifest says.
    let archive = site.path("run.zip");
    let archive = archive.to_str().unwrap();
    site.ml(&["export", &high, "-o", archive]).exits(0);
    let other = Site::up();
    other.ml(&["import", archive]).exits(0);
    assert_eq!(other.info(&high)["logged"], info["logged"]);
    other.ml(&["validate", "--task", &high]).exits(0);
}
