//! `ml sim serve`: what its engines answer, count and forget. Nothing here depends on
//! how fast this machine is.

use std::io::Read;
use std::net::SocketAddr;
use std::time::Instant;

use mlmesh_testkit::http;
use mlmesh_testkit::place::wait;
use mlmesh_testkit::sim::SimEngines;
use serde_json::{Value, json};

use crate::program::place;

/// Prompts of 1,024 characters, 256 tokens; the letter makes them different.
fn chat(letter: &str, max_tokens: u64, stream: bool) -> String {
    let (first, second) = (letter.repeat(1_000), "x".repeat(24));
    let messages = json!([
        {"role": "system", "content": first},
        {"role": "user", "content": [{"type": "text", "text": second}]},
    ]);
    let options = json!({"include_usage": true});
    let mut body = json!({"model": "sim", "messages": messages, "max_tokens": max_tokens});
    if stream {
        body["stream"] = true.into();
        body["stream_options"] = options;
    }
    body.to_string()
}

fn events(address: SocketAddr, path: &str, body: &str) -> Vec<Value> {
    let (status, text) = http::post(address, path, body).unwrap();
    assert_eq!(status, 200, "{text}");
    let mut events: Vec<&str> = text.split("\n\n").collect();
    assert_eq!(events.pop(), Some(""));
    assert_eq!(events.pop(), Some("data: [DONE]"));
    let event = |event: &str| serde_json::from_str(event.strip_prefix("data: ").unwrap());
    events.into_iter().map(|one| event(one).unwrap()).collect()
}

#[test]
fn a_stream_has_each_token_as_a_piece_and_its_usage() {
    let engines = SimEngines::start(1, &[]);
    let address = engines.addresses()[0];
    let before = Instant::now();
    let told = events(address, "/v1/chat/completions", &chat("a", 5, true));
    // 256 tokens at 20,000 a second and four iterations of 5 ms: never sooner.
    assert!(before.elapsed().as_micros() >= 12_800 + 20_000);
    assert_eq!(told.len(), 7, "{told:?}");
    for piece in &told[..5] {
        assert_eq!(piece["choices"][0]["delta"]["content"], " sim");
        assert_eq!(piece["choices"][0]["finish_reason"], Value::Null);
        assert_eq!(
            (&piece["model"], &piece["system_fingerprint"]),
            (&json!("sim"), &json!("sim"))
        );
    }
    assert_eq!(told[5]["choices"][0]["finish_reason"], "length");
    let usage = |cached: u64| {
        json!({
            "prompt_tokens": 256, "completion_tokens": 5, "total_tokens": 261,
            "prompt_tokens_details": {"cached_tokens": cached},
        })
    };
    assert_eq!(told[6]["usage"], usage(0));
    // The engine's own time of the first token is exact, however late this machine was.
    let first_s = engines.metric(0, "vllm:time_to_first_token_seconds_sum", "");
    assert_eq!(first_s, 0.0128);
    assert_eq!(
        engines.metric(0, "vllm:inter_token_latency_seconds_sum", ""),
        0.02
    );
    assert!(engines.metric(0, "mlmesh_sim_late_seconds_count", "") >= 5.0);

    // Fifteen of sixteen blocks are held: the last token is always worked on.
    let (status, whole) =
        http::post(address, "/v1/chat/completions", &chat("a", 5, false)).unwrap();
    assert_eq!(status, 200);
    let whole: Value = serde_json::from_str(&whole).unwrap();
    assert_eq!(whole["usage"], usage(240));
    assert_eq!(whole["choices"][0]["message"]["content"], " sim".repeat(5));
    assert_eq!(engines.metric(0, "vllm:prefix_cache_hits_total", ""), 240.0);

    let text = json!({"model": "sim", "prompt": "hello", "max_tokens": 2, "stream": true});
    let told = events(address, "/v1/completions", &text.to_string());
    let texts: Vec<&Value> = told
        .iter()
        .map(|event| &event["choices"][0]["text"])
        .collect();
    assert_eq!(texts, [" sim", " sim", ""]);
}

#[test]
fn the_pages_beside_it_are_there_and_what_cannot_be_asked_is_refused() {
    let engines = SimEngines::start(2, &["--slow", "1=3"]);
    for address in engines.addresses() {
        assert_eq!(http::get(*address, "/health").unwrap().0, 200);
        let (_, models) = http::get(*address, "/v1/models").unwrap();
        let models: Value = serde_json::from_str(&models).unwrap();
        assert_eq!(models["data"][0]["id"], "sim");
    }
    let address = engines.addresses()[1];
    let refused = |path: &str, body: &str| {
        let (status, text) = http::post(address, path, body).unwrap();
        let error: Value = serde_json::from_str(&text).unwrap();
        (
            status,
            error["error"]["message"].as_str().unwrap().to_owned(),
        )
    };
    let chat_path = "/v1/chat/completions";
    assert_eq!(refused("/v1/nothing", "{}").0, 404);
    assert_eq!(refused("/health", "{}").0, 405);
    assert_eq!(refused(chat_path, "{").0, 400);
    let (status, said) = refused(chat_path, r#"{"model": "gpt", "messages": []}"#);
    assert!(status == 404 && said.contains("`gpt`"), "{said}");
    for (body, word) in [
        (r#"{"model": "sim", "messages": []}"#, "messages"),
        (
            r#"{"model": "sim", "messages": [{"content": 7}]}"#,
            "messages",
        ),
        (
            r#"{"model": "sim", "messages": [{"content": "a"}], "max_tokens": 0}"#,
            "max_tokens",
        ),
        (
            r#"{"model": "sim", "messages": [{"content": "a"}], "n": 2}"#,
            "`n`",
        ),
        (
            r#"{"model": "sim", "messages": [{"content": "a"}], "max_tokens": 1000000}"#,
            "blocks",
        ),
    ] {
        let (status, said) = refused(chat_path, body);
        assert!(status == 400 && said.contains(word), "{body}: {said}");
    }
    // The slow one takes three times as long, to the microsecond of its own clock.
    let (status, _) = http::post(address, chat_path, &chat("a", 2, false)).unwrap();
    assert_eq!(status, 200);
    let first_s = engines.metric(1, "vllm:time_to_first_token_seconds_sum", "");
    assert_eq!(first_s, 0.0384);
}

#[test]
fn a_client_that_goes_away_ends_its_request() {
    let place = place();
    let text = include_str!("../../../mlmesh-sim/profiles/reference.yaml");
    place.write("one.yaml", text.replace("slots: 32", "slots: 1"));
    let profile = place.project().join("one.yaml");
    let engines = SimEngines::start(1, &["--profile", profile.to_str().unwrap()]);
    let address = engines.addresses()[0];
    let line = "POST /v1/chat/completions HTTP/1.1";
    let mut streaming = http::send(address, line, &chat("a", 100_000, true)).unwrap();
    let mut some = [0; 1_000];
    streaming.read_exact(&mut some).unwrap();
    assert!(some.starts_with(b"HTTP/1.1 200"));
    let waiting = http::send(address, line, &chat("b", 100_000, true)).unwrap();
    let now = |name: &str| engines.metric(0, &format!("vllm:num_requests_{name}"), "");
    wait("a request that waits", || now("waiting") == 1.0);
    assert_eq!(now("running"), 1.0);
    drop(waiting);
    wait("no request that waits", || now("waiting") == 0.0);
    drop(streaming);
    wait("no request that runs", || now("running") == 0.0);
    let ended = |reason: &str| {
        let labels = format!(",finished_reason=\"{reason}\"");
        engines.metric(0, "vllm:request_success_total", &labels)
    };
    assert_eq!((ended("abort"), ended("length")), (2.0, 0.0));
    assert_eq!(engines.metric(0, "vllm:kv_cache_usage_perc", ""), 0.0);
}

#[test]
fn the_load_client_finds_nothing_wrong_with_it() {
    let place = place();
    let engines = SimEngines::start(1, &[]);
    let url = format!("http://{}", engines.addresses()[0]);
    let arguments = [
        "bench",
        "llm",
        "--url",
        &url,
        "--model",
        "sim",
        "--rate",
        "50",
        "--requests",
        "40",
        "--output-tokens",
        "8",
        "--json",
    ];
    let answer = place.ml(&arguments);
    assert!([0, 6].contains(&answer.code), "{answer:?}");
    let labels = ",finished_reason=\"length\"";
    assert_eq!(
        engines.metric(0, "vllm:request_success_total", labels),
        40.0
    );
    assert_eq!(engines.metric(0, "vllm:generation_tokens_total", ""), 320.0);
}

#[test]
fn what_cannot_be_served_is_refused() {
    let place = place();
    let serve = |more: &[&str]| {
        let mut arguments = vec!["sim", "serve", "--json", "--listen", "127.0.0.1:0"];
        arguments.extend(more);
        place.ml(&arguments)
    };
    place.write(
        "bad.yaml",
        "schema: mlmesh.sim_engine/1\nname: bad\nslotz: 1\n",
    );
    let error = serve(&["--profile", "bad.yaml"]).exits(1).error();
    assert_eq!(error["code"], "profile_invalid");
    assert!(
        error["message"].as_str().unwrap().contains("bad.yaml:3"),
        "{error}"
    );
    let error = serve(&["--profile", "nowhere"]).exits(1).error();
    assert!(
        error["hint"].as_str().unwrap().contains("reference"),
        "{error}"
    );
    serve(&["--slow", "1=2"]).exits(2);
    serve(&["--slow", "0=0"]).exits(2);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let error = place
        .ml(&["sim", "serve", "--json", "--listen", &address])
        .exits(1)
        .error();
    assert_eq!(error["code"], "sim_serve_failed");
}

#[test]
fn requests_that_come_together_are_answered_in_their_order() {
    let engines = SimEngines::start(1, &[]);
    let body = r#"{"model":"sim","prompt":"a","max_tokens":3}"#;
    let (first, second) = body.split_at(10);
    let mut stream = std::net::TcpStream::connect(engines.addresses()[0]).unwrap();
    let chunked = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n\
         {:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
        first.len(),
        second.len(),
    );
    let models = "GET /v1/models HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    std::io::Write::write_all(&mut stream, (chunked + models).as_bytes()).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    let places = ["sim sim sim", "\"text_completion\"", "\"object\":\"list\""];
    let places = places.map(|words| said.find(words).unwrap_or_else(|| panic!("{said}")));
    assert!(places.is_sorted(), "{said}");
    assert_eq!(said.matches("HTTP/1.1 200 OK").count(), 2);

    for (head, status) in [
        ("content-length: 5\r\ncontent-length: 5\r\n", 400),
        ("content-length: 5\r\ntransfer-encoding: chunked\r\n", 400),
        ("content-length: +5\r\n", 400),
        ("transfer-encoding: gzip\r\n", 400),
        ("content-length: 99999999999\r\n", 413),
    ] {
        let mut stream = std::net::TcpStream::connect(engines.addresses()[0]).unwrap();
        let text = format!("POST /v1/completions HTTP/1.1\r\nhost: a\r\n{head}\r\nhello");
        std::io::Write::write_all(&mut stream, text.as_bytes()).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        assert!(
            said.starts_with(&format!("HTTP/1.1 {status} ")),
            "{head}: {said}"
        );
    }
}
