//! The front door: TLS only, keys, bounds, hostile input.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use mlmesh_testkit::daemon::Daemon;

use crate::wire::{client, connect, request, request_with, send_raw};

#[test]
fn plain_http_is_refused_and_told_so() {
    let daemon = Daemon::start();
    let mut stream = TcpStream::connect(("127.0.0.1", daemon.port())).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
        .write_all(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        head.contains(&format!("Content-Length: {}", body.len())),
        "{head}"
    );
    assert!(body.contains("HTTPS only"), "{body}");
}

#[test]
fn both_versions_of_tls_that_are_allowed_work() {
    let daemon = Daemon::start();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut stream = connect(&daemon, &[version]).unwrap();
        stream
            .write_all(b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(stream.conn.protocol_version(), Some(version.version));
    }
}

#[test]
fn only_health_answers_without_a_key() {
    let daemon = Daemon::start();
    for (target, status) in [
        ("/health/live", 200),
        ("/health/ready", 200),
        ("/metrics", 401),
        ("/openapi.json", 401),
        ("/v1/status", 401),
        ("/v1/events", 401),
        ("/no/such/route", 401),
    ] {
        let answer = request_with(&daemon, "GET", target, None, "");
        assert_eq!(answer.status, status, "{target}: {answer:?}");
        if status == 401 {
            assert_eq!(answer.code(), "unauthenticated");
            assert!(
                answer.head.contains("www-authenticate: bearer"),
                "{}",
                answer.head
            );
        }
    }
}

#[test]
fn a_wrong_key_is_refused_and_recorded_once() {
    let daemon = Daemon::start();
    let key = daemon.key();
    for wrong in ["x", "mlmesh_", &key[..key.len() - 1], &key.to_uppercase()] {
        let headers = format!("Authorization: Bearer {wrong}\r\n");
        assert_eq!(
            request_with(&daemon, "GET", "/v1/status", None, &headers).status,
            401,
            "{wrong}"
        );
    }
    let basic = format!("Authorization: Basic {key}\r\n");
    assert_eq!(
        request_with(&daemon, "GET", "/v1/status", None, &basic).status,
        401
    );
    let lower = format!("authorization: bearer {key}\r\n");
    assert_eq!(
        request_with(&daemon, "GET", "/v1/status", None, &lower).status,
        200
    );
    let events = request(&daemon, "GET", "/v1/events", None).json();
    let security = events["events"].as_array().unwrap().iter();
    let security = security
        .filter(|event| event["event"]["type"] == "security")
        .count();
    assert_eq!(security, 1, "{events}");
}

#[test]
fn keys_stay_out_of_store_logs_and_arguments() {
    let daemon = Daemon::start();
    let key = daemon.key();
    client(&daemon).status().unwrap();
    assert_eq!(key.len(), "mlmesh_".len() + 64);
    let mode = daemon
        .data_dir()
        .join("owner.key")
        .metadata()
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o600);
    let secret = &key["mlmesh_".len()..];
    let arguments = std::fs::read(format!("/proc/{}/cmdline", daemon.pid())).unwrap();
    assert!(!contains(&arguments, secret.as_bytes()));
    for name in [
        "meshd.db",
        "meshd.db-wal",
        "meshd.json",
        "logs/app.log",
        "logs/access.log",
        "logs/audit.log",
    ] {
        let bytes = std::fs::read(daemon.data_dir().join(name)).unwrap_or_default();
        assert!(!contains(&bytes, secret.as_bytes()), "{name}");
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn every_refusal_has_the_one_shape() {
    let daemon = Daemon::start();
    for (method, target, body, status, code) in [
        ("GET", "/no/such/route", None, 404, "not_found"),
        ("PUT", "/v1/status", None, 405, "method_not_allowed"),
        ("GET", "/v1/runs?limit=x", None, 400, "bad_parameter"),
        (
            "GET",
            "/v1/runs?limit=1&limit=2",
            None,
            400,
            "bad_parameter",
        ),
        ("GET", "/v1/runs?nonsense=1", None, 400, "bad_parameter"),
        ("GET", "/v1/runs?phase=asleep", None, 400, "bad_parameter"),
        ("GET", "/v1/runs/%ff", None, 400, "bad_parameter"),
        ("GET", "/v1/runs/@last", None, 404, "not_found"),
        ("GET", "/v1/runs/zzzz", None, 404, "not_found"),
        ("GET", "/v1/runs/aaaaaaaaaaaa", None, 404, "not_found"),
        ("GET", "/v1/objects/beef", None, 400, "bad_parameter"),
        ("POST", "/v1/runs", Some("{"), 400, "bad_request"),
        ("POST", "/v1/runs", Some("[]"), 400, "bad_request"),
        (
            "POST",
            "/v1/datasets",
            Some(r#"{"name":"a","version":"1","path":"x"}"#),
            400,
            "bad_request",
        ),
        (
            "POST",
            "/v1/datasets",
            Some(r#"{"name":"a/b","version":"1","path":"/x"}"#),
            400,
            "bad_parameter",
        ),
        (
            "POST",
            "/v1/daemon/stop",
            Some(r#"{"stop_job":true}"#),
            400,
            "bad_request",
        ),
        (
            "POST",
            "/v1/objects/have",
            Some("{}"),
            415,
            "unsupported_media_type",
        ),
        ("DELETE", "/v1/datasets/a/1", None, 404, "not_found"),
    ] {
        let answer = request(&daemon, method, target, body);
        assert_eq!(answer.status, status, "{method} {target}: {answer:?}");
        assert_eq!(answer.code(), code, "{method} {target}");
        assert!(answer.head.contains("x-request-id: "), "{}", answer.head);
    }
}

#[test]
fn paths_do_not_leave_the_api() {
    let daemon = Daemon::start();
    for target in [
        "/../owner.key",
        "/v1/../../owner.key",
        "/v1/runs/..%2f..%2fowner.key",
        "/v1/runs/%2e%2e%2fowner.key/manifest",
        "/v1/objects/..%2f..%2f..%2fowner.key",
        "/v1/uploads/..%2fx",
        "//etc/passwd",
        "/v1/runs/aaaaaaaaaaaa%00/manifest",
        "/v1/datasets/..%2f../..%2f..",
    ] {
        let answer = request(&daemon, "GET", target, None);
        assert!((400..500).contains(&answer.status), "{target}: {answer:?}");
        answer.code();
    }
}

#[test]
fn heads_and_bodies_are_bounded() {
    let daemon = Daemon::start();
    let key = format!("Authorization: Bearer {}\r\n", daemon.key());
    let long = format!("/v1/runs?owner={}", "a".repeat(5000));
    let answer = request(&daemon, "GET", &long, None);
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (414, "bad_parameter")
    );

    let header = format!("{key}X-Long: {}\r\n", "a".repeat(64 * 1024));
    assert_eq!(
        request_with(&daemon, "GET", "/v1/status", None, &header).status,
        431
    );
    let many: String = (0..200).map(|n| format!("X-{n}: 1\r\n")).collect();
    assert_eq!(
        request_with(&daemon, "GET", "/v1/status", None, &format!("{key}{many}")).status,
        431
    );

    let announced = format!(
        "POST /v1/prune HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{key}Content-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n"
    );
    let answer = send_raw(&daemon, announced.as_bytes());
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (413, "body_too_large")
    );

    let mut chunked = format!(
        "POST /v1/prune HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{key}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    for _ in 0..20 {
        chunked.push_str(&format!("2000\r\n{}\r\n", " ".repeat(0x2000)));
    }
    chunked.push_str("0\r\n\r\n");
    let answer = send_raw(&daemon, chunked.as_bytes());
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (413, "body_too_large")
    );
}

#[test]
fn many_keys_and_deep_nesting_are_refused_quickly() {
    let daemon = Daemon::start();
    let keys: Vec<String> = (0..100_000).map(|n| format!("\"k{n}\":{n}")).collect();
    let wide = format!("{{{}}}", keys.join(","));
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    for body in [
        wide,
        deep,
        "\u{feff}{}".to_owned(),
        "{\"workload\":1e999}".to_owned(),
    ] {
        let answer = request(&daemon, "POST", "/v1/explain", Some(&body));
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "bad_request")
        );
    }
    client(&daemon).status().unwrap();
}

/// Bytes that are neither TLS nor HTTP, cut handshakes and silent connections leave
/// the daemon as it was.
#[test]
fn noise_on_the_port_harms_nobody() {
    let daemon = Daemon::start();
    let mut silent = Vec::new();
    for noise in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"\x00\x01\x02",
        b"\x80\x2e\x01\x03\x01",
        b"",
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", daemon.port())).unwrap();
        stream.write_all(noise).unwrap();
        silent.push(stream);
    }
    for bytes in [
        &b"\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x00\xff\x00\xff\r\n\r\n",
    ] {
        let answer = send_raw(&daemon, bytes);
        assert!(
            answer.status == 0 || (400..600).contains(&answer.status),
            "{answer:?}"
        );
    }
    client(&daemon).status().unwrap();
}
