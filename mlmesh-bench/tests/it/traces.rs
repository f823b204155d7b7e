//! Recorded requests: what is read, what is a defect, and what is sent of them.

use std::sync::Arc;

use mlmesh_bench::{Pace, Trace, TraceFormat};

use crate::client::{measure, plan};
use crate::server::{Server, send, stream};

const MOONCAKE: &[u8] = include_bytes!("../data/mooncake.jsonl");
const AZURE: &[u8] = include_bytes!("../data/azure.csv");

fn read(format: TraceFormat, text: impl AsRef<[u8]>) -> Result<Trace, String> {
    Trace::read(format, text.as_ref()).map_err(|error| error.to_string())
}

#[test]
fn both_formats_are_read_from_their_first_request_on() {
    let mooncake = read(TraceFormat::Mooncake, MOONCAKE).unwrap();
    assert_eq!(mooncake.requests.len(), 20);
    let first = &mooncake.requests[0];
    assert_eq!(
        (first.at_us, first.input_tokens, first.output_tokens),
        (0, 6758, 500)
    );
    let azure = read(TraceFormat::Azure, AZURE).unwrap();
    assert_eq!(azure.requests.len(), 20);
    let times: Vec<u64> = azure
        .requests
        .iter()
        .map(|recorded| recorded.at_us)
        .take(2)
        .collect();
    assert_eq!(times, [0, 4_314_579]);
    assert_eq!(
        (
            azure.requests[1].input_tokens,
            azure.requests[1].output_tokens
        ),
        (396, 109)
    );
}

#[test]
fn a_defect_names_its_line_and_what_is_wrong() {
    const GOOD: &str =
        r#"{"timestamp": 5, "input_length": 600, "output_length": 1, "hash_ids": [1, 2]}"#;
    const HEADING: &str = "TIMESTAMP,ContextTokens,GeneratedTokens";
    const ROW: &str = "2023-11-16 18:15:46.6805900,374,44";
    let (mooncake, azure) = (TraceFormat::Mooncake, TraceFormat::Azure);
    for (format, text, said) in [
        (
            mooncake,
            format!("{GOOD}\n{{\n"),
            "line 2: not of the Mooncake format",
        ),
        (
            mooncake,
            format!("{GOOD}\n\n{}", GOOD.replace("600", "1025")),
            "line 3: 1025 tokens have 3 blocks, found 2",
        ),
        (
            mooncake,
            GOOD.replace("600", "-1"),
            "line 1: not of the Mooncake format",
        ),
        (
            mooncake,
            GOOD.replace("600", "0").replace("1, 2", ""),
            "the prompt has 0 tokens",
        ),
        (
            mooncake,
            format!("{GOOD}\n{}", GOOD.replace('5', "4")),
            "line 2: earlier than",
        ),
        (mooncake, GOOD.replace("5,", "-5,"), "is no time"),
        (mooncake, String::new(), "no request"),
        (
            mooncake,
            format!("{GOOD}\n{}", "x".repeat(1_100_000)),
            "line 2: longer than",
        ),
        (azure, ROW.to_owned(), "line 1: the heading"),
        (azure, HEADING.to_owned(), "no request"),
        (
            azure,
            format!("{HEADING}\n{ROW},9"),
            "line 2: a line has three fields",
        ),
        (
            azure,
            format!("{HEADING}\n{}", ROW.replace("374", "x")),
            "`x` is no number of tokens",
        ),
        (
            azure,
            format!("{HEADING}\n{}", ROW.replace("2023", "23")),
            "is no time",
        ),
        (
            azure,
            format!("{HEADING}\n{ROW}\n{}", ROW.replace("18:", "17:")),
            "line 3: earlier than",
        ),
    ] {
        let error = read(format, &text).unwrap_err();
        let shown = &text[..text.len().min(100)];
        assert!(error.contains(said), "{shown}: {error}");
        assert!(error.contains("hint: "), "{error}");
    }
    let compressed = read(mooncake, b"\x28\xb5\x2f\xfd\0\0").unwrap_err();
    assert!(compressed.contains("decompress"), "{compressed}");
}

#[test]
fn a_replay_sends_recorded_lengths_and_blocks_at_recorded_instants() {
    const TRACE: &str = r#"{"timestamp": 100, "input_length": 600, "output_length": 7, "hash_ids": [1, 2]}
{"timestamp": 200, "input_length": 700, "output_length": 9, "hash_ids": [1, 3]}
{"timestamp": 400, "input_length": 10, "output_length": 0, "hash_ids": [9]}
"#;
    let server = Server::new(|_, socket| send(socket, &stream(&["a"], Some((1, 1)))));
    let mut asked = plan(&server.url, 0);
    asked.bound.requests = None;
    asked.connections_max = 1;
    asked.trace = Some(Arc::new(read(TraceFormat::Mooncake, TRACE).unwrap()));
    asked.pace = Pace::Trace { speed: 10.0 };
    let run = measure(&asked);
    let instants: Vec<u64> = run
        .samples
        .iter()
        .map(|sample| sample.intended_us)
        .collect();
    assert_eq!(instants, [0, 10_000, 30_000]);
    let lengths: Vec<(u64, u64)> = run
        .samples
        .iter()
        .map(|sample| (sample.prompt_chars, sample.output_tokens_max))
        .collect();
    assert_eq!(lengths, [(2400, 7), (2800, 9), (40, 1)]);
    let prompts: Vec<String> = server.seen().iter().map(|text| prompt(text)).collect();
    assert_eq!(
        prompts[0][..2048],
        prompts[1][..2048],
        "block 1 is the same"
    );
    assert_ne!(prompts[0][2048..2064], prompts[1][2048..2064]);
    assert_ne!(prompts[0][..16], prompts[2][..16]);
}

#[test]
fn more_requests_than_recorded_begin_the_trace_anew_with_other_words() {
    const TRACE: &str =
        r#"{"timestamp": 0, "input_length": 10, "output_length": 1, "hash_ids": [1]}"#;
    let server = Server::new(|_, socket| send(socket, &stream(&["a"], Some((1, 1)))));
    let mut asked = plan(&server.url, 2);
    asked.trace = Some(Arc::new(read(TraceFormat::Mooncake, TRACE).unwrap()));
    measure(&asked);
    let prompts: Vec<String> = server.seen().iter().map(|text| prompt(text)).collect();
    assert_ne!(prompts[0], prompts[1]);
}

fn prompt(request: &str) -> String {
    let (_, body) = request.split_once("\r\n\r\n").unwrap();
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    body["messages"][0]["content"].as_str().unwrap().to_owned()
}
