//! Raw requests over the daemon's TLS, for what a well-behaved client never sends; the
//! typed client; and a small piece of work.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use mlmesh_api::{Client, IdempotencyKey, RunDto};
use mlmesh_cas::{FrameWriter, Tree, TreeEntry};
use mlmesh_model::{CommitId, Digest, ObjectId, Submission};
use mlmesh_testkit::daemon::Daemon;
use mlmesh_testkit::place::wait;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The code of an error, whose body must have exactly the four fields.
    pub(crate) fn code(&self) -> String {
        let body = self.json();
        let fields: Vec<&str> = body
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(fields, ["code", "details", "hint", "message"], "{body}");
        body["code"].as_str().unwrap().to_owned()
    }
}

pub(crate) type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A TLS connection that trusts the daemon's own authority.
pub(crate) fn connect(
    daemon: &Daemon,
    versions: &[&'static SupportedProtocolVersion],
) -> std::io::Result<Tls> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(daemon.data_dir().join("tls/ca.pem")).unwrap()
    {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let socket = TcpStream::connect(("127.0.0.1", daemon.port()))?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut stream = StreamOwned::new(connection, socket);
    stream.flush()?;
    Ok(stream)
}

/// Sends bytes as they are and reads until the daemon closes.
pub(crate) fn send_raw(daemon: &Daemon, bytes: &[u8]) -> Answer {
    let mut stream = connect(daemon, rustls::ALL_VERSIONS).unwrap();
    // The daemon may refuse before it has read everything.
    let _ = stream.write_all(bytes);
    let _ = stream.flush();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    parse(&answer)
}

/// One request with the owner's key.
pub(crate) fn request(daemon: &Daemon, method: &str, target: &str, body: Option<&str>) -> Answer {
    request_with(
        daemon,
        method,
        target,
        body,
        &format!("Authorization: Bearer {}\r\n", daemon.key()),
    )
}

/// One request with these header lines.
pub(crate) fn request_with(
    daemon: &Daemon,
    method: &str,
    target: &str,
    body: Option<&str>,
    headers: &str,
) -> Answer {
    let mut text =
        format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}");
    if let Some(body) = body {
        let length = body.len();
        text.push_str(&format!(
            "Content-Type: application/json\r\nContent-Length: {length}\r\n"
        ));
    }
    text.push_str("\r\n");
    text.push_str(body.unwrap_or(""));
    send_raw(daemon, text.as_bytes())
}

fn parse(answer: &[u8]) -> Answer {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let Some(end) = end else {
        return Answer {
            status: 0,
            head: String::new(),
            body: answer.to_vec(),
        };
    };
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .unwrap_or(0);
    Answer {
        status,
        head,
        body: answer[end + 4..].to_vec(),
    }
}

pub(crate) fn client(daemon: &Daemon) -> Client {
    Client::open(daemon.data_dir()).unwrap()
}

/// Waits for something that other processes do.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    wait(what, || {
        found = look();
        found.is_some()
    });
    found.unwrap()
}

/// What a run has written so far, both streams in their order.
pub(crate) fn said(client: &Client, run: &str) -> String {
    let log = client.logs(run, None, 0, None, Duration::ZERO).unwrap();
    log.lines.into_iter().map(|line| line.text).collect()
}

/// Stores a tree of one file and returns its commit.
pub(crate) fn store_tree(client: &Client, content: &[u8]) -> CommitId {
    let object = ObjectId(Digest::of(content));
    let mut frames = FrameWriter::new(Vec::new()).unwrap();
    frames.record(object, content).unwrap();
    client.send_frames(&frames.finish().unwrap()).unwrap();
    let tree = tree_of(object, content.len() as u64);
    client
        .commit(&tree.canonical_bytes(), &IdempotencyKey::random().unwrap())
        .unwrap()
        .commit
}

pub(crate) fn tree_of(object: ObjectId, size: u64) -> Tree {
    let entry = TreeEntry {
        path: "train.py".to_owned(),
        mode: mlmesh_cas::Mode::File,
        size,
        object,
    };
    Tree::from_entries(vec![entry]).unwrap()
}

/// A relaxed run of a shell line.
pub(crate) fn submission(commit: CommitId, line: &str) -> Submission {
    serde_json::from_value(json!({
        "workload": {"experiment": {"name": "t", "command": ["/bin/sh", "-c", line], "seed": "none"}},
        "commit": commit,
        "recipe_path": "train.yaml",
        "policy": "relaxed",
    }))
    .unwrap()
}

pub(crate) fn until_ended(client: &Client, run: &str) -> RunDto {
    until("a run ends", || {
        let run = client.run(run).unwrap();
        run.phase.is_ended().then_some(run)
    })
}
