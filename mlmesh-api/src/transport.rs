//! One pinned HTTPS connection to a daemon, reused for every call, and the rule for
//! calls that are cut in the middle.
//!
//! ```text
//!   call ──► refused at once ─────────────► Unreachable
//!     │
//!     └────► cut after it was sent ──► the same call, the same idempotency key,
//!                                      a few times with growing pauses
//! ```
//!
//! Every call of this API may be sent twice: reads change nothing, objects are named
//! by their content, and what creates carries an `Idempotency-Key`.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::de::DeserializeOwned;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

use crate::{ClientError, ErrorBody, error_code, log_dto::hex_of};

/// Where a daemon answers, how its certificate is checked, and the key it is shown.
#[derive(Clone)]
pub struct Endpoint {
    /// Such as `https://127.0.0.1:9101`.
    pub url: String,
    /// The certificate authority that the daemon's certificate is checked against.
    pub ca_pem: String,
    /// The API key.
    pub key: String,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Endpoint({}, key hidden)", self.url)
    }
}

/// Names one intention: the same key never creates twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// 128 random bits in hex.
    pub fn random() -> Result<Self, ClientError> {
        let mut bytes = [0_u8; 16];
        let filled = provider().secure_random.fill(&mut bytes);
        filled.map_err(|_| ClientError::Answer {
            route: "the system's random source".to_owned(),
            reason: "it gives no bytes".to_owned(),
        })?;
        Ok(Self(hex_of(&bytes)))
    }

    /// A key of the caller's own.
    pub fn from_text(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// The pooled connection. Cheap to clone; a TLS handshake happens at the first call.
#[derive(Clone, Debug)]
pub(crate) struct Transport {
    pub(crate) endpoint: Endpoint,
    agent: Arc<OnceLock<ureq::Agent>>,
}

/// One call.
pub(crate) struct Call<'a> {
    pub(crate) method: &'static str,
    /// Path and query, already encoded.
    pub(crate) path: String,
    pub(crate) body: CallBody<'a>,
    pub(crate) key: Option<&'a IdempotencyKey>,
    pub(crate) timeout: Duration,
}

pub(crate) enum CallBody<'a> {
    None,
    Json(Vec<u8>),
    Binary(&'a [u8]),
}

/// How long a usual call may take.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a call may take that reads whole datasets or stores.
pub(crate) const LONG_CALL_TIMEOUT: Duration = Duration::from_secs(6 * 3600);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer that is read into memory.
const ANSWER_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Pauses before a call that was cut is sent again.
const RETRY_PAUSES_MS: [u64; 6] = [20, 50, 100, 200, 400, 800];

impl Transport {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            agent: Arc::new(OnceLock::new()),
        }
    }

    /// Sends a call and reads its whole answer.
    pub(crate) fn bytes(&self, call: &Call<'_>) -> Result<Vec<u8>, ClientError> {
        self.with_retries(call, |mut response| {
            let limited = response.body_mut().with_config().limit(ANSWER_BYTES_MAX);
            limited
                .read_to_vec()
                .map(|bytes| (response.status().as_u16(), bytes))
        })
        .and_then(|(status, bytes)| checked(call, status, bytes))
    }

    /// Sends a call and reads its answer as JSON.
    pub(crate) fn json<T: DeserializeOwned>(&self, call: &Call<'_>) -> Result<T, ClientError> {
        let bytes = self.bytes(call)?;
        serde_json::from_slice(&bytes).map_err(|error| ClientError::Answer {
            route: route_of(call),
            reason: error.to_string(),
        })
    }

    /// Sends a call and hands out its answer as a stream.
    pub(crate) fn reader(&self, call: &Call<'_>) -> Result<Box<dyn io::Read + Send>, ClientError> {
        let response = self.with_retries(call, Ok)?;
        let status = response.status().as_u16();
        let (_, body) = response.into_parts();
        let limited = body.into_with_config().limit(u64::MAX);
        if (200..300).contains(&status) {
            return Ok(Box::new(limited.reader()));
        }
        let bytes = limited
            .limit(ANSWER_BYTES_MAX)
            .read_to_vec()
            .map_err(|error| self.failure(error))?;
        checked(call, status, bytes).map(|bytes| Box::new(io::Cursor::new(bytes)) as _)
    }

    fn with_retries<T>(
        &self,
        call: &Call<'_>,
        read: impl Fn(ureq::http::Response<ureq::Body>) -> Result<T, ureq::Error>,
    ) -> Result<T, ClientError> {
        let mut pauses = RETRY_PAUSES_MS.iter();
        let mut was_cut = false;
        loop {
            let error = match self.send(call)?.and_then(&read) {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            was_cut |= is_cut(&error);
            match pauses.next().filter(|_| was_cut && is_passing(&error)) {
                Some(pause_ms) => std::thread::sleep(Duration::from_millis(*pause_ms)),
                None => return Err(self.failure(error)),
            }
        }
    }

    fn send(
        &self,
        call: &Call<'_>,
    ) -> Result<Result<ureq::http::Response<ureq::Body>, ureq::Error>, ClientError> {
        let mut request = ureq::http::Request::builder()
            .method(call.method)
            .uri(format!("{}{}", self.endpoint.url, call.path))
            .header("authorization", format!("Bearer {}", self.endpoint.key));
        if let Some(IdempotencyKey(key)) = call.key {
            request = request.header("idempotency-key", key);
        }
        let content_type = match call.body {
            CallBody::None => None,
            CallBody::Json(_) => Some("application/json"),
            CallBody::Binary(_) => Some("application/octet-stream"),
        };
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let bytes: &[u8] = match &call.body {
            CallBody::None => &[],
            CallBody::Json(bytes) => bytes,
            CallBody::Binary(bytes) => bytes,
        };
        let agent = self.agent()?;
        let timeout = Some(call.timeout);
        if call.method == "GET" || call.method == "DELETE" {
            let request = request.body(()).map_err(|error| bad_call(call, &error))?;
            let request = agent
                .configure_request(request)
                .timeout_global(timeout)
                .build();
            Ok(agent.run(request))
        } else {
            let request = request
                .body(bytes)
                .map_err(|error| bad_call(call, &error))?;
            let request = agent
                .configure_request(request)
                .timeout_global(timeout)
                .build();
            Ok(agent.run(request))
        }
    }

    fn agent(&self) -> Result<&ureq::Agent, ClientError> {
        if let Some(agent) = self.agent.get() {
            return Ok(agent);
        }
        let roots = certificates(&self.endpoint)?
            .iter()
            .map(|der| Certificate::from_der(der.as_ref()).to_owned())
            .collect::<Vec<_>>();
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::new_with_certs(&roots))
            .unversioned_rustls_crypto_provider(provider())
            .build();
        let agent = ureq::Agent::config_builder()
            .tls_config(tls)
            .https_only(true)
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .user_agent(concat!("ml/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .build()
            .new_agent();
        Ok(self.agent.get_or_init(|| agent))
    }

    /// What a failed exchange means to the caller.
    pub(crate) fn failure(&self, error: ureq::Error) -> ClientError {
        let url = self.endpoint.url.clone();
        let reason = error.to_string();
        let untrusted = match &error {
            ureq::Error::Rustls(_) => true,
            ureq::Error::Io(io) => is_certificate_error(io),
            _ => false,
        };
        if untrusted {
            ClientError::Untrusted { url, reason }
        } else {
            ClientError::Unreachable { url, reason }
        }
    }
}

/// The certificates that the endpoint's own is checked against.
pub(crate) fn certificates(
    endpoint: &Endpoint,
) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let parsed = CertificateDer::pem_slice_iter(endpoint.ca_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| error.to_string())
        .and_then(|certificates| match certificates.is_empty() {
            true => Err("no certificate in it".to_owned()),
            false => Ok(certificates),
        });
    parsed.map_err(|reason| ClientError::Untrusted {
        url: endpoint.url.clone(),
        reason: format!("its certificate authority's file is no PEM: {reason}"),
    })
}

/// The one set of cryptographic primitives in use.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())))
}

/// Whether rustls spoke of the certificate, and not of a cut connection.
pub(crate) fn is_certificate_error(error: &io::Error) -> bool {
    error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        .is_some_and(|error| matches!(error, rustls::Error::InvalidCertificate(_)))
}

/// Whether the connection stood and was cut: the call may or may not have been done.
fn is_cut(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Io(io) => matches!(
            io.kind(),
            io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof
                | io::ErrorKind::NotConnected
        ),
        ureq::Error::Protocol(_) => true,
        _ => false,
    }
}

/// Whether, once the call was cut, this is worth another try.
fn is_passing(error: &ureq::Error) -> bool {
    let refused = match error {
        ureq::Error::Io(io) => io.kind() == io::ErrorKind::ConnectionRefused,
        ureq::Error::ConnectionFailed => true,
        _ => false,
    };
    refused || is_cut(error)
}

fn checked(call: &Call<'_>, status: u16, bytes: Vec<u8>) -> Result<Vec<u8>, ClientError> {
    if (200..300).contains(&status) {
        return Ok(bytes);
    }
    match serde_json::from_slice::<ErrorBody>(&bytes) {
        Ok(body) => Err(ClientError::Api {
            status,
            body: Box::new(body),
        }),
        Err(_) => Err(ClientError::Answer {
            route: route_of(call),
            reason: format!(
                "status {status} with a body that is no error: `{}`",
                String::from_utf8_lossy(&bytes)
                    .chars()
                    .take(200)
                    .collect::<String>()
            ),
        }),
    }
}

fn bad_call(call: &Call<'_>, error: &dyn std::error::Error) -> ClientError {
    ClientError::Api {
        status: 400,
        body: Box::new(ErrorBody::new(
            error_code::BAD_PARAMETER,
            format!("{} cannot be asked for: {error}", route_of(call)),
            "a key or a name holds characters that HTTP does not carry",
        )),
    }
}

fn route_of(call: &Call<'_>) -> String {
    let path = call.path.split('?').next().unwrap_or_default();
    format!("{} {path}", call.method)
}
