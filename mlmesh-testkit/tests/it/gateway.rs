//! `meshd gateway` in front of two real engines, with a model that is made here.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use mlmesh_testkit::daemon::program;
use mlmesh_testkit::gateway::Gateway;
use mlmesh_testkit::http;
use mlmesh_testkit::kill::wait_until;
use mlmesh_testkit::llama::{self, LlamaServer};
use mlmesh_testkit::python::environment_with;
use mlmesh_testkit::sim::SimEngines;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;

use crate::site::skipped;

const PATIENCE: Duration = Duration::from_secs(60);
const CHAT: &str = "/v1/chat/completions";

struct Place {
    engines: [LlamaServer; 2],
    gateway: Gateway,
}

fn place() -> Option<Place> {
    let root = llama::find()?;
    let engines = [LlamaServer::start(&root), LlamaServer::start(&root)];
    let targets = [engines[0].address(), engines[1].address()];
    let in_turn = ["--threads", "2", "--strategy", "baseline_rr"];
    let gateway = Gateway::start(&targets, &in_turn);
    Some(Place { engines, gateway })
}

fn chat(stream: bool, tokens: u32) -> String {
    serde_json::json!({
        "model": "tiny",
        "messages": [{"role": "user", "content": "What is the meaning of all this?"}],
        "stream": stream,
        "max_tokens": tokens,
        "temperature": 0,
        "seed": 7,
        // What was computed before must not change what is computed now.
        "cache_prompt": false,
    })
    .to_string()
}

/// An answer without what is different each time: ids, times and durations.
fn lasting(text: &str) -> Vec<String> {
    let clean = |json: &str| {
        let mut value: Value = serde_json::from_str(json).expect("JSON");
        for key in ["id", "created", "timings"] {
            value.as_object_mut().expect("an object").remove(key);
        }
        value.to_string()
    };
    let lines = text.lines().filter(|line| !line.is_empty());
    lines
        .map(|line| match line.strip_prefix("data: ") {
            Some("[DONE]") => "[DONE]".to_owned(),
            Some(json) => clean(json),
            None => clean(line),
        })
        .collect()
}

fn ask(address: SocketAddr, body: &str) -> String {
    let (status, text) = http::post(address, CHAT, body).expect("an answer");
    assert_eq!(status, 200, "{text}");
    text
}

#[test]
fn chat_is_the_same_as_from_the_engine_and_goes_to_each_in_turn() {
    let Some(place) = place() else { return };
    for (stream, pieces_min) in [(false, 1), (true, 20)] {
        let body = chat(stream, 24);
        let expected = lasting(&ask(place.engines[0].address(), &body));
        assert!(expected.len() >= pieces_min, "{expected:?}");
        for _ in 0..4 {
            let got = lasting(&ask(place.gateway.address(), &body));
            assert_eq!(got, expected);
        }
    }
    for engine in &place.engines {
        let target = engine.address();
        let series =
            format!("mlmesh_gateway_requests_total{{target=\"{target}\",outcome=\"2xx\"}}");
        assert_eq!(place.gateway.metric(&series), 4);
    }
}

#[test]
fn a_known_key_is_served_and_its_tokens_are_written_down() {
    let Some(root) = llama::find() else { return };
    let engine = LlamaServer::start(&root);
    let folder = tempfile::tempdir().expect("a folder");
    let (keys, log) = (folder.path().join("keys.toml"), folder.path().join("usage"));
    // The hash is that of `secret`.
    let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let text = format!("[[tenant]]\nname = \"lab\"\nkeys_sha256 = [\"{hash}\"]\n");
    std::fs::write(&keys, text).expect("a file");
    let [keys, log] = [keys, log].map(|path| path.to_str().expect("UTF-8").to_owned());
    let files = ["--api-keys", &keys, "--usage-log", &log];
    let gateway = Gateway::start(&[engine.address()], &files);
    let ask = |key: &str| {
        let line = format!("POST {CHAT} HTTP/1.1\r\nAuthorization: Bearer {key}");
        let stream = http::send(gateway.address(), &line, &chat(true, 8));
        let mut text = String::new();
        let mut stream = stream.expect("a connection");
        stream.read_to_string(&mut text).expect("an answer");
        text
    };
    assert!(ask("other").starts_with("HTTP/1.1 401 "));
    assert!(ask("secret").contains("[DONE]"));
    let mut lines = Vec::new();
    assert!(wait_until(PATIENCE, || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        lines = text.lines().map(str::to_owned).collect();
        !lines.is_empty()
    }));
    let line: Value = serde_json::from_str(&lines[0]).expect("a line of JSON");
    assert_eq!((lines.len(), &line["tenant"]), (1, &"lab".into()), "{line}");
    assert_eq!(line["answer_tokens"], 8, "{line}");
    assert_eq!(line["answer_tokens_by"], "engine");
    assert!(line["prompt_tokens"].as_u64() > Some(0), "{line}");
}

#[test]
fn people_can_ask_why_a_request_went_where_it_did() {
    let engines = SimEngines::start(2, &[]);
    let gateway = Gateway::start(engines.addresses(), &[]);
    let line = format!("POST {CHAT} HTTP/1.1");
    let body = chat(true, 4).replace("tiny", "sim");
    let mut text = String::new();
    let stream = http::send(gateway.address(), &line, &body);
    let mut stream = stream.expect("a connection");
    stream.read_to_string(&mut text).expect("an answer");
    let number = text.split("mlmesh-request: ").nth(1).expect("a number");
    let number = number.split("\r\n").next().expect("a line");
    let ml = |words: &[&str], at: SocketAddr| {
        let url = format!("http://{at}");
        let output = Command::new(program("ml"))
            .args(words)
            .args(["--gateway", &url])
            .output()
            .expect("`ml` is executed");
        let [out, err] =
            [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("UTF-8"));
        (output.status.code(), out, err)
    };
    let (code, out, err) = ml(&["route", "explain", number], gateway.address());
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("sent at once, by hybrid_mesh"), "{out}");
    for engine in engines.addresses() {
        assert!(out.contains(&engine.to_string()), "{out}");
    }
    let (code, out, _) = ml(&["route", "explain", number, "--json"], gateway.address());
    let decision: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(
        (code, &decision["schema"]),
        (Some(0), &"mlmesh.gateway.decision/1".into())
    );
    assert!(decision["first_token_ms"].is_number(), "{decision}");
    let (code, out, _) = ml(&["route", "list"], gateway.address());
    assert_eq!(code, Some(0));
    assert!(out.contains("sampled"), "the first of 64 is kept: {out}");
    let (code, _, err) = ml(&["route", "explain", "99999"], gateway.address());
    assert_eq!(code, Some(4), "{err}");
    let (code, _, err) = ml(&["route", "list"], nobody());
    assert!(
        code == Some(5) && err.contains("no gateway answers"),
        "{err}"
    );
}

#[test]
fn a_client_that_leaves_frees_the_engine() {
    let Some(place) = place() else { return };
    let line = format!("POST {CHAT} HTTP/1.1");
    let stream = http::send(place.gateway.address(), &line, &chat(true, 15_000));
    let mut reader = BufReader::new(stream.expect("a connection"));
    let mut text = String::new();
    while !text.contains("data: ") {
        assert!(reader.read_line(&mut text).expect("a stream") > 0, "{text}");
    }
    let busy = || {
        place
            .engines
            .iter()
            .map(LlamaServer::busy_slots)
            .sum::<usize>()
    };
    assert_eq!(busy(), 1);
    drop(reader);
    assert!(wait_until(PATIENCE, || busy() == 0));
    let gone: i64 = place
        .engines
        .iter()
        .map(|engine| {
            let target = engine.address();
            place.gateway.metric(&format!(
                "mlmesh_gateway_requests_total{{target=\"{target}\",outcome=\"client_gone\"}}"
            ))
        })
        .sum();
    assert_eq!(gone, 1);
}

#[test]
fn a_stream_under_way_is_finished_before_the_end() {
    let Some(mut place) = place() else { return };
    let line = format!("POST {CHAT} HTTP/1.1");
    let stream = http::send(place.gateway.address(), &line, &chat(true, 300));
    let mut reader = BufReader::new(stream.expect("a connection"));
    let mut text = String::new();
    while !text.contains("data: ") {
        assert!(reader.read_line(&mut text).expect("a stream") > 0, "{text}");
    }
    place.gateway.terminate();
    reader.read_to_string(&mut text).expect("the rest");
    assert!(text.contains("data: [DONE]"), "{text}");
    assert_eq!(place.gateway.ended().code(), Some(0));
}

#[test]
fn an_engine_that_is_not_there_is_left_out() {
    let Some(root) = llama::find() else { return };
    let engine = LlamaServer::start(&root);
    let nobody = nobody();
    let alone = ["--admin", "127.0.0.1:0", "--runtime", "none"];
    let gateway = Gateway::start(&[nobody, engine.address()], &alone);
    assert_ne!(gateway.pages(), gateway.address());
    for _ in 0..3 {
        ask(gateway.address(), &chat(false, 2));
    }
    let series =
        format!("mlmesh_gateway_requests_total{{target=\"{nobody}\",outcome=\"unreachable\"}}");
    assert!((1..=3).contains(&gateway.metric(&series)));
    drop(engine);
    let (status, body) = http::post(gateway.address(), CHAT, &chat(false, 2)).expect("an answer");
    let error: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(
        (status, &error["error"]["code"]),
        (502, &"target_unreachable".into())
    );
}

/// What people have: the client that OpenAI publishes.
const CLIENT: &str = r#"
import sys
import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0, timeout=60)
ask = dict(
    model="tiny",
    messages=[{"role": "user", "content": "What is the meaning of all this?"}],
    max_tokens=24,
    temperature=0,
    seed=7,
    extra_body={"cache_prompt": False},
)
if sys.argv[2] == "down":
    try:
        client.chat.completions.create(**ask)
    except openai.InternalServerError as error:
        print(error.status_code, error.code)
    sys.exit()
if sys.argv[2] == "killed":
    ask["max_tokens"] = 15000
    try:
        for piece in client.chat.completions.create(stream=True, **ask):
            print("piece", flush=True)
    except openai.APIError as error:
        print(error.code)
    sys.exit()
assert [model.id for model in client.models.list()] == ["tiny"]
whole = client.chat.completions.create(**ask)
pieces = []
for piece in client.chat.completions.create(stream=True, **ask):
    pieces += [choice.delta.content for choice in piece.choices if choice.delta.content]
assert len(pieces) > 10, pieces
assert "".join(pieces) == whole.choices[0].message.content, (pieces, whole)
ask["max_tokens"] = 15000
with client.chat.completions.create(stream=True, **ask) as stream:
    next(iter(stream))
print(whole.usage.completion_tokens)
"#;

#[test]
fn the_openai_client_streams_and_reads_errors() {
    let Some(python) = environment_with("openai") else {
        return;
    };
    let Some(place) = place() else { return };
    let url = format!("http://{}/v1", place.gateway.address());
    let run = |state: &str| {
        let output = Command::new(python.join("bin/python"))
            .args(["-c", CLIENT, &url, state])
            .output()
            .expect("Python starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        String::from_utf8(output.stdout).expect("text")
    };
    assert_eq!(run("up").trim(), "24");
    // It left a stream in the middle.
    assert!(wait_until(PATIENCE, || {
        place.engines.iter().all(|engine| engine.busy_slots() == 0)
    }));

    // The engine dies under a stream: the client is told, and by what.
    let mut client = Command::new(python.join("bin/python"))
        .args(["-c", CLIENT, &url, "killed"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python starts");
    let mut lines = BufReader::new(client.stdout.take().expect("a pipe")).lines();
    let first = lines.next().expect("a line").expect("text");
    assert_eq!(first, "piece");
    drop(place.engines);
    let last = lines.map_while(Result::ok).last();
    assert_eq!(last.as_deref(), Some("target_failed"));
    assert!(client.wait().expect("our own child").success());
    assert_eq!(run("down").trim(), "502 target_unreachable");
}

/// A program that sets limits and becomes another one.
const LIMITS: &str = "/usr/bin/prlimit";

fn nobody() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address")
}

#[test]
fn a_low_limit_of_descriptors_is_raised_as_far_as_it_goes() {
    let gateway = Gateway::start_through(&[LIMITS, "--nofile=64:1024"], &[nobody()], &[]);
    let connect = |_| TcpStream::connect(gateway.address()).expect("a connection");
    let clients: Vec<TcpStream> = (0..300).map(connect).collect();
    assert_eq!(gateway.metric("mlmesh_gateway_client_connections "), 301);
    drop(clients);
}

#[test]
fn no_descriptor_left_is_no_end() {
    let gateway = Gateway::start_through(&[LIMITS, "--nofile=64:64"], &[nobody()], &[]);
    let connect = |_| TcpStream::connect(gateway.address()).expect("a connection");
    let mut clients: Vec<TcpStream> = (0..100).map(connect).collect();
    // Those that were accepted are served; an engine cannot be reached any more.
    let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let mut answer = String::new();
    clients[0].write_all(request.as_bytes()).expect("sent");
    clients[0].read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    drop(clients);
    let (status, _) = http::get(gateway.pages(), "/-/health").expect("a page");
    assert_eq!(status, 200);
}

#[test]
fn promtool_finds_nothing_wrong_with_the_metrics() {
    let gateway = Gateway::start(&[nobody(), nobody()], &[]);
    let (_, page) = http::get(gateway.pages(), "/-/metrics").expect("a page");
    let checked = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut checked) = checked else {
        return skipped("no `promtool`");
    };
    let mut input = checked.stdin.take().expect("a pipe");
    input.write_all(page.as_bytes()).expect("written");
    drop(input);
    let output = checked.wait_with_output().expect("promtool ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}\n{page}");
}

/// Clients that say nothing, or begin and never end; each costs a descriptor here, too.
const IDLE_CLIENTS: u64 = 10_000;

#[test]
fn ten_thousand_idle_clients_keep_nobody_out() {
    let limits = getrlimit(Resource::Nofile);
    let all = limits.maximum.unwrap_or(u64::MAX);
    let raised = Rlimit {
        current: limits.maximum,
        ..limits
    };
    setrlimit(Resource::Nofile, raised).expect("up to the hard limit");
    let clients = IDLE_CLIENTS.min(all.saturating_sub(500)).max(1);
    println!("{clients} clients");
    let gateway = Gateway::start(&[nobody()], &[]);
    let address = gateway.address();
    let connect = |_| TcpStream::connect(address).expect("a connection");
    let mut idle: Vec<TcpStream> = (0..clients).map(connect).collect();
    for client in idle.iter_mut().step_by(2) {
        client.write_all(b"GET / HTTP/1.1\r\nX: ").expect("sent");
    }
    // Half a head is given up after ten seconds; nobody has to wait for that.
    let (status, _) = http::get(gateway.pages(), "/-/health").expect("a page");
    assert_eq!(status, 200);
    assert_eq!(
        gateway.metric("mlmesh_gateway_client_connections_total "),
        clients as i64 + 2
    );
    let each = gateway.memory() / clients;
    assert!(each < 32 * 1024, "{each} bytes for each client");
    drop(idle);
    let open = || gateway.metric("mlmesh_gateway_client_connections ");
    assert!(wait_until(PATIENCE, || open() == 1));
}

#[test]
fn requests_that_others_send_to_a_real_engine_are_known() {
    let Some(root) = llama::find() else {
        return skipped("no `llama-server`");
    };
    let engine = LlamaServer::start(&root);
    let gateway = Gateway::start(&[engine.address()], &[]);
    let seen = || {
        let (_, page) = http::get(gateway.pages(), "/-/targets").expect("a page");
        let page: Value = serde_json::from_str(&page).expect("JSON");
        page["targets"][0].clone()
    };
    let waiting = |seen: &Value| {
        let mut signals = seen["signals"].as_array().into_iter().flatten();
        signals.find(|one| one["signal"] == "waiting").cloned()
    };
    wait_until(PATIENCE, || {
        waiting(&seen()).is_some_and(|waiting| waiting["value"] == 0.0)
    });
    assert_eq!(seen()["sources"][0]["runtime"], "llama_cpp");
    assert_eq!(seen()["foreign"], 0);
    // One goes through the gateway, the other does not.
    let streams = [gateway.address(), engine.address()].map(|address| {
        let line = format!("POST {CHAT} HTTP/1.1");
        http::send(address, &line, &chat(true, 100_000)).expect("sent")
    });
    wait_until(PATIENCE, || seen()["foreign"] == 1);
    let running = |seen: Value| {
        let mut signals = seen["signals"].as_array().into_iter().flatten();
        let running = signals.find(|one| one["signal"] == "running").cloned();
        running.expect("llama.cpp says so")["value"].as_f64()
    };
    assert!(running(seen()) >= Some(1.0), "{}", seen());
    drop(streams);
    wait_until(PATIENCE, || seen()["foreign"] == 0);
}

#[test]
fn each_request_leaves_a_line_in_its_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("requests.log");
    let path = file.to_str().expect("UTF-8");
    let mut gateway = Gateway::start(&[nobody()], &["--request-log", path]);
    let line = "GET /v1/models?a=secret HTTP/1.1\r\nX-Request-Id: mine-1";
    let mut answer = String::new();
    http::send(gateway.address(), line, "")
        .and_then(|mut stream| stream.read_to_string(&mut answer))
        .expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    // What ends with the gateway is written before it ends.
    gateway.terminate();
    assert!(gateway.ended().success());
    let log = std::fs::read_to_string(&file).expect("the log");
    let line: Value = serde_json::from_str(log.trim_end()).expect("one line of JSON");
    assert_eq!(line["schema"], "mlmesh.gateway.request/1");
    assert_eq!(line["request_id"], "mine-1");
    assert_eq!(
        (&line["status"], &line["path"]),
        (&502.into(), &"/v1/models".into())
    );
}
