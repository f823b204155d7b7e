//! HTTP/1.1 as RFC 9110 and 9112 have it: what is refused, and what arrives as what.

use crate::wire::Place;

/// Requests that are answered with this status and code; no target hears of them.
const REFUSED: &[(&str, &str, &str)] = &[
    (
        "CL.TE",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX",
        "400 request_malformed",
    ),
    (
        "TE.CL",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\nGPOST / HTTP/1.1\r\n",
        "400 request_malformed",
    ),
    (
        "TE.TE",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-encoding: x\r\n\r\n0\r\n\r\n",
        "400 request_malformed",
    ),
    (
        "TE with a blank before the colon",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "400 request_malformed",
    ),
    (
        "TE with another coding",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "400 request_malformed",
    ),
    (
        "TE with a vertical tab",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        "400 request_malformed",
    ),
    (
        "TE in HTTP/1.0",
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "400 request_malformed",
    ),
    (
        "lengths that are equal",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nX",
        "400 request_malformed",
    ),
    (
        "lengths that differ",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nXY",
        "400 request_malformed",
    ),
    (
        "lengths as a list",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nX",
        "400 request_malformed",
    ),
    (
        "a signed length",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nX",
        "400 request_malformed",
    ),
    (
        "an endless length",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551617\r\n\r\nX",
        "400 request_malformed",
    ),
    (
        "a length that Connection names",
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\nContent-Length: 1\r\n\r\nX",
        "400 request_malformed",
    ),
    (
        "a lone LF after the first line",
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "400 request_malformed",
    ),
    (
        "a lone LF after a field",
        "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
        "400 request_malformed",
    ),
    (
        "a lone LF at the end",
        "GET / HTTP/1.1\r\nHost: a\r\n\n",
        "400 request_malformed",
    ),
    (
        "a lone CR",
        "GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n",
        "400 request_malformed",
    ),
    (
        "a folded field",
        "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n",
        "400 request_malformed",
    ),
    (
        "a blank before the first field",
        "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        "400 request_malformed",
    ),
    (
        "a field without colon",
        "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
        "400 request_malformed",
    ),
    (
        "a field without name",
        "GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n",
        "400 request_malformed",
    ),
    (
        "a zero byte",
        "GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
        "400 request_malformed",
    ),
    (
        "no Host",
        "GET / HTTP/1.1\r\nX: y\r\n\r\n",
        "400 request_malformed",
    ),
    (
        "two Hosts",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "400 request_malformed",
    ),
    (
        "a path that is none",
        "GET index HTTP/1.1\r\nHost: a\r\n\r\n",
        "400 request_malformed",
    ),
    (
        "what is no HTTP",
        "\x16\x03\x01\x02\x00\r\n\r\n",
        "400 request_malformed",
    ),
    (
        "a chunk's size that is none",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        "400 request_malformed",
    ),
    (
        "a chunk that is longer than it says",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nXY\r\n0\r\n\r\n",
        "400 request_malformed",
    ),
    (
        "a chunk's line without CR",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\nX\r\n0\r\n\r\n",
        "400 request_malformed",
    ),
    (
        "what is nearly the preface of HTTP/2",
        "PRI * HTTP/2.0\r\n\r\nSN\r\n\r\n",
        "505 http_version_unsupported",
    ),
    (
        "CONNECT",
        "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
        "501 http_method_unsupported",
    ),
];

#[test]
fn what_could_be_read_in_two_ways_reaches_nobody() {
    let place = Place::new();
    for (name, request, expected) in REFUSED {
        let mut client = place.client();
        client.send(request);
        let answer = client.rest();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        let status = head.split(' ').nth(1).unwrap();
        let got = format!("{status} {}", body["error"]["code"].as_str().unwrap());
        assert_eq!(&got, expected, "{name}");
        assert!(head.contains("\r\nConnection: close"), "{name}");
        assert!(place.is_untouched(), "{name}");
    }
}

#[test]
fn heads_are_bounded() {
    let place = Place::new();
    let line = |bytes: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n", "x".repeat(bytes));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}", "X: y\r\n".repeat(100));
    for head in [line(16 * 1024), line(200 * 1024), many] {
        let mut client = place.client();
        client.send(format!("{head}\r\n"));
        assert!(client.rest().starts_with("HTTP/1.1 431 "));
    }
    let (mut client, mut target) = place.carried(&format!("{}\r\n", line(15 * 1024)));
    target.send(format!(
        "HTTP/1.1 200 OK\r\nX: {}\r\n\r\n",
        "x".repeat(200 * 1024)
    ));
    client.until("HTTP/1.1 502 Bad Gateway\r\n");
    client.until("the response's head is too large");
}

/// What a client sends, what the target gets, what it answers, what the client gets.
/// `HOST` stands for the target's name.
struct Row {
    name: &'static str,
    sent: &'static str,
    arrives: &'static str,
    answered: &'static str,
    returns: &'static str,
    /// The client's connection ends after it.
    ends: bool,
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const GOT: &str = "GET / HTTP/1.1\r\nVia: 1.1 mlmesh\r\nHost: HOST\r\n\r\n";
const EMPTY: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

const PASSED: &[Row] = &[
    Row {
        name: "fields of one hop",
        sent: "GET /a?b HTTP/1.1\r\nhOST: a\r\nConnection: X-One, keep-alive, x-two\r\nX-One: 1\r\nX-Two: 2\r\nX-Three:3 \r\nKeep-Alive: 9\r\nTE: trailers\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nProxy-Connection: close\r\nProxy-Authorization: x\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n",
        arrives: "GET /a?b HTTP/1.1\r\nX-Three: 3\r\nX-Forwarded-For: 1.2.3.4\r\nVia: 1.1 mlmesh\r\nHost: HOST\r\n\r\n",
        answered: "HTTP/1.1 200 Fine\r\nConnection: x-one\r\nX-One: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: x\r\nUpgrade: x\r\nX-Two: 2\r\nContent-Length: 2\r\n\r\nok",
        returns: "HTTP/1.1 200 Fine\r\nX-Two: 2\r\nContent-Length: 2\r\n\r\nok",
        ends: false,
    },
    Row {
        name: "a body that looks like a request",
        sent: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 38\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\nX\r\n",
        arrives: "POST / HTTP/1.1\r\nContent-Length: 38\r\nVia: 1.1 mlmesh\r\nHost: HOST\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\nX\r\n",
        answered: EMPTY,
        returns: EMPTY,
        ends: false,
    },
    Row {
        name: "chunks, extensions and trailers",
        sent: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nTrailer: X-Sum\r\n\r\n5;a=\"b\"\r\nhello\r\n000\r\nX-Sum: 1\r\n\r\n",
        arrives: "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\nTrailer: X-Sum\r\nVia: 1.1 mlmesh\r\nHost: HOST\r\n\r\n5;a=\"b\"\r\nhello\r\n000\r\nX-Sum: 1\r\n\r\n",
        answered: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\nA;c\r\n0123456789\r\n0\r\nX-Sum: 2\r\n\r\n",
        returns: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\nA;c\r\n0123456789\r\n0\r\nX-Sum: 2\r\n\r\n",
        ends: false,
    },
    Row {
        name: "HEAD",
        sent: "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
        arrives: "HEAD / HTTP/1.1\r\nVia: 1.1 mlmesh\r\nHost: HOST\r\n\r\n",
        answered: "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n",
        returns: "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n",
        ends: false,
    },
    Row {
        name: "204 without a body, whatever it says",
        sent: GET,
        arrives: GOT,
        answered: "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
        returns: "HTTP/1.1 204 No Content\r\n\r\n",
        ends: false,
    },
    Row {
        name: "304 with a length and no body",
        sent: GET,
        arrives: GOT,
        answered: "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        returns: "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        ends: false,
    },
    Row {
        name: "interim responses",
        sent: GET,
        arrives: GOT,
        answered: "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nX",
        returns: "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nX",
        ends: false,
    },
    Row {
        name: "a status without a reason",
        sent: GET,
        arrives: GOT,
        answered: "HTTP/1.1 299 \r\nContent-Length: 0\r\n\r\n",
        returns: "HTTP/1.1 299 \r\nContent-Length: 0\r\n\r\n",
        ends: false,
    },
    Row {
        name: "a client that closes",
        sent: "GET / HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n\r\n",
        arrives: GOT,
        answered: EMPTY,
        returns: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        ends: true,
    },
    Row {
        name: "HTTP/1.0 gets the data alone, and no interim response",
        sent: "GET / HTTP/1.0\r\nExpect: 100-continue\r\nConnection: keep-alive\r\n\r\n",
        arrives: GOT,
        answered: "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n3;x\r\ncde\r\n0\r\n\r\n",
        returns: "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcde",
        ends: true,
    },
    Row {
        name: "empty lines before a request, and an absolute address",
        sent: "\r\n\r\nGET http://b:1/x HTTP/1.1\r\nHost: a\r\n\r\n",
        arrives: "GET /x HTTP/1.1\r\nVia: 1.1 mlmesh\r\nHost: HOST\r\n\r\n",
        answered: EMPTY,
        returns: EMPTY,
        ends: false,
    },
    Row {
        name: "OPTIONS of the whole server, and trace context",
        sent: "OPTIONS * HTTP/1.1\r\nHost: a\r\ntraceparent: 00-a-b-01\r\ntracestate: x\r\n\r\n",
        arrives: "OPTIONS * HTTP/1.1\r\ntraceparent: 00-a-b-01\r\ntracestate: x\r\nVia: 1.1 mlmesh\r\nHost: HOST\r\n\r\n",
        answered: EMPTY,
        returns: EMPTY,
        ends: false,
    },
];

#[test]
fn messages_arrive_as_they_should() {
    for row in PASSED {
        // In one piece, and byte by byte.
        for step in [usize::MAX, 1] {
            println!("{} in pieces of {step}", row.name);
            let place = Place::new();
            let host = place.targets[0].local_addr().unwrap().to_string();
            let mut client = place.client();
            for piece in row.sent.as_bytes().chunks(step) {
                client.send(piece);
            }
            let mut target = place.target();
            target.expect(&row.arrives.replace("HOST", &host));
            for piece in row.answered.as_bytes().chunks(step) {
                target.send(piece);
            }
            client.expect(row.returns);
            if row.ends {
                client.ended();
            } else {
                // Both connections serve the next request.
                client.send(GET);
                target.expect(&GOT.replace("HOST", &host));
                target.send(EMPTY);
                client.expect(EMPTY);
            }
        }
    }
}

#[test]
fn a_response_may_end_with_its_connection() {
    let place = Place::new();
    for version in ["1.0", "1.1"] {
        let (mut client, mut target) = place.carried(GET);
        target.send(format!("HTTP/{version} 200 OK\r\n\r\none"));
        client.expect("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\none");
        target.send(" two");
        drop(target);
        assert_eq!(client.rest(), " two");
    }
}

#[test]
fn pipelined_requests_are_answered_in_order_one_at_a_time() {
    let place = Place::new();
    let mut client = place.client();
    let request =
        |path: &str| format!("POST /{path} HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n{path}");
    client.send(["1", "2", "3"].map(request).concat());
    let mut target = place.target();
    for path in ["1", "2", "3"] {
        assert!(
            target
                .until("\r\n\r\n")
                .starts_with(&format!("POST /{path} "))
        );
        target.expect(path);
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{path}");
        target.send(&answer);
        client.expect(&answer);
    }
    assert!(place.is_untouched());
}

#[test]
fn continue_is_between_client_and_target() {
    let place = Place::new();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    let (mut client, mut target) = place.carried(head);
    target.send("HTTP/1.1 100 Continue\r\n\r\n");
    client.expect("HTTP/1.1 100 Continue\r\n\r\n");
    client.send("body");
    target.expect("body");
    target.send(EMPTY);
    client.expect(EMPTY);

    // The target does not want the body; the client, who never sends it, is told to go.
    client.send(head);
    target.until("\r\n\r\n");
    target.send("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n");
    client.expect(
        "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    );
    target.ended();
}

#[test]
fn an_early_response_reaches_a_client_that_goes_on_sending() {
    for target_closes in [true, false] {
        let place = Place::new();
        let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n";
        let (mut client, mut target) = place.carried(head);
        target.send("HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig");
        let kept = match target_closes {
            true => {
                drop(target);
                None
            }
            false => Some(target),
        };
        let stream = client.stream.try_clone().unwrap();
        let sending = std::thread::spawn(move || {
            use std::io::Write as _;
            let piece = [b'x'; 4096];
            // Up to the end that the gateway makes, or what it is willing to take.
            while (&stream).write_all(&piece).is_ok() {}
        });
        client
            .expect("HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig");
        sending.join().unwrap();
        drop(kept);
    }
}
