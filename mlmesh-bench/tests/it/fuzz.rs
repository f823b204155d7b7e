//! What engines send and what traces hold, changed at will: nothing panics, and cuts
//! change no answer.

use mlmesh_bench::{Answer, DeltaReader, HttpError, Scanner, Trace, TraceFormat};
use mlmesh_testkit::fuzz::border;

use crate::server::{chunked, stream};

/// Status, body, bytes used and whether it is over.
type Read = Result<(u16, Vec<u8>, usize, bool), HttpError>;

fn read(bytes: &[u8], piece: usize) -> Read {
    let (mut answer, mut body, mut used) = (Answer::default(), Vec::new(), 0);
    for part in bytes.chunks(piece) {
        if answer.is_done() {
            break;
        }
        used += answer.feed(part, &mut |_, data| body.extend_from_slice(data))?;
    }
    Ok((answer.status, body, used, answer.is_done()))
}

#[test]
fn fuzz_answers_of_engines() {
    let streamed = stream(&["a", "b"], Some((5, 2)));
    let trailers =
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nx: y\r\n\r\n";
    let plain = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 429 No\r\nretry-after: 7\r\ncontent-length: 2\r\n\r\nno";
    let samples = [streamed.as_bytes(), trailers.as_bytes(), plain.as_bytes()];
    let words: &[&[u8]] = &[
        b"\r\n",
        b"\r\n\r\n",
        b"content-length: ",
        b"0\r\n",
        b"ffffffff",
        b"chunked",
    ];
    border("answers of engines", &samples, words, |bytes| {
        let whole = read(bytes, bytes.len().max(1));
        for piece in [1, 7] {
            let cut = read(bytes, piece);
            match (&whole, &cut) {
                (Ok(whole), Ok(cut)) => assert_eq!(whole, cut),
                // A head that is none may be known for that before its end.
                (whole, cut) => assert_eq!(whole.is_err(), cut.is_err()),
            }
        }
        if let Ok((_, body, used, _)) = whole {
            assert!(used <= bytes.len() && body.len() <= bytes.len());
        }
    });
}

#[test]
fn fuzz_events_of_engines() {
    let events = chunked("text/event-stream", &stream(&["a", "\u{e9}"], Some((5, 2))));
    let lines = b"\xef\xbb\xbf: note\r\ndata: a\r\rdata\n\nevent: x\ndata: {\"usage\":{\"prompt_tokens\":1}}\n\n";
    let samples = [events.as_bytes(), &lines[..]];
    let words: &[&[u8]] = &[
        b"data: ",
        b"\r",
        b"\n\n",
        b"\"content\":\"",
        b"\"usage\":{",
        b"[DONE]",
        b"\"error\":",
    ];
    let reader = DeltaReader::default();
    border("events of engines", &samples, words, |bytes| {
        let scan = |piece: usize| {
            let (mut scanner, mut events) = (Scanner::default(), Vec::new());
            for part in bytes.chunks(piece) {
                scanner.feed(part, &mut |data| events.push(data.to_vec()));
            }
            scanner.finish(&mut |data| events.push(data.to_vec()));
            events
        };
        let whole = scan(bytes.len().max(1));
        assert_eq!(whole, scan(1));
        assert_eq!(whole, scan(5));
        for event in whole {
            let delta = reader.event(&event);
            assert!(!(delta.done && delta.token), "{event:?}");
        }
    });
}

#[test]
fn fuzz_recorded_requests() {
    let samples: [&[u8]; 2] = [
        include_bytes!("../data/mooncake.jsonl"),
        include_bytes!("../data/azure.csv"),
    ];
    let words: &[&[u8]] = &[
        b"\n",
        b"\"timestamp\": ",
        b"1e400",
        b"-1",
        b",",
        b"2023-02-31 24:00:00",
        b"[]",
    ];
    border("recorded requests", &samples, words, |bytes| {
        for format in [TraceFormat::Mooncake, TraceFormat::Azure] {
            match Trace::read(format, bytes) {
                Ok(trace) => assert!(trace.requests.is_sorted_by_key(|recorded| recorded.at_us)),
                Err(error) => assert!(error.to_string().contains("line "), "{error}"),
            }
        }
    });
}
