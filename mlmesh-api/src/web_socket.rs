//! The event stream: a WebSocket over the same pinned TLS, read without a runtime.

use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::ServerName;
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

use crate::transport::{certificates, is_certificate_error, provider};
use crate::{ClientError, Endpoint, ErrorBody, EventDto};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the opening handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Events in commit order. When it breaks, open a new one after [`EventStream::seq`].
pub struct EventStream {
    socket: WebSocket<StreamOwned<ClientConnection, TcpStream>>,
    url: String,
    seq: u64,
}

impl EventStream {
    pub(crate) fn connect(endpoint: &Endpoint, after: u64) -> Result<Self, ClientError> {
        let stream = tls_stream(endpoint)?;
        let url = format!(
            "wss://{}/v1/events?after={after}",
            endpoint.url.trim_start_matches("https://")
        );
        let unreachable = |reason: String| unreachable(&endpoint.url, reason);
        let mut request = url
            .as_str()
            .into_client_request()
            .map_err(|error| unreachable(error.to_string()))?;
        let bearer = format!("Bearer {}", endpoint.key)
            .parse()
            .map_err(|_| unreachable("the key holds characters that HTTP does not carry".into()))?;
        request.headers_mut().insert("authorization", bearer);
        let (socket, _) = tungstenite::client(request, stream)
            .map_err(|error| handshake_failure(&endpoint.url, error))?;
        Ok(Self {
            socket,
            url: endpoint.url.clone(),
            seq: after,
        })
    }

    /// The next event; `None` when there was none for `wait`.
    pub fn next(&mut self, wait: Duration) -> Result<Option<EventDto>, ClientError> {
        let wait = wait.max(Duration::from_millis(1));
        let timed = self.socket.get_ref().sock.set_read_timeout(Some(wait));
        timed.map_err(|error| unreachable(&self.url, error.to_string()))?;
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => {
                    let event: EventDto = serde_json::from_str(text.as_str()).map_err(|error| {
                        ClientError::Answer {
                            route: "GET /v1/events".to_owned(),
                            reason: error.to_string(),
                        }
                    })?;
                    self.seq = event.seq;
                    return Ok(Some(event));
                }
                Ok(Message::Close(_)) => {
                    return Err(unreachable(
                        &self.url,
                        "it closed the event stream".to_owned(),
                    ));
                }
                Ok(_) => {}
                Err(tungstenite::Error::Io(error))
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(unreachable(&self.url, error.to_string())),
            }
        }
    }

    /// Sequence of the last event that was handed out.
    pub fn seq(&self) -> u64 {
        self.seq
    }
}

fn tls_stream(
    endpoint: &Endpoint,
) -> Result<StreamOwned<ClientConnection, TcpStream>, ClientError> {
    let unreachable = |reason: String| unreachable(&endpoint.url, reason);
    let authority = endpoint
        .url
        .trim_start_matches("https://")
        .trim_end_matches('/');
    let (host, _) = authority
        .rsplit_once(':')
        .ok_or_else(|| unreachable("the URL has no port".to_owned()))?;
    let host = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    let mut roots = RootCertStore::empty();
    for certificate in certificates(endpoint)? {
        roots
            .add(certificate)
            .map_err(|error| ClientError::Untrusted {
                url: endpoint.url.clone(),
                reason: error.to_string(),
            })?;
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| unreachable(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(host).map_err(|error| unreachable(error.to_string()))?;
    let connection = ClientConnection::new(Arc::new(config), name)
        .map_err(|error| unreachable(error.to_string()))?;
    let connect = || -> std::io::Result<TcpStream> {
        let address = authority.to_socket_addrs()?.next().ok_or_else(|| {
            std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address")
        })?;
        let socket = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
        socket.set_write_timeout(Some(HANDSHAKE_TIMEOUT))?;
        Ok(socket)
    };
    let socket = connect().map_err(|error| unreachable(error.to_string()))?;
    Ok(StreamOwned::new(connection, socket))
}

fn handshake_failure<S: std::io::Read + std::io::Write>(
    url: &str,
    error: tungstenite::HandshakeError<tungstenite::ClientHandshake<S>>,
) -> ClientError {
    match error {
        tungstenite::HandshakeError::Failure(tungstenite::Error::Http(response)) => {
            let status = response.status().as_u16();
            let body = response.into_body().unwrap_or_default();
            match serde_json::from_slice::<ErrorBody>(&body) {
                Ok(body) => ClientError::Api {
                    status,
                    body: Box::new(body),
                },
                Err(_) => ClientError::Answer {
                    route: "GET /v1/events".to_owned(),
                    reason: format!("status {status}"),
                },
            }
        }
        tungstenite::HandshakeError::Failure(tungstenite::Error::Io(error))
            if is_certificate_error(&error) =>
        {
            ClientError::Untrusted {
                url: url.to_owned(),
                reason: error.to_string(),
            }
        }
        tungstenite::HandshakeError::Failure(error) => unreachable(url, error.to_string()),
        tungstenite::HandshakeError::Interrupted(_) => {
            unreachable(url, "it did not finish the handshake in time".to_owned())
        }
    }
}

fn unreachable(url: &str, reason: String) -> ClientError {
    ClientError::Unreachable {
        url: url.to_owned(),
        reason,
    }
}
