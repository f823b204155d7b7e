//! Signatures: a DSSE envelope with one Ed25519 signature, and the keys for it.
//!
//! DSSE 1.0 (github.com/secure-systems-lab/dsse) signs the pre-authentication encoding
//! `"DSSEv1" SP length SP type SP length SP payload`. The key id is `ed25519:` and the
//! 64 hex digits of the public key: nothing has to be looked up to check a signature,
//! and what people compare is the key itself. Whose key it is, is not said here.
//!
//! An envelope has one byte form, the compact JSON that [`Envelope::to_bytes`] writes,
//! so that no bit of the file can change unseen.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

/// Type of the payload: an in-toto statement.
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// Bytes that an envelope may have.
pub const ENVELOPE_BYTES_MAX: u64 = 128 << 20;

const KEY_BYTES: usize = 32;
/// What stands before the 32 bytes of an Ed25519 private key in PKCS #8 (RFC 8410).
const PKCS8_HEAD: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
const PEM_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const PEM_END: &str = "-----END PRIVATE KEY-----";

/// A public key as people compare it: `ed25519:` and 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; KEY_BYTES]);

/// A key that signs.
pub struct SigningKey {
    seed: [u8; KEY_BYTES],
    pair: Ed25519KeyPair,
}

/// The file `attestation.dsse.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    keyid: String,
    sig: String,
}

/// Why an envelope says nothing.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// It is not of its byte form.
    #[error("it is not a DSSE envelope as `ml export` writes it: {0}")]
    Form(String),
    /// The signature is not that of the payload under the key.
    #[error("the signature is not that of `{0}` over this statement")]
    Signature(Fingerprint),
}

/// Why a key cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not a key file.
    #[error("it is not an Ed25519 private key in PEM (PKCS #8)")]
    Form,
    /// No random bits.
    #[error("the system gives no random bits")]
    Random,
}

/// Not a fingerprint.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a key's fingerprint: `ed25519:` and 64 hex digits")]
pub struct FingerprintError(String);

impl Envelope {
    /// Signs a payload.
    pub fn sign(payload: &[u8], key: &SigningKey) -> Self {
        let signature = key.pair.sign(&pre_authentication(payload));
        Self {
            payload: STANDARD.encode(payload),
            payload_type: PAYLOAD_TYPE.to_owned(),
            signatures: vec![Signature {
                keyid: key.fingerprint().to_string(),
                sig: STANDARD.encode(signature),
            }],
        }
    }

    /// The one byte form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("three strings are JSON");
        bytes.push(b'\n');
        bytes
    }

    /// Reads an envelope, checks its signature, and gives the payload and who signed.
    pub fn open(bytes: &[u8]) -> Result<(Vec<u8>, Fingerprint), EnvelopeError> {
        let form = |why: &dyn fmt::Display| EnvelopeError::Form(why.to_string());
        let envelope: Self = serde_json::from_slice(bytes).map_err(|error| form(&error))?;
        if envelope.to_bytes() != bytes {
            return Err(form(&"it is compact JSON with one line feed"));
        }
        if envelope.payload_type != PAYLOAD_TYPE {
            return Err(form(&format_args!("its type is `{PAYLOAD_TYPE}`")));
        }
        let [signature] = envelope.signatures.as_slice() else {
            return Err(form(&"it has one signature"));
        };
        let signer: Fingerprint = signature.keyid.parse().map_err(|error| form(&error))?;
        let decoded = |text: &str| STANDARD.decode(text).map_err(|error| form(&error));
        let (payload, bytes) = (decoded(&envelope.payload)?, decoded(&signature.sig)?);
        if signer.to_string() != signature.keyid {
            return Err(form(&"its key id is in lower case"));
        }
        UnparsedPublicKey::new(&ED25519, signer.0)
            .verify(&pre_authentication(&payload), &bytes)
            .map_err(|_| EnvelopeError::Signature(signer))?;
        Ok((payload, signer))
    }
}

/// What is signed.
fn pre_authentication(payload: &[u8]) -> Vec<u8> {
    let (type_bytes, bytes) = (PAYLOAD_TYPE.len(), payload.len());
    let mut encoded = format!("DSSEv1 {type_bytes} {PAYLOAD_TYPE} {bytes} ").into_bytes();
    encoded.extend_from_slice(payload);
    encoded
}

impl SigningKey {
    /// A new key.
    pub fn generate() -> Result<Self, KeyError> {
        let seed = ring::rand::generate::<[u8; KEY_BYTES]>(&SystemRandom::new());
        Self::of(seed.map_err(|_| KeyError::Random)?.expose())
    }

    fn of(seed: [u8; KEY_BYTES]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| KeyError::Form)?;
        Ok(Self { seed, pair })
    }

    /// Reads what [`SigningKey::to_pem`] writes, and what `openssl genpkey` does.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let text = text.trim().strip_prefix(PEM_BEGIN).ok_or(KeyError::Form)?;
        let text = text.strip_suffix(PEM_END).ok_or(KeyError::Form)?;
        let text: String = text.split_ascii_whitespace().collect();
        let bytes = STANDARD.decode(text).map_err(|_| KeyError::Form)?;
        let seed = bytes.strip_prefix(&PKCS8_HEAD).ok_or(KeyError::Form)?;
        Self::of(seed.try_into().map_err(|_| KeyError::Form)?)
    }

    /// The private key in PEM (PKCS #8).
    pub fn to_pem(&self) -> String {
        let bytes = [&PKCS8_HEAD[..], &self.seed].concat();
        format!("{PEM_BEGIN}\n{}\n{PEM_END}\n", STANDARD.encode(bytes))
    }

    /// The public key.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut key = [0; KEY_BYTES];
        // An Ed25519 public key has 32 bytes.
        key.copy_from_slice(self.pair.public_key().as_ref());
        Fingerprint(key)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.fingerprint())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ed25519:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let digest = text.strip_prefix("ed25519:").unwrap_or(text).parse();
        let digest: mlmesh_model::Digest =
            digest.map_err(|_| FingerprintError(text.chars().take(80).collect()))?;
        Ok(Self(*digest.as_bytes()))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Of RFC 8410, section 10.3.
    pub(in crate::export) const KNOWN_KEY: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
        -----END PRIVATE KEY-----\n";

    #[test]
    fn an_envelope_opens_for_its_own_bytes_only() {
        let key = SigningKey::generate().unwrap();
        let bytes = Envelope::sign(b"{\"a\":1}", &key).to_bytes();
        let (payload, signer) = Envelope::open(&bytes).unwrap();
        assert_eq!(
            (payload.as_slice(), signer),
            (&b"{\"a\":1}"[..], key.fingerprint())
        );
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut other = bytes.clone();
                other[at] ^= 1 << bit;
                assert!(Envelope::open(&other).is_err(), "byte {at}, bit {bit}");
            }
        }
        assert!(Envelope::open(bytes.trim_ascii_end()).is_err());
    }

    #[test]
    fn the_encoding_is_that_of_the_specification() {
        let encoded = pre_authentication(b"hello world");
        let text = "DSSEv1 28 application/vnd.in-toto+json 11 hello world";
        assert_eq!(encoded, text.as_bytes());
    }

    #[test]
    fn a_key_reads_back_and_the_known_one_has_the_known_fingerprint() {
        let key = SigningKey::from_pem(KNOWN_KEY).unwrap();
        assert_eq!(key.to_pem(), KNOWN_KEY);
        assert_eq!(
            key.fingerprint().to_string(),
            "ed25519:19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1"
        );
        assert!(SigningKey::from_pem(&KNOWN_KEY.replace("MC4C", "MC4D")).is_err());
        let shown = key.fingerprint().to_string();
        assert_eq!(shown.parse::<Fingerprint>().unwrap(), key.fingerprint());
        assert!("ed25519:19bf".parse::<Fingerprint>().is_err());
    }
}
