//! The trace that the tests replay, and what a trace may look like.

use std::fmt::Write as _;
use std::sync::LazyLock;

use mlmesh_sim::{Format, Trace};

static MOONCAKE: LazyLock<Trace> =
    LazyLock::new(|| Trace::read(&mooncake_lines(), Format::Mooncake).unwrap());

/// All 12,031 conversations.
pub(crate) fn mooncake() -> &'static Trace {
    &MOONCAKE
}

/// The trace as it was published.
fn mooncake_lines() -> String {
    let mut lines = String::new();
    for line in include_str!("../data/mooncake-conversation.txt").lines() {
        let cells: Vec<&str> = line.split(' ').collect();
        let mut ids: Vec<u64> = Vec::new();
        for run in cells[3].split(',') {
            let (first, last) = run.split_once('-').unwrap_or((run, run));
            ids.extend(first.parse::<u64>().unwrap()..=last.parse().unwrap());
        }
        writeln!(
            lines,
            "{{\"timestamp\": {}, \"input_length\": {}, \"output_length\": {}, \"hash_ids\": {ids:?}}}",
            cells[0], cells[1], cells[2]
        )
        .unwrap();
    }
    lines
}

#[test]
fn the_published_trace_is_read_whole() {
    let lines = mooncake_lines();
    assert_eq!(lines.len(), 3_029_533, "as published, to the byte");
    let trace = mooncake();
    assert_eq!(trace.requests.len(), 12_031);
    let blocks: usize = trace.requests.iter().map(|one| one.blocks.len()).sum();
    assert_eq!((trace.requests[0].prompt_tokens, blocks), (6_758, 288_500));
}

#[test]
fn what_is_no_trace_is_refused_with_its_line() {
    let good =
        "{\"timestamp\": 0, \"input_length\": 513, \"output_length\": 1, \"hash_ids\": [7, 8]}\n";
    for (text, told) in [
        (String::new(), "no request"),
        (format!("{good}{{"), "line 2"),
        (format!("{good}\n{}", good.replace("7, 8", "7")), "line 3"),
        (good.replace("513", "-1"), "line 1"),
        (good.replace(": 0,", ": 18446744073709551,"), "line 1"),
    ] {
        let error = Trace::read(&text, Format::Mooncake)
            .unwrap_err()
            .to_string();
        assert!(error.contains(told), "{error}");
    }
    assert!(Trace::read(good, Format::Mooncake).is_ok());
    assert!("azurite".parse::<Format>().is_err());
}

#[test]
fn prompts_of_an_azure_trace_have_nothing_in_common() {
    let text = "TIMESTAMP,ContextTokens,GeneratedTokens\n\
        2023-11-16 23:59:59.9999999,513,44\r\n\
        2023-11-17 00:00:01.5,1,0\n";
    let trace = Trace::read(text, Format::Azure).unwrap();
    let seen: Vec<(u64, u64, Vec<u64>)> = trace
        .requests
        .iter()
        .map(|one| {
            (
                one.at_us,
                one.prompt_tokens,
                one.blocks.iter().map(|block| block.0).collect(),
            )
        })
        .collect();
    assert_eq!(seen, [(0, 513, vec![0, 1]), (1_500_001, 1, vec![2])]);
    for (wrong, told) in [
        (text.replace("Context", "Prompt"), "line 1"),
        (text.replace("513", "-1"), "line 2"),
        (text.replace("513", "99999999999"), "at most 16777216"),
        (text.replace(",0\n", "\n"), "line 3"),
        (text.replace("11-17", "13-17"), "line 3"),
        (text.replace("11-17", "11-15"), "earlier"),
    ] {
        let error = Trace::read(&wrong, Format::Azure).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
}
