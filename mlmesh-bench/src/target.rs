//! Where requests go: an address, and what the head of each request says of it.

use std::net::{SocketAddr, ToSocketAddrs};

use crate::error::BenchError;

/// An engine, or a gateway in front of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// As it was given, without what follows the path.
    pub url: String,
    /// `host:port`, as the `host` header has it.
    pub(crate) authority: String,
    /// What stands before `/v1/…`; empty or beginning with a slash.
    pub(crate) base_path: String,
    /// Whether it is `https`.
    pub(crate) is_secure: bool,
    host: String,
    port: u16,
}

impl Target {
    /// Reads `http://HOST[:PORT][/BASE]`, or the same with `https`. A base path that ends in `/v1` is taken as
    /// the same without it, since people copy either.
    pub fn parse(url: &str) -> Result<Self, BenchError> {
        let wrong = |rule| BenchError::Url {
            url: url.to_owned(),
            rule,
        };
        let (is_secure, rest) = match url.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some(_) => return Err(wrong("the scheme is `http` or `https`")),
            None => return Err(wrong("it begins with `http://` or `https://`")),
        };
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        if authority.contains('@') {
            return Err(wrong("no user or password stands in it"));
        }
        if !rest.bytes().all(|byte| byte.is_ascii_graphic()) || rest.contains(['?', '#', '\\']) {
            return Err(wrong("it has characters that none has"));
        }
        let (host, port) = split_port(authority).ok_or_else(|| wrong("the port is no number"))?;
        if host.is_empty() {
            return Err(wrong("it has no host"));
        }
        let path = path.trim_end_matches('/');
        Ok(Self {
            url: url.to_owned(),
            authority: authority.to_owned(),
            base_path: path.strip_suffix("/v1").unwrap_or(path).to_owned(),
            host: host.to_owned(),
            port: port.unwrap_or(if is_secure { 443 } else { 80 }),
            is_secure,
        })
    }

    /// The host without the brackets of an IPv6 address.
    pub(crate) fn host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// The address behind the name, looked up once.
    pub fn resolve(&self) -> Result<SocketAddr, BenchError> {
        let host = self.host();
        let failed = |source| BenchError::Resolve {
            host: self.host.clone(),
            source,
        };
        let mut found = (host, self.port).to_socket_addrs().map_err(failed)?;
        found
            .next()
            .ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))
    }
}

/// Host and port; `None` when what stands for a port is none.
fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            let port = port.parse().ok().filter(|port| *port > 0)?;
            Some((host, Some(port)))
        }
        _ => Some((authority, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let parts = |url: &str| {
            let target = Target::parse(url).unwrap();
            (target.authority, target.base_path, target.port)
        };
        let expect =
            |authority: &str, base: &str, port| (authority.to_owned(), base.to_owned(), port);
        assert_eq!(parts("http://a:1"), expect("a:1", "", 1));
        assert_eq!(parts("http://a/"), expect("a", "", 80));
        assert_eq!(parts("http://a:8080/v1"), expect("a:8080", "", 8080));
        assert_eq!(parts("http://a/x/v1/"), expect("a", "/x", 80));
        assert_eq!(parts("http://[::1]:90"), expect("[::1]:90", "", 90));
        assert_eq!(parts("http://[::1]"), expect("[::1]", "", 80));
        assert_eq!(parts("https://a/v1"), expect("a", "", 443));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for url in [
            "",
            "a:80",
            "ftp://a",
            "http://",
            "http://:80",
            "http://a:",
            "http://a:0",
            "http://a:99999",
            "http://u:p@a",
            "http://a b",
            "http://a\r\nx: y",
            "http://a/?q",
        ] {
            assert!(Target::parse(url).is_err(), "{url}");
        }
    }
}
