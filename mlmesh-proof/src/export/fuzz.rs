//! Exports as anybody may have written them: no bytes panic, and none but those of the
//! sample hold under its signature.

#![cfg(test)]

use std::collections::BTreeMap;
use std::io::Cursor;

use mlmesh_testkit::fuzz::border;

use super::archive::{self, ArchiveError};
use super::envelope::tests::KNOWN_KEY;
use super::reproduced::{self, tests::example};
use super::{Claims, Envelope, SignedReproduction, SigningKey, parts, verify};

const EXPORT: &[u8] = include_bytes!("../../tests/golden/export-1.zip");

#[test]
fn fuzz_exports() {
    let words: &[&[u8]] = &[
        b"PK\x03\x04",
        b"PK\x01\x02",
        b"PK\x05\x06",
        b"PK\x06\x06",
        b"PK\x06\x07",
        b"code/",
        b"../",
        b"attestation.dsse.json",
        b"\xff\xff\xff\xff",
        b"\xff\xff",
        b"\x01\0\x10\0",
        b"\0\0\0\0\0\0",
    ];
    border("export", &[EXPORT], words, |bytes| {
        if verify(&mut Cursor::new(bytes)).is_ok() {
            assert!(bytes == EXPORT, "another archive holds");
        }
    });
}

#[test]
fn fuzz_statements() {
    let mut documents: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let kept = archive::read(&mut Cursor::new(EXPORT), |member, piece| {
        let document = documents.entry(member.path.clone()).or_default();
        document.extend_from_slice(piece);
        Ok::<(), ArchiveError>(())
    });
    kept.unwrap();
    let (statement, _) = Envelope::open(&documents["attestation.dsse.json"]).unwrap();
    let words: &[&[u8]] = &[
        b"{",
        b"}",
        b"[",
        b"]",
        b"null",
        b"\"name\":\"../x\"",
        b"\"mode\":\"link\"",
        b"\"size\":\"-1\"",
        b"\"sha256\":\"\"",
        b"[[[[[[[[",
        b"1e999",
        b"\"",
    ];
    border("export's statement", &[&statement], words, |bytes| {
        let Ok(claims) = Claims::read(bytes) else {
            return;
        };
        if let Ok(parts) = parts(&claims, &documents) {
            let said = &parts.runs[0].manifest;
            assert_eq!(
                said["snapshot"]["sha256"],
                parts.code.commit_id().to_string()
            );
        }
    });
    let manifest = documents["run_manifest.json"].clone();
    let claims = Claims::read(&statement).unwrap();
    border("export's manifest", &[&manifest], words, |bytes| {
        documents.insert("run_manifest.json".into(), bytes.to_vec());
        if parts(&claims, &documents).is_ok() {
            assert_eq!(bytes, manifest, "the statement has its digest");
        }
    });
}

#[test]
fn fuzz_reproductions() {
    let key = SigningKey::from_pem(KNOWN_KEY).unwrap();
    let (signer, claim) = (key.fingerprint(), example());
    let signed = claim.sign(&key, "2026-11-21T00:00:00Z");
    let words: &[&[u8]] = &[
        b"{",
        b"}",
        b"[",
        b"]",
        b"null",
        b"\"payload\":\"\"",
        b"\"sig\":\"\"",
        b"\"keyid\":\"ed25519:",
        b"\"verdict\":\"bit_identical\"",
        b"\"tolerance\":{}",
        b"\"outputsCompared\":0",
        b"urn:mlmesh:reproduction:2",
        b"aaaaaaaaaaaa",
        b"abs 0.01",
        b"[[[[[[[[",
        b"1e999",
        b"\\ud800",
        b"\"",
    ];
    border("reproduction.dsse.json", &[&signed], words, |bytes| {
        if let Ok(found) = SignedReproduction::open(bytes) {
            assert!(bytes == signed, "another envelope holds");
            assert_eq!((found.claim, found.signer), (example(), signer));
        }
    });
    // What whoever has a key could sign.
    let (payload, _) = Envelope::open(&signed).unwrap();
    border("statement of a reproduction", &[&payload], words, |bytes| {
        let Ok((claim, signed_on)) = reproduced::claim(bytes) else {
            return;
        };
        let envelope = Envelope::sign(bytes, &key).to_bytes();
        assert_eq!(claim.sign(&key, &signed_on), envelope, "it has one form");
        if let Ok(found) = SignedReproduction::open(&envelope) {
            assert_ne!(found.claim.original, found.claim.repetition);
            assert!(found.claim.outputs_compared > 0 || found.claim.metrics_compared > 0);
        }
    });
}
