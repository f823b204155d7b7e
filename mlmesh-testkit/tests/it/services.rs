//! Services on real parts: `llama-server` as a service of its kind, with weights that a
//! recorded run put out; replicas, ends, and a daemon that dies meanwhile.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use mlmesh_testkit::http;
use mlmesh_testkit::llama;
use mlmesh_testkit::place::wait;
use mlmesh_testkit::python::environment_with;
use mlmesh_testkit::tiny_model;
use mlmesh_testkit::triton;
use serde_json::Value;

use crate::site::Site;

/// A service that answers every page, and says in its log what it was given.
const PAGES: &str = r#"
import http.server, os, sys
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if os.path.exists(os.environ["W"] + "/unwell"):
            return self.send_error(503)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ["MLMESH_RUN_ID"].encode())
print("port", os.environ["MLMESH_PORT_HTTP"], flush=True)
http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Page).serve_forever()
"#;

fn pages(site: &Site, more: &str) -> String {
    site.write("pages.py", PAGES);
    let more: String = more.lines().map(|line| format!("  {line}\n")).collect();
    let recipe = format!(
        "service:\n  name: pages\n  command: [python3, pages.py, \"${{host}}\", \"${{port_http}}\"]\n  \
         ports: {{http: auto}}\n  resources: {{cpus: 0.1}}\n  env: {{W: \"{}\"}}\n{more}",
        site.path("w").display()
    );
    site.write("pages.yaml", recipe);
    "pages.yaml".to_owned()
}

fn address(replica: &Value) -> SocketAddr {
    let text = replica["endpoints"][0]["address"].as_str();
    text.expect("an address").parse().expect("host and port")
}

/// The replicas of the only service.
fn replicas(site: &Site) -> Vec<Value> {
    let services = site.json(&["service", "list"]);
    let replicas = services["services"][0]["replicas"].as_array();
    replicas.cloned().unwrap_or_default()
}

#[test]
fn a_service_is_started_scaled_and_stopped() {
    let site = Site::up();
    let more = "ready: {path: /}\nreplicas: 2\nlabels: {team: blue}\ndrain: 1s";
    let recipe = pages(&site, more);
    let started = site.json(&["service", "start", &recipe]);
    assert_eq!(started["name"], "pages");
    assert_eq!(started["endpoints"], started["replicas"][0]["endpoints"]);
    assert!(started["node"].is_string(), "{started}");
    let two = replicas(&site);
    assert_eq!(two.len(), 2);
    for replica in &two {
        let (status, body) = http::get(address(replica), "/").expect("a page");
        assert_eq!(
            (status, body.as_str()),
            (200, replica["run"].as_str().unwrap())
        );
        assert_eq!(
            (&replica["phase"], &replica["health"]),
            (&"ready".into(), &"healthy".into())
        );
    }
    let again = site.ml(&["service", "start", &recipe, "--json"]).exits(3);
    assert!(again.stderr.contains("service_exists"), "{}", again.stderr);

    site.ml(&["service", "scale", "pages", "3"]).exits(0);
    let three = replicas(&site);
    assert_eq!(three.len(), 3);
    let info = site.info(three[2]["run"].as_str().unwrap());
    assert_eq!(info["tags"]["team"], "blue");
    assert_eq!(
        info["plan_sha256"],
        site.info(two[0]["run"].as_str().unwrap())["plan_sha256"]
    );
    site.ml(&["service", "scale", "pages", "1"]).exits(0);
    assert_eq!(replicas(&site), two[..1], "the oldest stays as it is");

    let run = two[0]["run"].as_str().unwrap();
    let port = address(&two[0]).port().to_string();
    site.ml(&["service", "stop", "pages"]).exits(0);
    let ended = site.info(run);
    assert_eq!(
        (&ended["phase"], &ended["signal"]),
        (&"cancelled".into(), &15.into())
    );
    let log = site.ml(&["logs", run]).exits(0);
    assert_eq!(log.stdout, format!("port {port}\n"));
    assert!(
        http::get(address(&two[0]), "/").is_err(),
        "nobody listens any more"
    );
    site.no_process_left(run);
    assert!(replicas(&site).is_empty());
    site.ml(&["service", "stop", "pages"]).exits(4);
    site.ml(&["service", "scale", "pages", "2"]).exits(4);
}

#[test]
fn a_daemon_that_dies_ends_no_service_and_finds_it_again() {
    let mut site = Site::up();
    let recipe = pages(&site, "ready: {path: /}");
    site.ml(&["service", "start", &recipe]).exits(0);
    let before = replicas(&site).remove(0);
    site.kill_daemon();
    let (status, _) = http::get(address(&before), "/").expect("it goes on without a daemon");
    assert_eq!(status, 200);
    site.start();
    wait("the replica to be ready again", || {
        replicas(&site)
            .first()
            .is_some_and(|replica| replica["health"] == "healthy")
    });
    let after = replicas(&site).remove(0);
    for what in ["run", "attempts", "endpoints", "phase"] {
        assert_eq!(before[what], after[what], "{what}");
    }
    site.ml(&["service", "stop", "pages"]).exits(0);
    site.no_process_left(before["run"].as_str().unwrap());
}

#[test]
fn a_service_that_is_never_ready_is_started_again_and_given_up() {
    let site = Site::up();
    std::fs::write(site.path("w").join("unwell"), "").unwrap();
    let more = "ready: {path: /, timeout: 1s}\nrestarts: 1";
    let recipe = pages(&site, more);
    let answer = site.ml(&["service", "start", &recipe, "--json"]).exits(1);
    assert!(
        answer.stderr.contains("not ready within 1 s"),
        "{}",
        answer.stderr
    );
    let run = site.ml(&["list", "--json"]).exits(0);
    let list: Value = serde_json::from_str(&run.stdout).expect("JSON");
    let run = &list["runs"][0];
    assert_eq!(
        (&run["phase"], &run["cause"]),
        (&"failed".into(), &"not_ready".into())
    );
    let info = site.info(run["id"].as_str().unwrap());
    assert_eq!(info["attempts"], 2, "once more, and no further");
}

#[test]
fn a_service_that_is_killed_comes_back_and_one_whose_time_is_over_does_not() {
    let site = Site::up();
    let recipe = pages(&site, "ready: {path: /}\nttl: 6s\ndrain: 1s");
    site.ml(&["service", "start", &recipe]).exits(0);
    let first = replicas(&site).remove(0);
    let run = first["run"].as_str().unwrap();
    let supervisor = site.supervisor_of(run);
    let job = site
        .processes_of(run)
        .into_iter()
        .find(|pid| *pid != supervisor);
    let job = job
        .and_then(rustix::process::Pid::from_raw)
        .expect("the service's process");
    rustix::process::kill_process(job, rustix::process::Signal::KILL).unwrap();
    wait("another try", || {
        let now = replicas(&site);
        now.first()
            .is_none_or(|now| now["attempts"] == 2 && now["phase"] == "ready")
    });
    let ended = site.wait_for_phase(run, "cancelled");
    assert_eq!(
        (&ended["cause"], &ended["attempts"]),
        (&"expired".into(), &2.into())
    );
}

/// A place with `llama-server` on the path of daemon and jobs; none where there is none.
fn with_llama() -> Option<Site> {
    let root = llama::find()?;
    let mut site = Site::new();
    let programs = site.path("programs");
    llama::install(&root, &programs);
    let path = std::env::var("PATH").unwrap_or_default();
    site.set("PATH", format!("{}:{path}", programs.display()));
    site.start();
    Some(site)
}

#[test]
fn triton_is_ready_by_an_inference_and_takes_models_in_and_out() {
    let Some(environment) = environment_with("tritonclient") else {
        return;
    };
    let mut site = Site::new();
    let programs = site.path("programs");
    let models = triton::install(&environment, &programs);
    let path = std::env::var("PATH").unwrap_or_default();
    site.set("PATH", format!("{}:{path}", programs.display()));
    site.start();
    let recipe = format!(
        "service:\n  name: numbers\n  kind: triton\n  parameters: {{repository: \"{}\", control: explicit}}\n  \
         args: [\"--load-model=*\"]\n  ready: {{timeout: 2m}}\n  restart: never\n",
        models.display()
    );
    site.write("numbers.yaml", recipe);
    let started = site.json(&["service", "start", "numbers.yaml"]);
    assert_eq!(started["endpoints"].as_array().map(Vec::len), Some(3));
    let loaded = || {
        let list = site.json(&["model", "list"]);
        let model = &list["models"][0];
        assert_eq!(model["name"], triton::MODEL, "{list}");
        model["loaded"].clone()
    };
    assert_eq!(loaded(), true);
    site.ml(&["model", "unload", "numbers", triton::MODEL])
        .exits(0);
    wait("the model to be gone", || loaded() == false);
    site.ml(&["model", "load", "numbers", triton::MODEL])
        .exits(0);
    assert_eq!(loaded(), true);
    let refused = site
        .ml(&["model", "load", "numbers", "none", "--json"])
        .exits(3);
    assert!(
        refused.stderr.contains("model_not_changed"),
        "{}",
        refused.stderr
    );
    site.ml(&["service", "stop", "numbers"]).exits(0);
    site.no_process_left(started["id"].as_str().expect("a run"));
}

/// Registers data, and runs an experiment that makes weights of them; its id and the
/// checksum of the data.
fn train(site: &Site) -> (String, String) {
    let corpus = site.path("corpus.gguf");
    tiny_model::write(&corpus, 1).expect("the model can be written");
    let added = site.json(&["data", "add", "corpus", "1", corpus.to_str().expect("text")]);
    let checksum = added["checksum"].as_str().expect("a checksum").to_owned();
    let more = format!(
        "datasets: [{{name: corpus, version: \"1\", checksum: \"sha256:{checksum}\", mount: data/corpus}}]\n\
         outputs: [weights/tiny.gguf]"
    );
    let recipe = site.recipe(
        "train",
        "mkdir weights; cat data/corpus > weights/tiny.gguf\n",
        &more,
    );
    let run = site.queue(&recipe);
    site.wait_for_phase(&run, "completed");
    (run, checksum)
}

fn chat(site: &Site, model: &str) -> String {
    let recipe = format!(
        "service:\n  name: chat\n  kind: llama-server\n  model: tiny@{model}\n  \
         parameters: {{slots: 2, context: 4096, threads: 1}}\n  resources: {{cpus: 0.2}}\n  \
         ready: {{timeout: 60s}}\n  restart: never\n"
    );
    site.write("chat.yaml", recipe);
    "chat.yaml".to_owned()
}

#[test]
fn an_answer_leads_back_to_the_data_of_its_weights() {
    let Some(mut site) = with_llama() else { return };
    let (trained, checksum) = train(&site);
    let recipe = chat(&site, &format!("{trained}:weights/tiny.gguf"));
    let started = site.json(&["service", "start", &recipe]);
    let ask = |address: SocketAddr| {
        let body = r#"{"model":"tiny","prompt":"a","max_tokens":4}"#;
        let (status, text) = http::post(address, "/v1/completions", body).expect("an answer");
        assert_eq!(status, 200, "{text}");
    };
    let replica = started["replicas"][0].clone();
    ask(address(&replica));

    let model = site.json(&["model", "list"])["models"][0].clone();
    assert_eq!(
        (&model["name"], &model["loaded"]),
        (&"tiny".into(), &true.into())
    );
    assert_eq!(model["weights"]["run"], trained.as_str());
    let refused = site
        .ml(&["model", "unload", "chat", "tiny", "--json"])
        .exits(3);
    assert!(
        refused.stderr.contains("model_control_unavailable"),
        "{}",
        refused.stderr
    );
    site.ml(&["model", "pin", "chat"]).exits(0);
    assert_eq!(site.info(&trained)["pinned"], true);
    site.ml(&["model", "unpin", "tiny"]).exits(0);
    assert_eq!(site.info(&trained)["pinned"], false);

    // What a gateway is told is what it says of each answer.
    let endpoint = endpoints(&site).remove(0);
    assert_eq!(endpoint["run"], started["id"]);
    assert_eq!(
        (&endpoint["kind"], &endpoint["runtime"]),
        (&"llama-server".into(), &"llama_cpp".into())
    );
    let digest = endpoint["model"]["sha256"].as_str().unwrap();
    let service = site.info(endpoint["run"].as_str().unwrap());
    let model = &service["plan"]["service"]["model"];
    assert_eq!(model["sha256"], digest);
    assert_eq!(model["run"], trained.as_str());
    let maker = site.info(model["run"].as_str().unwrap());
    assert_eq!(maker["plan"]["datasets"][0]["checksum"], checksum.as_str());
    assert!(maker["commit"].is_string());
    let shown = site
        .ml(&["info", endpoint["run"].as_str().unwrap()])
        .exits(0);
    for fact in [&trained, &checksum, maker["commit"].as_str().unwrap()] {
        assert!(shown.stdout.contains(fact), "{fact}: {}", shown.stdout);
    }
    assert_eq!(
        site.info(digest)["id"],
        trained.as_str(),
        "by the digest of an answer"
    );

    site.kill_daemon();
    ask(address(&replica));
    site.start();
    wait("the engine to be offered again", || {
        !endpoints(&site).is_empty()
    });
    assert_eq!(endpoints(&site)[0]["run"], endpoint["run"]);
    ask(address(&replica));
    site.ml(&["service", "stop", "chat"]).exits(0);
    site.no_process_left(endpoint["run"].as_str().unwrap());

    // By its digest the weights are the same ones.
    let recipe = chat(&site, &format!("sha256:{digest}"));
    let explained = site.json(&["explain", &recipe]);
    let planned = &explained["points"][0]["plan"]["service"]["model"]["run"];
    assert_eq!(*planned, trained.as_str());
    let unknown = chat(&site, &format!("sha256:{}", "0".repeat(64)));
    let refused = site.ml(&["service", "start", &unknown, "--json"]).exits(3);
    assert!(
        refused.stderr.contains("model_unrecorded"),
        "{}",
        refused.stderr
    );

    // One byte that is not what it was, wherever the weights lie.
    let recipe = chat(&site, &format!("sha256:{digest}"));
    let changed = change_a_byte(&site.data_dir().join("data"), &site.path("corpus.gguf"));
    assert!(changed > 0);
    let refused = site.ml(&["service", "start", &recipe, "--json"]).exits(1);
    assert!(refused.stderr.contains(digest), "{}", refused.stderr);
    let list = site.json(&["list"]);
    assert_eq!(list["runs"][0]["cause"], "model_changed", "{list}");
}

/// What `GET /v1/endpoints` says.
fn endpoints(site: &Site) -> Vec<Value> {
    let list = site.json(&["service", "endpoints"]);
    list["endpoints"].as_array().cloned().unwrap_or_default()
}

/// Changes one byte of each file below a folder that holds what this one does; how many
/// there were.
fn change_a_byte(folder: &Path, like: &Path) -> usize {
    let original = std::fs::read(like).expect("the original");
    let mut changed = 0;
    for path in files(folder) {
        let Ok(mut bytes) = std::fs::read(&path) else {
            continue;
        };
        let Some(place) = bytes.len().checked_sub(original.len()) else {
            continue;
        };
        // An object has a head of its own before what it holds.
        if bytes[place..] != original || place > 64 {
            continue;
        }
        *bytes.last_mut().expect("a byte") ^= 1;
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, bytes).expect("a changed file");
        changed += 1;
    }
    changed
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => files(&entry.path()),
            Ok(kind) if kind.is_file() => vec![entry.path()],
            _ => Vec::new(),
        })
        .collect()
}
