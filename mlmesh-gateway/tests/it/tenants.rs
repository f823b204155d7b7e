//! Keys, limits of their tenants, and what is told of their requests.

use std::sync::mpsc::{Receiver, sync_channel};

use mlmesh_gateway::Used;
use mlmesh_gateway::keys::Keys;

use crate::wire::{PATIENCE, Place, Wire, eventually};

const EVENTS: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
    Connection: close\r\n\r\n";
const USAGE: &str = "data: {\"usage\":{\"prompt_tokens\":40,\"completion_tokens\":3,\
    \"prompt_tokens_details\":{\"cached_tokens\":32}}}\n\n";

/// Two tenants: `key-a` has 12 requests and `key-b` 600 tokens a minute, of which a sixth
/// at once.
fn place() -> (Place, Receiver<Used>) {
    limited("requests_per_minute = 12", "tokens_per_minute = 600")
}

fn limited(a: &str, b: &str) -> (Place, Receiver<Used>) {
    let hash = |key: &str| {
        let digest = <sha2::Sha256 as sha2::Digest>::digest(key);
        digest
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let keys = format!(
        "[[tenant]]\nname = \"a\"\nkeys_sha256 = [\"{}\"]\n{a}\n\
         [[tenant]]\nname = \"b\"\nkeys_sha256 = [\"{}\"]\n{b}\n",
        hash("key-a"),
        hash("key-b"),
    );
    let (sender, used) = sync_channel(16);
    let place = Place::of(1, |settings| {
        settings.strategy = "hybrid_mesh".to_owned();
        settings.keys = Some(Keys::read(&keys).unwrap());
        settings.usage = Some(sender);
    });
    (place, used)
}

fn ask(client: &mut Wire, key: &str, tokens_max: u64) {
    ask_with(client, key, "hello", tokens_max);
}

fn ask_with(client: &mut Wire, key: &str, prompt: &str, tokens_max: u64) {
    let body = format!(
        r#"{{"model":"tiny","stream":true,"prompt":"{prompt}","max_tokens":{tokens_max}}}"#
    );
    let length = body.len();
    client.send(format!(
        "POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    ));
}

fn code(client: &mut Wire) -> String {
    let head = client.until("\r\n\r\n");
    let body = client.until("}}");
    let code = body.split("\"code\":\"").nth(1).unwrap();
    format!("{} {}", &head[9..12], code.split('"').next().unwrap())
}

#[test]
fn only_known_keys_are_served_and_stay_here() {
    let (place, used) = place();
    for field in [
        "",
        "Authorization: Bearer other\r\n",
        "Authorization: Basic key-a\r\n",
    ] {
        let mut client = place.client();
        client.send(format!("GET /v1/models HTTP/1.1\r\nHost: a\r\n{field}\r\n"));
        assert_eq!(code(&mut client), "401 invalid_api_key", "{field}");
    }
    assert!(place.is_untouched());
    let mut client = place.client();
    ask(&mut client, "key-a", 8);
    let mut target = place.target();
    let head = target.until("\r\n\r\n");
    assert!(
        !head.contains("key-a") && !head.contains("uthorization"),
        "{head}"
    );
    target.send(EVENTS);
    target.send("data: a\n\n");
    target.send(USAGE);
    target.send("data: [DONE]\n\n");
    drop(target);
    client.until("[DONE]\n\n");
    let used = used.recv_timeout(PATIENCE).unwrap();
    let expected = Used {
        tenant: "a".to_owned(),
        model: Some("tiny".to_owned()),
        prompt_tokens: Some(40),
        cached_tokens: Some(32),
        answer_tokens: 3,
        is_counted: true,
        status: 200,
        took_ms: used.took_ms,
    };
    assert_eq!(used, expected);
}

#[test]
fn whoever_asks_too_much_is_told_when_to_come_again() {
    let (place, used) = place();
    let mut client = place.client();
    let answer = |place: &Place, client: &mut Wire| {
        let mut target = place.target();
        target.until("}");
        target.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
        client.until("\r\n\r\nok");
    };
    // Twelve a minute are two at once.
    for _ in 0..2 {
        ask(&mut client, "key-a", 8);
        answer(&place, &mut client);
    }
    ask(&mut client, "key-a", 8);
    assert_eq!(code(&mut client), "429 rate_limit_exceeded");
    // The connection goes on, and another tenant is not held up: 600 tokens a minute are
    // 100 at once.
    ask(&mut client, "key-b", 90);
    answer(&place, &mut client);
    ask(&mut client, "key-b", 90);
    assert_eq!(code(&mut client), "429 rate_limit_exceeded");
    let told: Vec<String> = used.try_iter().map(|used| used.tenant).collect();
    assert_eq!(told, ["a", "a", "b"]);
}

#[test]
fn what_was_not_used_may_be_asked_for_again() {
    let (place, used) = place();
    let mut client = place.client();
    for _ in 0..3 {
        ask(&mut client, "key-b", 90);
        let mut target = place.target();
        target.until("}");
        target.send(
            "HTTP/1.1 500 Internal Server Error\r\nConnection: close\r\n\
            Content-Length: 2\r\n\r\nno",
        );
        client.until("\r\n\r\nno");
        // By now it was settled: its end is told after that.
        assert_eq!(used.recv_timeout(PATIENCE).unwrap().status, 500);
    }
}

#[test]
fn tenants_who_wait_take_turns() {
    let (place, _used) = limited("", "");
    let mut first = place.client();
    ask_with(&mut first, "key-a", &"long ".repeat(12_000), 8);
    let mut target = place.target();
    target.until("\"max_tokens\":8}");
    // One after the other: all of them wait for the only target.
    let mut waiting = Vec::new();
    for (key, prompt) in [
        ("key-a", "second of a"),
        ("key-a", "third of a"),
        ("key-b", "first of b"),
    ] {
        let mut client = place.client();
        ask_with(
            &mut client,
            key,
            &format!("{prompt} {}", "word ".repeat(3_000)),
            8,
        );
        waiting.push(client);
        let count = waiting.len() as i64;
        eventually(|| place.metric("mlmesh_gateway_requests_waiting ") == count);
    }
    target.send(EVENTS);
    target.send("data: a\n\n");
    first.until("data: a\n\n");
    // Nobody is paid back for what was not asked for: both begin equal, then take turns.
    for expected in ["second of a", "first of b", "third of a"] {
        let mut next = place.target();
        let asked = next.until("\"max_tokens\":8}");
        assert!(
            asked.contains(expected),
            "not {expected}: {}",
            &asked[..200]
        );
        next.send(EVENTS);
        next.send("data: a\n\n");
    }
}
