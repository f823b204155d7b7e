//! Bodies that are read before a target is chosen, requests that wait for one, and those
//! that are refused.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use crate::wire::{Place, Wire, accepted, eventually};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const EVENTS: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";

/// In front of so many targets, by hybrid_mesh.
fn place(targets: usize) -> Place {
    Place::of(targets, |settings| {
        settings.strategy = "hybrid_mesh".to_owned();
    })
}

/// A call with a prompt that begins with `name` and has so many bytes.
fn body(name: &str, prompt_bytes: usize) -> String {
    let filling = "lorem ipsum ".repeat(prompt_bytes / 12);
    format!(r#"{{"model":"tiny","prompt":"{name} {filling}","stream":true}}"#)
}

fn head(body: &str, more: &str) -> String {
    let length = body.len();
    format!("POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n{more}\r\n")
}

fn call(name: &str, prompt_bytes: usize) -> String {
    let body = body(name, prompt_bytes);
    head(&body, "") + &body
}

/// Whatever the client has sent is understood: the page is answered by the same thread.
fn settle(place: &Place) -> i64 {
    place.metric("mlmesh_gateway_requests_waiting ")
}

#[test]
fn a_body_is_there_before_a_target_is_asked() {
    for bytes in [20, 30_000, 32_768, 33_000, 300_000, 2_000_000] {
        let place = place(1);
        let mut client = place.client();
        for turn in [1, 2] {
            let body = body("a", bytes);
            let (first, last) = body.as_bytes().split_at(body.len() - 1);
            client.send(head(&body, ""));
            client.send(first);
            settle(&place);
            assert!(place.is_untouched(), "{bytes}");
            client.send(last);
            // What comes behind it is the next request's.
            client.send("G");
            let mut target = place.target();
            target.until("\r\n\r\n");
            assert!(target.exactly(body.len()) == body.as_bytes(), "{bytes}");
            target.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
            client.expect(OK);
            client.send("ET /next HTTP/1.1\r\nHost: a\r\n\r\n");
            let mut target = place.target();
            assert!(target.until("\r\n\r\n").starts_with("GET /next "), "{turn}");
            target.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
            client.expect(OK);
        }
    }
}

#[test]
fn chunks_are_read_as_what_they_hold() {
    let place = place(2);
    let (mut client, text) = (place.client(), body("a", 3_000));
    let chunks: Vec<String> = text
        .as_bytes()
        .chunks(700)
        .map(|chunk| {
            format!(
                "{:x}\r\n{}\r\n",
                chunk.len(),
                String::from_utf8_lossy(chunk)
            )
        })
        .collect();
    client.send("POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    for chunk in &chunks {
        client.send(chunk);
        settle(&place);
    }
    assert!(place.is_untouched());
    client.send("0\r\n\r\n");
    let mut target = place.target();
    target.until("\r\n\r\n");
    target.expect(&format!("{}0\r\n\r\n", chunks.concat()));
    target.send(OK);
    client.expect(OK);
    // The same prompt without chunks goes where it is held.
    client.send(head(&text, "") + &text);
    target.until("\r\n\r\n");
    target.expect(&text);
    target.send(OK);
    client.expect(OK);
}

#[test]
fn what_is_too_large_to_be_read_first_is_passed_on_as_it_comes() {
    let place = place(1);
    let mut client = place.client();
    let body = body("a", 3_000_000);
    let (first, last) = body.as_bytes().split_at(2_500_000);
    client.send(head(&body, ""));
    client.send(first);
    let mut target = place.target();
    target.until("\r\n\r\n");
    let mut got = target.exactly(first.len());
    client.send(last);
    got.extend(target.exactly(last.len()));
    assert!(got == body.as_bytes());
    target.send(OK);
    client.expect(OK);
}

#[test]
fn a_client_that_waits_to_send_its_body_is_told_to() {
    let place = place(1);
    let (mut client, body) = (place.client(), body("a", 100));
    for times in [1, 2] {
        client.send(head(&body, "Expect: 100-continue\r\n"));
        client.expect("HTTP/1.1 100 Continue\r\n\r\n");
        assert!(place.is_untouched());
        client.send(&body);
        let mut target = place.target();
        let arrived = target.until("\r\n\r\n");
        assert!(!arrived.contains("Expect"), "{times}: {arrived}");
        target.expect(&body);
        target.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
        client.expect(OK);
    }
    // A body that comes without waiting is not asked for.
    client.send(head(&body, "Expect: 100-continue\r\n") + &body);
    let mut target = place.target();
    target.until("\r\n\r\n");
    target.send(OK);
    client.expect(OK);
}

#[test]
fn the_same_beginning_goes_where_it_is_held() {
    let place = place(4);
    let mut client = place.client();
    client.send(call("shared", 4_000));
    let index = asked(&place);
    let mut target = place.target_at(index);
    for turn in 0..6 {
        target.until("stream\":true}");
        target.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9\r\n\r\ndata: x\n\n");
        client.until("data: x\n\n");
        // The same connection of the same target takes it, though others are idle, too.
        client.send(call("shared", 4_000 + 300 * turn));
    }
}

/// The target that is asked next.
fn asked(place: &Place) -> usize {
    let mut found = None;
    eventually(|| {
        found = (0..place.targets.len()).find(|index| {
            let mut sockets = [PollFd::new(&place.targets[*index], PollFlags::IN)];
            poll(&mut sockets, Some(&Timespec::default())).unwrap() > 0
        });
        found.is_some()
    });
    found.unwrap()
}

/// Has each target answer once, so that something is known of it.
fn known(place: &Place) {
    let pairs: Vec<(Wire, Wire)> = (0..place.targets.len())
        .map(|index| {
            let mut client = place.client();
            client.send(call(&format!("known {index}"), 400));
            // Those before are busy.
            let mut target = place.target_at(index);
            target.until("stream\":true}");
            (client, target)
        })
        .collect();
    for (mut client, mut target) in pairs {
        target.send(
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\
             Content-Type: text/event-stream\r\nContent-Length: 9\r\n\r\ndata: x\n\n",
        );
        client.until("data: x\n\n");
    }
}

/// A first prompt keeps the only target busy for longer than the bound: the second waits.
fn waiting(place: &Place) -> (Wire, Wire, Wire) {
    let mut first = place.client();
    first.send(call("first", 60_000));
    let mut target = place.target();
    target.until("stream\":true}");
    let mut second = place.client();
    second.send(call("second", 400));
    eventually(|| settle(place) == 1);
    (first, target, second)
}

#[test]
fn what_waits_goes_when_a_target_is_free() {
    for threads in [1, 4] {
        let place = Place::of(1, |settings| {
            settings.strategy = "hybrid_mesh".to_owned();
            settings.threads = threads;
        });
        let (mut first, mut target, mut second) = waiting(&place);
        assert!(place.is_untouched());
        target.send(EVENTS);
        target.send("data: a token\n\n");
        first.until("data: a token\n\n");
        let mut other = place.target();
        assert!(other.until("stream\":true}").contains("second"));
        other.send(OK);
        second.expect(OK);
        assert_eq!(settle(&place), 0);
        drop(target);
        assert_eq!(first.rest(), "");
        let decisions = |outcome: &str| {
            place.metric(&format!(
                "mlmesh_gateway_decisions_total{{outcome=\"{outcome}\"}}"
            ))
        };
        assert_eq!([decisions("bound"), decisions("waited")], [2, 1]);
    }
}

#[test]
fn what_waits_goes_when_the_first_fails_or_leaves() {
    for leaves in [true, false] {
        let place = place(1);
        let (first, target, mut second) = waiting(&place);
        match leaves {
            true => drop(first),
            false => target.reset(),
        }
        let mut other = place.target();
        assert!(other.until("stream\":true}").contains("second"));
        other.send(OK);
        second.expect(OK);
    }
}

#[test]
fn who_leaves_while_waiting_is_forgotten() {
    let place = place(1);
    let (mut first, mut target, second) = waiting(&place);
    drop(second);
    eventually(|| settle(&place) == 0);
    target.send(OK);
    first.expect(OK);
    assert!(place.is_untouched());
    // Nothing of it is booked.
    first.send(call("third", 400));
    target.until("third");
}

#[test]
fn what_would_be_too_late_is_refused_at_once_and_the_connection_goes_on() {
    let place = Place::of(1, |settings| {
        settings.strategy = "hybrid_mesh".to_owned();
        settings.slo = Duration::from_millis(1);
    });
    known(&place);
    let mut first = place.client();
    first.send(call("first", 60_000));
    let mut target = place.target();
    target.until("stream\":true}");
    let mut second = place.client();
    for _ in 0..2 {
        second.send(call("second", 40_000));
        let refusal = second.until("\r\n\r\n");
        assert!(refusal.starts_with("HTTP/1.1 429 "), "{refusal}");
        let seconds = refusal.split("Retry-After: ").nth(1).unwrap();
        let seconds = seconds.split("\r\n").next().unwrap();
        assert!(
            (1..60).contains(&seconds.parse::<u32>().unwrap()),
            "{refusal}"
        );
        let error = second.until("}}");
        assert!(error.contains("\"code\":\"deadline_missed\""), "{error}");
        assert!(error.contains("\"type\":\"rate_limit_error\""), "{error}");
    }
    target.send(OK);
    first.expect(OK);
    second.send(call("second", 400));
    target.until("second");
    target.send(OK);
    second.expect(OK);
}

#[test]
fn a_target_that_takes_no_connection_costs_no_body() {
    let mut place = place(2);
    drop(place.targets.remove(0));
    let mut client = place.client();
    let text = call("a", 50_000);
    let mut target: Option<Wire> = None;
    for turn in 0..6 {
        client.send(call(&format!("prompt {turn}"), 50_000));
        let target = target.get_or_insert_with(|| accepted(&place.targets[0]));
        target.until("\r\n\r\n");
        target.until("stream\":true}");
        target.send(OK);
        client.expect(OK);
    }
    place.targets.clear();
    drop(target);
    client.send(text);
    assert!(client.until("}}").contains("target_unreachable"));
}

#[test]
fn lists_and_health_are_booked_nowhere() {
    let place = place(2);
    let mut client = place.client();
    for index in [0, 1, 0] {
        client.send("GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut target = place.target_at(index);
        target.until("\r\n\r\n");
        target.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
        client.expect(OK);
    }
    let bound = place.metric("mlmesh_gateway_decisions_total{outcome=\"bound\"}");
    assert_eq!(bound, 0);
}

/// The page of this path, as JSON.
fn page(place: &Place, path: &str) -> serde_json::Value {
    let mut client = place.client();
    client.send(format!(
        "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    ));
    let text = client.rest();
    serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap()
}

#[test]
fn each_response_names_the_decision_that_explains_it() {
    let place = Place::of(2, |settings| {
        settings.strategy = "hybrid_mesh".to_owned();
        settings.slo = Duration::from_millis(1);
    });
    known(&place);
    // Both targets are kept busy, the second is asked since the first is.
    let mut clients = [place.client(), place.client()];
    let mut targets = Vec::new();
    let mut hosts = Vec::new();
    for (index, client) in clients.iter_mut().enumerate() {
        client.send(call(&format!("prompt {index}"), 60_000));
        let asked = asked(&place);
        let mut target = place.target_at(asked);
        target.until("stream\":true}");
        targets.push(target);
        hosts.push(place.targets[asked].local_addr().unwrap().to_string());
    }
    let mut third = place.client();
    third.send(call("third", 400));
    third.until("\r\n\r\n");
    let refused = third.number.unwrap();
    targets[1].send(EVENTS);
    targets[1].send("data: a token\n\n");
    clients[1].until("a token");
    let sent = clients[1].number.unwrap();
    let decision = page(&place, &format!("/-/decisions/{sent}"));
    assert_eq!(decision["decided"], "sent at once", "{decision}");
    let told = &decision["targets"];
    assert_eq!(
        [&told[0]["target"], &told[1]["target"]],
        [&hosts[1], &hosts[0]]
    );
    assert_eq!([&told[0]["taken"], &told[1]["taken"]], [true, false]);
    // The other one had a queue.
    assert!(
        told[1]["terms"]["queued_ms"].as_f64() > Some(1_000.0),
        "{decision}"
    );
    assert!(told[1]["would_be_taken_with"].is_object(), "{decision}");
    assert!(decision["first_token_ms"].is_number(), "{decision}");
    let decision = page(&place, &format!("/-/decisions/{refused}"));
    assert_eq!(decision["refused"]["rule"], "deadline_missed", "{decision}");
    assert_eq!(decision["kept_as"], "refused");
    let list = page(&place, "/-/decisions");
    let listed: Vec<u64> = list["decisions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["request"].as_u64().unwrap())
        .collect();
    assert!(listed.contains(&refused), "{list}");
    let unknown = page(&place, "/-/decisions/999999");
    assert_eq!(unknown["error"]["code"], "decision_unknown");
}

/// Each answer is about a guess that was made long ago; they must not add up.
#[test]
fn many_answers_at_once_correct_the_length_of_a_token_once() {
    let place = Place::of(1, |settings| settings.strategy = "least_ttft".to_owned());
    let mut pairs = Vec::new();
    for _ in 0..64 {
        let mut client = place.client();
        client.send(call("a", 4_000));
        let mut target = place.target();
        target.until("stream\":true}");
        pairs.push((client, target));
    }
    // Eight bytes a token, where four were guessed.
    for (client, target) in &mut pairs {
        target.send(EVENTS);
        target.send("data: {\"usage\":{\"prompt_tokens\":500,\"completion_tokens\":1}}\n\n");
        client.until("\"completion_tokens\":1}}\n\n");
    }
    for (mut client, target) in pairs {
        drop(target);
        client.rest();
    }
    let mut client = place.client();
    client.send(call("a", 4_000));
    place.target().until("stream\":true}");
    drop(client);
    let told = page(&place, "/-/decisions/64");
    let tokens = told["prompt_tokens"].as_f64().unwrap();
    assert!((500.0..540.0).contains(&tokens), "{told}");
}

/// Answers that come as a whole say nothing of a prompt's time but what it was not longer
/// than; they must not keep each other waiting for longer than was guessed.
#[test]
fn silent_answers_teach_that_an_engine_is_faster() {
    let place = place(1);
    let silent = |number: usize| {
        let text = call(&format!("prompt {number}"), 8_000);
        text.replace("\"stream\":true}", "\"stream\":null}")
    };
    let mut targets = Vec::new();
    for number in 0..24 {
        let mut client = place.client();
        client.send(silent(number));
        let mut target = place.target();
        target.until("\"stream\":null}");
        target.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
        client.expect(OK);
    }
    // As many at once: by the first guess they would be nine seconds of work.
    let mut clients = Vec::new();
    for number in 100..124 {
        let mut client = place.client();
        client.send(silent(number));
        clients.push(client);
        let mut target = place.target();
        target.until("\"stream\":null}");
        targets.push(target);
    }
    assert_eq!(settle(&place), 0);
}
