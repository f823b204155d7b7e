//! Spans in the form in which OpenTelemetry's collectors take them: `opentelemetry.proto.
//! collector.trace.v1.ExportTraceServiceRequest` of OTLP 1, in protobuf.
//!
//! It is written here by field numbers, since five messages need no generated code.

use crate::telling::Done;

/// Kind of a span: the gateway serves a request.
const SERVER: u64 = 2;
const STATUS_ERROR: u64 = 2;

/// One request for the collector with all of these.
pub(crate) fn request(batch: &[Done]) -> Vec<u8> {
    let resource = message(|out| {
        bytes(out, 1, &text_attribute("service.name", "mlmesh-gateway"));
        let version = env!("CARGO_PKG_VERSION");
        bytes(out, 1, &text_attribute("service.version", version));
    });
    let scope = message(|out| bytes(out, 1, b"mlmesh"));
    let spans = message(|out| {
        bytes(out, 1, &scope);
        for done in batch {
            bytes(out, 2, &span(done));
        }
    });
    let of_resource = message(|out| {
        bytes(out, 1, &resource);
        bytes(out, 2, &spans);
    });
    message(|out| bytes(out, 1, &of_resource))
}

fn span(done: &Done) -> Vec<u8> {
    message(|out| {
        bytes(out, 1, &digits(&done.trace_id));
        bytes(out, 2, &digits(&done.span_id));
        if let Some(parent) = &done.parent_id {
            bytes(out, 4, &digits(parent));
        }
        bytes(out, 5, format!("{} {}", done.method, done.path).as_bytes());
        number(out, 6, SERVER);
        let began_us = done.began_us;
        fixed(out, 7, began_us.saturating_mul(1_000));
        fixed(
            out,
            8,
            began_us.saturating_add(done.took_us).saturating_mul(1_000),
        );
        for (key, value) in [
            ("http.request.method", &done.method),
            ("url.path", &done.path),
            ("mlmesh.request_id", &done.request_id),
        ] {
            bytes(out, 9, &text_attribute(key, value));
        }
        if let Some(target) = &done.target {
            bytes(out, 9, &text_attribute("mlmesh.target", target));
        }
        if done.status > 0 {
            let status = message(|out| number(out, 3, done.status.into()));
            bytes(out, 9, &attribute("http.response.status_code", &status));
        }
        if done.status == 0 || done.status >= 500 {
            let status = message(|out| number(out, 3, STATUS_ERROR));
            bytes(out, 15, &status);
        }
    })
}

fn text_attribute(key: &str, value: &str) -> Vec<u8> {
    attribute(key, &message(|out| bytes(out, 1, value.as_bytes())))
}

fn attribute(key: &str, value: &[u8]) -> Vec<u8> {
    message(|out| {
        bytes(out, 1, key.as_bytes());
        bytes(out, 2, value);
    })
}

/// Bytes of an id that stands in hexadecimal digits.
fn digits(id: &str) -> Vec<u8> {
    let pairs = (0..id.len() / 2).map(|place| &id[2 * place..2 * place + 2]);
    pairs
        .filter_map(|pair| u8::from_str_radix(pair, 16).ok())
        .collect()
}

fn message(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

/// A field of bytes, a text or a message.
fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    varint(out, field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn number(out: &mut Vec<u8>, field: u64, value: u64) {
    varint(out, field << 3);
    varint(out, value);
}

fn fixed(out: &mut Vec<u8>, field: u64, value: u64) {
    varint(out, field << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
