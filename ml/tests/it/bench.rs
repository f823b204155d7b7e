//! `ml bench llm` as a program, against an engine that is a socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::thread;

use mlmesh_testkit::http;
use mlmesh_testkit::llama::{self, LlamaServer};

use crate::golden;
use crate::program::{Answer, place};
use crate::shape::shape;

const KEY: &str = "sk-a-key-that-nobody-may-see";
const STREAM: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n\
data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\n\
data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2}}\n\n\
data: [DONE]\n\n";

trait Measured {
    /// Done, or late: a client that shares its processors may be, and says so.
    fn measured(self) -> Self;
}

impl Measured for Answer {
    #[track_caller]
    fn measured(self) -> Self {
        let said = format!("{}{}", self.stdout, self.stderr);
        let is_late = self.code == 6 && said.contains("the client was the bottleneck");
        assert!(self.code == 0 || is_late, "{self:?}");
        self
    }
}

/// An address where each request is answered with these bytes, if it has the key.
fn engine(head: &'static str, body: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || serve(stream.unwrap(), head, body));
        }
    });
    url
}

fn serve(mut stream: TcpStream, head: &str, body: &str) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let (mut length, mut has_key) = (0, false);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            has_key |= line.trim() == format!("authorization: Bearer {KEY}");
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        reader.read_exact(&mut vec![0; length]).unwrap();
        let answer = match has_key {
            true => format!("{head}content-length: {}\r\n\r\n{body}", body.len()),
            false => "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n".to_owned(),
        };
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn streaming() -> String {
    engine(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n",
        STREAM,
    )
}

#[test]
fn a_load_is_measured_and_written_with_every_stamp() {
    let place = place();
    let url = streaming();
    let key = place.write("key", format!("{KEY}\n"));
    let file = place.path("run.json");
    let answer = place
        .ml(&[
            "bench",
            "llm",
            "--url",
            &url,
            "--model",
            "tiny",
            "--rate",
            "400",
            "--arrivals",
            "constant",
            "--requests",
            "20",
            "--slo",
            "ttft=10s,tpot=10s,e2e=10s",
            "--api-key-file",
            key.to_str().unwrap(),
            "-o",
            file.to_str().unwrap(),
            "--json",
        ])
        .measured();
    let figures = answer.json();
    assert_eq!(figures["counts"]["completed"], 20);
    assert_eq!(figures["tokens"]["prompt"], 180);
    assert_eq!(figures["tokens"]["completion"], 40);
    assert_eq!(figures["goodput"]["good"], 20);
    assert_eq!(
        figures["latency_ms"]["ttft"]["p99"],
        serde_json::Value::Null,
        "of 20 values"
    );
    let written = std::fs::read_to_string(&file).unwrap();
    assert!(!written.contains(KEY) && !answer.stdout.contains(KEY));
    let whole: serde_json::Value = serde_json::from_str(&written).unwrap();
    assert_eq!(whole["requests"].as_array().unwrap().len(), 20);
    let mut first = whole.clone();
    first["requests"] = serde_json::json!([whole["requests"][0]]);
    let summaries = [
        &["latency_ms", "ttft"][..],
        &["client", "schedule_delay_ms"],
    ];
    for path in summaries {
        let summary = &whole[path[0]][path[1]];
        assert!(summary["min"].as_f64() <= summary["max"].as_f64());
    }
    level(&mut first);
    golden::check("bench.txt", &format!("{:#}\n", shape(&first)));

    // The seed that was drawn sends the same again.
    let seed = figures["load"]["seed"].to_string();
    let again = [
        "--seed",
        &seed,
        "--rate",
        "400",
        "--requests",
        "5",
        "--no-stream",
    ];
    let asked = ["bench", "llm", "--url", &url, "--model", "tiny", "--json"];
    let answer = place.ml(&[&asked[..], &again].concat()).exits(6);
    assert_eq!(answer.json()["counts"]["errors"]["status_401"], 5);
}

/// Numbers that differ from call to call, under names whose values are kept elsewhere.
fn level(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                match name.as_str() {
                    "min" | "max" if value.is_number() => *value = 0.into(),
                    "validity" => *value = serde_json::json!({"valid": true, "reasons": []}),
                    "version" => *value = "0".into(),
                    _ => level(value),
                }
            }
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(level),
        _ => {}
    }
}

#[test]
fn a_person_reads_a_table_with_units_and_what_the_client_cost() {
    let place = place();
    let url = streaming();
    let mut command = place.command(&[
        "bench",
        "llm",
        "--url",
        &url,
        "--model",
        "tiny",
        "--rate",
        "400",
        "--requests",
        "12",
        "--seed",
        "3",
        "--api-key-env",
        "BENCH_KEY",
    ]);
    let answer = crate::program::answer(command.env("BENCH_KEY", KEY)).measured();
    for part in [
        "milliseconds",
        "time to first token",
        "n<100",
        "sent late by",
        "12 completed, 0 failed",
        "108 prompt, 24 output",
        "µs CPU a request",
        "seed 3",
    ] {
        assert!(answer.stdout.contains(part), "{part}: {}", answer.stdout);
    }
}

/// A counter of the engine's own page.
fn counter(engine: &LlamaServer, name: &str) -> u64 {
    let (_, page) = http::get(engine.address(), "/metrics").unwrap();
    let line = page
        .lines()
        .find_map(|line| line.strip_prefix(&format!("llamacpp:{name} ")));
    line.unwrap().trim().parse::<f64>().unwrap() as u64
}

#[test]
fn tokens_of_a_real_engine_are_those_that_it_counts_itself() {
    let Some(root) = llama::find() else { return };
    let place = place();
    let engine = LlamaServer::start(&root);
    let url = format!("http://{}", engine.address());
    let all = [
        "prompt_tokens_total",
        "prompt_tokens_cached_total",
        "tokens_predicted_total",
    ];
    for mode in ["--endpoint=chat", "--endpoint=completions", "--no-stream"] {
        let before = all.map(|name| counter(&engine, name));
        let arguments = [
            "bench",
            "llm",
            "--url",
            &url,
            "--model",
            "tiny",
            "--concurrency",
            "2",
            "--requests",
            "12",
            "--prompt-chars",
            "uniform:20,200",
            "--output-tokens",
            "uniform:4,12",
            "--seed",
            "5",
            mode,
            "--json",
        ];
        let answer = place.ml(&arguments).measured();
        let figures = answer.json();
        assert_eq!(figures["counts"]["completed"], 12, "{figures}");
        let after = all.map(|name| counter(&engine, name));
        let prompt = after[0] + after[1] - before[0] - before[1];
        assert_eq!(figures["tokens"]["prompt"], prompt, "{mode}");
        assert_eq!(
            figures["tokens"]["completion"],
            after[2] - before[2],
            "{mode}"
        );
        let streamed = mode != "--no-stream";
        assert_eq!(
            figures["latency_ms"]["ttft"]["count"],
            if streamed { 12 } else { 0 }
        );
        assert_eq!(figures["latency_ms"]["e2e"]["count"], 12);
    }
}

#[test]
fn ctrl_c_keeps_what_was_measured() {
    let place = place();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let file = place.path("run.json");
    let child = place
        .command(&[
            "bench",
            "llm",
            "--url",
            &url,
            "--model",
            "tiny",
            "--rate",
            "1",
            "--arrivals",
            "constant",
            "--requests",
            "1000",
            "--json",
            "-o",
            file.to_str().unwrap(),
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The first request is under way, and is never answered.
    let (mut request, _) = listener.accept().unwrap();
    request.read_exact(&mut [0; 4]).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    let figures: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        figures["counts"]["interrupted"],
        figures["counts"]["requests"]
    );
    assert_eq!(figures["counts"]["failed"], 0);
    let whole = std::fs::read(&file).unwrap();
    let whole: serde_json::Value = serde_json::from_slice(&whole).unwrap();
    assert_eq!(whole["requests"][0]["error"], "interrupted");
}

#[test]
fn what_cannot_be_measured_is_refused_with_a_hint() {
    let place = place();
    let base = [
        "bench",
        "llm",
        "--url",
        "http://127.0.0.1:1",
        "--model",
        "m",
    ];
    for (arguments, said) in [
        (&["--rate", "1"][..], "the load has no end"),
        (&["--rate", "0", "--requests", "1"], "the rate is above 0"),
        (&["--rate", "nan", "--requests", "1"], "the rate is above 0"),
        (&["--requests", "1"], "--rate"),
        (&["--concurrency", "2"], "the load has no end"),
        (&["--concurrency", "0", "--requests", "1"], "at once"),
        (
            &["--rate", "1", "--concurrency", "2", "--requests", "1"],
            "cannot be used with",
        ),
        (&["--trace", "x"], "--format"),
        (
            &["--rate", "1", "--requests", "1", "--slo", "itl=5ms"],
            "ttft, tpot and e2e",
        ),
        (
            &[
                "--rate",
                "1",
                "--requests",
                "1",
                "--prompt-chars",
                "zipf:1,2",
            ],
            "no distribution",
        ),
        (
            &["--rate", "1", "--requests", "1", "--arrivals", "gamma"],
            "--cv",
        ),
        (
            &["--rate", "1", "--duration", "5s", "--warmup", "5s"],
            "warm-up",
        ),
        (
            &[
                "--rate",
                "1",
                "--requests",
                "1",
                "--api-key-env",
                "NO_SUCH_KEY",
            ],
            "NO_SUCH_KEY",
        ),
    ] {
        let answer = place.ml(&[&base[..], arguments].concat()).exits(2);
        assert!(
            answer.stderr.contains(said),
            "{arguments:?}: {}",
            answer.stderr
        );
        assert!(
            answer.stderr.contains("hint: "),
            "{arguments:?}: {}",
            answer.stderr
        );
    }
    let nowhere = ["--rate", "1", "--requests", "1", "-o", "no/such/folder"];
    let answer = place.ml(&[&base[..], &nowhere].concat()).exits(1);
    assert!(
        answer.stderr.contains("no/such/folder"),
        "{}",
        answer.stderr
    );
    let absent = ["--trace", "no-such-file", "--format", "azure"];
    let answer = place.ml(&[&base[..], &absent].concat()).exits(1);
    assert!(answer.stderr.contains("no such file"), "{}", answer.stderr);
    let refused = [
        &base[..2],
        &[
            "--url",
            "ftp://x",
            "--model",
            "m",
            "--rate",
            "1",
            "--requests",
            "1",
        ],
    ]
    .concat();
    let answer = place.ml(&refused).exits(2);
    assert!(
        answer.stderr.contains("`http` or `https`"),
        "{}",
        answer.stderr
    );
    let unbelieved = ["--rate", "1", "--requests", "1", "--ca", "no-such-file"];
    let secure = ["--url", "https://127.0.0.1:1", "--model", "m"];
    let answer = place
        .ml(&[&base[..2], &secure, &unbelieved].concat())
        .exits(2);
    assert!(answer.stderr.contains("--ca FILE"), "{}", answer.stderr);
}
