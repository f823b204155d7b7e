//! The client over TLS, against an engine with a certificate made for the test.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use mlmesh_bench::Fault;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::PrivateKeyDer;

use crate::client::{measure, plan};
use crate::server::{Server, send, stream};

/// A file that goes with the test.
struct Certificate(PathBuf);

impl Drop for Certificate {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

/// An engine for `localhost` whose certificate lies in a file.
fn engine(name: &str) -> (String, Certificate) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let file = format!("mlmesh-bench-{}-{name}.pem", std::process::id());
    let file = std::env::temp_dir().join(file);
    std::fs::write(&file, made.cert.pem()).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let session = ServerConnection::new(Arc::clone(&config)).unwrap();
            let secured = StreamOwned::new(session, socket.unwrap());
            thread::spawn(move || drop(serve(secured)));
        }
    });
    (format!("https://localhost:{port}"), Certificate(file))
}

fn serve(mut stream: StreamOwned<ServerConnection, TcpStream>) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece)?;
        bytes.extend_from_slice(&piece[..count]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        if body.len() < length.unwrap().parse().unwrap() {
            continue;
        }
        bytes.clear();
        stream.write_all(crate::server::stream(&["a", "b"], Some((5, 2))).as_bytes())?;
    }
}

#[test]
fn streams_over_tls_are_measured_on_connections_that_are_kept() {
    let (url, certificate) = engine("kept");
    let mut asked = plan(&url, 20);
    asked.ca_file = Some(certificate.0.clone());
    asked.connections_max = 2;
    asked.prompt = mlmesh_bench::PromptLength::Chars("50000".parse().unwrap());
    let run = measure(&asked);
    assert!(run.connections <= 2);
    for sample in &run.samples {
        assert_eq!(sample.fault, None);
        assert_eq!(run.chunks(sample).len(), 2);
        let order = [
            sample.started_us,
            sample.sent_us.unwrap(),
            sample.first_byte_us.unwrap(),
        ];
        assert!(order.is_sorted(), "{sample:?}");
    }
}

#[test]
fn whoever_is_not_believed_gets_no_request() {
    let (url, _certificate) = engine("foreign");
    let (_, other) = engine("other");
    let mut asked = plan(&url, 2);
    asked.ca_file = Some(other.0.clone());
    let run = measure(&asked);
    assert!(
        run.samples
            .iter()
            .all(|sample| sample.fault == Some(Fault::Tls)),
        "{:?}",
        run.samples
    );
    assert!(run.samples.iter().all(|sample| sample.sent_us.is_none()));

    let plain = Server::new(|_, socket| send(socket, &stream(&["a"], None)));
    let mut asked = plan(
        &plain
            .url
            .replace("http:", "https:")
            .replace("127.0.0.1", "localhost"),
        1,
    );
    asked.ca_file = Some(other.0.clone());
    asked.timeout_us = 2_000_000;
    let fault = measure(&asked).samples[0].fault;
    assert!(fault == Some(Fault::Tls), "{fault:?}");
    assert!(plain.seen().is_empty());

    asked.ca_file = Some("/no/such/file".into());
    let refused = mlmesh_bench::run(&asked, &mlmesh_bench::Watch::default());
    assert!(refused.unwrap_err().to_string().contains("/no/such/file"));
}
