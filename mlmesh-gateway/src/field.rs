//! Rules for header fields that requests and responses share: framing, which fields stay
//! between two hops, and what the grammar's parser is too kind about.

use httparse::Header;

/// How many bytes follow a head (RFC 9112, section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
    /// Neither field is there.
    Unsaid,
}

/// What the fields of one head say about the connection and the body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields {
    pub(crate) framing: Framing,
    /// `Connection: close`.
    pub(crate) close: bool,
    /// `Connection` names fields of its own.
    names: bool,
    /// `Idempotency-Key`, by which a target knows a request again.
    pub(crate) keyed: bool,
    /// `Expect: 100-continue`.
    pub(crate) expects: bool,
    pub(crate) hosts: usize,
}

/// Fields with a meaning here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    Connection,
    ContentLength,
    TransferEncoding,
    Host,
    Expect,
    Authorization,
    /// `traceparent` (W3C Trace Context).
    Trace,
    /// `X-Request-Id`, by which people call it.
    RequestId,
    IdempotencyKey,
    /// Belongs to one hop whatever `Connection` says.
    Hop,
    Other,
}

impl Field {
    /// The field of this name; the length decides first, so that most names cost one look.
    pub(crate) fn named(name: &str) -> Field {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        match name.len() {
            2 if is("te") => Field::Hop,
            4 if is("host") => Field::Host,
            6 if is("expect") => Field::Expect,
            7 if is("upgrade") => Field::Hop,
            10 if is("connection") => Field::Connection,
            10 if is("keep-alive") => Field::Hop,
            11 if is("traceparent") => Field::Trace,
            12 if is("x-request-id") => Field::RequestId,
            13 if is("authorization") => Field::Authorization,
            14 if is("content-length") => Field::ContentLength,
            14 if is("http2-settings") => Field::Hop,
            15 if is("idempotency-key") => Field::IdempotencyKey,
            16 if is("proxy-connection") => Field::Hop,
            17 if is("transfer-encoding") => Field::TransferEncoding,
            18 if is("proxy-authenticate") => Field::Hop,
            19 if is("proxy-authorization") => Field::Hop,
            _ => Field::Other,
        }
    }
}

impl Fields {
    /// Reads the fields once. What could be read in two ways is refused, by the rule that
    /// is returned.
    pub(crate) fn read(headers: &[Header<'_>]) -> Result<Fields, &'static str> {
        let mut fields = Fields {
            framing: Framing::Unsaid,
            close: false,
            names: false,
            keyed: false,
            expects: false,
            hosts: 0,
        };
        for header in headers {
            match Field::named(header.name) {
                Field::ContentLength => match fields.framing {
                    Framing::Unsaid => fields.framing = Framing::Length(length(header.value)?),
                    Framing::Length(_) => return Err("`Content-Length` stands twice"),
                    Framing::Chunked => {
                        return Err("`Content-Length` and `Transfer-Encoding` exclude each other");
                    }
                },
                Field::TransferEncoding => match fields.framing {
                    Framing::Unsaid if header.value.eq_ignore_ascii_case(b"chunked") => {
                        fields.framing = Framing::Chunked;
                    }
                    Framing::Unsaid => return Err("`Transfer-Encoding` other than `chunked`"),
                    Framing::Chunked => return Err("`Transfer-Encoding` stands twice"),
                    Framing::Length(_) => {
                        return Err("`Content-Length` and `Transfer-Encoding` exclude each other");
                    }
                },
                Field::Connection => fields.connection(header.value)?,
                Field::Host => fields.hosts += 1,
                Field::Expect => {
                    fields.expects |= header.value.eq_ignore_ascii_case(b"100-continue");
                }
                Field::IdempotencyKey => fields.keyed = true,
                Field::Authorization
                | Field::Trace
                | Field::RequestId
                | Field::Hop
                | Field::Other => {}
            }
        }
        Ok(fields)
    }

    fn connection(&mut self, value: &[u8]) -> Result<(), &'static str> {
        for word in words(value) {
            if word.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if !word.eq_ignore_ascii_case(b"keep-alive") {
                let name = std::str::from_utf8(word).map_err(|_| "`Connection` names no field")?;
                match Field::named(name) {
                    Field::Host | Field::ContentLength | Field::TransferEncoding => {
                        return Err("`Connection` names a field that frames the message");
                    }
                    Field::Connection
                    | Field::Expect
                    | Field::Authorization
                    | Field::Trace
                    | Field::RequestId
                    | Field::IdempotencyKey
                    | Field::Hop
                    | Field::Other => {}
                }
                self.names = true;
            }
        }
        Ok(())
    }

    /// Whether a field belongs to the hop it came over and is not passed on. Framing is
    /// passed on, because bodies are.
    pub(crate) fn stays(&self, field: Field, name: &str, headers: &[Header<'_>]) -> bool {
        match field {
            Field::Connection | Field::Hop => true,
            Field::ContentLength | Field::TransferEncoding | Field::Host => false,
            Field::Expect
            | Field::Authorization
            | Field::Trace
            | Field::RequestId
            | Field::IdempotencyKey
            | Field::Other => self.names && is_named(name, headers),
        }
    }
}

/// Whether some `Connection` field names this one.
fn is_named(name: &str, headers: &[Header<'_>]) -> bool {
    let connections = headers
        .iter()
        .filter(|header| Field::named(header.name) == Field::Connection);
    connections
        .flat_map(|header| words(header.value))
        .any(|word| word.eq_ignore_ascii_case(name.as_bytes()))
}

/// The members of a list, without the blanks around them.
fn words(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|word| !word.is_empty())
}

/// Digits and nothing else; a list, a sign or an empty value is no length.
fn length(value: &[u8]) -> Result<u64, &'static str> {
    const RULE: &str = "`Content-Length` is not one number";
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(RULE);
    }
    let digits = value.iter().map(|digit| u64::from(digit - b'0'));
    Ok(digits.fold(0, |sum, digit| sum * 10 + digit))
}

/// Whether each line of a head ends in CR and LF; the parser also takes a lone LF.
pub(crate) fn lines_are_strict(head: &[u8]) -> bool {
    let mut before = 0;
    head.iter().all(|byte| {
        let is_strict = *byte != b'\n' || before == b'\r';
        before = *byte;
        is_strict
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &[(&'static str, &'static str)]) -> Result<Fields, &'static str> {
        let headers: Vec<Header<'_>> = fields
            .iter()
            .map(|(name, value)| Header {
                name,
                value: value.as_bytes(),
            })
            .collect();
        Fields::read(&headers)
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let refused: &[&[(&str, &str)]] = &[
            &[("Content-Length", "5"), ("Transfer-Encoding", "chunked")],
            &[("Transfer-Encoding", "chunked"), ("Content-Length", "5")],
            &[("Content-Length", "5"), ("content-length", "5")],
            &[("Content-Length", "5"), ("Content-Length", "6")],
            &[("Content-Length", "5, 5")],
            &[("Content-Length", "+5")],
            &[("Content-Length", "-5")],
            &[("Content-Length", "0x5")],
            &[("Content-Length", "5 5")],
            &[("Content-Length", "")],
            &[("Content-Length", "9999999999999999999")],
            &[("Transfer-Encoding", "chunked, chunked")],
            &[("Transfer-Encoding", "gzip, chunked")],
            &[("Transfer-Encoding", "identity")],
            &[("Transfer-Encoding", "xchunked")],
            &[("Transfer-Encoding", "")],
            &[
                ("Transfer-Encoding", "chunked"),
                ("Transfer-Encoding", "chunked"),
            ],
            &[("Connection", "Content-Length"), ("Content-Length", "5")],
            &[("Connection", "close, transfer-encoding")],
            &[("Connection", "host")],
        ];
        for fields in refused {
            assert!(read(fields).is_err(), "{fields:?}");
        }
    }

    #[test]
    fn framing_is_read() {
        let framing = |fields| read(fields).unwrap().framing;
        assert_eq!(framing(&[("Content-Length", "0")]), Framing::Length(0));
        assert_eq!(framing(&[("content-length", "042")]), Framing::Length(42));
        assert_eq!(
            framing(&[("Transfer-Encoding", "CHUNKED")]),
            Framing::Chunked
        );
        assert_eq!(framing(&[("Accept", "*/*")]), Framing::Unsaid);
        assert!(read(&[("Connection", "foo, Close")]).unwrap().close);
    }

    #[test]
    fn lone_line_feeds_are_seen() {
        assert!(lines_are_strict(b"GET / HTTP/1.1\r\na: b\r\n\r\n"));
        assert!(!lines_are_strict(b"GET / HTTP/1.1\na: b\r\n\r\n"));
        assert!(!lines_are_strict(b"GET / HTTP/1.1\r\na: b\r\n\n"));
        assert!(!lines_are_strict(b"\nGET / HTTP/1.1\r\n\r\n"));
    }
}
