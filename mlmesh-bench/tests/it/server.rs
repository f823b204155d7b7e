//! An engine made of a socket: it answers each request with bytes that a test wrote.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// What is done with the request of a number, counted from 0 over all connections.
/// Returns whether the connection goes on.
type Answer = dyn Fn(u64, &mut TcpStream) -> bool + Send + Sync;

pub(crate) struct Server {
    pub(crate) url: String,
    seen: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    address: std::net::SocketAddr,
}

impl Server {
    pub(crate) fn new(
        answer: impl Fn(u64, &mut TcpStream) -> bool + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, stop) = (
            Arc::new(Mutex::new(Vec::new())),
            Arc::new(AtomicBool::new(false)),
        );
        let answer: Arc<Answer> = Arc::new(answer);
        let count = Arc::new(AtomicU64::new(0));
        let (keep, ended) = (Arc::clone(&seen), Arc::clone(&stop));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                let (answer, count) = (Arc::clone(&answer), Arc::clone(&count));
                let keep = Arc::clone(&keep);
                thread::spawn(move || serve(stream.unwrap(), &*answer, &count, &keep));
            }
        });
        Self {
            url: format!("http://{address}"),
            seen,
            stop,
            address,
        }
    }

    /// Heads and bodies of the requests so far.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
    }
}

fn serve(stream: TcpStream, answer: &Answer, count: &AtomicU64, seen: &Mutex<Vec<String>>) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.trim().parse().unwrap();
            }
            head.push_str(&line);
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        head.push_str(&String::from_utf8(body).unwrap());
        seen.lock().unwrap().push(head);
        if !answer(count.fetch_add(1, Ordering::SeqCst), &mut stream) {
            return;
        }
    }
}

/// A chat stream of these texts, with usage if there is one, as one chunked answer.
pub(crate) fn stream(texts: &[&str], usage: Option<(u64, u64)>) -> String {
    let mut events =
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n"
            .to_owned();
    for text in texts {
        events.push_str(&format!(
            "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n"
        ));
    }
    if let Some((prompt, completion)) = usage {
        events.push_str(&format!("data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":{prompt},\"completion_tokens\":{completion},\"prompt_tokens_details\":{{\"cached_tokens\":1}}}}}}\n\n"));
    }
    events.push_str("data: [DONE]\n\n");
    chunked("text/event-stream", &events)
}

pub(crate) fn chunked(kind: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    )
}

pub(crate) fn send(stream: &mut TcpStream, text: &str) -> bool {
    stream.write_all(text.as_bytes()).is_ok()
}
