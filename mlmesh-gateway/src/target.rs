//! An engine that requests may go to.

use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use thiserror::Error;

use crate::limits::HOST_BYTES_MAX;

/// Where an engine answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `host` or `host:port`, as it stands in the address; what `Host` says.
    host: String,
    /// What the name stood for when the gateway started; never empty.
    addresses: Vec<SocketAddr>,
}

/// Why a text names no target.
#[derive(Debug, Error)]
pub enum TargetError {
    #[error(
        "`{0}` begins with another scheme than `http://`\nhint: TLS to engines is not of this version"
    )]
    Scheme(String),
    #[error(
        "`{0}` has a path, a query or a user; a target is `http://HOST:PORT`\nhint: clients send the path, `/v1` too"
    )]
    Path(String),
    #[error("`{0}` has no host, or a port outside of 1 to 65535; a target is `http://HOST:PORT`")]
    Host(String),
    #[error("`{0}` is no host that this machine can resolve")]
    Resolve(String, #[source] std::io::Error),
    #[error("`{0}` resolves to no address")]
    NoAddress(String),
}

impl Target {
    /// The host, with the port if one was given.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

impl FromStr for Target {
    type Err = TargetError;

    /// Reads `http://HOST:PORT` and resolves the host.
    fn from_str(text: &str) -> Result<Target, TargetError> {
        let shown = || text.chars().take(200).collect::<String>();
        let rest = text
            .strip_prefix("http://")
            .ok_or_else(|| TargetError::Scheme(shown()))?;
        let host = rest.strip_suffix('/').unwrap_or(rest);
        if host.contains(['/', '?', '#', '@']) {
            return Err(TargetError::Path(shown()));
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
        if host.is_empty() || host.len() > HOST_BYTES_MAX || !host.bytes().all(is_plain) {
            return Err(TargetError::Host(shown()));
        }
        let has_port = host.rfind(':') > host.rfind(']');
        let with_port = match has_port {
            true => host.to_owned(),
            false => format!("{host}:80"),
        };
        let port = with_port
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok());
        if with_port.starts_with(':') || port.is_none_or(|port: u16| port == 0) {
            return Err(TargetError::Host(shown()));
        }
        let found = with_port
            .to_socket_addrs()
            .map_err(|error| TargetError::Resolve(shown(), error))?;
        let addresses: Vec<SocketAddr> = found.collect();
        if addresses.is_empty() {
            return Err(TargetError::NoAddress(shown()));
        }
        let host = host.to_owned();
        Ok(Target { host, addresses })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_addresses_without_path() {
        let target: Target = "http://127.0.0.1:8081/".parse().unwrap();
        assert_eq!(target.host(), "127.0.0.1:8081");
        assert_eq!(target.addresses()[0].port(), 8081);
        let target: Target = "http://[::1]".parse().unwrap();
        assert_eq!(target.addresses()[0].to_string(), "[::1]:80");
        for text in [
            "https://a",
            "127.0.0.1:80",
            "http://",
            "http://127.0.0.1:0",
            "http://127.0.0.1:99999",
            "http://127.0.0.1:80/v1",
            "http://u@127.0.0.1",
            "http://127.0.0.1\r\nX: y",
            "http://:80",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text:?}");
        }
    }
}
