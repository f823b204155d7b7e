//! An engine that costs nothing, to measure the load client: it answers every request
//! with the same stream at once, or chunk by chunk.
//!
//! It understands no more of HTTP than the client sends: a head with a
//! `content-length`, and one request after the other on a connection. A thread serves
//! each connection.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

/// How the chunks of an answer leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// All in one write.
    Burst,
    /// A write for each.
    ByChunk,
}

/// Begins to answer with streams of so many chunks, for as long as the process lives.
pub fn start(chunks: usize, manner: Manner) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let writes = match manner {
        Manner::Burst => vec![parts(chunks).concat()],
        Manner::ByChunk => parts(chunks),
    };
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let writes = writes.clone();
            // A client that goes away is how every connection ends.
            thread::spawn(move || drop(serve(stream, &writes)));
        }
    });
    Ok(address)
}

fn serve(mut stream: TcpStream, writes: &[Vec<u8>]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 256 * 1024];
    let mut length = 0;
    loop {
        let count = stream.read(&mut buffer[length..])?;
        if count == 0 {
            return Ok(());
        }
        length += count;
        if is_whole(&buffer[..length]) {
            length = 0;
            for bytes in writes {
                stream.write_all(bytes)?;
            }
        }
    }
}

/// Whether head and body are there. Of the standard library's text functions, which
/// are fast in a build for tests, too.
fn is_whole(bytes: &[u8]) -> bool {
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .split_once("content-length: ")
        .and_then(|(_, rest)| rest.split("\r\n").next()?.parse().ok());
    body.len() >= length.unwrap_or(0)
}

/// The head with the role's event, then an event a chunk, then usage and end: the form
/// and size of vLLM's.
fn parts(chunks: usize) -> Vec<Vec<u8>> {
    let event = |choices: &str, rest: &str| {
        let data = format!(
            "data: {{\"id\":\"chatcmpl-5f0b7a4c1d2e4f6a8b9c0d1e2f3a4b5c\",\"object\":\"chat.completion.chunk\",\"created\":1790000000,\"model\":\"tiny\",\"choices\":[{choices}]{rest}}}\n\n"
        );
        format!("{:x}\r\n{data}\r\n", data.len()).into_bytes()
    };
    let delta = |delta: &str| {
        event(
            &format!(
                "{{\"index\":0,\"delta\":{{{delta}}},\"logprobs\":null,\"finish_reason\":null}}"
            ),
            "",
        )
    };
    let head = "HTTP/1.1 200 OK\r\ndate: Sat, 21 Nov 2026 00:00:00 GMT\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut parts = vec![
        [
            head.as_bytes(),
            &delta("\"role\":\"assistant\",\"content\":\"\""),
        ]
        .concat(),
    ];
    parts.extend((0..chunks).map(|number| delta(&format!("\"content\":\" word{number}\""))));
    let usage = format!(
        ",\"usage\":{{\"prompt_tokens\":256,\"total_tokens\":{},\"completion_tokens\":{chunks}}}",
        256 + chunks
    );
    let end = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
    parts.push([&event("", &usage), end.as_bytes()].concat());
    parts
}
