//! Server-sent events, however the bytes are cut.

use mlmesh_bench::Scanner;
use proptest::prelude::*;

fn scan(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut scanner = Scanner::default();
    let mut events = Vec::new();
    for piece in pieces {
        scanner.feed(piece, &mut |data| events.push(data.to_vec()));
    }
    scanner.finish(&mut |data| events.push(data.to_vec()));
    events
}

fn texts(bytes: &str) -> Vec<String> {
    let events = scan(&[bytes.as_bytes()]);
    events
        .into_iter()
        .map(|event| String::from_utf8(event).unwrap())
        .collect()
}

#[test]
fn the_standards_examples_are_read_as_it_says() {
    for (stream, events) in [
        ("data: a\n\ndata: b\n\n", vec!["a", "b"]),
        ("data: a\r\n\r\ndata: b\r\r", vec!["a", "b"]),
        ("data: YHOO\ndata: +2\ndata: 10\n\n", vec!["YHOO\n+2\n10"]),
        (
            ": comment\n\ndata: first\nid: 1\n\ndata:second\nid\n\ndata:  third\n\n",
            vec!["first", "second", " third"],
        ),
        ("data\n\ndata\ndata\n\ndata:\n\n", vec!["", "\n", ""]),
        ("event: x\n\n", vec![]),
        ("datas: x\n\n", vec![]),
        ("\u{feff}data: x\n\n", vec!["x"]),
        ("\n\n\ndata: x\n\n\n", vec!["x"]),
        ("data: [DONE]", vec!["[DONE]"]),
        ("data: [DONE]\n", vec!["[DONE]"]),
        ("data: [DONE]\r", vec!["[DONE]"]),
        ("", vec![]),
    ] {
        assert_eq!(texts(stream), events, "{stream:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Wherever the bytes are cut, the events are the same.
    #[test]
    fn cuts_change_nothing(
        parts in prop::collection::vec("(data|data:|data: |:|id: |event: )?[ab\u{e9}]{0,4}(\n|\r|\r\n|\n\n|\r\n\r\n){0,2}", 0..12),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let bytes = parts.concat().into_bytes();
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        at.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for to in at {
            pieces.push(&bytes[from..to]);
            from = to;
        }
        pieces.push(&bytes[from..]);
        prop_assert_eq!(scan(&pieces), scan(&[&bytes]));
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(scan(&single), scan(&[&bytes]));
    }

    /// Whole events in one read are what a plain reading of the lines gives.
    #[test]
    fn events_are_those_of_a_plain_reading(texts in prop::collection::vec("[a-z:{}\" ]{1,20}", 0..10)) {
        let stream: String = texts.iter().map(|text| format!("data: {text}\r\n\r\n")).collect();
        let events = scan(&[stream.as_bytes()]);
        let expected: Vec<Vec<u8>> = texts.iter().map(|text| text.clone().into_bytes()).collect();
        prop_assert_eq!(events, expected);
    }
}
