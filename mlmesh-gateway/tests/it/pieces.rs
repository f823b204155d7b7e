//! However a body is cut on its way in, it comes out the same, in both directions.

use proptest::prelude::*;

use crate::wire::{Place, Wire};

/// A body as it travels, and its data.
#[derive(Debug, Clone)]
struct Message {
    head: String,
    body: Vec<u8>,
}

fn message() -> impl Strategy<Value = Message> {
    let data = prop::collection::vec(any::<u8>(), 0..2000);
    // A body is often larger than any buffer of the gateway.
    (
        data,
        1_usize..80,
        prop::option::of(prop::collection::vec(1_usize..9000, 1..8)),
    )
        .prop_map(|(data, times, chunks)| {
            let data = data.repeat(times);
            let Some(sizes) = chunks else {
                let head = format!("Content-Length: {}\r\n\r\n", data.len());
                return Message { head, body: data };
            };
            let mut body = Vec::new();
            let (mut left, mut sizes) = (data.as_slice(), sizes.into_iter().cycle());
            while !left.is_empty() {
                let (chunk, rest) = left.split_at(sizes.next().unwrap_or(1).min(left.len()));
                body.extend(format!("{:X}\r\n", chunk.len()).bytes());
                body.extend(chunk);
                body.extend(b"\r\n");
                left = rest;
            }
            body.extend(b"0\r\nX-End: yes\r\n\r\n");
            let head = "Transfer-Encoding: chunked\r\n\r\n".to_owned();
            Message { head, body }
        })
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![1_usize..40, 1_usize..40_000], 1..12)
}

/// Sends in pieces of these sizes, over and over.
fn send_cut(wire: &mut Wire, bytes: &[u8], cuts: &[usize]) {
    let mut left = bytes;
    // Small cuts at the beginning, where heads are, and then ever larger ones.
    for (round, cut) in cuts.iter().cycle().enumerate() {
        if left.is_empty() {
            return;
        }
        let (piece, rest) = left.split_at((cut * (1 + round / cuts.len())).min(left.len()));
        wire.send(piece);
        left = rest;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_body_arrives_as_it_was_sent(
        request in message(),
        response in message(),
        there in cuts(),
        back in cuts(),
    ) {
        let place = Place::new();
        let mut client = place.client();
        let mut other = Wire::of(client.stream.try_clone().unwrap());
        let text = [b"PUT / HTTP/1.1\r\nHost: a\r\n".as_slice(), request.head.as_bytes(), &request.body].concat();
        let sending = std::thread::spawn(move || send_cut(&mut other, &text, &there));
        let mut target = place.target();
        target.until("\r\n\r\n");
        prop_assert_eq!(target.exactly(request.body.len()), request.body);
        sending.join().unwrap();

        let text = [b"HTTP/1.1 200 OK\r\n".as_slice(), response.head.as_bytes(), &response.body].concat();
        let mut other = Wire::of(target.stream.try_clone().unwrap());
        let sending = std::thread::spawn(move || send_cut(&mut other, &text, &back));
        let head = client.until("\r\n\r\n");
        prop_assert!(head.ends_with(&response.head), "{}", head);
        prop_assert_eq!(client.exactly(response.body.len()), response.body);
        sending.join().unwrap();

        // Nothing is left over on either side.
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        prop_assert!(target.until("\r\n\r\n").starts_with("GET / "));
    }
}
