//! Start, pages, threads and drain of a gateway.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use mlmesh_gateway::{Gateway, GatewayError, Settings, Target, Waits};

use crate::wire::{PATIENCE, Place, Wire, accepted, unasked};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn settings(targets: &[&str]) -> Settings {
    let targets = targets.iter().map(|url| url.parse::<Target>().unwrap());
    Settings {
        strategy: "baseline_rr".to_owned(),
        signals: unasked(),
        ..Settings::new((Ipv4Addr::LOCALHOST, 0).into(), targets.collect())
    }
}

#[test]
fn what_it_cannot_serve_it_refuses() {
    let one = || settings(&["http://127.0.0.1:1"]);
    let any: SocketAddr = (Ipv4Addr::UNSPECIFIED, 0).into();
    let refused = [
        settings(&[]),
        settings(&["http://127.0.0.1:1", "http://127.0.0.1:1/"]),
        Settings {
            threads: 0,
            ..one()
        },
        Settings {
            listen: any,
            ..one()
        },
        Settings {
            admin: Some(any),
            ..one()
        },
    ];
    for settings in refused {
        let shown = format!("{settings:?}");
        assert!(Gateway::start(settings).is_err(), "{shown}");
    }
    let open = Gateway::start(Settings {
        listen: any,
        allow_plaintext: true,
        ..one()
    });
    open.unwrap().drain(Duration::ZERO);
}

#[test]
fn an_address_is_not_shared_with_another_gateway() {
    for threads in [1, 2] {
        let of = |listen| Settings {
            listen,
            threads,
            ..settings(&["http://127.0.0.1:1"])
        };
        let first = Gateway::start(of((Ipv4Addr::LOCALHOST, 0).into())).unwrap();
        let second = Gateway::start(of(first.address()));
        assert!(matches!(second, Err(GatewayError::Listen(..))));
        first.drain(Duration::ZERO);
    }
}

#[test]
fn pages_are_beside_the_targets_or_at_a_door_of_their_own() {
    let page = |address, path: &str| {
        let mut client = Wire::connect(address);
        client.send(format!(
            "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        ));
        client.rest()
    };
    let place = Place::new();
    let address = place.gateway.address();
    assert!(page(address, "/-/health").contains("\"status\":\"ok\""));
    assert!(page(address, "/-/nothing").contains("page_unknown"));
    let head = {
        let mut client = place.client();
        client.send("HEAD /-/metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        client.rest()
    };
    assert!(head.ends_with("\r\n\r\n") && !head.contains("Content-Length: 0"));

    let target = place.targets[0].local_addr().unwrap();
    let gateway = Gateway::start(Settings {
        admin: Some((Ipv4Addr::LOCALHOST, 0).into()),
        ..settings(&[&format!("http://{target}")])
    })
    .unwrap();
    let admin = gateway.admin_address().unwrap();
    assert!(page(admin, "/-/metrics").contains("# TYPE mlmesh_gateway_requests_total counter"));
    assert!(page(admin, "/v1/models").contains("page_unknown"));
    // No path of a target is taken away.
    let mut client = Wire::connect(gateway.address());
    client.send("GET /-/health HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut target = place.target();
    assert!(target.until("\r\n\r\n").starts_with("GET /-/health "));
    target.send(OK);
    client.expect(OK);
}

#[test]
fn threads_take_turns_at_targets_together() {
    let place = Place::with(3, Waits::default());
    let targets: Vec<String> = place
        .targets
        .iter()
        .map(|target| format!("http://{}", target.local_addr().unwrap()))
        .collect();
    let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
    let gateway = Gateway::start(Settings {
        threads: 4,
        ..settings(&targets)
    })
    .unwrap();
    // Each connection goes to some thread; the order is one all the same.
    for round in 0..12 {
        let mut client = Wire::connect(gateway.address());
        client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let mut target = place.target_at(round % 3);
        target.until("\r\n\r\n");
        target.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
        assert!(client.rest().ends_with("ok"));
    }
}

#[test]
fn a_drain_finishes_what_was_begun_and_closes_the_rest() {
    let place = Place::new();
    let (mut busy, mut target) = place.carried(GET);
    let mut idle = place.client();
    let mut half = place.client();
    half.send("GET /half HTTP/1.1\r\nHo");
    // All three are known to the gateway once it says so.
    crate::wire::eventually(|| place.metric("mlmesh_gateway_client_connections ") == 4);
    let Place { gateway, targets } = place;
    let address = gateway.address();
    let drain = std::thread::spawn(move || gateway.drain(PATIENCE));
    idle.ended();
    crate::wire::eventually(|| std::net::TcpStream::connect(address).is_err());
    half.send("st: a\r\n\r\n");
    let mut second = accepted(&targets[0]);
    assert!(second.until("\r\n\r\n").starts_with("GET /half"));
    let closing = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
    for (client, target) in [(&mut half, &mut second), (&mut busy, &mut target)] {
        assert!(!drain.is_finished());
        target.send(OK);
        assert_eq!(client.rest(), closing);
    }
    drain.join().unwrap();
}

#[test]
fn a_drain_under_load_fails_nobody() {
    const CLIENTS: usize = 16;
    let place = Place::new();
    let Place { gateway, targets } = place;
    let engine = targets[0].try_clone().unwrap();
    engine.set_nonblocking(false).unwrap();
    std::thread::spawn(move || {
        for stream in engine.incoming() {
            let mut wire = Wire::of(stream.unwrap());
            std::thread::spawn(move || {
                while wire.is_open() {
                    wire.until("\r\n\r\n");
                    wire.send(OK);
                }
            });
        }
    });
    let address = gateway.address();
    let answered = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let answered = &answered;
                scope.spawn(move || {
                    let mut client = Wire::connect(address);
                    loop {
                        client.send(GET);
                        let head = client.until("\r\n\r\n");
                        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
                        client.expect("ok");
                        answered.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        if head.contains("Connection: close") {
                            return client.ended();
                        }
                    }
                })
            })
            .collect();
        let many = || answered.load(std::sync::atomic::Ordering::Relaxed) > CLIENTS * 50;
        crate::wire::eventually(many);
        gateway.drain(PATIENCE);
        // Each was told with a whole answer that its connection ends.
        clients
            .into_iter()
            .for_each(|client| client.join().unwrap());
    });
}

#[test]
fn who_has_connected_before_a_drain_is_served() {
    for _ in 0..20 {
        let Place { gateway, targets } = Place::new();
        let mut clients: Vec<Wire> = (0..3).map(|_| Wire::connect(gateway.address())).collect();
        for client in &mut clients {
            client.send(GET);
        }
        let drain = std::thread::spawn(move || gateway.drain(PATIENCE));
        let mut engines: Vec<Wire> = clients.iter().map(|_| accepted(&targets[0])).collect();
        for engine in &mut engines {
            engine.until("\r\n\r\n");
            engine.send(OK);
        }
        for client in &mut clients {
            assert!(client.rest().ends_with("ok"));
        }
        drain.join().unwrap();
    }
}

#[test]
fn a_drain_ends_with_its_grace() {
    let place = Place::new();
    let (mut client, mut target) = place.carried(GET);
    place.gateway.drain(Duration::from_millis(100));
    client.ended();
    target.ended();
}
