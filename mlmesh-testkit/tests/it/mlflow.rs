//! Scripts that know nothing of mlmesh log with the real MLflow client to their run,
//! also without a network and without the daemon.
//!
//! The client is that of the tests' Python environment; without it the tests say so.
//! What its documentation prints as examples runs as it stands there, and one script of
//! a hundred and more calls gets the answers that MLflow's own server gives.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops where an expectation fails"
)]

mod claims;
mod deaths;
mod peer;
mod points;

use std::process::Command;

use serde_json::{Value, json};

use mlmesh_testkit::python::environment_with;

use crate::site::Site;

/// How long a script may take that imports the client on a busy machine.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(240);

/// A site whose jobs have the client; `None` where there is none.
fn site() -> Option<Site> {
    let prefix = environment_with("mlflow")?;
    let mut site = Site::new();
    site.set("VIRTUAL_ENV", prefix.to_str().unwrap());
    site.start();
    Some(site)
}

/// Queues a Python script that uses the client.
fn queue(site: &Site, name: &str, script: &str, more: &str) -> String {
    site.write(&format!("{name}.py"), script);
    let more: String = more.lines().map(|line| format!("  {line}\n")).collect();
    let recipe = format!(
        "experiment:\n  name: {name}\n  command: [python, {name}.py]\n  seed: none\n  resources: {{cpus: 1}}\n  \
         environment: current\n  env: {{W: \"{}\", PYTHONPATH: start, MLFLOW_DISABLE_TELEMETRY: \"true\", GIT_PYTHON_REFRESH: quiet, MLFLOW_HTTP_REQUEST_MAX_RETRIES: \"0\"}}\n{more}",
        site.path("w").display()
    );
    let file = format!("{name}.yaml");
    site.write(&file, recipe);
    site.queue(&file)
}

/// Waits for the end of a run, which must be good, and gives what is known of it.
fn completed(site: &Site, run: &str) -> Value {
    let mut info = Value::Null;
    let ended = mlmesh_testkit::kill::wait_until(PATIENCE, || {
        info = site.info(run);
        // The end is recorded before its manifest.
        let ended = ["completed", "failed", "cancelled", "interrupted"];
        ended.iter().any(|phase| info["phase"] == *phase)
    });
    let logs = site.ml(&["logs", run]);
    assert!(
        ended && info["phase"] == "completed",
        "{info}\n{}{}",
        logs.stdout,
        logs.stderr
    );
    info
}

const FLUENT: &str = r#"
import os, mlflow
mlflow.set_experiment("digits")
with mlflow.start_run() as run:
    assert run.info.run_id == os.environ["MLMESH_RUN_ID"], run.info
    mlflow.log_param("depth", 3)
    mlflow.log_params({"rate": 0.1, "kind": "tree"})
    for step in range(5):
        mlflow.log_metric("loss", 1 / (step + 1), step=step)
    mlflow.log_metrics({"a/b": 2.5, "nan": float("nan")}, step=7)
    mlflow.set_tag("team", "blue")
got = mlflow.get_run(run.info.run_id)
assert got.info.status == "FINISHED", got.info
assert got.data.params == {"depth": "3", "rate": "0.1", "kind": "tree"}, got.data.params
assert got.data.metrics["loss"] == 0.2 and got.data.tags["team"] == "blue", got.data
history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
assert [m.step for m in history] == [0, 1, 2, 3, 4], history
try:
    mlflow.MlflowClient().log_param(run.info.run_id, "depth", 4)
except mlflow.exceptions.MlflowException as error:
    assert error.error_code == "INVALID_PARAMETER_VALUE", error
    assert "was already logged with value='3'" in str(error), error
else:
    raise SystemExit("a parameter was changed")
assert mlflow.get_experiment(run.info.experiment_id).name == "digits"
print("token", os.environ.get("MLFLOW_TRACKING_TOKEN"))
"#;

fn check_fluent(info: &Value) {
    let metrics = &info["metrics"];
    assert_eq!(
        metrics["loss"],
        json!({"last": 0.2, "min": 0.2, "max": 1.0, "steps": 5})
    );
    assert_eq!(metrics["a/b"]["last"], json!(2.5));
    assert_eq!(metrics["nan"]["last"], json!("nan"));
}

#[test]
fn a_fluent_script_logs_to_its_run_in_the_sandbox_without_a_network() {
    let Some(site) = site() else { return };
    let run = queue(&site, "fluent", FLUENT, "sandbox: true\nnetwork: none");
    let info = completed(&site, &run);
    check_fluent(&info);
    // Alone on its network a job needs no token.
    assert!(site.ml(&["logs", &run]).stdout.contains("token None"));
}

#[test]
fn a_fluent_script_logs_without_the_sandbox_with_and_without_a_network() {
    let Some(site) = site() else { return };
    let runs = ["none", "open"].map(|network| {
        (
            network,
            queue(
                &site,
                &format!("plain-{network}"),
                FLUENT,
                &format!("network: {network}"),
            ),
        )
    });
    for (network, run) in runs {
        check_fluent(&completed(&site, &run));
        let logs = site.ml(&["logs", &run]).stdout;
        // Where others could connect there is a token, which no log has.
        let expected = if network == "open" {
            "token [redacted]"
        } else {
            "token None"
        };
        assert!(logs.contains(expected), "{network}: {logs}");
    }
}

const CLIENT: &str = r#"
import os, pathlib, time
from mlflow import MlflowClient
client, w = MlflowClient(), pathlib.Path(os.environ["W"])
run = client.create_run(client.create_experiment("plain"))
id = run.info.run_id
assert id == os.environ["MLMESH_RUN_ID"]
for step in range(200):
    client.log_metric(id, "loss", step, step=step)
    if step == 50:
        (w / "runs").write_text("x\n")
        while not (w / "go").exists(): time.sleep(0.02)
child = client.create_run(run.info.experiment_id, tags={"mlflow.parentRunId": id})
client.log_metric(child.info.run_id, "loss", 1e9)
pathlib.Path("model.txt").write_text("weights")
pathlib.Path("empty").write_text("")
client.log_artifact(id, "model.txt", "model")
client.log_artifact(id, "empty")
client.log_artifact(child.info.run_id, "model.txt")
assert [(f.path, f.is_dir) for f in client.list_artifacts(id)] == [("empty", False), ("model", True)]
inner = [f.path for f in client.list_artifacts(id, "model")]
assert inner == ["model/model.txt"], inner
assert pathlib.Path(client.download_artifacts(id, "model/model.txt")).read_text() == "weights"
client.set_terminated(id)
"#;

/// The daemon dies in the middle, and the client notices nothing.
#[test]
fn a_plain_client_logs_and_uploads_while_the_daemon_is_dead() {
    let Some(mut site) = site() else { return };
    let run = queue(&site, "plain", CLIENT, "network: none");
    site.wait_for_file("runs");
    site.kill_daemon();
    site.go();
    let ended = mlmesh_testkit::kill::wait_until(PATIENCE, || site.processes_of(&run).is_empty());
    assert!(ended, "the job goes on");
    site.start();
    let info = completed(&site, &run);
    let loss = json!({"last": 199.0, "min": 0.0, "max": 199.0, "steps": 200});
    assert_eq!(info["metrics"]["loss"], loss);
    let outputs = site.ml(&["outputs", &run]).exits(0).stdout;
    for name in ["artifacts/model/model.txt", "artifacts/empty", "mlflow/1/"] {
        assert!(outputs.contains(name), "{name}: {outputs}");
    }
}

/// An example of the client's documentation, with lines before it.
fn example(site: &Site, module: &str, name: &str, number: u32, before: &[&str]) -> String {
    let file = site.path("example.py");
    let python = environment_with("mlflow").unwrap().join("bin/python");
    let made = Command::new(python)
        .args(["-c", include_str!("mlflow/examples.py")])
        .args([module, name, &number.to_string()])
        .arg(&file)
        .args(before)
        .env("MLFLOW_DISABLE_TELEMETRY", "true")
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    std::fs::read_to_string(file).unwrap()
}

/// What the run's tracking has recorded, by the run it was logged to.
fn outputs_of(site: &Site, run: &str) -> String {
    site.ml(&["outputs", run]).exits(0).stdout
}

/// scikit-learn with autologging: parameters, metrics, tags, an input and a model.
#[test]
fn the_documentations_scikit_learn_example_logs_to_its_run() {
    let Some(site) = site() else { return };
    if environment_with("sklearn").is_none() {
        return;
    }
    let script = example(&site, "mlflow.sklearn", "autolog", 0, &[]);
    assert!(script.contains("mlflow.sklearn.autolog()"), "{script}");
    let run = queue(&site, "autolog", &script, "network: none");
    let info = completed(&site, &run);
    assert_eq!(info["metrics"]["training_score"]["last"], json!(1.0));
    let logs = site.ml(&["logs", &run]).stdout;
    assert!(logs.contains("'fit_intercept': 'True'"), "{logs}");
    let outputs = outputs_of(&site, &run);
    for name in ["MLmodel", "estimator.html"] {
        assert!(outputs.contains(name), "{name}: {outputs}");
    }
}

/// Images of the form and size of MNIST, as many as the example trains on, in the folder
/// in which it looks before it downloads them: digits as bars at places of their own.
fn put_mnist(site: &Site) {
    let raw = site.path("project/MNIST/raw");
    std::fs::create_dir_all(&raw).unwrap();
    for (name, count) in [("train", 32_u32), ("t10k", 8)] {
        let labels: Vec<u8> = (0..count).map(|image| (image % 10) as u8).collect();
        let pixels = labels.iter().flat_map(|label| {
            (0..28 * 28_u32).map(move |at| match at % 28 / 3 == u32::from(*label) {
                true => 255,
                false => (at * 7 % 40) as u8,
            })
        });
        let header = |numbers: &[u32]| -> Vec<u8> {
            let bytes = numbers.iter().flat_map(|number| number.to_be_bytes());
            bytes.collect()
        };
        let mut images = header(&[2051, count, 28, 28]);
        images.extend(pixels);
        std::fs::write(raw.join(format!("{name}-images-idx3-ubyte")), images).unwrap();
        let labels = [header(&[2049, count]), labels].concat();
        std::fs::write(raw.join(format!("{name}-labels-idx1-ubyte")), labels).unwrap();
    }
}

/// PyTorch 1.13 has a class that Python 3.11 does not take; what imports it fails. Newer
/// ones say the same with `default_factory`.
const TORCH_ON_PYTHON_3_11: &str = "
import dataclasses
process = dataclasses._process_class

def with_factory(cls, *more):
    given = cls.__dict__.get('tensor_properties')
    if cls.__name__ == 'ShardedTensorMetadata' and given.default is not dataclasses.MISSING:
        cls.tensor_properties = dataclasses.field(default_factory=type(given.default))
    return process(cls, *more)

dataclasses._process_class = with_factory
";

/// PyTorch of Debian with Lightning and autologging: epochs of losses, parameters, a tag.
/// The client's own copy of the model wants a newer PyTorch, of which it warns.
#[test]
fn the_documentations_pytorch_example_logs_to_its_run() {
    let Some(site) = site() else { return };
    if environment_with("torchvision").is_none() || environment_with("lightning").is_none() {
        return;
    }
    let script = example(&site, "mlflow.pytorch", "autolog", 0, &[]);
    assert!(script.contains("trainer.fit(mnist_model"), "{script}");
    put_mnist(&site);
    std::fs::create_dir(site.path("project/start")).unwrap();
    site.write("start/sitecustomize.py", TORCH_ON_PYTHON_3_11);
    let run = queue(&site, "lightning_digits", &script, "network: none");
    let info = completed(&site, &run);
    for (metric, steps) in [("train_loss_epoch", 3), ("acc_epoch", 3)] {
        assert_eq!(info["metrics"][metric]["steps"], steps, "{info:#}");
    }
    let loss = &info["metrics"]["train_loss_epoch"];
    assert!(loss["last"].as_f64() < loss["max"].as_f64(), "{loss}");
    assert_eq!(info["logged"]["params"]["optimizer_name"], "Adam");
    assert_eq!(info["logged"]["params"]["lr"], "0.02");
    let logs = site.ml(&["logs", &run]).stdout;
    assert!(logs.contains(&format!("run_id: {run}")), "{logs}");
    assert!(logs.contains("'epochs': '3'"), "{logs}");
    assert!(outputs_of(&site, &run).contains("artifacts/model_summary.txt"));
}

/// PyTorch of Debian, with a training loop of our own and weights that are read back.
#[test]
fn a_pytorch_script_logs_its_losses_and_weights() {
    let Some(site) = site() else { return };
    if environment_with("torch").is_none() {
        return;
    }
    let script = include_str!("mlflow/torch_line.py");
    let run = queue(&site, "line", script, "network: none");
    let info = completed(&site, &run);
    assert_eq!(info["metrics"]["loss"]["steps"], 200);
    let last = info["metrics"]["loss"]["last"].as_f64().unwrap();
    assert!(last < 0.01, "{last}");
    let outputs = outputs_of(&site, &run);
    assert!(
        outputs.contains("artifacts/line/state_dict.pth"),
        "{outputs}"
    );
}

/// Plain `MlflowClient`, as its documentation uses it.
#[test]
fn the_documentations_client_examples_log_to_their_runs() {
    let Some(site) = site() else { return };
    let queued = [("log_batch", 0), ("search_runs", 0)].map(|(name, number)| {
        let method = format!("MlflowClient.{name}");
        let script = example(&site, "mlflow.client", &method, number, &[]);
        queue(&site, name, &script, "network: none")
    });
    let batch = completed(&site, &queued[0]);
    assert_eq!(batch["metrics"]["m"]["last"], json!(1.5));
    let search = completed(&site, &queued[1]);
    assert_eq!(search["metrics"]["m"]["last"], json!(1.55));
    let logs = site.ml(&["logs", &queued[1]]).stdout;
    let found: Vec<&str> = logs
        .lines()
        .filter(|line| line.starts_with("metrics:"))
        .collect();
    let expected = [
        "metrics: {'m': 2.5}",
        "metrics: {'m': 1.55}",
        "metrics: {'m': 1.55}",
    ];
    assert_eq!(found, expected, "{logs}");
}

/// The same script, the same answers.
#[test]
fn answers_are_those_of_mlflows_own_server() {
    let Some(site) = site() else { return };
    let Some(prefix) = environment_with("flask") else {
        return;
    };
    let peer = peer::Server::start(&prefix);
    let script = include_str!("mlflow/compare.py");
    let run = queue(&site, "compare", script, "network: none");
    let theirs = peer.answers(&prefix, script);
    completed(&site, &run);
    site.ml(&["outputs", &run, "-o", "got"]).exits(0);
    let ours = std::fs::read_to_string(site.path("project/got/outputs/answers.json")).unwrap();
    peer::compare(&theirs, &ours);
}
