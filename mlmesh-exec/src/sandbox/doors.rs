//! The only ways out of a sandbox with declared hosts: for each endpoint a socket
//! that listens inside, where the endpoint's name or address leads.
//!
//! ```text
//!   job ─ connect("example.org", 443) ─► 127.77.0.1:443 ─► relay ─► example.org:443
//!         /etc/hosts of the sandbox        (listens inside, accepted outside)
//! ```
//!
//! A name gets a loopback address of its own. A declared address is given to the
//! loopback device, so that programs connect to it as they always do. Nothing here
//! leaves the namespace: the sockets go to the supervisor, whose relay does.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use mlmesh_model::Refusal;
use mlmesh_recipe::{Endpoint, Host};
use serde::{Deserialize, Serialize};

use crate::namespace;

/// The one name that may lead to the loopback of the machine.
pub(crate) const LOCALHOST: &str = "localhost";

/// Names stand for the addresses that follow this one.
const NAMES_AFTER: u32 = u32::from_be_bytes([127, 77, 0, 0]);

/// One endpoint and where it is found inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Door {
    /// The declared name, or the declared address as text.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The address inside, with the same port.
    pub(crate) listen: SocketAddr,
}

impl Door {
    /// The name by which programs inside look for it, when it is one.
    fn name(&self) -> Option<&str> {
        let is_address = self.host.parse::<IpAddr>().is_ok();
        (!is_address).then_some(&self.host)
    }

    /// As the plan lists it.
    pub(crate) fn endpoint(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

/// The doors of a plan's list of hosts.
pub(crate) fn doors(hosts: &[String]) -> Result<Vec<Door>, Refusal> {
    let endpoints = mlmesh_recipe::endpoints(hosts)?;
    let declared: BTreeSet<IpAddr> = endpoints.iter().filter_map(address_of).collect();
    let mut free = (NAMES_AFTER + 1..)
        .map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)))
        .filter(|address| !declared.contains(address));
    let mut names: BTreeMap<String, IpAddr> = BTreeMap::new();
    names.insert(LOCALHOST.to_owned(), Ipv4Addr::LOCALHOST.into());
    let mut doors: Vec<Door> = Vec::with_capacity(endpoints.len());
    for Endpoint { host, port } in endpoints {
        let text = host.to_string();
        let address = match host {
            Host::Address(address) => address,
            Host::Name(name) => match names.get(&name) {
                Some(address) => *address,
                None => {
                    let address = free.next().unwrap_or(Ipv4Addr::LOCALHOST.into());
                    names.insert(name, address);
                    address
                }
            },
        };
        let listen = SocketAddr::new(address, port);
        // `localhost` and `127.0.0.1` lead to the same door.
        if doors.iter().all(|door| door.listen != listen) {
            doors.push(Door {
                host: text,
                port,
                listen,
            });
        }
    }
    Ok(doors)
}

fn address_of(endpoint: &Endpoint) -> Option<IpAddr> {
    match endpoint.host {
        Host::Address(address) => Some(address),
        Host::Name(_) => None,
    }
}

/// Listens at every door. The caller is in the namespace, whose loopback is up,
/// and has its capabilities.
pub(super) fn open(doors: &[Door]) -> io::Result<Vec<OwnedFd>> {
    let inside: BTreeSet<IpAddr> = doors.iter().map(|door| door.listen.ip()).collect();
    for address in inside.into_iter().filter(|address| !address.is_loopback()) {
        namespace::add_loopback_address(address)
            .map_err(|error| told(error, &format!("take the address `{address}`")))?;
    }
    let listen = |door: &Door| {
        let listener = TcpListener::bind(door.listen);
        listener
            .map(OwnedFd::from)
            .map_err(|error| told(error, &format!("listen for `{}`", door.endpoint())))
    };
    doors.iter().map(listen).collect()
}

fn told(error: io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// `/etc/hosts` of the sandbox.
pub(super) fn hosts_file(doors: &[Door]) -> String {
    let names: BTreeMap<&str, IpAddr> = doors
        .iter()
        .filter_map(|door| Some((door.name()?, door.listen.ip())))
        .filter(|(name, _)| *name != LOCALHOST)
        .collect();
    let own = if names.contains_key("mlmesh") {
        ""
    } else {
        " mlmesh"
    };
    let mut text = format!("127.0.0.1 {LOCALHOST}{own}\n::1 {LOCALHOST}\n");
    for (name, address) in names {
        text.push_str(&format!("{address} {name}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(hosts: &[&str]) -> Vec<Door> {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        doors(&hosts).unwrap()
    }

    #[test]
    fn each_name_has_an_address_and_each_address_is_itself() {
        let doors = of(&[
            "b.example:1",
            "a.example",
            "10.0.0.5:7",
            "[2001:db8::1]:9",
            "127.77.0.1:5",
            "localhost:3",
            "127.0.0.1:3",
        ]);
        let said: Vec<(String, String)> = doors
            .iter()
            .map(|door| (door.endpoint(), door.listen.to_string()))
            .collect();
        let expected = [
            ("10.0.0.5:7", "10.0.0.5:7"),
            ("127.0.0.1:3", "127.0.0.1:3"),
            ("127.77.0.1:5", "127.77.0.1:5"),
            ("[2001:db8::1]:9", "[2001:db8::1]:9"),
            ("a.example:443", "127.77.0.2:443"),
            ("a.example:80", "127.77.0.2:80"),
            ("b.example:1", "127.77.0.3:1"),
        ]
        .map(|(endpoint, listen)| (endpoint.to_owned(), listen.to_owned()));
        assert_eq!(said, expected);
        assert_eq!(
            hosts_file(&doors),
            "127.0.0.1 localhost mlmesh\n::1 localhost\n127.77.0.2 a.example\n127.77.0.3 b.example\n"
        );
    }

    #[test]
    fn a_declared_name_is_never_our_own() {
        let text = hosts_file(&of(&["mlmesh:1"]));
        assert_eq!(
            text,
            "127.0.0.1 localhost\n::1 localhost\n127.77.0.1 mlmesh\n"
        );
    }

    #[test]
    fn what_is_no_host_has_no_door() {
        for bad in ["a b:1", "a\n10.0.0.1 b", "*"] {
            assert!(doors(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
