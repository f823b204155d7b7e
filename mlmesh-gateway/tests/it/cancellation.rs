//! A client that leaves: the target's connection is closed at once, whatever was under way.

use crate::wire::{Place, Wire};

const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";

/// What the two sides did before the client left.
struct Row {
    name: &'static str,
    client: &'static str,
    target: &'static str,
}

const ROWS: &[Row] = &[
    Row {
        name: "within the request's body",
        client: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbo",
        target: "",
    },
    Row {
        name: "within a chunk of the request",
        client: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe",
        target: "",
    },
    Row {
        name: "before a byte of the response",
        client: POST,
        target: "",
    },
    Row {
        name: "within the response's head",
        client: POST,
        target: "HTTP/1.1 200 OK\r\nContent-Ty",
    },
    Row {
        name: "before a byte of the response's body",
        client: POST,
        target: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    },
    Row {
        name: "within a stream",
        client: POST,
        target: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\ndata: 1\n\r\n",
    },
    Row {
        name: "within a body with a length",
        client: POST,
        target: "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc",
    },
    Row {
        name: "with the next request sent already",
        client: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        target: "",
    },
];

type Leave = fn(Wire);

/// How a client leaves.
const WAYS: &[(&str, Leave)] = &[
    ("closes", drop),
    ("resets", Wire::reset),
    ("half-closes", |client| {
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        // The socket stays until the gateway has closed it, too.
        std::thread::spawn(move || {
            let mut client = client;
            client.finish();
        });
    }),
];

#[test]
fn the_target_is_left_with_the_client() {
    let place = Place::new();
    let mut times = 0;
    for row in ROWS {
        for (way, leave) in WAYS {
            println!("{} {way}", row.name);
            let (mut client, mut target) = place.carried(row.client);
            let body = row.client.split_once("\r\n\r\n").unwrap().1;
            if !body.starts_with("GET") {
                target.expect(body);
            }
            target.send(row.target);
            if let Some((head, body)) = row.target.split_once("\r\n\r\n") {
                client.until("\r\n\r\n");
                client.expect(body);
                assert!(head.starts_with("HTTP/1.1 200"));
            }
            leave(client);
            target.ended();
            times += 1;
        }
    }
    place.counted("client_gone", times);
}

#[test]
fn half_a_head_reaches_nobody() {
    let place = Place::new();
    for (way, leave) in WAYS {
        println!("{way}");
        let mut client = place.client();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Le");
        leave(client);
    }
    // The gateway has seen all three when only the one that asks is open.
    crate::wire::eventually(|| place.metric("mlmesh_gateway_client_connections ") == 1);
    assert!(place.is_untouched());
}

#[test]
fn a_client_that_leaves_while_a_connection_is_made_leaves_nothing() {
    // A listener whose queue is full takes no connection; the kernel tries again later.
    let place = Place::new();
    let address = place.targets[0].local_addr().unwrap();
    let mut held = Vec::new();
    let full = loop {
        let timeout = std::time::Duration::from_millis(200);
        match std::net::TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => held.push(stream),
            Err(_) => break true,
        }
        if held.len() > 10_000 {
            break false;
        }
    };
    assert!(full);
    let mut client = place.client();
    client.send(POST);
    drop(client);
    place.counted("client_gone", 1);
}
