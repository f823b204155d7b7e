//! Each panel of the dashboards in `docs/dashboards` shows something, on a real Prometheus
//! that reads a real gateway's page. Its engines are simulated ones behind real sockets;
//! the page of their GPUs is a recorded one.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use mlmesh_testkit::gateway::Gateway;
use mlmesh_testkit::http;
use mlmesh_testkit::prometheus::Prometheus;
use mlmesh_testkit::sim::SimEngines;
use serde_json::{Value, json};

use crate::site::skipped;

const PATIENCE: Duration = Duration::from_secs(120);

/// Titles of panels with their expressions, as Grafana would send them.
fn panels() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/dashboards");
    let mut panels = Vec::new();
    let mut files = 0;
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("a file");
        let dashboard: Value = serde_json::from_str(&text).expect("JSON");
        files += 1;
        for panel in dashboard["panels"].as_array().expect("panels") {
            let title = panel["title"].as_str().expect("a title");
            for target in panel["targets"].as_array().expect("queries") {
                let expression = target["expr"].as_str().expect("an expression");
                let expression = expression
                    .replace("$__rate_interval", "10s")
                    .replace("$target", ".*");
                panels.push((format!("{title}: {expression}"), expression));
            }
        }
    }
    assert_eq!(files, 2);
    panels
}

/// Answers every request with a page of DCGM's exporter.
fn gpus() -> SocketAddr {
    let page = "DCGM_FI_DEV_GPU_UTIL{UUID=\"a\"} 87\nDCGM_FI_DEV_FB_USED{UUID=\"a\"} 1024\n\
        DCGM_FI_DEV_FB_FREE{UUID=\"a\"} 2048\nDCGM_FI_DEV_GPU_TEMP{UUID=\"a\"} 61\n\
        DCGM_FI_DEV_POWER_USAGE{UUID=\"a\"} 412.5\n";
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let length = page.len();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{page}"
            );
            let mut request = [0; 4096];
            if matches!(stream.read(&mut request), Ok(bytes) if bytes > 0) {
                let _ = stream.write_all(answer.as_bytes());
            }
        }
    });
    address
}

#[test]
fn each_panel_shows_something() {
    let engines = SimEngines::start(2, &[]);
    let gpus = format!("http://{}/metrics", gpus());
    let gateway = Gateway::start(engines.addresses(), &["--signals", &gpus]);
    let Some(prometheus) = Prometheus::start(gateway.pages(), "/-/metrics") else {
        return skipped("no `prometheus`");
    };
    let shared = "What all of them begin with. ".repeat(100);
    let mut dark: BTreeSet<(String, String)> = panels().into_iter().collect();
    assert!(dark.len() > 25, "{dark:?}");
    let deadline = Instant::now() + PATIENCE;
    let mut request = 0;
    while !dark.is_empty() {
        request += 1;
        let body = json!({
            "model": "sim",
            "messages": [{"role": "user", "content": format!("{shared}{request}")}],
            "stream": true,
            "stream_options": {"include_usage": true},
            "max_tokens": 8,
        });
        let path = "/v1/chat/completions";
        let (status, answer) =
            http::post(gateway.address(), path, &body.to_string()).expect("an answer");
        assert_eq!(status, 200, "{answer}");
        dark.retain(|(_, expression)| {
            let numbers = prometheus.query(expression);
            numbers.is_empty() || !numbers.iter().any(|number| number.is_finite())
        });
        assert!(
            Instant::now() < deadline,
            "nothing to see after {request} requests: {dark:#?}\n{}",
            prometheus.said()
        );
    }
}
