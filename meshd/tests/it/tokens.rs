//! Tokens of attempts: what they reach, what they do not, and that they end.

use std::path::{Path, PathBuf};

use mlmesh_api::IdempotencyKey;
use mlmesh_model::Phase;
use mlmesh_testkit::daemon::{Daemon, Start};
use serde_json::{Value, json};

use crate::wire::{
    Answer, client, request, request_with, said, store_tree, submission, until, until_ended,
};

/// A run whose job posts a point, tells its token to both streams, and waits.
struct Caller {
    id: String,
    gate: PathBuf,
    token: String,
}

const JOB: &str = r#"
import json, os, ssl, sys, time, urllib.request
token = open(os.environ["MLMESH_TOKEN_FILE"]).read()
print("token", token, flush=True)
print("token", token, file=sys.stderr, flush=True)
assert token not in str(os.environ)
context = ssl.create_default_context(cafile=os.environ["MLMESH_API_CA"])
url = os.environ["MLMESH_API_URL"] + "/v1/runs/" + os.environ["MLMESH_RUN_ID"]
def call(path, body=None):
    request = urllib.request.Request(url + path, data=body and json.dumps(body).encode())
    request.add_header("Authorization", "Bearer " + token)
    request.add_header("Content-Type", "application/json")
    return json.load(urllib.request.urlopen(request, context=context))
assert len(call("/attempts")["attempts"]) == 1
# The test kills the daemon once it sees this point: nothing may be asked after it.
try:
    call("/metrics", {"points": [{"name": "loss", "value": 0.5}]})
except OSError:
    pass
while not os.path.exists(sys.argv[1]):
    time.sleep(0.02)
"#;

impl Caller {
    fn start(daemon: &Daemon, name: &str, sandbox: bool) -> Option<Self> {
        let here = client(daemon);
        let gate = daemon.data_dir().parent().unwrap().join(name);
        // A sandbox does not see the gate; its job waits until it is cancelled.
        let commit = store_tree(&here, JOB.as_bytes());
        let line = format!("exec python3 train.py '{}'", gate.display());
        let mut work = submission(commit, &line);
        let experiment = work.workload.job_mut();
        experiment.api = true;
        experiment.sandbox = sandbox;
        // Several live at once on the smallest machine.
        experiment.resources.cpu_milli = 100;
        let key = IdempotencyKey::random().unwrap();
        let id = match here.submit(&work, &key) {
            Ok(accepted) => accepted.id.to_string(),
            // A host that makes no sandbox refuses; its gate says so elsewhere.
            Err(error) if sandbox && error.to_string().contains("sandbox is not possible") => {
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        until("the job has posted its point", || {
            let run = here.run(&id).unwrap();
            assert!(!run.phase.is_ended(), "{:?}: {}", run.phase, run.message);
            run.metrics.contains_key("loss").then_some(())
        });
        let file = attempt(daemon, &id).join("api/token");
        let token = std::fs::read_to_string(file).unwrap();
        Some(Self { id, gate, token })
    }

    fn end(&self, daemon: &Daemon) {
        std::fs::write(&self.gate, "").unwrap();
        assert_eq!(
            until_ended(&client(daemon), &self.id).phase,
            Phase::Completed
        );
    }

    fn call(&self, daemon: &Daemon, method: &str, target: &str, body: Option<&str>) -> Answer {
        call(daemon, Some(&self.token), method, target, body)
    }

    fn post(&self, daemon: &Daemon, points: Value) -> Answer {
        self.post_with(daemon, points, "")
    }

    fn post_with(&self, daemon: &Daemon, points: Value, header: &str) -> Answer {
        let body = json!({ "points": points }).to_string();
        let target = format!("/v1/runs/{}/metrics", self.id);
        let headers = format!("Authorization: Bearer {}\r\n{header}", self.token);
        request_with(daemon, "POST", &target, Some(&body), &headers)
    }
}

fn attempt(daemon: &Daemon, id: &str) -> PathBuf {
    daemon
        .data_dir()
        .join(format!("data/experiments/{id}/attempt-1"))
}

fn call(
    daemon: &Daemon,
    key: Option<&str>,
    method: &str,
    target: &str,
    body: Option<&str>,
) -> Answer {
    let header = key.map(|key| format!("Authorization: Bearer {key}\r\n"));
    request_with(daemon, method, target, body, &header.unwrap_or_default())
}

/// Files below `top` that hold the text.
fn holders(top: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path);
            } else if std::fs::read(&path).is_ok_and(|bytes| {
                bytes
                    .windows(text.len())
                    .any(|part| part == text.as_bytes())
            }) {
                found.push(path);
            }
        }
    }
    found
}

/// Every route of the document, with each sort of key.
#[test]
fn each_key_reaches_what_it_may_and_nothing_else() {
    let daemon = Daemon::start();
    let own = Caller::start(&daemon, "own", false).unwrap();
    let other = Caller::start(&daemon, "other", false).unwrap();
    let ended = Caller::start(&daemon, "ended", false).unwrap();
    ended.end(&daemon);
    let taken = [
        ("get", "/v1/runs/{run}"),
        ("get", "/v1/runs/{run}/attempts"),
        ("post", "/v1/runs/{run}/metrics"),
    ];
    let document = request(&daemon, "GET", "/openapi.json", None).json();
    let mut seen = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let is_open = path.starts_with("/health/");
            let is_taken = taken.contains(&(method.as_str(), path.as_str()));
            seen += usize::from(is_taken);
            let posts = path.ends_with("/metrics") && method == "post";
            let body = (method != "get").then_some(match posts {
                true => "{\"points\":[]}",
                false => "7",
            });
            let target = |run: &str| {
                let path = path
                    .replace("{run}", run)
                    .replace("{object}", &"0".repeat(64));
                path.replace("{name}", "NAME").replace("{version}", "1")
            };
            let owner = daemon.key();
            // The owner names a run that is not there, so that nothing is cancelled.
            let keys = [
                ("no key", None, target(&own.id), 401),
                (
                    "own token",
                    Some(&own.token),
                    target(&own.id),
                    if is_taken { 200 } else { 403 },
                ),
                (
                    "other run's token",
                    Some(&other.token),
                    target(&own.id),
                    403,
                ),
                (
                    "ended attempt's token",
                    Some(&ended.token),
                    target(&ended.id),
                    401,
                ),
                (
                    "owner key",
                    Some(&owner),
                    target("aaaaaaaaaaaa"),
                    if posts { 403 } else { 0 },
                ),
            ];
            for (who, key, target, expected) in keys {
                let method = method.to_uppercase();
                let answer = call(&daemon, key.map(String::as_str), &method, &target, body);
                let what = format!("{who}: {method} {target}: {answer:?}");
                match expected {
                    _ if is_open => assert!(![401, 403].contains(&answer.status), "{what}"),
                    0 => assert!(![0, 401, 403].contains(&answer.status), "{what}"),
                    expected => assert_eq!(answer.status, expected, "{what}"),
                }
                if [401, 403].contains(&expected) && !is_open {
                    let code = if expected == 401 {
                        "unauthenticated"
                    } else {
                        "forbidden"
                    };
                    assert_eq!(answer.code(), code, "{what}");
                }
            }
        }
    }
    assert_eq!(seen, taken.len());
    // Neither a prefix nor `@last` stands for its own run, and no other method.
    for target in ["/v1/runs/@last", &format!("/v1/runs/{}", &own.id[..8])] {
        assert_eq!(
            own.call(&daemon, "GET", target, None).status,
            403,
            "{target}"
        );
    }
    for wrong in [
        format!("{}0", own.token),
        own.token.to_uppercase(),
        own.token.replace(&own.id, &other.id),
    ] {
        let answer = call(
            &daemon,
            Some(&wrong),
            "GET",
            &format!("/v1/runs/{}", own.id),
            None,
        );
        assert_eq!(answer.status, 401, "{wrong}");
    }
    let metrics = String::from_utf8(request(&daemon, "GET", "/metrics", None).body).unwrap();
    let failures = metrics
        .lines()
        .find(|line| line.starts_with("mlmesh_auth_failures_total "));
    let count: u64 = failures
        .unwrap()
        .rsplit(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(count > 40, "{count}");
    for run in [&own, &other] {
        run.end(&daemon);
    }
}

#[test]
fn a_token_outlives_the_daemon_and_dies_with_its_attempt() {
    let start = Start {
        environment: &[("MLMESH_ATTEMPT_BYTES_MAX", "1KiB")],
        ..Start::default()
    };
    let mut daemon = Daemon::start_with(&start);
    let job = Caller::start(&daemon, "job", false).unwrap();
    let api = attempt(&daemon, &job.id).join("api");
    assert_eq!(holders(daemon.data_dir(), &job.token), [api.join("token")]);

    for (points, status) in [
        (
            json!([{"name": "loss", "value": 0.25, "step": 7, "time": 1.5}]),
            200,
        ),
        (
            json!([{"name": "loss", "value": "nan"}, {"name": "", "value": 1}]),
            400,
        ),
        (json!([{"name": "loss"}]), 400),
        (json!([{"name": "x".repeat(257), "value": 1}]), 400),
    ] {
        let answer = job.post(&daemon, points.clone());
        assert_eq!(answer.status, status, "{points}: {answer:?}");
    }
    let once = "Idempotency-Key: once\r\n";
    for _ in 0..2 {
        let again = json!([{"name": "loss", "value": 0.5}]);
        assert_eq!(job.post_with(&daemon, again, once).status, 200);
        daemon.kill_and_restart(&start);
    }
    let other = job.post_with(&daemon, json!([{"name": "loss", "value": 1}]), once);
    assert_eq!(
        (other.status, other.code().as_str()),
        (409, "idempotency_mismatch")
    );
    let mut kept = 3;
    let over = loop {
        let answer = job.post(&daemon, json!([{"name": "loss", "value": 1}]));
        if answer.status != 200 {
            break answer;
        }
        kept += 1;
    };
    assert_eq!(
        (over.status, over.code().as_str()),
        (429, "budget_exhausted")
    );
    assert!(kept > 5, "{kept}");
    daemon.kill_and_restart(&start);
    assert_eq!(
        job.post(&daemon, json!([{"name": "loss", "value": 1}]))
            .status,
        429
    );
    let target = format!("/v1/runs/{}", job.id);
    let live = job.call(&daemon, "GET", &target, None).json();
    assert_eq!(live["metrics"]["loss"]["steps"], kept);

    job.end(&daemon);
    let ended = client(&daemon).run(&job.id).unwrap();
    let loss = &ended.metrics["loss"];
    assert_eq!((loss.steps, loss.min.0), (kept, 0.25));
    assert_eq!(job.call(&daemon, "GET", &target, None).status, 401);
    assert_eq!(job.post(&daemon, json!([])).status, 401);
    // In no log either, although the job said it twice.
    until("the folder of the attempt is cleared", || {
        (!api.exists()).then_some(())
    });
    assert_eq!(
        holders(daemon.data_dir(), &job.token),
        Vec::<PathBuf>::new()
    );
    let here = client(&daemon);
    let said = said(&here, &job.id);
    assert_eq!(said.matches("token [redacted]").count(), 2, "{said}");
}

#[test]
fn a_job_in_a_sandbox_calls_the_daemon_too() {
    let daemon = Daemon::start();
    let Some(job) = Caller::start(&daemon, "walled", true) else {
        return;
    };
    assert_eq!(job.post(&daemon, json!([])).status, 200);
    let here = client(&daemon);
    let key = IdempotencyKey::random().unwrap();
    here.cancel(&job.id, &key).unwrap();
    assert_eq!(until_ended(&here, &job.id).phase, Phase::Cancelled);
    assert_eq!(job.post(&daemon, json!([])).status, 401);
}
