//! The head of a response: read strictly, and written again for the client.

use std::mem::MaybeUninit;

use httparse::Status;

use crate::body::Body;
use crate::buffer::{Buffer, Spare};
use crate::field::{Field, Fields, Framing, lines_are_strict};
use crate::limits::{HEAD_BYTES_MAX, HEADERS_MAX};

/// What an exchange has to know of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Response {
    /// Bytes of the head as it was received.
    pub(crate) head_bytes: usize,
    pub(crate) status: u16,
    pub(crate) body: Body,
    /// The target closes after this one.
    pub(crate) close: bool,
    /// The body is a stream of events (`text/event-stream`).
    pub(crate) is_events: bool,
}

/// What of the request decides about its response.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) is_head: bool,
    /// The client speaks HTTP/1.0.
    pub(crate) is_old: bool,
    /// The client's connection ends with this response.
    pub(crate) close: bool,
    /// The request's number, by which its decision is found.
    pub(crate) request: Option<u64>,
}

impl Response {
    /// Whether another response to the same request follows.
    pub(crate) fn is_interim(&self) -> bool {
        self.status < 200
    }
}

/// Reads a response at the start of `input` and writes its head for the client.
/// `None` if the head is not complete; an error is the rule that is broken.
pub(crate) fn read(
    input: &[u8],
    asked: Asked,
    output: &mut Buffer,
    spare: &Spare,
) -> Result<Option<Response>, &'static str> {
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let parse = config.parse_response_with_uninit_headers(&mut parsed, input, &mut headers);
    let head_bytes = match parse {
        Ok(Status::Complete(bytes)) if bytes <= HEAD_BYTES_MAX => bytes,
        Ok(Status::Partial) if input.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(_) => return Err("the response's head is too large"),
        Err(_) => return Err("what came is no response"),
    };
    if !lines_are_strict(&input[..head_bytes]) {
        return Err("a line of the response ends without CR");
    }
    let (Some(version), Some(status)) = (parsed.version, parsed.code) else {
        return Err("what came is no response");
    };
    let fields = Fields::read(parsed.headers)?;
    if !(100..=999).contains(&status) || status == 101 {
        return Err("the response's status was not asked for");
    }
    if version == 0 && fields.framing == Framing::Chunked {
        return Err("`Transfer-Encoding` in HTTP/1.0");
    }
    let is_bare = status < 200 || status == 204;
    let response = Response {
        head_bytes,
        status,
        body: match fields.framing {
            _ if is_bare || status == 304 || asked.is_head => Body::Done,
            Framing::Length(0) => Body::Done,
            Framing::Length(bytes) => Body::Length(bytes),
            Framing::Chunked => Body::CHUNKED,
            Framing::Unsaid => Body::UntilClose,
        },
        close: fields.close || version == 0,
        is_events: parsed.headers.iter().any(is_events),
    };
    let mut put = |bytes: &[u8]| {
        output.append(bytes, spare);
    };
    put(b"HTTP/1.1 ");
    put(&[
        b'0' + (status / 100) as u8,
        b'0' + (status / 10 % 10) as u8,
        b'0' + (status % 10) as u8,
    ]);
    put(b" ");
    put(parsed.reason.unwrap_or_default().as_bytes());
    put(b"\r\n");
    for header in parsed.headers.iter() {
        let field = Field::named(header.name);
        let is_framing = matches!(field, Field::ContentLength | Field::TransferEncoding);
        // What has no body has no framing, and HTTP/1.0 knows no chunks.
        let is_void = is_framing && is_bare || field == Field::TransferEncoding && asked.is_old;
        if is_void || fields.stays(field, header.name, parsed.headers) {
            continue;
        }
        put(header.name.as_bytes());
        put(b": ");
        put(header.value);
        put(b"\r\n");
    }
    if let Some(request) = asked.request.filter(|_| !response.is_interim()) {
        put(b"mlmesh-request: ");
        put(request.to_string().as_bytes());
        put(b"\r\n");
    }
    let ends = asked.close || response.body == Body::UntilClose;
    if ends && !response.is_interim() {
        put(b"Connection: close\r\n");
    }
    put(b"\r\n");
    Ok(Some(response))
}

fn is_events(header: &httparse::Header<'_>) -> bool {
    const EVENTS: &[u8] = b"text/event-stream";
    header.name.eq_ignore_ascii_case("content-type")
        && header.value.len() >= EVENTS.len()
        && header.value[..EVENTS.len()].eq_ignore_ascii_case(EVENTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Asked = Asked {
        is_head: false,
        is_old: false,
        close: false,
        request: None,
    };

    fn parse(text: &str, asked: Asked) -> Result<Option<(Response, String)>, &'static str> {
        let spare = Spare::default();
        let mut output = Buffer::default();
        let response = read(text.as_bytes(), asked, &mut output, &spare)?;
        let head = String::from_utf8(output.filled().to_vec()).unwrap();
        Ok(response.map(|response| (response, head)))
    }

    #[test]
    fn a_head_is_written_for_the_client() {
        let text = "HTTP/1.1 200 OK\r\nServer: x\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive\r\n\
                    Transfer-Encoding: chunked\r\n\r\n";
        let (response, head) = parse(text, ASKED).unwrap().unwrap();
        assert_eq!(response.body, Body::CHUNKED);
        assert!(!response.close);
        assert_eq!(
            head,
            "HTTP/1.1 200 OK\r\nServer: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        let old = Asked {
            is_old: true,
            close: true,
            ..ASKED
        };
        let (_, head) = parse(text, old).unwrap().unwrap();
        assert_eq!(
            head,
            "HTTP/1.1 200 OK\r\nServer: x\r\nConnection: close\r\n\r\n"
        );
    }

    #[test]
    fn the_body_follows_from_status_and_fields() {
        let body = |text: &str| parse(text, ASKED).unwrap().unwrap().0.body;
        assert_eq!(body("HTTP/1.1 204 None\r\n\r\n"), Body::Done);
        assert_eq!(
            body("HTTP/1.1 304 Same\r\nContent-Length: 5\r\n\r\n"),
            Body::Done
        );
        assert_eq!(body("HTTP/1.1 103 Hints\r\nLink: a\r\n\r\n"), Body::Done);
        assert_eq!(
            body("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
            Body::Length(5)
        );
        assert_eq!(body("HTTP/1.0 200 OK\r\n\r\n"), Body::UntilClose);
        let head = Asked {
            is_head: true,
            ..ASKED
        };
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        let (response, written) = parse(text, head).unwrap().unwrap();
        assert_eq!(response.body, Body::Done);
        assert!(written.contains("Content-Length: 5"));
    }

    #[test]
    fn what_is_no_response_is_refused() {
        for text in [
            "HTTP/1.1 101 Switching\r\n\r\n",
            "HTTP/1.1 099 Odd\r\n\r\n",
            "HTTP/1.1 200 OK\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "garbage\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        ] {
            assert!(parse(text, ASKED).is_err(), "{text:?}");
        }
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(HEAD_BYTES_MAX));
        assert!(parse(&long, ASKED).is_err());
        assert!(parse("HTTP/1.1 200 OK\r\n", ASKED).unwrap().is_none());
    }
}
