//! What targets report of themselves reaches decisions and pages; the targets are played
//! by the test, the sockets are real.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use mlmesh_gateway::{Gateway, Settings, Signals};
use mlmesh_testkit::http;
use serde_json::Value;

use crate::wire::{eventually, settings};

/// All labels of the gateway's page, as docs/gateway.md lists them.
const LABELS: [&str; 8] = [
    "cause", "le", "outcome", "reason", "runtime", "signal", "source", "target",
];

/// Answers `/metrics` with a page, everything else with 404.
struct Engine {
    address: SocketAddr,
    page: Arc<Mutex<String>>,
    gone: Arc<AtomicBool>,
    /// Requests for anything else.
    asked: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    fn start(page: &str) -> Engine {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let page = Arc::new(Mutex::new(page.to_owned()));
        let gone = Arc::new(AtomicBool::new(false));
        let asked = Arc::new(AtomicU64::new(0));
        let (shared, is_gone) = (Arc::clone(&page), Arc::clone(&gone));
        let count = Arc::clone(&asked);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if is_gone.load(Ordering::SeqCst) {
                    return;
                }
                let (page, gone) = (Arc::clone(&shared), Arc::clone(&is_gone));
                let count = Arc::clone(&count);
                std::thread::spawn(move || serve(&stream.unwrap(), &page, &gone, &count));
            }
        });
        Engine {
            address,
            page,
            gone,
            asked,
            thread: Some(thread),
        }
    }

    fn says(&self, page: &str) {
        page.clone_into(&mut self.page.lock().unwrap());
    }

    /// Nobody is there any more.
    fn leave(&mut self) {
        self.gone.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        self.thread.take().unwrap().join().unwrap();
    }
}

fn serve(stream: &TcpStream, page: &Mutex<String>, gone: &AtomicBool, asked: &AtomicU64) {
    let mut lines = BufReader::new(stream).lines();
    while let Some(Ok(request)) = lines.next() {
        while matches!(lines.next(), Some(Ok(line)) if !line.is_empty()) {}
        if gone.load(Ordering::SeqCst) {
            return;
        }
        let page = page.lock().unwrap().clone();
        let (status, body) = match request.starts_with("GET /metrics ") {
            true => ("200 OK", page.as_str()),
            false => {
                asked.fetch_add(1, Ordering::SeqCst);
                ("404 Not Found", "")
            }
        };
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
        let mut stream = stream;
        if stream.write_all(head.as_bytes()).is_err() {
            return;
        }
    }
}

fn gateway(engines: &[&Engine], sources: &[String]) -> Gateway {
    let sources = sources.iter().map(|source| source.parse().unwrap());
    Gateway::start(Settings {
        signals: Signals {
            sources: sources.collect(),
            ..Signals::default()
        },
        ..settings(engines.iter().map(|engine| engine.address))
    })
    .unwrap()
}

fn targets(gateway: &Gateway) -> Value {
    let (status, body) = http::get(gateway.address(), "/-/targets").unwrap();
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

fn target(gateway: &Gateway, place: usize) -> Value {
    targets(gateway)["targets"][place].take()
}

fn signal(target: &Value, name: &str) -> Value {
    let signals = target["signals"].as_array().unwrap();
    let found = signals.iter().find(|signal| signal["signal"] == name);
    found.cloned().unwrap_or_default()
}

fn end(gateway: Gateway) {
    gateway.drain(Duration::from_secs(1));
}

#[test]
fn an_engine_is_recognised_and_its_load_is_known() {
    let engine = Engine::start("tgi_queue_size 4\ntgi_batch_current_size 8\n");
    let gateway = gateway(&[&engine], &[]);
    eventually(|| target(&gateway, 0)["foreign"] == 12);
    let seen = target(&gateway, 0);
    assert_eq!(seen["sources"][0]["runtime"], "tgi", "{seen}");
    assert_eq!(signal(&seen, "waiting")["value"], 4.0);
    assert_eq!(signal(&seen, "waiting")["source"], "tgi");
    let missing = &signal(&seen, "kv_usage")["missing"];
    assert_eq!(missing["reason"], "not_offered", "{seen}");
    assert!(missing["text"].as_str().unwrap().len() > 10);
    assert_eq!(signal(&seen, "gpu_xid")["missing"]["reason"], "nobody_says");
    assert!(seen["rtt_us"].as_u64().unwrap() > 0, "{seen}");
    // It changes its mind, and lies.
    engine.says("tgi_queue_size 1e300\ntgi_batch_current_size 2\n");
    eventually(|| signal(&target(&gateway, 0), "running")["value"] == 2.0);
    let seen = signal(&target(&gateway, 0), "waiting");
    assert_eq!(seen["missing"]["reason"], "refused", "{seen}");
    assert!(seen["refused"].as_u64().unwrap() >= 1);
    end(gateway);
}

#[test]
fn an_unknown_engine_says_so_and_is_used() {
    let engine = Engine::start("up 1\n");
    let gateway = gateway(&[&engine], &[]);
    // Both places at which engines have pages were looked at.
    eventually(|| target(&gateway, 0)["sources"][0]["failures"].as_u64() >= Some(2));
    let seen = target(&gateway, 0);
    assert_eq!(seen["sources"][0]["runtime"], Value::Null, "{seen}");
    assert_eq!(seen["usable"], true);
    let (_, page) = http::get(gateway.address(), "/-/metrics").unwrap();
    let at = engine.address;
    let series = format!("source_up{{source=\"http://{at}\",runtime=\"unrecognised\"}} 0\n");
    assert!(page.contains(&series), "{page}");
    end(gateway);
}

#[test]
fn who_is_gone_is_in_quarantine_until_it_is_back() {
    let page = "tgi_queue_size 0\ntgi_batch_current_size 0\n";
    let stays = Engine::start(page);
    let mut goes = Engine::start(page);
    let gateway = gateway(&[&stays, &goes], &[]);
    eventually(|| signal(&target(&gateway, 1), "waiting")["value"] == 0.0);
    goes.leave();
    eventually(|| target(&gateway, 1)["usable"] == false);
    let seen = target(&gateway, 1);
    assert_eq!(seen["standing"]["cause"], "network", "{seen}");
    assert_eq!(signal(&seen, "waiting")["missing"]["reason"], "unreachable");
    assert_eq!(target(&gateway, 0)["usable"], true);
    let listener = TcpListener::bind(goes.address).unwrap();
    let thread = std::thread::spawn(move || {
        let (page, gone) = (Mutex::new(page.to_owned()), AtomicBool::new(false));
        let (stream, _) = listener.accept().unwrap();
        serve(&stream, &page, &gone, &AtomicU64::new(0));
    });
    eventually(|| target(&gateway, 1)["standing"]["is"] == "probation");
    let seen = target(&gateway, 1);
    assert_eq!(seen["usable"], true);
    assert!(seen["penalty_us"].as_u64().unwrap() > 0, "{seen}");
    end(gateway);
    thread.join().unwrap();
}

#[test]
fn a_gpus_page_puts_its_target_in_quarantine() {
    let page = "tgi_queue_size 0\n";
    let (cool, hot) = (Engine::start(page), Engine::start(page));
    let gpus =
        Engine::start("DCGM_FI_DEV_GPU_TEMP{UUID=\"a\"} 60\nDCGM_FI_DEV_GPU_TEMP{UUID=\"b\"} 61\n");
    let of = |engine: &Engine, gpu: &str| {
        format!(
            "http://{}=http://{}/metrics#{gpu}",
            engine.address, gpus.address
        )
    };
    let gateway = gateway(&[&cool, &hot], &[of(&cool, "a"), of(&hot, "b")]);
    let temperature = |place| signal(&target(&gateway, place), "gpu_temperature")["value"].clone();
    eventually(|| temperature(0) == 60.0 && temperature(1) == 61.0);
    gpus.says("DCGM_FI_DEV_GPU_TEMP{UUID=\"a\"} 60\nDCGM_FI_DEV_GPU_TEMP{UUID=\"b\"} 99\n");
    eventually(|| target(&gateway, 1)["usable"] == false);
    let seen = target(&gateway, 1);
    assert_eq!(seen["standing"]["cause"], "thermal");
    // Whatever is asked for goes to the other one.
    let asked = |engine: &Engine| engine.asked.load(Ordering::SeqCst);
    let (before, before_hot) = (asked(&cool), asked(&hot));
    for _ in 0..4 {
        assert_eq!(http::get(gateway.address(), "/v1/models").unwrap().0, 404);
    }
    assert_eq!((asked(&cool), asked(&hot)), (before + 4, before_hot));
    // The exporter's own delay is a part of the age.
    let degrees = signal(&seen, "gpu_temperature");
    assert_eq!(degrees["source_delay_ms"], 30_000);
    assert!(degrees["age_ms"].as_u64().unwrap() >= 30_000, "{degrees}");
    assert_eq!(target(&gateway, 0)["usable"], true);
    end(gateway);
}

#[test]
fn the_page_of_metrics_is_as_promtool_wants_it() {
    let engine = Engine::start("tgi_queue_size 4\ntgi_batch_current_size -8\n");
    let gateway = gateway(&[&engine], &["nvml".to_owned()]);
    let seen = |name: &str| !signal(&target(&gateway, 0), name)["missing"].is_null();
    eventually(|| seen("running") && signal(&target(&gateway, 0), "waiting")["value"] == 4.0);
    let (_, page) = http::get(gateway.address(), "/-/metrics").unwrap();
    let at = engine.address;
    for series in [
        format!("target_signal{{target=\"{at}\",signal=\"waiting\"}} 4\n"),
        format!(
            "target_signal_missing{{target=\"{at}\",signal=\"running\",reason=\"impossible\"}} 1\n"
        ),
        format!("target_signal_age_seconds{{target=\"{at}\",signal=\"waiting\"}} "),
        format!("target_usable{{target=\"{at}\"}} 1\n"),
    ] {
        let series = format!("\nmlmesh_gateway_{series}");
        assert!(page.contains(&series), "{series} in {page}");
    }
    let parsed = mlmesh_telemetry::exposition::Page::read(&page).unwrap();
    assert_eq!(parsed.defects, 0);
    // One list of labels for all series; a new one is a decision.
    let samples = parsed.samples.iter();
    let labels = samples.flat_map(|sample| sample.labels.iter().map(|(name, _)| *name));
    let labels: std::collections::BTreeSet<&str> = labels.collect();
    let known = LABELS.iter().copied().collect();
    assert!(labels.is_subset(&known), "{labels:?}");
    let spawned = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = spawned else {
        println!("skipped: no promtool");
        end(gateway);
        return;
    };
    let mut input = promtool.stdin.take().unwrap();
    input.write_all(page.as_bytes()).unwrap();
    drop(input);
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}");
    end(gateway);
}

#[test]
fn work_goes_where_others_have_sent_less() {
    let idle = "tgi_queue_size 0\ntgi_batch_current_size 0\n";
    let (busy, free) = (Engine::start(idle), Engine::start(idle));
    let gateway = Gateway::start(Settings {
        strategy: "least_queue".to_owned(),
        ..settings([&busy, &free].into_iter().map(|engine| engine.address))
    });
    let gateway = gateway.unwrap();
    let answered = || {
        http::post(gateway.address(), "/v1/completions", "{}")
            .unwrap()
            .0
    };
    let asked = |engine: &Engine| engine.asked.load(Ordering::SeqCst);
    // Nothing is reported so far, or asked for: of two equals the first.
    assert_eq!(answered(), 404);
    assert_eq!((asked(&busy), asked(&free)), (1, 0));
    end(gateway);
    let gateway = Gateway::start(Settings {
        strategy: "least_queue".to_owned(),
        signals: Signals::default(),
        ..settings([&busy, &free].into_iter().map(|engine| engine.address))
    });
    let gateway = gateway.unwrap();
    busy.says("tgi_queue_size 3\ntgi_batch_current_size 1\n");
    eventually(|| target(&gateway, 0)["foreign"] == 4);
    let before = (asked(&busy), asked(&free));
    for _ in 0..3 {
        http::post(gateway.address(), "/v1/completions", "{}").unwrap();
    }
    assert_eq!((asked(&busy), asked(&free)), (before.0, before.1 + 3));
    end(gateway);
}
