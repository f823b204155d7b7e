//! The head of a request: read strictly, and written again for a target.

use std::mem::MaybeUninit;
use std::sync::Arc;

use httparse::{Error, Header, Status};
use mlmesh_route::Repeatable;

use crate::body::Body;
use crate::buffer::{Buffer, Spare};
use crate::call::Call;
use crate::field::{Field, Fields, Framing, lines_are_strict};
use crate::keys::{self, Tenant};
use crate::limits::{HEAD_BYTES_MAX, HEADERS_MAX};
use crate::refusal::Refusal;
use crate::telling::{Teller, Trip};

/// Says that this gateway passed a request on, as RFC 9110, section 7.6.3, asks.
const VIA: &[u8] = b"Via: 1.1 mlmesh\r\n";

/// The head of a request that keeps the rules.
pub(crate) struct Head<'b, 'h> {
    method: &'b str,
    path: &'b str,
    headers: &'h [Header<'b>],
    fields: Fields,
    /// Bytes of the head as it was received.
    bytes: usize,
    is_old: bool,
}

/// Where the fields of one head go while it is read.
pub(crate) type Slots<'b> = [MaybeUninit<Header<'b>>; HEADERS_MAX];

/// What an exchange has to know of a request whose head was written for a target.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) is_head: bool,
    /// Whether it may be sent again though it may have been carried out. `hedgeable` says
    /// that it leaves nothing behind; whether that is enough is a setting.
    pub(crate) repeatable: Repeatable,
    /// HTTP/1.0.
    pub(crate) is_old: bool,
    /// The client closes after this one.
    pub(crate) close: bool,
    /// What of the body has still to be received.
    pub(crate) body: Body,
    pub(crate) is_chunked: bool,
    pub(crate) call: Call,
    /// The client waits for a word before it sends the body.
    pub(crate) expects: bool,
    /// Whose key came with it, where keys are asked for.
    pub(crate) tenant: Option<Arc<Tenant>>,
    /// Where in the written head the target's name comes.
    pub(crate) host: usize,
}

/// Pages of the gateway itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Page {
    Health,
    Metrics,
    Decisions,
    Decision(u64),
    Targets,
    Unknown,
}

impl Page {
    /// The page at a path, if that is one of the gateway's own.
    pub(crate) fn at(path: &str) -> Option<Page> {
        let name = path.strip_prefix("/-/")?;
        Some(match name.split('?').next() {
            Some("health") => Page::Health,
            Some("metrics") => Page::Metrics,
            Some("targets") => Page::Targets,
            Some("decisions") => Page::Decisions,
            Some(name) => {
                let number = name.strip_prefix("decisions/");
                let number = number.and_then(|number| number.parse().ok());
                number.map_or(Page::Unknown, Page::Decision)
            }
            None => Page::Unknown,
        })
    }
}

pub(crate) fn slots<'b>() -> Slots<'b> {
    [const { MaybeUninit::uninit() }; HEADERS_MAX]
}

impl<'b, 'h> Head<'b, 'h> {
    /// Reads the head at the start of `input`. `None` if it is not complete.
    pub(crate) fn read(
        input: &'b [u8],
        slots: &'h mut Slots<'b>,
    ) -> Result<Option<Head<'b, 'h>>, Refusal> {
        let mut parsed = httparse::Request::new(&mut []);
        let bytes = match parsed.parse_with_uninit_headers(input, slots) {
            Ok(Status::Complete(bytes)) if bytes <= HEAD_BYTES_MAX => bytes,
            Ok(Status::Partial) if input.len() < HEAD_BYTES_MAX => return Ok(None),
            Ok(_) => return Err(Refusal::HeadTooLarge),
            Err(error) => return Err(refusal(error)),
        };
        if !lines_are_strict(&input[..bytes]) {
            return Err(Refusal::Malformed("a line ends without CR"));
        }
        let (Some(method), Some(path), Some(version)) =
            (parsed.method, parsed.path, parsed.version)
        else {
            return Err(Refusal::Malformed("the first line is not complete"));
        };
        let fields = Fields::read(parsed.headers).map_err(Refusal::Malformed)?;
        let is_old = version == 0;
        if is_old && fields.framing == Framing::Chunked {
            return Err(Refusal::Malformed("`Transfer-Encoding` in HTTP/1.0"));
        }
        if fields.hosts > 1 || (fields.hosts == 0 && !is_old) {
            return Err(Refusal::Malformed("there must be one `Host`"));
        }
        let path = origin(method, path)?;
        let headers = parsed.headers;
        Ok(Some(Head {
            method,
            path,
            headers,
            fields,
            bytes,
            is_old,
        }))
    }

    /// Bytes of the head as it was received.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What stands behind `Authorization: Bearer`.
    pub(crate) fn key(&self) -> Option<&[u8]> {
        let mut fields = self.headers.iter();
        let field = fields.find(|header| Field::named(header.name) == Field::Authorization)?;
        keys::bearer(field.value)
    }

    /// How this request is told of.
    pub(crate) fn trip(&self, teller: &Arc<Teller>) -> Trip {
        let value = |wanted: Field| {
            let mut fields = self.headers.iter();
            let found = fields.find(|header| Field::named(header.name) == wanted);
            found.map(|header| header.value)
        };
        let (trace, id) = (value(Field::Trace), value(Field::RequestId));
        teller.begin(self.method, self.path, trace, id)
    }

    /// The page of the gateway that this path names.
    pub(crate) fn page(&self) -> Option<Page> {
        Page::at(self.path)
    }

    /// What an exchange has to know; the target's name stands nowhere yet.
    pub(crate) fn request(&self) -> Request {
        let body = match self.fields.framing {
            Framing::Unsaid | Framing::Length(0) => Body::Done,
            Framing::Length(bytes) => Body::Length(bytes),
            Framing::Chunked => Body::CHUNKED,
        };
        let call = Call::of(self.method, self.path, !body.is_done());
        let idempotent = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"];
        Request {
            is_head: self.method == "HEAD",
            repeatable: Repeatable {
                idempotent: idempotent.contains(&self.method),
                keyed: self.fields.keyed,
                hedgeable: call != Call::Other && !Call::is_remembered(self.path),
            },
            is_old: self.is_old,
            close: self.fields.close || self.is_old,
            body,
            is_chunked: self.fields.framing == Framing::Chunked,
            call,
            expects: self.fields.expects && !self.is_old,
            tenant: None,
            host: 0,
        }
    }

    /// Writes the head for a target: as it came, but for what belongs to one hop, and for
    /// the target's name, with which it will end. A request whose body is read here first
    /// (`reads_bodies`) expects nothing of the target any more. A key that is the
    /// gateway's (`keeps_key`) stays here. A request that is told of says by its `trip`
    /// to which trace it belongs.
    pub(crate) fn write(
        &self,
        reads_bodies: bool,
        keeps_key: bool,
        trip: Option<&Trip>,
        output: &mut Buffer,
        spare: &Spare,
    ) -> Request {
        let mut request = self.request();
        let reads_body = request.reads_body(reads_bodies);
        let mut put = |bytes: &[u8]| {
            output.append(bytes, spare);
        };
        for part in [self.method, " ", self.path, " HTTP/1.1\r\n"] {
            put(part.as_bytes());
        }
        for header in self.headers {
            let field = Field::named(header.name);
            // Who speaks HTTP/1.0 cannot mean it (RFC 9110, section 10.1.1).
            let is_void = field == Field::Expect && (self.is_old || reads_body);
            let is_kept = field == Field::Authorization && keeps_key;
            if field == Field::Host
                || is_void
                || is_kept
                || (trip.is_some() && matches!(field, Field::Trace | Field::RequestId))
                || self.fields.stays(field, header.name, self.headers)
            {
                continue;
            }
            put(header.name.as_bytes());
            put(b": ");
            put(header.value);
            put(b"\r\n");
        }
        if let Some(trip) = trip {
            for (name, value) in [
                ("traceparent: ", trip.traceparent().as_str()),
                ("x-request-id: ", trip.request_id()),
            ] {
                put(name.as_bytes());
                put(value.as_bytes());
                put(b"\r\n");
            }
        }
        put(VIA);
        request.host = output.filled().len();
        request
    }
}

impl Request {
    /// Whether its body is read before a target is chosen, where bodies are.
    pub(crate) fn reads_body(&self, reads_bodies: bool) -> bool {
        reads_bodies && self.call != Call::Other
    }

    /// Ends the written head with a target's name, in the place of another's.
    pub(crate) fn address(&self, host: &str, output: &mut Buffer, spare: &Spare) {
        output.truncate(self.host);
        for part in ["Host: ", host, "\r\n\r\n"] {
            output.append(part.as_bytes(), spare);
        }
    }
}

/// The request's target as an origin server wants it (RFC 9112, section 3.2).
fn origin<'a>(method: &str, path: &'a str) -> Result<&'a str, Refusal> {
    if method == "CONNECT" {
        return Err(Refusal::MethodUnsupported);
    }
    if path.starts_with('/') || (path == "*" && method == "OPTIONS") {
        return Ok(path);
    }
    let authority = ["http://", "https://"].iter().find_map(|scheme| {
        let start = path.get(..scheme.len())?;
        start
            .eq_ignore_ascii_case(scheme)
            .then(|| &path[scheme.len()..])
    });
    let Some(authority) = authority else {
        return Err(Refusal::Malformed("the path does not begin with `/`"));
    };
    match authority.find(['/', '?']) {
        Some(at) if authority.as_bytes()[at] == b'/' => Ok(&authority[at..]),
        Some(_) => Err(Refusal::Malformed("the address has no path")),
        None => Ok("/"),
    }
}

fn refusal(error: Error) -> Refusal {
    match error {
        Error::TooManyHeaders => Refusal::HeadTooLarge,
        Error::Version => Refusal::VersionUnsupported,
        Error::HeaderName => Refusal::Malformed("a header field's name is none"),
        Error::HeaderValue => Refusal::Malformed("a header field's value is none"),
        Error::NewLine => Refusal::Malformed("a line does not end in CR LF"),
        Error::Token => Refusal::Malformed("the first line is none"),
        Error::Status => Refusal::Malformed("the status is none"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<(Request, String)>, Refusal> {
        let spare = Spare::default();
        let mut output = Buffer::default();
        let mut slots = slots();
        let Some(head) = Head::read(text.as_bytes(), &mut slots)? else {
            return Ok(None);
        };
        let request = head.write(false, false, None, &mut output, &spare);
        request.address("another:1", &mut output, &spare);
        request.address("engine:1", &mut output, &spare);
        let written = String::from_utf8(output.filled().to_vec()).unwrap();
        Ok(Some((request, written)))
    }

    #[test]
    fn a_head_is_written_for_the_target() {
        let (request, head) = parse(
            "POST /v1/chat/completions?a=b HTTP/1.1\r\nhost: outside\r\nAuthorization: Bearer x\r\n\
             Connection: keep-alive, X-Mine\r\nX-Mine: 1\r\nTE: trailers\r\nKeep-Alive: 5\r\n\
             Upgrade: h2c\r\nContent-Length: 3\r\nX-Forwarded-For: 1.2.3.4\r\n\r\nabc",
        )
        .unwrap()
        .unwrap();
        assert_eq!(
            head,
            "POST /v1/chat/completions?a=b HTTP/1.1\r\nAuthorization: Bearer x\r\n\
             Content-Length: 3\r\nX-Forwarded-For: 1.2.3.4\r\nVia: 1.1 mlmesh\r\n\
             Host: engine:1\r\n\r\n"
        );
        assert_eq!(request.body, Body::Length(3));
        assert!(!request.close && !request.repeatable.idempotent);
    }

    #[test]
    fn an_absolute_address_becomes_a_path() {
        let line = |path: &str| {
            let text = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
            parse(&text).map(|found| found.unwrap().1.lines().next().unwrap().to_owned())
        };
        assert_eq!(line("http://a/b?c").unwrap(), "GET /b?c HTTP/1.1");
        assert_eq!(line("HTTP://a").unwrap(), "GET / HTTP/1.1");
        assert!(line("http://a?b").is_err());
        assert!(line("ftp://a/b").is_err());
        assert!(line("*").is_err());
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let refused = [
            ("GET / HTTP/1.1\r\n\r\n", "request_malformed"),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
                "request_malformed",
            ),
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", "request_malformed"),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", "request_malformed"),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", "request_malformed"),
            (
                "GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
                "request_malformed",
            ),
            ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", "request_malformed"),
            ("GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n", "request_malformed"),
            ("GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n", "request_malformed"),
            ("GET / HTTP/1.1\r\nHost\r\n\r\n", "request_malformed"),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "request_malformed"),
            ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", "request_malformed"),
            (
                "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
                "request_malformed",
            ),
            (
                "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
                "http_version_unsupported",
            ),
            (
                "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
                "http_method_unsupported",
            ),
        ];
        for (text, code) in refused {
            let found = parse(text).map(|_| ()).unwrap_err();
            assert_eq!(found.code(), code, "{text:?}: {found:?}");
        }
    }

    #[test]
    fn size_and_number_of_fields_are_bounded() {
        let long = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
            "x".repeat(HEAD_BYTES_MAX)
        );
        let many = format!(
            "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
            "X: y\r\n".repeat(HEADERS_MAX)
        );
        for text in [long, many] {
            assert_eq!(parse(&text).map(|_| ()).unwrap_err(), Refusal::HeadTooLarge);
        }
        assert!(parse("GET / HTTP/1.1\r\nHost: a").unwrap().is_none());
    }

    #[test]
    fn pages_are_known_by_their_path() {
        let page = |path: &str| {
            let text = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
            let mut slots = slots();
            let head = Head::read(text.as_bytes(), &mut slots).unwrap().unwrap();
            head.page()
        };
        assert_eq!(page("/-/health"), Some(Page::Health));
        assert_eq!(page("/-/metrics?x"), Some(Page::Metrics));
        assert_eq!(page("/-/other"), Some(Page::Unknown));
        assert_eq!(page("/-"), None);
        assert_eq!(page("/v1/models"), None);
    }
}
