//! Answers on the wire: heads, lengths, chunks, and what is none.

use mlmesh_bench::{Answer, HttpError};
use proptest::prelude::*;

/// Body, bytes used and whether the answer is over.
fn read(bytes: &[u8], piece: usize) -> Result<(Vec<u8>, usize, bool), HttpError> {
    let (mut answer, mut body, mut used) = (Answer::default(), Vec::new(), 0);
    for piece in bytes.chunks(piece.max(1)) {
        if answer.is_done() {
            break;
        }
        used += answer.feed(piece, &mut |_, data| body.extend_from_slice(data))?;
    }
    Ok((body, used, answer.is_done()))
}

const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

#[test]
fn whole_answers_are_read_whatever_the_pieces() {
    for (head, body, expected) in [
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
            "hello",
            "hello",
        ),
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "", ""),
        ("HTTP/1.1 204 No Content\r\n\r\n", "", ""),
        (CHUNKED, "5\r\nhello\r\n0\r\n\r\n", "hello"),
        (
            CHUNKED,
            "5;x=y\r\nhello\r\nA \r\n0123456789\r\n000\r\n\r\n",
            "hello0123456789",
        ),
        (CHUNKED, "1\r\na\r\n0\r\nx-trailer: 1\r\n\r\n", "a"),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
            "ok",
            "ok",
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\n",
            "ok",
            "ok",
        ),
    ] {
        let bytes = format!("{head}{body}");
        for piece in [1, 2, 3, 7, 50, 1000] {
            let read = read(bytes.as_bytes(), piece);
            let expected = (expected.as_bytes().to_vec(), bytes.len(), true);
            assert_eq!(read, Ok(expected), "{bytes:?} in pieces of {piece}");
        }
    }
}

#[test]
fn what_two_readers_could_take_differently_is_an_error() {
    let head = |lines: &str| format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\n");
    let chunks = |body: &str| format!("{CHUNKED}{body}");
    for (bytes, error) in [
        ("SMTP ready\r\n\r\n".to_owned(), HttpError::Head),
        (
            head("content-length: 5\r\ncontent-length: 6"),
            HttpError::Length,
        ),
        (
            head("content-length: 5\r\ntransfer-encoding: chunked"),
            HttpError::Length,
        ),
        (head("content-length: +5"), HttpError::Length),
        (head("content-length: 5, 5"), HttpError::Length),
        (
            head("content-length: 99999999999999999999"),
            HttpError::Length,
        ),
        (head("transfer-encoding: gzip"), HttpError::Length),
        (head("transfer-encoding: gzip, chunked"), HttpError::Length),
        (
            head("transfer-encoding: chunked\r\ntransfer-encoding: chunked"),
            HttpError::Length,
        ),
        (chunks("\r\n"), HttpError::Chunk),
        (chunks("x\r\n"), HttpError::Chunk),
        (chunks("5\nhello"), HttpError::Chunk),
        (chunks("-1\r\n"), HttpError::Chunk),
        (chunks("1\r\nab\r\n"), HttpError::Chunk),
        (chunks("fffffffffffffffff\r\n"), HttpError::Chunk),
        (chunks("0\r\nx\n\r\n"), HttpError::Chunk),
        (
            chunks(&format!("1;{}", "x".repeat(10_000))),
            HttpError::Chunk,
        ),
        (
            format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(70_000)),
            HttpError::HeadTooLong,
        ),
    ] {
        for piece in [1, 100_000] {
            let shown = &bytes[..bytes.len().min(80)];
            assert_eq!(read(bytes.as_bytes(), piece), Err(error), "{shown:?}");
        }
    }
}

#[test]
fn a_body_without_length_ends_with_its_connection_and_others_are_cut() {
    let end = |text: &str| {
        let mut answer = Answer::default();
        answer.feed(text.as_bytes(), &mut |_, _| {}).unwrap();
        (answer.closed(), answer.keep_alive)
    };
    assert_eq!(end("HTTP/1.1 200 OK\r\n\r\nabc"), (Ok(()), false));
    for cut in [
        "",
        "HTTP/1.1 200",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc",
    ] {
        assert_eq!(end(cut).0, Err(HttpError::Truncated), "{cut:?}");
    }
    assert_eq!(
        end(&format!("{CHUNKED}5\r\nhello\r\n")).0,
        Err(HttpError::Truncated)
    );
}

#[test]
fn a_connection_is_kept_when_both_sides_understand_so() {
    for (head, kept) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", true),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: x, Close\r\n\r\n",
            false,
        ),
        ("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", false),
        (
            "HTTP/1.0 200 OK\r\ncontent-length: 0\r\nconnection: keep-alive\r\n\r\n",
            true,
        ),
    ] {
        let mut answer = Answer::default();
        answer.feed(head.as_bytes(), &mut |_, _| {}).unwrap();
        assert_eq!(answer.keep_alive, kept, "{head:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Nothing that comes makes the reader panic or take more than there is.
    #[test]
    fn no_bytes_panic(head in prop::bool::ANY, bytes in prop::collection::vec(any::<u8>(), 0..200), piece in 1..64_usize) {
        let mut stream = if head { CHUNKED.as_bytes().to_vec() } else { Vec::new() };
        stream.extend(bytes);
        if let Ok((_, used, _)) = read(&stream, piece) {
            prop_assert!(used <= stream.len());
        }
    }

    /// Chunks of any size, cut anywhere, are the body.
    #[test]
    fn chunks_are_the_body(parts in prop::collection::vec("[a-z]{1,40}", 0..8), piece in 1..64_usize) {
        let mut stream = CHUNKED.to_owned();
        for part in &parts {
            stream.push_str(&format!("{:X}\r\n{part}\r\n", part.len()));
        }
        stream.push_str("0\r\n\r\n");
        let expected = (parts.concat().into_bytes(), stream.len(), true);
        prop_assert_eq!(read(stream.as_bytes(), piece), Ok(expected));
    }
}
