//! The front door and every route, in process, on a daemon with real parts: no bytes
//! panic, nothing is answered with 5xx, and an error has the documented body.
//!
//! Two targets. One makes requests of the bytes and hands them to the router; the
//! other speaks the bytes over a pipe to the HTTP parser, WebSockets included. They
//! know a key, so that they come past the door. Going down is left out, and no commit
//! is there that a submission could name, so that no run starts.

#![cfg(test)]

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use mlmesh_api::settings::Settings;
use mlmesh_exec::SystemClock;
use mlmesh_testkit::fuzz::{border, folder};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Runtime;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::daemon::Stopping;
use crate::data_dir::DataDir;
use crate::http::listener::protocol;
use crate::logs::LogConfig;
use crate::routes::{Body as Reads, router, routes};
use crate::serve::{ForJobs, open_parts};

/// Longer than any answer takes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
const ID: &str = "4e401b9cbe6aba5600e2e5f84e1b62af4b4f7af0f19afab650ad1e0b54cc2815";

struct House {
    runtime: Runtime,
    router: Router,
    key: String,
    data: String,
    stopping: Stopping,
    _folder: tempfile::TempDir,
}

impl House {
    fn new() -> Self {
        let folder = folder();
        let root = folder.path().join("daemon");
        let text = root.to_str().unwrap().to_owned();
        let settings = Settings::resolve(None, |_| None, &[("client.data_dir", text)]).unwrap();
        let directory = DataDir::open(&root).unwrap();
        let logs = crate::logs::start(LogConfig {
            directory: directory.path("logs"),
            bytes_max: 1 << 20,
            files_max: 1,
        })
        .unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let stopping = Stopping::default();
        let clock: Arc<dyn mlmesh_model::Clock> = Arc::new(SystemClock);
        let daemon = runtime
            .block_on(open_parts(
                &settings,
                &directory,
                &logs,
                &clock,
                &stopping,
                &TaskTracker::new(),
                ForJobs {
                    umask: rustix::fs::Mode::from_raw_mode(0o022),
                    address: ([127, 0, 0, 1], 1).into(),
                },
            ))
            .unwrap();
        let data = folder.path().join("data");
        std::fs::write(&data, "1,2\n").unwrap();
        Self {
            runtime,
            router: router(daemon),
            key: std::fs::read_to_string(root.join("owner.key"))
                .unwrap()
                .trim()
                .to_owned(),
            data: data.to_str().unwrap().to_owned(),
            stopping,
            _folder: folder,
        }
    }

    /// A request to each route, with a body that it takes.
    fn samples(&self) -> Vec<Vec<u8>> {
        let all = routes()
            .into_iter()
            .filter(|route| route.path != "/v1/daemon/stop");
        all.map(|route| {
            let mut path = route.path.to_owned();
            for (part, value) in [
                ("{run}", "@last"),
                ("{object}", ID),
                ("{name}", "digits"),
                ("{version}", "1"),
            ] {
                path = path.replace(part, value);
            }
            for (index, param) in route.query.iter().enumerate() {
                path.push(if index == 0 { '?' } else { '&' });
                path.push_str(&format!(
                    "{}={}",
                    param.name,
                    if param.name == "phase" { "failed" } else { "4" }
                ));
            }
            let body = self.body(route.path);
            let kind = match route.body {
                Reads::None => "",
                Reads::Json { .. } => "content-type: application/json\n",
                Reads::Binary { .. } => "content-type: application/octet-stream\n",
            };
            let head = format!("{} {path}\n{kind}idempotency-key: one\n\n", route.method);
            [head.as_bytes(), &body].concat()
        })
        .collect()
    }

    fn body(&self, path: &str) -> Vec<u8> {
        let submission = format!(
            r#"{{"workload":{{"experiment":{{"name":"a","command":["true","${{lr}}"],"params":{{"lr":0.1}},
               "sweep":{{"lr":[1,2]}},"seed":"none"}}}},"commit":"{ID}","recipe_path":"a.yaml","policy":"relaxed",
               "priority":-3,"secret_values":{{"K":"v"}}}}"#
        );
        match path {
            "/v1/explain" | "/v1/runs" => submission.into_bytes(),
            "/v1/datasets" => format!(
                r#"{{"name":"digits","version":"1","path":"{}"}}"#,
                self.data
            )
            .into_bytes(),
            "/v1/prune" => br#"{"dry_run":false,"ended_before_s":5,"grace_s":9}"#.to_vec(),
            "/v1/runs/{run}/retry" => br#"{"failed_only":true}"#.to_vec(),
            "/v1/objects/batch" => b"mlfrme\0\x01\0\0\0\0\0\0\0\0\0".to_vec(),
            "/v1/commits" => format!("mlmesh-tree 1\n644 1 {ID} a\n").into_bytes(),
            "/v1/chunks" | "/v1/chunks/missing" => b"\x01\0\0\0mlchnk\0\x01".repeat(9),
            _ => vec![7; 64],
        }
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.stopping.begin(false);
    }
}

/// Pieces of requests.
const WORDS: &[&[u8]] = &[
    b"GET ",
    b"POST ",
    b"DELETE ",
    b"HEAD ",
    b"\n",
    b"\r\n",
    b"/",
    b"/../",
    b"%2e%2e%2f",
    b"%00",
    b"%",
    b"?",
    b"&",
    b"=",
    b"?limit=0",
    b"after=9007199254740991",
    b"@last",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"null",
    b"[[[[[[[[[[[[[[[[",
    b"{\"a\":{\"a\":{\"a\":",
    b"1e999",
    b"\\ud800",
    b"transfer-encoding: chunked\n",
    b"content-length: 5\n",
    b"content-type: text/plain\n",
    b"idempotency-key: ",
    b"authorization: Bearer x\n",
    b"accept: ",
    b"range: bytes=0-\n",
    b"\xff",
    b"connection: close\n",
];

/// Head and body of a request, lines of the head ended by a line feed.
fn request(house: &House, bytes: &[u8]) -> Option<Request> {
    let end = bytes
        .windows(2)
        .position(|pair| pair == b"\n\n")
        .unwrap_or(bytes.len());
    let mut lines = bytes[..end].split(|byte| *byte == b'\n');
    let (method, target) = {
        let line = lines.next()?;
        let space = line.iter().position(|byte| *byte == b' ')?;
        (&line[..space], &line[space + 1..])
    };
    if target.starts_with(b"/v1/daemon/stop") {
        return None;
    }
    let mut builder = Request::builder().method(method).uri(target);
    let mut has_key = false;
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        has_key |= line[..colon].eq_ignore_ascii_case(b"authorization");
        builder = builder.header(&line[..colon], line[colon + 1..].trim_ascii());
    }
    if !has_key {
        builder = builder.header(header::AUTHORIZATION, format!("Bearer {}", house.key));
    }
    let body = bytes.get(end + 2..).unwrap_or_default().to_vec();
    builder.body(Body::from(body)).ok()
}

#[test]
fn fuzz_requests() {
    let house = House::new();
    let samples = house.samples();
    let samples: Vec<&[u8]> = samples.iter().map(Vec::as_slice).collect();
    let mut answered = std::collections::BTreeMap::<u16, u64>::new();
    border("requests to every route", &samples, WORDS, |bytes| {
        let Some(request) = request(&house, bytes) else {
            return;
        };
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let (status, body) = house.runtime.block_on(async {
            let answer = async {
                let answer = house.router.clone().oneshot(request).await.unwrap();
                let status = answer.status();
                (
                    status,
                    answer
                        .into_body()
                        .collect()
                        .await
                        .map(|body| body.to_bytes()),
                )
            };
            tokio::time::timeout(ANSWER_TIMEOUT, answer)
                .await
                .expect("an answer in time")
        });
        *answered.entry(status.as_u16()).or_default() += 1;
        let body = body.expect("a whole answer");
        assert!(
            status.as_u16() < 500,
            "{method} {path}: {status}: {}",
            body.escape_ascii()
        );
        if status.is_client_error() && method != Method::HEAD {
            let error: serde_json::Value = serde_json::from_slice(&body).expect("an error in JSON");
            for field in ["code", "message", "hint"] {
                assert!(error[field].is_string(), "{method} {path}: {error}");
            }
        }
    });
    assert!(
        answered.contains_key(&StatusCode::OK.as_u16()),
        "{answered:?}"
    );
}

/// Bytes as they come from the network, behind TLS.
#[test]
fn fuzz_connections() {
    let house = House::new();
    let head = |line: &str, more: &str| {
        format!(
            "{line} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n{more}\r\n",
            house.key
        )
        .into_bytes()
    };
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                   sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    // A masked text frame, a ping and a close.
    let frames = b"\x81\x82\0\0\0\0hi\x89\x81\0\0\0\0p\x88\x82\0\0\0\0\x03\xe8";
    let chunked = b"5\r\n{\"fai\r\n1\r\nl\r\n0\r\n\r\n";
    let samples = [
        head("GET /v1/status", ""),
        [
            head("GET /health/live", ""),
            head("GET /v1/runs?limit=3", ""),
        ]
        .concat(),
        [head("GET /v1/events?after=0", upgrade), frames.to_vec()].concat(),
        [
            head(
                "POST /v1/runs/@last/retry",
                "transfer-encoding: chunked\r\n",
            ),
            chunked.to_vec(),
        ]
        .concat(),
        [
            head(
                "POST /v1/objects/have",
                "content-length: 32\r\nexpect: 100-continue\r\n",
            ),
            vec![1; 32],
        ]
        .concat(),
    ];
    let samples: Vec<&[u8]> = samples.iter().map(Vec::as_slice).collect();
    let words: Vec<&[u8]> = WORDS
        .iter()
        .copied()
        .chain([
            &frames[..],
            b"HTTP/1.0",
            b"HTTP/2.0",
            b"\r\n\r\n",
            b"ffffffffffffffff\r\n",
            b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x01\x80\0\0\0\0",
            b" a: b\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ])
        .collect();
    border("connections, WebSocket frames", &samples, &words, |bytes| {
        if bytes.windows(4).any(|part| part == b"stop") {
            return;
        }
        let answer = house.runtime.block_on(async {
            let (mut ours, theirs) = tokio::io::duplex(64 << 10);
            let service = TowerToHyperService::new(house.router.clone());
            let served = protocol()
                .serve_connection(TokioIo::new(theirs), service)
                .with_upgrades();
            let spoken = async {
                // The other side may have closed already.
                let _ = ours.write_all(bytes).await;
                let _ = ours.shutdown().await;
                let mut answer = Vec::new();
                let _ = ours.read_to_end(&mut answer).await;
                answer
            };
            let both = async { tokio::join!(served, spoken).1 };
            tokio::time::timeout(ANSWER_TIMEOUT, both)
                .await
                .expect("the connection ends")
        });
        assert!(
            !answer.starts_with(b"HTTP/1.1 5"),
            "{}",
            answer.escape_ascii()
        );
    });
}
