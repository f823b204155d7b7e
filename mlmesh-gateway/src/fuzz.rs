//! Hostile heads and bodies: nothing panics, and what is passed on can be read in one way
//! only, by a reader that is not ours.

use mlmesh_testkit::fuzz::border;

use crate::body::Body;
use crate::buffer::{Buffer, Spare};
use crate::request::{self, Head};
use crate::response::{self, Asked};

const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b"\0",
    b"Content-Length: 5\r\n",
    b"content-length:6\r\n",
    b"Content-Length: 5, 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"transfer-encoding: x, chunked\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"\r\n Transfer-Encoding: chunked\r\n",
    b"Connection: content-length, x\r\n",
    b"Connection: close\r\n",
    b"Host: b\r\n",
    b"X: y\r\n",
    b"HTTP/1.0",
    b"ffffffffffffffff\r\n",
    b"0\r\n\r\n",
];

/// The fields of a head, lines split at CR LF and names at the colon, nothing more.
fn fields(head: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(head);
    let text = text.strip_suffix("\r\n\r\n").expect("a head's end");
    assert!(!text.contains("\r\n\r\n"), "{text:?}");
    let lines = text.split("\r\n").skip(1);
    lines
        .map(|line| {
            assert!(!line.contains(['\r', '\n', '\0']), "{line:?}");
            let (name, value) = line.split_once(':').expect("a colon");
            assert!(!name.is_empty() && !name.contains([' ', '\t']), "{line:?}");
            (name.to_ascii_lowercase(), value.trim().to_owned())
        })
        .collect()
}

fn is_zero(value: &str) -> bool {
    value.parse() == Ok(0)
}

/// How this reader would find the end of the body.
fn framing(fields: &[(String, String)]) -> Option<&str> {
    let of = |wanted: &str| {
        let values = fields.iter().filter(|(name, _)| name == wanted);
        values.map(|(_, value)| value.as_str()).collect::<Vec<_>>()
    };
    let found = [of("content-length"), of("transfer-encoding")].concat();
    assert!(found.len() <= 1, "{found:?}");
    for hop in [
        "connection",
        "keep-alive",
        "te",
        "upgrade",
        "proxy-connection",
    ] {
        let values = of(hop);
        // The gateway's own.
        assert!(
            values
                .iter()
                .all(|value| hop == "connection" && *value == "close")
        );
    }
    found.first().copied()
}

#[test]
fn fuzz_requests() {
    let samples: &[&[u8]] = &[
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nAccept: */*\r\n\r\nhelloGET / HTTP/1.1\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n",
        b"GET http://a/b?c HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, x-y\r\nX-Y: 1\r\nTE: trailers\r\n\r\n",
        b"GET / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n",
        // Refused as they are; a change may bring them through.
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: a\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ];
    border("requests to the gateway", samples, WORDS, |input| {
        let (spare, mut output) = (Spare::default(), Buffer::default());
        let mut slots = request::slots();
        let Ok(Some(head)) = Head::read(input, &mut slots) else {
            return;
        };
        let bytes = head.bytes();
        let mut request = head.write(
            input.len() % 2 == 0,
            input.len() % 3 == 0,
            None,
            &mut output,
            &spare,
        );
        request.address("engine:1", &mut output, &spare);
        let written = output.filled();
        let fields = fields(written);
        let hosts = fields.iter().filter(|(name, _)| name == "host");
        assert_eq!(
            hosts.map(|(_, value)| value).collect::<Vec<_>>(),
            ["engine:1"]
        );
        let same = match framing(&fields) {
            None => Body::Done,
            Some(value) => match value.parse() {
                Ok(0) => Body::Done,
                Ok(length) => Body::Length(length),
                Err(_) => {
                    assert!(value.eq_ignore_ascii_case("chunked"), "{value:?}");
                    Body::CHUNKED
                }
            },
        };
        assert_eq!(request.body, same);
        let rest = &input[bytes..];
        assert!(
            request
                .body
                .advance(rest)
                .is_ok_and(|known| known <= rest.len())
                || same == Body::CHUNKED
        );
    });
}

#[test]
fn fuzz_responses() {
    let samples: &[&[u8]] = &[
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nKeep-Alive: timeout=5\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nConnection: x\r\nX: 1\r\n\r\n",
        b"HTTP/1.0 200 \r\n\r\nrest",
    ];
    border("responses to the gateway", samples, WORDS, |input| {
        for choice in 0..8 {
            let asked = Asked {
                is_head: choice & 1 > 0,
                is_old: choice & 2 > 0,
                close: choice & 4 > 0,
                request: None,
            };
            let (spare, mut output) = (Spare::default(), Buffer::default());
            let Ok(Some(mut response)) = response::read(input, asked, &mut output, &spare) else {
                continue;
            };
            let fields = fields(output.filled());
            let framing = framing(&fields);
            let status = response.status;
            match response.body {
                Body::Done if asked.is_head || status == 304 || framing.is_some_and(is_zero) => {}
                Body::Done => assert!(framing.is_none() && (status < 200 || status == 204)),
                Body::Length(length) => assert_eq!(framing.map(str::parse), Some(Ok(length))),
                Body::Chunked(_) if asked.is_old => assert_eq!(framing, None),
                Body::Chunked(_) => {
                    assert!(framing.is_some_and(|value| value.parse::<u64>().is_err()))
                }
                Body::UntilClose => {
                    assert_eq!(framing, None);
                    assert!(fields.contains(&("connection".to_owned(), "close".to_owned())));
                }
            }
            let rest = &input[response.head_bytes..];
            let _ = response
                .body
                .advance(rest)
                .map(|known| assert!(known <= rest.len()));
        }
    });
}
