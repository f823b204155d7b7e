//! One trace from the client to the engine, which a collector gets; one request id in the
//! log and at the engine. Client, engine and collector are the test's, by raw sockets.

use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mlmesh_gateway::{Done, Gateway, Settings, Told};

use crate::http2::{connect, in_time, request, rest, text};
use crate::wire::{PATIENCE, Wire, accepted, settings, unasked};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT_SPAN: &str = "b7ad6b7169203331";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn gateway(target: &TcpListener, told: Told) -> Gateway {
    let address: SocketAddr = target.local_addr().unwrap();
    Gateway::start(Settings {
        told,
        signals: unasked(),
        ..settings([address].into_iter())
    })
    .unwrap()
}

/// Asks once, with this in the head; what the engine got of it.
fn ask(gateway: &Gateway, engine: &TcpListener, fields: &str) -> String {
    let mut client = Wire::connect(gateway.address());
    client.send(format!(
        "GET /v1/models?a=secret HTTP/1.1\r\nHost: a\r\n{fields}\r\n"
    ));
    let mut engine = accepted(engine);
    let head = engine.until("\r\n\r\n");
    engine.send(OK);
    client.expect(OK);
    head
}

/// The value of a field of a head.
fn field<'h>(head: &'h str, name: &str) -> &'h str {
    let mut values = head.lines().filter_map(|line| line.strip_prefix(name));
    let value = values
        .next()
        .unwrap_or_else(|| panic!("no `{name}` in {head}"));
    assert_eq!(values.next(), None, "`{name}` once in {head}");
    value
}

/// A message of protobuf: numbers of fields with their bytes, a number's as such.
fn fields_of(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let varint = |bytes: &mut &[u8]| {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let (byte, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return value;
            }
        }
        value
    };
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let value = match key & 7 {
            0 => varint(&mut bytes).to_le_bytes().to_vec(),
            kind => {
                let length = if kind == 1 { 8 } else { varint(&mut bytes) };
                let (value, rest) = bytes.split_at(usize::try_from(length).unwrap());
                bytes = rest;
                value.to_vec()
            }
        };
        fields.push((key >> 3, value));
    }
    fields
}

fn child(fields: &[(u64, Vec<u8>)], number: u64) -> Vec<u8> {
    let found = fields.iter().find(|(of, _)| *of == number);
    found
        .unwrap_or_else(|| panic!("no {number} in {fields:?}"))
        .1
        .clone()
}

/// The span of a request for a collector, as OTLP has it.
fn span(export: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let of_resource = fields_of(&child(&fields_of(export), 1));
    let resource = child(&of_resource, 1);
    assert!(String::from_utf8_lossy(&resource).contains("mlmesh-gateway"));
    let of_scope = fields_of(&child(&of_resource, 2));
    fields_of(&child(&of_scope, 2))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a span is what came of a request with the client's trace.
fn check(span: &[(u64, Vec<u8>)], engine_span: &str) {
    assert_eq!(hex(&child(span, 1)), TRACE);
    assert_eq!(hex(&child(span, 2)), engine_span);
    assert_eq!(hex(&child(span, 4)), CLIENT_SPAN);
    assert_eq!(child(span, 5), b"GET /v1/models");
    let number = |bytes: Vec<u8>| u64::from_le_bytes(bytes.try_into().unwrap());
    let (began, ended) = (number(child(span, 7)), number(child(span, 8)));
    assert!(began >= 1_000_000_000 && ended >= began, "{began} {ended}");
    let attributes = span.iter().filter(|(of, _)| *of == 9);
    let all: Vec<u8> = attributes.flat_map(|(_, bytes)| bytes.clone()).collect();
    let all = String::from_utf8_lossy(&all);
    assert!(all.contains("http.response.status_code") && all.contains("mine-1"));
    assert!(!all.contains("secret"), "{all}");
}

#[test]
fn one_trace_goes_from_the_client_to_the_engine_and_a_collector() {
    let engine = TcpListener::bind("127.0.0.1:0").unwrap();
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", collector.local_addr().unwrap());
    let gateway = gateway(
        &engine,
        Told {
            collector: Some(url.parse().unwrap()),
            log: None,
            unix_us: 1_000_000_000,
        },
    );
    let given = format!("traceparent: 00-{TRACE}-{CLIENT_SPAN}-01\r\nX-Request-Id: mine-1\r\n");
    let head = ask(&gateway, &engine, &given);
    assert_eq!(field(&head, "x-request-id: "), "mine-1");
    let context = field(&head, "traceparent: ");
    let engine_span = context
        .strip_prefix(&format!("00-{TRACE}-"))
        .and_then(|rest| rest.strip_suffix("-01"))
        .unwrap_or_else(|| panic!("{context}"));
    assert_ne!(engine_span, CLIENT_SPAN);
    let mut export = accepted(&collector);
    let head = export.until("\r\n\r\n");
    assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
    let length = head.to_ascii_lowercase();
    let length = field(&length, "content-length: ").parse().unwrap();
    check(&span(&export.exactly(length)), engine_span);
    export.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    // A client that does not want to be traced is not.
    let unwanted = format!("traceparent: 00-{TRACE}-{CLIENT_SPAN}-00\r\n");
    let head = ask(&gateway, &engine, &unwanted);
    assert!(field(&head, "traceparent: ").ends_with("-00"), "{head}");
    gateway.drain(Duration::from_secs(1));
    collector.set_nonblocking(true).unwrap();
    assert!(collector.accept().is_err(), "nothing else was exported");
}

#[test]
fn a_collector_may_speak_grpc() {
    let engine = TcpListener::bind("127.0.0.1:0").unwrap();
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("grpc://{}", collector.local_addr().unwrap());
    let (sender, exports) = sync_channel::<(String, Bytes)>(4);
    collector.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async move {
            let listener = tokio::net::TcpListener::from_std(collector).unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let take = service_fn(move |request: Request<Incoming>| {
                let sender = sender.clone();
                async move {
                    let path = request.uri().path().to_owned();
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    sender.send((path, body)).unwrap();
                    let mut response = Response::new(Full::new(Bytes::new()));
                    let headers = response.headers_mut();
                    headers.insert("content-type", "application/grpc".parse().unwrap());
                    headers.insert("grpc-status", "0".parse().unwrap());
                    Ok::<_, std::convert::Infallible>(response)
                }
            });
            let server = http2::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), take).await;
        });
    });
    let gateway = gateway(
        &engine,
        Told {
            collector: Some(url.parse().unwrap()),
            log: None,
            unix_us: 1_000_000_000,
        },
    );
    let given = format!("traceparent: 00-{TRACE}-{CLIENT_SPAN}-01\r\nX-Request-Id: mine-1\r\n");
    let head = ask(&gateway, &engine, &given);
    let context = field(&head, "traceparent: ");
    let (path, body) = exports.recv_timeout(PATIENCE).unwrap();
    assert!(path.ends_with("TraceService/Export"), "{path}");
    let length = u32::from_be_bytes(body[1..5].try_into().unwrap());
    assert_eq!((body[0], length as usize), (0, body.len() - 5));
    check(&span(&body[5..]), &context[36..52]);
    gateway.drain(Duration::from_secs(1));
}

#[test]
fn a_request_has_one_id_in_the_log_and_at_the_engine() {
    let engine = TcpListener::bind("127.0.0.1:0").unwrap();
    let (sender, log) = sync_channel::<Done>(8);
    let gateway = gateway(
        &engine,
        Told {
            log: Some(sender),
            ..Told::default()
        },
    );
    let head = ask(&gateway, &engine, "X-Request-Id: with blanks\r\n");
    let done = log.recv_timeout(PATIENCE).unwrap();
    assert_eq!(field(&head, "x-request-id: "), done.request_id);
    assert_ne!(done.request_id, "with blanks");
    assert!(field(&head, "traceparent: ").contains(&done.trace_id));
    let target = engine.local_addr().unwrap().to_string();
    assert_eq!(done.target, Some(target));
    assert_eq!((done.status, done.path.as_str()), (200, "/v1/models"));
    assert_eq!(done.parent_id, None);
    // Nobody is there: a refusal is told, too.
    drop(engine);
    let mut client = Wire::connect(gateway.address());
    client.send("GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: lost\r\n\r\n");
    client.until("\r\n\r\n");
    let done = log.recv_timeout(PATIENCE).unwrap();
    assert_eq!((done.request_id.as_str(), done.status), ("lost", 502));
    gateway.drain(Duration::from_secs(1));
}

#[test]
fn a_stream_of_http2_is_told_of_as_well() {
    let engine = TcpListener::bind("127.0.0.1:0").unwrap();
    let (sender, log) = sync_channel::<Done>(8);
    let gateway = gateway(
        &engine,
        Told {
            log: Some(sender),
            ..Told::default()
        },
    );
    let target = std::thread::spawn(move || {
        let mut engine = accepted(&engine);
        let head = engine.until("\r\n\r\n");
        engine.send(OK);
        head
    });
    in_time(async {
        let mut sender = connect(gateway.address()).await;
        let mut request = request("/v1/models?a=secret", text(""));
        let context = format!("00-{TRACE}-{CLIENT_SPAN}-01");
        let headers = request.headers_mut();
        headers.insert("traceparent", context.parse().unwrap());
        headers.insert("x-request-id", "mine-2".parse().unwrap());
        let mut response = sender.send_request(request).await.unwrap();
        assert_eq!(&rest(response.body_mut()).await[..], b"ok");
    });
    let head = target.join().unwrap();
    let done = log.recv_timeout(PATIENCE).unwrap();
    assert_eq!((done.request_id.as_str(), done.status), ("mine-2", 200));
    assert_eq!(done.parent_id.as_deref(), Some(CLIENT_SPAN));
    let context = format!("00-{TRACE}-{}-01", done.span_id);
    assert_eq!(field(&head, "traceparent: "), context);
    assert_eq!(field(&head, "x-request-id: "), "mine-2");
    gateway.drain(Duration::from_secs(1));
}
