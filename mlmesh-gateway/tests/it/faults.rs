//! Targets that fail, stall or lie, and clients that are slow.

use std::time::Duration;

use mlmesh_gateway::Waits;

use crate::wire::{Place, Wire, eventually};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

const SHORT: Duration = Duration::from_millis(200);

/// Status and code of an answer of the gateway's own, over a connection that goes on.
fn refusal(client: &mut Wire) -> String {
    let head = client.until("\r\n\r\n");
    let length = head.split("Content-Length: ").nth(1).unwrap();
    let length = length.lines().next().unwrap().parse().unwrap();
    let body: serde_json::Value = serde_json::from_slice(&client.exactly(length)).unwrap();
    let status = head.split(' ').nth(1).unwrap();
    format!("{status} {}", body["error"]["code"].as_str().unwrap())
}

#[test]
fn what_is_no_response_is_a_502_and_the_connection_goes_on() {
    let place = Place::new();
    let bad = [
        "garbage\r\n\r\n",
        "\x16\x03\x01",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        "HTTP/1.1 999999 OK\r\n\r\n",
    ];
    let mut client = place.client();
    for text in bad {
        println!("{text:?}");
        client.send(POST);
        let mut target = place.target();
        target.until("body");
        target.send(text);
        assert_eq!(refusal(&mut client), "502 target_failed");
        target.ended();
    }
    place.counted("failed", bad.len() as i64);
}

#[test]
fn a_target_that_ends_before_its_response_is_a_502() {
    let place = Place::new();
    let mut client = place.client();
    for (answer, leave) in [
        ("", drop as fn(Wire)),
        ("", Wire::reset),
        ("HTTP/1.1 200 OK\r\nConte", drop),
        ("HTTP/1.1 200 OK\r\nConte", Wire::reset),
    ] {
        client.send(POST);
        let mut target = place.target();
        target.until("body");
        target.send(answer);
        leave(target);
        assert_eq!(refusal(&mut client), "502 target_failed");
    }
    place.counted("failed", 4);
}

#[test]
fn a_response_that_breaks_off_is_seen_to() {
    let place = Place::new();
    for (answer, leave) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
            drop as fn(Wire),
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
            Wire::reset,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
            drop,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
            Wire::reset,
        ),
    ] {
        let (mut client, mut target) = place.carried(GET);
        target.send(answer);
        client.until("short");
        leave(target);
        client.finish();
    }
    place.counted("failed", 4);
}

#[test]
fn a_stream_of_events_that_breaks_off_ends_with_an_event() {
    let waits = Waits {
        response_body: SHORT,
        ..Waits::default()
    };
    let place = Place::with(1, waits);
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n";
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n");
    // Whether the stream stands between two events, and how it is framed for the client.
    for (answer, told) in [
        (chunked.clone(), true),
        (format!("{chunked}9\r\ndata: 1\n\n\r\n"), true),
        (format!("{chunked}9\r\ndata: 1\n\n"), false),
        (format!("{chunked}6\r\ndata: \r\n"), false),
        (
            format!("{head}Content-Length: 99\r\n\r\ndata: 1\n\n"),
            false,
        ),
    ] {
        for leave in [drop as fn(Wire), Wire::reset, |target| {
            target.stream.set_nonblocking(false).unwrap();
            // It stays and says nothing more.
            std::mem::forget(target);
        }] {
            println!("{answer:?}");
            let (mut client, mut target) = place.carried(GET);
            target.send(&answer);
            client.expect(&answer);
            leave(target);
            let rest = client.rest();
            assert_eq!(!rest.is_empty(), told, "{rest}");
            if told {
                let (size, rest) = rest.split_once("\r\n").unwrap();
                let event = rest.strip_suffix("\r\n0\r\n\r\n").unwrap();
                assert_eq!(usize::from_str_radix(size, 16).unwrap(), event.len());
                let json = event.strip_prefix("data: ").unwrap();
                let json: serde_json::Value = serde_json::from_str(json).unwrap();
                let code = json["error"]["code"].as_str().unwrap();
                assert!(["target_failed", "target_timeout"].contains(&code));
            }
        }
    }
    // Where the end of the connection is the end of the stream, and to HTTP/1.0.
    let (mut client, mut target) = place.carried(GET);
    target.send(format!("{head}\r\ndata: 1\n\n"));
    client.until("data: 1\n\n");
    target.reset();
    assert!(client.rest().starts_with("data: {\"error\":"));
    let (mut client, mut target) = place.carried("GET / HTTP/1.0\r\n\r\n");
    target.send(format!("{chunked}9\r\ndata: 1\n\n\r\n"));
    client.until("data: 1\n\n");
    drop(target);
    assert!(client.rest().starts_with("data: {\"error\":"));
}

#[test]
fn what_comes_after_a_response_is_nobody_s() {
    let place = Place::new();
    let (mut client, mut liar) = place.carried(GET);
    liar.send(format!(
        "{OK}HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    ));
    client.expect(OK);
    client.send(GET);
    let mut target = place.target();
    liar.ended();
    target.until("\r\n\r\n");
    target.send(OK);
    client.expect(OK);

    // Said while the connection is idle, it is no answer to the next request either.
    target.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
    eventually(|| {
        // The gateway's thread has looked at its sockets once a page was answered.
        place.metric("mlmesh_gateway_refused_total") >= 0
    });
    client.send(GET);
    let mut target = place.target();
    target.until("\r\n\r\n");
    target.send(OK);
    client.expect(OK);
}

#[test]
fn a_target_that_hangs_is_given_up() {
    let waits = Waits {
        response_head: SHORT,
        response_body: SHORT,
        ..Waits::default()
    };
    let place = Place::with(1, waits);
    let (mut client, mut target) = place.carried(GET);
    assert_eq!(refusal(&mut client), "504 target_timeout");
    target.ended();
    // Half a head is no response either.
    client.send(GET);
    let mut target = place.target();
    target.until("\r\n\r\n");
    target.send("HTTP/1.1 200 OK\r\n");
    assert_eq!(refusal(&mut client), "504 target_timeout");
    // Within a stream there is nothing left to say.
    client.send(GET);
    let mut target = place.target();
    target.until("\r\n\r\n");
    target.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort");
    client.until("short");
    client.ended();
    place.counted("timed_out", 3);
}

#[test]
fn targets_that_refuse_are_passed_over() {
    let mut place = Place::with(2, Waits::default());
    drop(place.targets.remove(0));
    let mut client = place.client();
    let address = place.targets[0].local_addr().unwrap();
    for _ in 0..4 {
        client.send(POST);
        let mut target = place.target();
        assert!(
            target
                .until("body")
                .contains(&format!("\r\nHost: {address}\r\n"))
        );
        target.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
        client.expect(OK);
    }
    place.targets.clear();
    client.send(POST);
    assert_eq!(refusal(&mut client), "502 target_unreachable");
}

#[test]
fn an_idle_connection_that_ended_is_replaced_without_a_trace() {
    let place = Place::new();
    for request in [GET, POST] {
        let (mut client, mut target) = place.carried(request);
        target.send(OK);
        client.expect(OK);
        drop(target);
        // By now the end has arrived: the page is answered by the same thread.
        place.metric("mlmesh_gateway_client_connections ");
        client.send(request);
        let mut target = place.target();
        target.until("\r\n\r\n");
        target.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
        client.expect(OK);
    }
}

#[test]
fn only_idempotent_requests_are_sent_again_and_only_once() {
    let place = Place::new();
    let first = |request: &str| {
        let (mut client, mut target) = place.carried(request);
        target.send(OK);
        client.expect(OK);
        // The second request arrives on the same connection, which then ends.
        client.send(request);
        target.until("\r\n\r\n");
        (client, target)
    };
    let (mut client, target) = first(POST);
    drop(target);
    assert_eq!(refusal(&mut client), "502 target_failed");
    assert!(place.is_untouched());

    let put =
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n";
    let (mut client, target) = first(put);
    drop(target);
    let mut again = place.target();
    again.until("\r\n\r\n4\r\nbody\r\n0\r\n\r\n");
    again.reset();
    assert_eq!(refusal(&mut client), "502 target_failed");
    assert!(place.is_untouched());
}

#[test]
fn slow_clients_are_given_up() {
    let waits = Waits {
        head: SHORT,
        idle: SHORT,
        request_body: SHORT,
        client_write: SHORT,
        ..Waits::default()
    };
    let place = Place::with(1, waits);
    place.client().ended();
    let mut client = place.client();
    client.send("GET / HTTP/1.1\r\nX: ");
    assert_eq!(refusal(&mut client), "408 request_timeout");
    client.ended();
    let (mut client, mut target) =
        place.carried("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nbo");
    assert_eq!(refusal(&mut client), "408 request_timeout");
    target.expect("bo");
    target.ended();

    // A client that takes nothing: the target is held back, then left.
    let (client, mut target) = place.carried(GET);
    target.send("HTTP/1.1 200 OK\r\n\r\n");
    let piece = vec![b'x'; 1 << 16];
    let mut sent = 0;
    while std::io::Write::write_all(&mut target.stream, &piece).is_ok() {
        sent += piece.len();
        assert!(sent < 1 << 28, "the gateway holds what nobody takes");
    }
    drop(client);
}

#[test]
fn interim_responses_are_bounded() {
    let place = Place::new();
    let (mut client, mut target) = place.carried(GET);
    for _ in 0..17 {
        target.send("HTTP/1.1 102 Processing\r\n\r\n");
    }
    for _ in 0..16 {
        client.expect("HTTP/1.1 102 Processing\r\n\r\n");
    }
    client.finish();
    place.counted("failed", 1);
}
