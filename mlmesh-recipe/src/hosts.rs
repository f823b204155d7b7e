//! Declared hosts: `host` and `host:port` as people type them, into the endpoints
//! that a plan names and a sandbox opens.
//!
//! A name is one name: no pattern, no network, no URL, since each is mapped by
//! itself. Text that a resolver would take for an address in another notation
//! (`127.1`, `0x7f000001`) is no name. It resolves nothing.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::collections::BTreeSet;

use mlmesh_model::Refusal;

use crate::error::{Fault, code, shown};

/// Entries of `network:`.
pub const HOSTS_MAX: usize = 64;

/// What a host without a port means: HTTP and HTTPS.
const PORTS_DEFAULT: [u16; 2] = [80, 443];

/// Bytes of a name and of each part between its dots (RFC 1035, 2.3.4).
const NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// One port of one host. `Display` is the form that a plan holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The host.
    pub host: Host,
    /// Its port, never 0.
    pub port: u16,
}

/// A host by its name or by its address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// A DNS name in lower case.
    Name(String),
    /// The address of one host.
    Address(IpAddr),
}

/// The endpoints of a declared list, each once, in the order in which a plan
/// lists them.
///
/// # Errors
/// The first entry that declares no host.
pub fn endpoints(hosts: &[String]) -> Result<Vec<Endpoint>, Refusal> {
    distinct(hosts.iter().map(String::as_str))
        .map_err(|fault| Refusal::new(code::VALUE, fault.message, fault.hint))
}

/// The same; an endpoint that two entries declare is a fault, too.
pub(crate) fn distinct<'a>(hosts: impl Iterator<Item = &'a str>) -> Result<Vec<Endpoint>, Fault> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for host in hosts {
        for endpoint in host_ports(host)? {
            if !seen.insert(endpoint.to_string()) {
                return Err(Fault::new(
                    format!("`network` lists `{endpoint}` twice"),
                    "remove one of the two; a host without a port stands for its ports 80 and 443",
                ));
            }
            all.push(endpoint);
        }
    }
    all.sort_by_cached_key(Endpoint::to_string);
    Ok(all)
}

/// What one entry declares: `host:port`, or `host` for its usual ports.
pub(crate) fn host_ports(text: &str) -> Result<Vec<Endpoint>, Fault> {
    let (name, port) = split_port(text);
    let host = host(text, name)?;
    let ports = match port {
        None => PORTS_DEFAULT.to_vec(),
        Some(port) => vec![port_number(text, port)?],
    };
    let endpoints = ports.into_iter().map(|port| Endpoint {
        host: host.clone(),
        port,
    });
    Ok(endpoints.collect())
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
        }
    }
}

fn split_port(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        // An address without brackets has its own colons.
        Some((name, port))
            if !port.ends_with(']') && (!name.contains(':') || name.ends_with(']')) =>
        {
            (name, Some(port))
        }
        _ => (text, None),
    }
}

fn port_number(text: &str, port: &str) -> Result<u16, Fault> {
    crate::units::whole(port, u16::MAX.into())
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port > 0)
        .ok_or_else(|| {
            Fault::new(
                format!(
                    "`{}` has the port `{}`; a port is a whole number from 1 to {}",
                    shown(text),
                    shown(port),
                    u16::MAX
                ),
                "write it like `example.org:443`, or without `:` for the ports 80 and 443",
            )
        })
}

fn host(text: &str, name: &str) -> Result<Host, Fault> {
    let bracketed = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'));
    if let Some(inner) = bracketed {
        let address: Result<Ipv6Addr, _> = inner.parse();
        return match address {
            Ok(address) => one_host(text, IpAddr::V6(address)),
            Err(_) => Err(no_host(
                text,
                "what stands in `[]` is an IPv6 address without a zone",
                "write it like `[2001:db8::1]:443`",
            )),
        };
    }
    if let Ok(address) = name.parse::<Ipv4Addr>() {
        return one_host(text, IpAddr::V4(address));
    }
    name_fault(text, name).map_or_else(|| Ok(Host::Name(name.to_ascii_lowercase())), Err)
}

/// An address that belongs to one host and means the same on every machine.
fn one_host(text: &str, address: IpAddr) -> Result<Host, Fault> {
    let group = match address {
        IpAddr::V4(address) => {
            address.is_unspecified() || address.is_multicast() || address.octets()[0] >= 240
        }
        IpAddr::V6(address) => {
            address.is_unspecified() || address.is_multicast() || address.is_unicast_link_local()
        }
    };
    if group {
        return Err(no_host(
            text,
            "the address of a host is not one of all, of a group or of a link",
            "write the address of the one host that is meant",
        ));
    }
    if let IpAddr::V6(address) = address
        && let Some(inner) = address.to_ipv4_mapped()
    {
        return Err(no_host(
            text,
            "an IPv4 address is written as such",
            format!("write `{inner}`"),
        ));
    }
    Ok(Host::Address(address))
}

/// What keeps text from being a name, the likeliest mistake first.
fn name_fault(text: &str, name: &str) -> Option<Fault> {
    if let Some((_, rest)) = text.split_once("://") {
        let host = rest.split(['/', '?', '#']).next().unwrap_or(rest);
        let host = host.rsplit('@').next().unwrap_or(host);
        return Some(no_host(
            text,
            "a host has no scheme and no path",
            format!("write `{}`", shown(host)),
        ));
    }
    if text.contains('*') {
        return Some(no_host(
            text,
            "a pattern is not possible, since each name is mapped by itself",
            "list every name, like `[a.example.org, b.example.org]`",
        ));
    }
    if text.contains('/') {
        return Some(no_host(
            text,
            "a host has no path, and a network is not one host",
            "write it like `example.org:443`",
        ));
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Some(no_host(
            text,
            "an IPv6 address stands in `[]`",
            format!("write `\"[{text}]\"`"),
        ));
    }
    if name.len() > NAME_BYTES_MAX {
        return Some(no_host(
            text,
            format!(
                "it has {} bytes, a name has at most {NAME_BYTES_MAX}",
                name.len()
            ),
            "write the name as its DNS has it",
        ));
    }
    if let Some(label) = name.split('.').find(|label| label.len() > LABEL_BYTES_MAX) {
        return Some(no_host(
            text,
            format!(
                "a part has {} bytes, the parts of a name have at most {LABEL_BYTES_MAX}",
                label.len()
            ),
            "write the name as its DNS has it",
        ));
    }
    if !name.is_ascii() {
        return Some(no_host(
            text,
            "a name has ASCII letters only",
            "write its form for DNS, which starts with `xn--`",
        ));
    }
    if !name.split('.').all(is_label) {
        return Some(no_host(
            text,
            "a host is a name of letters, digits, `-` and `.`, or an address, and `:port` may follow",
            "write it like `packages.example.org` or `example.org:443`",
        ));
    }
    ends_in_number(name).then(|| {
        no_host(
            text,
            "the last part of a name is no number, and an IPv4 address has four parts",
            "write it like `10.0.0.1`, in decimal and without leading zeros",
        )
    })
}

fn no_host(text: &str, rule: impl fmt::Display, hint: impl Into<String>) -> Fault {
    Fault::new(format!("`{}` is not a host; {rule}", shown(text)), hint)
}

fn is_label(label: &str) -> bool {
    !label.is_empty()
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Resolvers take `127.1`, `2130706433` and `0x7f.1` for addresses.
fn ends_in_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    let hexadecimal = last
        .strip_prefix("0x")
        .or_else(|| last.strip_prefix("0X"))
        .is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    hexadecimal || last.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> Vec<String> {
        let endpoints = host_ports(text).unwrap_or_else(|fault| panic!("{text}: {fault:?}"));
        endpoints.iter().map(Endpoint::to_string).collect()
    }

    #[test]
    fn a_host_has_one_form() {
        for (typed, expected) in [
            ("localhost:8080", &["localhost:8080"][..]),
            ("EXAMPLE.Org:443", &["example.org:443"]),
            ("a-b.c", &["a-b.c:80", "a-b.c:443"]),
            ("xn--rume-loa.example:1", &["xn--rume-loa.example:1"]),
            ("10.0.0.1", &["10.0.0.1:80", "10.0.0.1:443"]),
            ("127.0.0.1:65535", &["127.0.0.1:65535"]),
            ("[::1]", &["[::1]:80", "[::1]:443"]),
            ("[2001:DB8:0::1]:443", &["[2001:db8::1]:443"]),
            ("1.example:9", &["1.example:9"]),
        ] {
            assert_eq!(canonical(typed), expected, "{typed}");
        }
    }

    #[test]
    fn what_is_no_host_is_told_why() {
        for (bad, part) in [
            ("", "letters"),
            ("https://packages.example.org/x", "scheme"),
            ("*.example.org", "pattern"),
            ("*", "pattern"),
            ("10.0.0.0/8", "network"),
            ("example.org/x", "path"),
            ("a b", "letters"),
            ("a\nb", "letters"),
            ("a\0", "letters"),
            ("user@example.org", "letters"),
            ("my_host", "letters"),
            ("-a", "letters"),
            ("a-", "letters"),
            ("a..b", "letters"),
            ("a.", "letters"),
            ("räume.example", "xn--"),
            ("a:0", "1 to 65535"),
            ("a:65536", "1 to 65535"),
            ("a:", "1 to 65535"),
            ("a:+1", "1 to 65535"),
            ("a:080", "1 to 65535"),
            ("a:http", "1 to 65535"),
            ("::1", "stands in `[]`"),
            ("2001:db8::1", "stands in `[]`"),
            ("[zz]", "IPv6"),
            ("[10.0.0.1]", "IPv6"),
            ("[fe80::1%eth0]:1", "IPv6"),
            ("[fe80::1]", "one of all"),
            ("[ff02::1]", "one of all"),
            ("[::]", "one of all"),
            ("[::ffff:127.0.0.1]", "as such"),
            ("0.0.0.0", "one of all"),
            ("224.0.0.1", "one of all"),
            ("255.255.255.255", "one of all"),
            ("127.1", "no number"),
            ("2130706433", "no number"),
            ("0x7f000001", "no number"),
            ("0X7f.1:80", "no number"),
            ("010.0.0.1", "no number"),
            ("a.0x", "no number"),
        ] {
            let fault = host_ports(bad).unwrap_err();
            let told = format!("{} {}", fault.message, fault.hint);
            assert!(told.contains(part), "{bad}: {fault:?}");
        }
        let long = "a".repeat(64);
        assert!(host_ports(&long).unwrap_err().message.contains("64 bytes"));
        let long = ["a"; 128].join(".");
        assert!(host_ports(&long).unwrap_err().message.contains("255 bytes"));
        let hint = |text: &str| host_ports(text).unwrap_err().hint;
        assert_eq!(
            hint("https://me:x@packages.example.org:8443/x"),
            "write `packages.example.org:8443`"
        );
        assert_eq!(hint("::1"), "write `\"[::1]\"`");
    }

    #[test]
    fn a_list_is_sorted_and_holds_each_endpoint_once() {
        let list = |hosts: &[&str]| {
            let all = distinct(hosts.iter().copied());
            all.map(|all| all.iter().map(Endpoint::to_string).collect::<Vec<_>>())
        };
        assert_eq!(
            list(&["b:9", "A", "10.0.0.1:5"]).unwrap(),
            ["10.0.0.1:5", "a:443", "a:80", "b:9"]
        );
        for twice in [["a", "A"], ["a", "a:443"], ["[::1]:1", "[0::1]:1"]] {
            let fault = list(&twice).unwrap_err();
            assert!(fault.message.contains("twice"), "{fault:?}");
        }
    }
}
