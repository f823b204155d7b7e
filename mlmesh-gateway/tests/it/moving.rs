//! Targets that fail: requests that go elsewhere, and targets that are left out for a
//! while.

use std::time::Duration;

use crate::wire::{Place, Wire, eventually};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const CLOSING: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";

fn place(targets: usize, repeats_generation: bool) -> Place {
    Place::of(targets, |settings| {
        settings.strategy = "hybrid_mesh".to_owned();
        settings.repeats_generation = repeats_generation;
    })
}

fn call(path: &str, more: &str) -> String {
    let body = r#"{"model":"tiny","prompt":"hello","stream":true}"#;
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: a\r\n{more}Content-Length: {length}\r\n\r\n{body}")
}

/// The status of the client's response.
fn status(client: &mut Wire) -> u16 {
    client.until("\r\n\r\n")[9..12].parse().unwrap()
}

#[test]
fn what_may_be_made_twice_goes_elsewhere() {
    const KEY: &str = "Idempotency-Key: 1\r\n";
    const CHAT: &str = "/v1/chat/completions";
    for (path, more, repeats_generation, moves) in [
        (CHAT, KEY, false, true),
        (CHAT, "", false, false),
        (CHAT, "", true, true),
        ("/v1/responses", "", true, false),
        ("/v1/responses", KEY, true, true),
        ("/v1/embeddings", "", true, true),
    ] {
        println!("{path} {more:?} {repeats_generation}");
        let place = place(2, repeats_generation);
        let mut client = place.client();
        let request = call(path, more);
        client.send(&request);
        let mut first = place.target_at(0);
        first.until("true}");
        drop(first);
        if !moves {
            assert_eq!(status(&mut client), 502);
            continue;
        }
        let mut second = place.target_at(1);
        // To the byte, but for the name.
        let arrived = second.until("true}");
        assert!(arrived.contains(&more.replace("\r\n", "")), "{arrived}");
        second.send(OK);
        client.expect(OK);
    }
}

#[test]
fn a_target_that_is_too_busy_is_passed_over() {
    const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy";
    let place = place(2, true);
    let mut client = place.client();
    client.send(call("/v1/completions", ""));
    let mut first = place.target_at(0);
    first.until("true}");
    first.send(BUSY);
    let mut second = place.target_at(1);
    second.until("true}");
    // Nobody else is left: its word is passed on.
    second.send(BUSY);
    client.expect(BUSY);
}

#[test]
fn a_response_that_has_begun_goes_nowhere_else() {
    let place = place(2, true);
    let mut client = place.client();
    client.send(call("/v1/completions", ""));
    let mut first = place.target_at(0);
    first.until("true}");
    first.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 99\r\n\r\n");
    client.until("\r\n\r\n");
    first.reset();
    client.finish();
    assert!(place.targets[1].set_nonblocking(true).is_ok());
    assert!(place.targets[1].accept().is_err());
}

#[test]
fn a_stream_without_a_token_for_three_seconds_goes_elsewhere() {
    let place = place(2, true);
    let mut client = place.client();
    client.send(call("/v1/completions", ""));
    let mut first = place.target_at(0);
    first.until("true}");
    let mut second = place.target_at(1);
    second.until("true}");
    first.finish();
    second.send(OK);
    client.expect(OK);
}

#[test]
fn a_target_that_fails_is_left_out_and_comes_back() {
    // In turn, so that both are tried whatever is predicted of them.
    let mut place = Place::of(2, |_| {});
    let dead = place.targets.remove(0);
    let address = dead.local_addr().unwrap();
    drop(dead);
    let series = |outcome| {
        format!("mlmesh_gateway_requests_total{{target=\"{address}\",outcome=\"{outcome}\"}}")
    };
    let mut client = place.client();
    let mut serve = |place: &Place| {
        client.send(call("/v1/completions", ""));
        let mut target = place.target();
        target.until("true}");
        target.send(CLOSING);
        client.expect(CLOSING.replace("Connection: close\r\n", "").as_str());
    };
    // Three failures of a second are most of what was tried there.
    for _ in 0..20 {
        serve(&place);
    }
    let failed = place.metric(&series("unreachable"));
    assert!((3..=6).contains(&failed), "{failed}");
    let open = format!("mlmesh_gateway_target_open{{target=\"{address}\"}}");
    assert_eq!(place.metric(&open), 1);
    // It answers again: after a while it is probed, and used.
    let back = std::net::TcpListener::bind(address).unwrap();
    let served = std::thread::spawn(move || {
        for _ in 0..2 {
            let mut target = crate::wire::accepted(&back);
            target.until("true}");
            target.send(CLOSING);
        }
    });
    let mut asked = Wire::connect(place.gateway.address());
    asked
        .stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let good = series("2xx");
    eventually(|| {
        if place.metric(&good) >= 2 {
            return true;
        }
        asked.send(call("/v1/completions", ""));
        // Whoever it went to.
        place.targets[0].set_nonblocking(true).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(1);
        asked.stream.set_nonblocking(true).unwrap();
        while asked.stream.peek(&mut [0]).is_err() && std::time::Instant::now() < deadline {
            if let Ok((stream, _)) = place.targets[0].accept() {
                stream.set_nonblocking(false).unwrap();
                let mut target = Wire::of(stream);
                target.until("true}");
                target.send(CLOSING);
            }
            std::thread::yield_now();
        }
        asked.stream.set_nonblocking(false).unwrap();
        asked.until("\r\n\r\nok");
        false
    });
    served.join().unwrap();
    assert_eq!(place.metric(&open), 0);
}
