//! Pages over real sockets: a real engine's, and those of servers that do what they should
//! not.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::Duration;

use mlmesh_telemetry::adapter::{Figure, Signal, adapter};
use mlmesh_telemetry::scrape::{MetricsPage, Observation, ScrapeError};
use mlmesh_testkit::sim::SimEngines;
use mlmesh_testkit::triton::{MODEL, TritonServer};
use mlmesh_testkit::{http, llama, python};

const PATIENCE: Duration = Duration::from_secs(30);

fn page_of(address: SocketAddr) -> MetricsPage {
    let path = "/metrics".to_owned();
    MetricsPage::new(vec![address], address.to_string(), path, None)
}

fn observed(address: SocketAddr, within: Duration) -> Result<Observation, ScrapeError> {
    let mut page = page_of(address);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(page.observe(within))
}

#[test]
fn a_simulated_engine_tells_what_vllm_tells() {
    let engines = SimEngines::start(1, &[]);
    let address = engines.addresses()[0];
    let body = r#"{"model":"sim","prompt":"0123456789abcdef","max_tokens":7}"#;
    for _ in 0..2 {
        let (status, answer) = http::post(address, "/v1/completions", body).unwrap();
        assert_eq!(status, 200, "{answer}");
    }
    let seen = observed(address, PATIENCE).unwrap();
    assert_eq!(seen.adapter.runtime, "vllm");
    assert_eq!(seen.defects, 0);
    let figures = &seen.state.figures["sim"];
    for (signal, expected) in [
        (Signal::Waiting, Figure::Now(0.0)),
        (Signal::Running, Figure::Now(0.0)),
        (Signal::KvUsage, Figure::Now(0.0)),
        (Signal::PromptTokens, Figure::Total(8.0)),
        (Signal::CachedTokens, Figure::Total(0.0)),
        (Signal::GeneratedTokens, Figure::Total(14.0)),
        (Signal::Done, Figure::Total(2.0)),
    ] {
        assert_eq!(figures[&signal], expected, "{signal:?}");
    }
    // Four tokens at 50 µs, and six iterations of 5 ms.
    let times = |signal: Signal| match figures[&signal] {
        Figure::Timing { seconds, count } => (seconds, count),
        other => panic!("{other:?}"),
    };
    assert_eq!(times(Signal::FirstToken), (0.0004, 2.0));
    assert_eq!(times(Signal::BetweenTokens), (0.06, 12.0));
    let missing: Vec<_> = seen.state.missing.keys().collect();
    assert_eq!(missing, [&Signal::Failed], "which vLLM does not have");
}

#[test]
fn a_real_engine_says_what_it_has_done() {
    let Some(root) = llama::find() else {
        return;
    };
    let engine = llama::LlamaServer::start(&root);
    let before = observed(engine.address(), PATIENCE).unwrap();
    assert_eq!(before.adapter.runtime, "llama_cpp");
    assert_eq!(before.defects, 0);
    let body = r#"{"prompt":"one two three four","max_tokens":7,"ignore_eos":true}"#;
    let (status, answer) = http::post(engine.address(), "/v1/completions", body).unwrap();
    assert_eq!(status, 200, "{answer}");
    let after = observed(engine.address(), PATIENCE).unwrap();
    let total = |seen: &Observation, signal: Signal| match seen.state.figures[""][&signal] {
        Figure::Total(total) => total,
        other => panic!("{other:?}"),
    };
    let grown = |signal| total(&after, signal) - total(&before, signal);
    assert_eq!(grown(Signal::GeneratedTokens), 7.0);
    assert!(grown(Signal::PromptTokens) >= 4.0);
    let now = |signal: Signal| after.state.figures[""][&signal];
    assert_eq!(now(Signal::Waiting), Figure::Now(0.0));
    assert_eq!(now(Signal::Running), Figure::Now(0.0));
    // Whatever it has is read or absent for a reason, so that a new name is noticed.
    let adapter = adapter("llama_cpp").unwrap();
    let missing: Vec<_> = adapter
        .signals
        .keys()
        .filter(|signal| after.state.missing.contains_key(signal))
        .collect();
    assert!(missing.is_empty(), "{missing:?}: {:?}", after.state);
}

#[test]
fn a_real_triton_says_what_it_has_done() {
    let Some(environment) = python::environment_with("tritonclient") else {
        return;
    };
    let triton = TritonServer::start(&environment);
    let path = format!("/v2/models/{MODEL}/infer");
    let ask = |body: &str| http::post(triton.http(), &path, body).unwrap();
    let input = r#"{"inputs":[{"name":"IN","shape":[2],"datatype":"INT32","data":[1,2]}]}"#;
    for _ in 0..3 {
        let (status, answer) = ask(input);
        assert!(status == 200 && answer.contains("[2,4]"), "{answer}");
    }
    let seen = observed(triton.metrics(), PATIENCE).unwrap();
    assert_eq!((seen.adapter.runtime.as_str(), seen.defects), ("triton", 0));
    let figures = &seen.state.figures[MODEL];
    assert_eq!(figures[&Signal::Done], Figure::Total(3.0));
    assert_eq!(figures[&Signal::Failed], Figure::Total(0.0));
    assert_eq!(figures[&Signal::Waiting], Figure::Now(0.0));
    for signal in [Signal::EndToEnd, Signal::Queued] {
        let Figure::Timing { seconds, count } = figures[&signal] else {
            panic!("{figures:?}");
        };
        assert!(
            seconds > 0.0 && seconds < 60.0 && count == 3.0,
            "{figures:?}"
        );
    }
}

/// A server that reads one request and answers so, then holds the connection.
fn server(answer: &'static [u8]) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let mut read = 0;
        while !request[..read].ends_with(b"\r\n\r\n") {
            read += stream.read(&mut request[read..]).unwrap();
        }
        let _ = stream.write_all(answer);
        // Until the other side goes.
        let _ = stream.read(&mut request);
    });
    (address, thread)
}

#[test]
fn what_is_no_page_is_refused_with_the_reason() {
    let cases: [(&[u8], &str); 7] = [
        (
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            "`/metrics` answers 404 Not Found",
        ),
        (b"+OK redis\r\n", "does not speak HTTP/1.1"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nup \xff\n",
            "not UTF-8",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nup 1\n",
            "1 samples, and none of a runtime",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
            "the page has 99999999 bytes",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nvllm:",
            "no whole answer within",
        ),
        (b"", "no whole answer within"),
    ];
    for (answer, expected) in cases {
        let hangs = expected.starts_with("no whole");
        let within = if hangs {
            Duration::from_millis(50)
        } else {
            PATIENCE
        };
        let (address, thread) = server(answer);
        let error = observed(address, within).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}, not {expected}");
        thread.join().unwrap();
    }
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = gone.local_addr().unwrap();
    drop(gone);
    let error = observed(address, PATIENCE).unwrap_err().to_string();
    assert!(error.contains("does not answer"), "{error}");
}

#[test]
fn a_connection_is_kept_and_made_anew_where_it_has_ended() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut page = page_of(listener.local_addr().unwrap());
    // Two pages over the first connection, which then ends unsaid; one over the second.
    let thread = std::thread::spawn(move || {
        for pages in [2, 1] {
            let (mut stream, _) = listener.accept().unwrap();
            for _ in 0..pages {
                let mut request = [0; 1024];
                let mut read = 0;
                while !request[..read].ends_with(b"\r\n\r\n") {
                    read += stream.read(&mut request[read..]).unwrap();
                }
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\ntgi_queue 1";
                stream.write_all(answer).unwrap();
            }
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let connected: Vec<bool> = runtime.unwrap().block_on(async {
        let mut connected = Vec::new();
        for _ in 0..3 {
            page.observe(PATIENCE).await.unwrap();
            connected.push(page.connected.is_some());
        }
        connected
    });
    assert_eq!(connected, [true, false, true]);
    thread.join().unwrap();
}
