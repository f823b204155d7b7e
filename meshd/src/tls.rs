//! The daemon's own certificate: made at the first start, pinned by clients through
//! `meshd.json`, renewed before it expires.
//!
//! The authority signs one certificate and its key is thrown away, so that nobody who
//! reads the data directory later can sign another; a renewal makes a new authority.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use mlmesh_model::Micros;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::data_dir::write_whole;
use crate::limits::{CERTIFICATE_DAYS, CERTIFICATE_RENEW_DAYS};

/// A certificate that holds from a while ago, for hosts whose clocks differ.
const BACKDATED: Duration = Duration::from_secs(7 * DAY_S);
const DAY_S: u64 = 86_400;

/// What the certificate is made for.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) hosts: Vec<String>,
    pub(crate) addresses: Vec<IpAddr>,
}

/// The certificate in use; swapped when it is renewed.
#[derive(Debug)]
pub(crate) struct Certificate {
    current: ArcSwap<CertifiedKey>,
}

/// What fails about the certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("write the certificate to `{path}`: {source}")]
    Io {
        path: String,
        source: std::io::Error,
    },
    #[error("make the certificate")]
    Make(#[from] rcgen::Error),
    #[error("use the certificate")]
    Use(#[from] rustls::Error),
    #[error("`{path}` is not the PEM that was written: {reason}")]
    Form { path: String, reason: String },
}

impl Certificate {
    /// The certificate of a data directory, made or renewed where that is due.
    pub(crate) fn open(folder: &Path, names: &Names, now: Micros) -> Result<Arc<Self>, TlsError> {
        let key = current_or_new(folder, names, now)?;
        Ok(Arc::new(Self {
            current: ArcSwap::from_pointee(key),
        }))
    }

    /// Renews the certificate where that is due.
    pub(crate) fn renew(&self, folder: &Path, names: &Names, now: Micros) -> Result<(), TlsError> {
        let key = current_or_new(folder, names, now)?;
        self.current.store(Arc::new(key));
        Ok(())
    }

    /// TLS 1.2 and 1.3, HTTP/1.1, this certificate.
    pub(crate) fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, TlsError> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

/// The one set of cryptographic primitives in use.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())))
}

fn current_or_new(folder: &Path, names: &Names, now: Micros) -> Result<CertifiedKey, TlsError> {
    if !holds(folder, names, now) {
        write_new(folder, names, now)?;
    }
    let chain = certificates(&folder.join("server.pem"))?;
    let key_path = folder.join("server.key");
    let key = PrivateKeyDer::from_pem_file(&key_path).map_err(|error| form(&key_path, &error))?;
    let signing = provider().key_provider.load_private_key(key)?;
    let certified = CertifiedKey::new(chain, signing);
    certified.keys_match()?;
    Ok(certified)
}

/// Whether what lies there is whole, made for these names, and stays valid for a while.
/// The check is the one that clients make.
fn holds(folder: &Path, names: &Names, now: Micros) -> bool {
    let check = || -> Option<()> {
        let mut roots = RootCertStore::empty();
        for authority in certificates(&folder.join("ca.pem")).ok()? {
            roots.add(authority).ok()?;
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .ok()?;
        let chain = certificates(&folder.join("server.pem")).ok()?;
        PrivateKeyDer::from_pem_file(folder.join("server.key")).ok()?;
        let seconds = u64::try_from(now.0 / 1_000_000).ok()?;
        let later = Duration::from_secs(seconds + CERTIFICATE_RENEW_DAYS * DAY_S);
        let hosts = names
            .hosts
            .iter()
            .map(|host| ServerName::try_from(host.clone()).ok());
        let addresses = names.addresses.iter().map(|ip| Some(ServerName::from(*ip)));
        for name in hosts.chain(addresses) {
            let (leaf, rest) = chain.split_first()?;
            for time in [Duration::from_secs(seconds), later] {
                let time = UnixTime::since_unix_epoch(time);
                verifier
                    .verify_server_cert(leaf, rest, &name.clone()?, &[], time)
                    .ok()?;
            }
        }
        Some(())
    };
    check().is_some()
}

fn write_new(folder: &Path, names: &Names, now: Micros) -> Result<(), TlsError> {
    let seconds = u64::try_from(now.0 / 1_000_000).unwrap_or(0);
    let epoch = date_time_ymd(1970, 1, 1);
    let not_before = epoch + Duration::from_secs(seconds).saturating_sub(BACKDATED);
    let not_after = epoch + Duration::from_secs(seconds + CERTIFICATE_DAYS * DAY_S);

    let mut authority = CertificateParams::default();
    authority.not_before = not_before;
    authority.not_after = not_after;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    authority
        .distinguished_name
        .push(DnType::CommonName, "mlmesh authority of one data directory");
    let authority_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let authority = CertifiedIssuer::self_signed(authority, authority_key)?;

    let alternatives: Vec<String> = names
        .hosts
        .iter()
        .cloned()
        .chain(names.addresses.iter().map(ToString::to_string))
        .collect();
    let mut server = CertificateParams::new(alternatives)?;
    server.not_before = not_before;
    server.not_after = not_after;
    server.use_authority_key_identifier_extension = true;
    server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    server.distinguished_name.push(DnType::CommonName, "meshd");
    let server_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = server.signed_by(&server_key, &authority)?;

    // A kill between two of these leaves files that do not fit; `holds` then makes
    // new ones at the next start.
    let files = [
        ("server.key", server_key.serialize_pem(), 0o600),
        ("server.pem", certificate.pem(), 0o644),
        ("ca.pem", authority.pem(), 0o644),
    ];
    for (name, text, mode) in files {
        let path = folder.join(name);
        write_whole(&path, text.as_bytes(), mode).map_err(|source| TlsError::Io {
            path: path.display().to_string(),
            source,
        })?;
    }
    tracing::info!(days = CERTIFICATE_DAYS, "made a new certificate");
    Ok(())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| form(path, &error))
}

fn form(path: &Path, error: &dyn std::fmt::Display) -> TlsError {
    TlsError::Form {
        path: path.display().to_string(),
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const NOW: Micros = Micros(1_790_000_000_000_000);

    fn names(host: &str) -> Names {
        Names {
            hosts: vec![host.to_owned()],
            addresses: vec![IpAddr::from([127, 0, 0, 1])],
        }
    }

    #[test]
    fn a_certificate_is_kept_until_it_is_due_or_for_another_host() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let authority = || std::fs::read(path.join("ca.pem")).unwrap();
        Certificate::open(path, &names("localhost"), NOW).unwrap();
        let first = authority();
        let mode = path
            .join("server.key")
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);

        let day = 86_400_000_000;
        let soon = NOW.plus_us((CERTIFICATE_DAYS - CERTIFICATE_RENEW_DAYS - 1) as i64 * day);
        Certificate::open(path, &names("localhost"), soon).unwrap();
        assert_eq!(authority(), first, "still good");
        Certificate::open(path, &names("localhost"), soon.plus_us(2 * day)).unwrap();
        let second = authority();
        assert_ne!(second, first, "due");
        Certificate::open(path, &names("other.example"), soon).unwrap();
        assert_ne!(authority(), second, "another host");
    }

    #[test]
    fn torn_files_are_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["server.key", "server.pem", "ca.pem"] {
            Certificate::open(folder.path(), &names("localhost"), NOW).unwrap();
            std::fs::write(folder.path().join(name), "-----BEGIN NOTHING").unwrap();
            Certificate::open(folder.path(), &names("localhost"), NOW).unwrap();
            assert!(holds(folder.path(), &names("localhost"), NOW), "{name}");
        }
    }
}
