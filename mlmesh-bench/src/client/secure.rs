//! TLS over a socket that does not block. Only what travels changes: time stamps are
//! still taken where the bytes of the socket were read.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};

use crate::error::BenchError;
use crate::target::Target;

/// Where systems keep the certificates that they trust.
const TRUSTED: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Whom a client believes, and whom it expects; of all its connections.
#[derive(Clone)]
pub(super) struct Trust {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Trust {
    /// Reads the certificates of `file`, else the system's.
    pub(super) fn new(target: &Target, file: Option<&Path>) -> Result<Self, BenchError> {
        let wrong = |rule: String| BenchError::Trust { rule };
        let file = match file {
            Some(file) => file,
            None => TRUSTED
                .iter()
                .map(Path::new)
                .find(|path| path.exists())
                .ok_or_else(|| wrong("the system has no file of certificates".to_owned()))?,
        };
        let text =
            fs::read(file).map_err(|error| wrong(format!("read `{}`: {error}", file.display())))?;
        let mut roots = RootCertStore::empty();
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        let certificates = certificates.unwrap_or_default();
        // A system's file may hold some that cannot be used.
        if roots.add_parsable_certificates(certificates).0 == 0 {
            return Err(wrong(format!("`{}` has no certificate", file.display())));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let name = ServerName::try_from(target.host().to_owned())
            .map_err(|_| wrong(format!("`{}` is no name of a host", target.host())))?;
        Ok(Self {
            config: Arc::new(config),
            name,
        })
    }
}

/// One encrypted connection.
pub(super) struct Session(Box<ClientConnection>);

impl Session {
    pub(super) fn new(trust: &Trust) -> io::Result<Self> {
        let config = Arc::clone(&trust.config);
        let mut session =
            ClientConnection::new(config, trust.name.clone()).map_err(io::Error::other)?;
        // A request waits here whole until the handshake is over.
        session.set_buffer_limit(None);
        Ok(Self(Box::new(session)))
    }

    /// Takes bytes to be sent.
    pub(super) fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.writer().write_all(bytes)
    }

    /// Sends what the kernel takes; whether the handshake is over and all is sent.
    pub(super) fn flush(&mut self, socket: &OwnedFd) -> io::Result<bool> {
        while self.0.wants_write() {
            match self.0.write_tls(&mut Socket(socket)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(!self.0.is_handshaking())
    }

    /// Whether the other side has not shown yet who it is.
    pub(super) fn is_handshaking(&self) -> bool {
        self.0.is_handshaking()
    }

    /// Reads what has been decrypted; `None` when nothing is there, and once when the
    /// handshake is over, since the request goes then and not before.
    pub(super) fn read(
        &mut self,
        socket: &OwnedFd,
        buffer: &mut [u8],
    ) -> io::Result<Option<usize>> {
        loop {
            match self.0.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read.map(Some),
            }
            match self.0.read_tls(&mut Socket(socket)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
            let was_handshaking = self.is_handshaking();
            let processed = self.0.process_new_packets();
            // An alert about what went wrong is sent, too.
            let sent = self.flush(socket);
            processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if sent? && was_handshaking {
                return Ok(None);
            }
        }
    }
}

/// A socket as the library wants one.
struct Socket<'a>(&'a OwnedFd);

impl Read for Socket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match recv(self.0, &mut *buffer, RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok((count, _)) => return Ok(count),
            }
        }
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match send(self.0, bytes, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
