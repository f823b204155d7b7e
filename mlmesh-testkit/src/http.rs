//! The smallest HTTP/1.1 client for tests that look at bytes: a connection a request, the
//! response read to the end.

use std::io::{Read, Result, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// How long a response may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// An address that was free a moment ago, for a server that cannot choose one itself.
pub(crate) fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address")
}

/// Status and body of a page.
pub fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    ask(address, &format!("GET {path} HTTP/1.1"), "")
}

/// Status and body of what a JSON body is answered with.
pub fn post(address: SocketAddr, path: &str, body: &str) -> Result<(u16, String)> {
    ask(address, &format!("POST {path} HTTP/1.1"), body)
}

/// A connection over which a request was sent.
pub fn send(address: SocketAddr, line: &str, body: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let length = body.len();
    let text = format!(
        "{line}\r\nHost: test\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(text.as_bytes())?;
    Ok(stream)
}

fn ask(address: SocketAddr, line: &str, body: &str) -> Result<(u16, String)> {
    let mut bytes = Vec::new();
    send(address, line, body)?.read_to_end(&mut bytes)?;
    parse(&bytes).ok_or_else(|| std::io::Error::other("no whole response"))
}

/// Status and body of a whole response.
pub fn parse(bytes: &[u8]) -> Option<(u16, String)> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end])
        .ok()?
        .to_ascii_lowercase();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let body = &bytes[end + 4..];
    let body = match head.contains("transfer-encoding: chunked") {
        true => unchunk(body)?,
        false => body.to_vec(),
    };
    Some((status, String::from_utf8(body).ok()?))
}

/// The data of a chunked body that is there as a whole.
pub fn unchunk(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut data = Vec::new();
    loop {
        let end = body.windows(2).position(|two| two == b"\r\n")?;
        let size = std::str::from_utf8(&body[..end]).ok()?;
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(data);
        }
        data.extend(body.get(end + 2..end + 2 + size)?);
        body = body.get(end + 4 + size..)?;
    }
}
