//! What looks like a secret, by name and by content.
//!
//! A snapshot refuses such files, since a commit is stored, shown and exported.
//! By name: `.env` and `.env.*` (not `.env.example`), `*.key`, and SSH's private
//! keys: `id_rsa`, `id_ed25519` and the like with any ending but `.pub`, and any
//! `id_*` without an ending (`id_map.py` is code). By content: a PEM block of a
//! private key that is followed by its body, so that code which merely names the
//! marker passes. Files up to [`SCAN_BYTES_MAX`] are searched, `*.pem` whole.

use memchr::memmem;

/// Files up to this size are searched for private keys, whatever their name.
pub const SCAN_BYTES_MAX: u64 = 64 << 10;

/// Bytes of an earlier piece that a search in pieces must see again.
pub(crate) const SCAN_OVERLAP_BYTES: usize = 128;

/// Whether the file name alone says that this is a secret.
pub(crate) fn name_is_secret(name: &str) -> bool {
    const SSH_KEYS: [&str; 4] = ["id_rsa", "id_dsa", "id_ecdsa", "id_ed25519"];
    if name == ".env" || name.ends_with(".key") {
        return true;
    }
    if let Some(ending) = name.strip_prefix(".env.") {
        return ending != "example";
    }
    if !name.starts_with("id_") || name.ends_with(".pub") {
        return false;
    }
    !name.contains('.') || SSH_KEYS.iter().any(|key| name.starts_with(key))
}

/// Whether the whole content of a file of this name and size is searched.
pub(crate) fn content_is_searched(name: &str, bytes: u64) -> bool {
    bytes <= SCAN_BYTES_MAX || name.ends_with(".pem")
}

/// Whether `content` holds a private key in PEM form (RFC 7468, RFC 1421, or
/// inside a JSON string, where the line feed is written `\n`).
pub(crate) fn holds_private_key(content: &[u8]) -> bool {
    const OPENING: &[u8] = b"-----BEGIN ";
    const CLOSING: &[u8] = b"PRIVATE KEY-----";
    memmem::find_iter(content, OPENING).any(|at| {
        let after = &content[at + OPENING.len()..];
        let label = &after[..after.len().min(48)];
        memmem::find(label, CLOSING).is_some_and(|closing| {
            label[..closing]
                .iter()
                .all(|byte| byte.is_ascii_uppercase() || *byte == b' ')
                && body_follows(&after[closing + CLOSING.len()..])
        })
    })
}

/// After the marker: line breaks, then base64 or the header of an encrypted key. A
/// body shorter than any real key counts when the closing marker follows it.
fn body_follows(rest: &[u8]) -> bool {
    const BASE64_MIN: usize = 16;
    let rest = after_line_breaks(rest);
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
    let base64 = rest.iter().take_while(|byte| is_base64(byte)).count();
    rest.starts_with(b"Proc-Type:")
        || base64 >= BASE64_MIN
        || (base64 > 0 && after_line_breaks(&rest[base64..]).starts_with(b"-----END "))
}

fn after_line_breaks(mut rest: &[u8]) -> &[u8] {
    loop {
        rest = match rest {
            [b'\\', b'n' | b'r', after @ ..] => after,
            [b'\r' | b'\n' | b' ' | b'\t', after @ ..] => after,
            _ => return rest,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets() {
        for name in [
            ".env",
            ".env.local",
            "id_rsa",
            "id_ed25519",
            "id_work",
            "id_rsa.old",
            "tls.key",
        ] {
            assert!(name_is_secret(name), "{name}");
        }
        for name in [
            ".env.example",
            ".envrc",
            "id_rsa.pub",
            "id_map.py",
            "keys",
            "x.keys",
            "env",
            "id",
        ] {
            assert!(!name_is_secret(name), "{name}");
        }
    }

    #[test]
    fn a_key_is_found_and_code_that_names_the_marker_is_not() {
        let body = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC";
        let marker = |label: &str| format!("-----BEGIN {label}PRIVATE KEY-----");
        for label in ["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "] {
            let text = format!("x\n{}\r\n{body}\n", marker(label));
            assert!(holds_private_key(text.as_bytes()), "{label}");
        }
        let json = format!("{{\"private_key\": \"{}\\n{body}\"}}", marker(""));
        assert!(holds_private_key(json.as_bytes()));
        let old = format!("{}\nProc-Type: 4,ENCRYPTED\n", marker("RSA "));
        assert!(holds_private_key(old.as_bytes()));

        let code = format!("MARKER = \"{}\"\nif MARKER in text: raise", marker("RSA "));
        assert!(!holds_private_key(code.as_bytes()));
        assert!(!holds_private_key(marker("").as_bytes()));
        let short = format!("{}\nMIIE\n-----END PRIVATE KEY-----\n", marker(""));
        assert!(holds_private_key(short.as_bytes()));
        assert!(!holds_private_key(short.replace("END", "...").as_bytes()));
        assert!(!holds_private_key(
            b"-----BEGIN CERTIFICATE-----\nMIIEvQIBADANBgkqhkiG9w0BAQ"
        ));
    }
}
