//! PostgreSQL over TLS, with certificates of our own: what each `sslmode` takes and
//! refuses.

use std::path::Path;

use mlmesh_model::{Store as _, StoreError};
use mlmesh_store::PostgresStore;
use mlmesh_testkit::postgres::PostgresServer;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::fixtures::block_on;

/// An authority's certificate, and a certificate for `host` with its key; all in PEM.
fn certificates(host: &str) -> (String, String, String) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "an authority");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new([host.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    (authority.pem(), certificate.pem(), key.serialize_pem())
}

/// Connects and counts the server's encrypted sessions of stores.
fn sessions(server: &PostgresServer, url: &str) -> Result<String, StoreError> {
    let store = block_on(PostgresStore::connect(url))?;
    block_on(store.check())?;
    let asked = "SELECT bool_and(s.ssl) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) \
                 WHERE a.application_name = 'mlmesh'";
    Ok(server.psql(asked).unwrap())
}

fn refused(server: &PostgresServer, url: &str, reason: &str) {
    match sessions(server, url) {
        Err(StoreError::Unavailable(text)) if text.contains(reason) => {}
        other => panic!("`{url}` gave {other:?} instead of `{reason}`"),
    }
}

#[test]
fn each_sslmode_takes_what_libpq_says_it_takes() {
    let Some(mut server) = PostgresServer::start() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let written = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (authority, certificate, key) = certificates("localhost");
    let right = written("right root.pem", &authority);
    let wrong = written("wrong.pem", &certificates("localhost").0);
    let port = server.listen(Some((&certificate, &key))).unwrap();
    let url = |host: &str, rest: &str| {
        format!("postgres://mlmesh@{host}:{port}/postgres?connect_timeout=10{rest}")
    };
    let with = |mode: &str, root: &Path| {
        let root = root.display().to_string().replace(' ', "%20");
        format!("&sslmode={mode}&sslrootcert={root}")
    };
    let plain = "f";
    let encrypted = "t";
    let taken = [
        ("127.0.0.1", "&sslmode=disable".to_owned(), plain),
        ("127.0.0.1", String::new(), encrypted),
        ("127.0.0.1", "&sslmode=prefer".to_owned(), encrypted),
        ("127.0.0.1", "&sslmode=require".to_owned(), encrypted),
        ("127.0.0.1", with("require", &right), encrypted),
        ("127.0.0.1", with("verify-ca", &right), encrypted),
        ("localhost", with("verify-full", &right), encrypted),
    ];
    for (host, rest, expected) in taken {
        let seen = sessions(&server, &url(host, &rest)).unwrap();
        assert_eq!(seen, expected, "{host} {rest}");
    }
    // The certificate names `localhost`, not the address.
    let name = "not valid for name";
    refused(
        &server,
        &url("127.0.0.1", &with("verify-full", &right)),
        name,
    );
    for mode in ["require", "verify-ca", "verify-full"] {
        let rest = with(mode, &wrong);
        refused(
            &server,
            &url("localhost", &rest),
            "invalid peer certificate",
        );
    }
    let settings = [
        ("&sslmode=verify-full", "sslrootcert=FILE"),
        ("&sslmode=verify-ca", "sslrootcert=FILE"),
        ("&sslmode=allow", "`sslmode=allow` is none of"),
        (
            "&sslmode=verify-full&sslrootcert=/none",
            "sslrootcert=/none",
        ),
    ];
    for (rest, reason) in settings {
        refused(&server, &url("localhost", rest), reason);
    }
}

#[test]
fn a_server_without_tls_is_taken_by_prefer_and_refused_by_require() {
    let Some(mut server) = PostgresServer::start() else {
        return;
    };
    let port = server.listen(None).unwrap();
    let url = |mode| format!("postgres://mlmesh@127.0.0.1:{port}/postgres?sslmode={mode}");
    assert_eq!(sessions(&server, &url("prefer")).unwrap(), "f");
    refused(&server, &url("require"), "server does not support TLS");
    // Nobody reads along on a socket in the file system: `sslmode` says nothing there.
    let url = server.new_schema_url().unwrap();
    let socket = format!("{url}&port={port}&sslmode=require");
    assert_eq!(sessions(&server, &socket).unwrap(), "f");
}
