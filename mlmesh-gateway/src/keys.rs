//! Who may ask, and how much: a file that maps hashes of API keys to tenants.
//!
//! ```toml
//! [[tenant]]
//! name = "vision-lab"
//! keys_sha256 = ["9f86d081884c7d65…"]   # SHA-256 of each key, 64 hex digits
//! weight = 2                            # share beside others when all cannot be served
//! requests_per_minute = 600
//! tokens_per_minute = 200000
//! ```
//!
//! The file has no key, so that who reads it cannot ask. A key is found by its hash; keys
//! are random, so that neither the search nor its time tells anything about them. Without
//! a file there is one tenant without limits.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use mlmesh_route::{Allowance, TenantId};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// Tenants of one file.
pub const TENANTS_MAX: usize = 10_000;
/// Largest file.
pub const FILE_BYTES_MAX: usize = 8 << 20;
/// Tenants are named with letters, digits, `.`, `_` and `-`.
const NAME_BYTES_MAX: usize = 64;
/// A limit a minute lets through at once what it lets through in so many seconds.
const BURST_SECONDS: u64 = 10;

/// The tenants of a gateway.
pub struct Keys {
    tenants: Vec<Arc<Tenant>>,
    by_hash: HashMap<[u8; 32], usize>,
}

/// Who is served together.
#[derive(Debug)]
pub struct Tenant {
    /// Its place in the file, by which the router knows it.
    pub(crate) id: TenantId,
    /// As the file has it.
    pub name: String,
    /// Its share beside others.
    pub weight: NonZeroU32,
    requests: Option<Allowance>,
    tokens: Option<Allowance>,
}

/// Why a tenant has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverLimit {
    /// Of what it has asked too much.
    pub what: Limited,
    /// When it may come again, in microseconds from now.
    pub retry_after_us: u64,
}

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limited {
    Requests,
    Tokens,
}

/// Why a file is not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    #[error("the file has {bytes} bytes, at most {FILE_BYTES_MAX} are read")]
    TooLarge { bytes: usize },
    #[error(
        "{0}\nhint: each tenant is `[[tenant]]` with `name` and `keys_sha256`; `weight`, \
         `requests_per_minute` and `tokens_per_minute` may follow"
    )]
    Syntax(String),
    #[error("the file has {0} tenants, 1 to {TENANTS_MAX} are allowed")]
    Tenants(usize),
    #[error(
        "`{0}` is not a name of a tenant: 1 to {NAME_BYTES_MAX} letters, digits, `.`, `_`, `-`"
    )]
    Name(String),
    #[error("tenant `{0}` stands there twice")]
    TenantTwice(String),
    #[error("tenant `{0}` has no key, so nobody could ask for it")]
    NoKeys(String),
    #[error(
        "a key of tenant `{tenant}` is not 64 hex digits\nhint: write its hash, not the key: \
         `printf %s \"$KEY\" | sha256sum`"
    )]
    Hash { tenant: String },
    #[error("tenants `{first}` and `{second}` have the same key")]
    KeyTwice { first: String, second: String },
    #[error("`{limit} = 0` of tenant `{tenant}` lets nothing through; leave the tenant out")]
    Zero { tenant: String, limit: &'static str },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    tenant: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    keys_sha256: Vec<String>,
    weight: Option<NonZeroU32>,
    requests_per_minute: Option<u64>,
    tokens_per_minute: Option<u64>,
}

impl Keys {
    /// Reads a file.
    pub fn read(text: &str) -> Result<Self, KeysError> {
        if text.len() > FILE_BYTES_MAX {
            return Err(KeysError::TooLarge { bytes: text.len() });
        }
        let file: File = toml::from_str(text)
            .map_err(|error| KeysError::Syntax(error.to_string().trim_end().to_owned()))?;
        let count = file.tenant.len();
        if count == 0 || count > TENANTS_MAX {
            return Err(KeysError::Tenants(count));
        }
        let mut keys = Self {
            tenants: Vec::with_capacity(count),
            by_hash: HashMap::new(),
        };
        let mut names = HashMap::new();
        for (place, entry) in file.tenant.into_iter().enumerate() {
            if names.insert(entry.name.clone(), place).is_some() {
                return Err(KeysError::TenantTwice(entry.name));
            }
            keys.add(place, entry)?;
        }
        Ok(keys)
    }

    fn add(&mut self, place: usize, entry: Entry) -> Result<(), KeysError> {
        let name = entry.name;
        let is_in = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_in) {
            return Err(KeysError::Name(name));
        }
        if entry.keys_sha256.is_empty() {
            return Err(KeysError::NoKeys(name));
        }
        let limit = |units: Option<u64>, limit| match units {
            Some(0) => Err(KeysError::Zero {
                tenant: name.clone(),
                limit,
            }),
            units => {
                Ok(units.map(|units| Allowance::per_minute(units, units * BURST_SECONDS / 60)))
            }
        };
        let requests = limit(entry.requests_per_minute, "requests_per_minute")?;
        let tokens = limit(entry.tokens_per_minute, "tokens_per_minute")?;
        for text in &entry.keys_sha256 {
            let hash = of_hex(text).ok_or_else(|| KeysError::Hash {
                tenant: name.clone(),
            })?;
            match self.by_hash.insert(hash, place) {
                Some(first) if first != place => {
                    return Err(KeysError::KeyTwice {
                        first: self.tenants[first].name.clone(),
                        second: name,
                    });
                }
                _ => {}
            }
        }
        self.tenants.push(Arc::new(Tenant {
            id: TenantId(u16::try_from(place).unwrap_or(u16::MAX)),
            name,
            weight: entry.weight.unwrap_or(NonZeroU32::MIN),
            requests,
            tokens,
        }));
        Ok(())
    }

    /// All of them.
    pub(crate) fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        self.tenants.iter().map(|tenant| &**tenant)
    }

    /// Whose key this is.
    pub fn tenant(&self, key: &[u8]) -> Option<&Arc<Tenant>> {
        let hash: [u8; 32] = Sha256::digest(key).into();
        self.by_hash.get(&hash).map(|place| &self.tenants[*place])
    }
}

/// Hashes do not belong into logs either.
impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tenants, keys) = (self.tenants.len(), self.by_hash.len());
        write!(f, "Keys({tenants} tenants, {keys} keys)")
    }
}

impl Tenant {
    /// Takes a request of so many tokens, by an estimate of prompt and answer.
    pub fn admit(&self, now_us: u64, tokens: u64) -> Result<(), OverLimit> {
        let over = |what| {
            move |retry_after_us| OverLimit {
                what,
                retry_after_us,
            }
        };
        if let Some(requests) = &self.requests {
            requests.take(now_us, 1).map_err(over(Limited::Requests))?;
        }
        if let Some(limit) = &self.tokens
            && let Err(retry_after_us) = limit.take(now_us, tokens)
        {
            // It is not carried out, and so not counted.
            if let Some(requests) = &self.requests {
                requests.settle(now_us, 1, 0);
            }
            return Err(over(Limited::Tokens)(retry_after_us));
        }
        Ok(())
    }

    /// Takes note of what a request has really used.
    pub fn settle(&self, now_us: u64, estimated: u64, used: u64) {
        if let Some(tokens) = &self.tokens {
            tokens.settle(now_us, estimated, used);
        }
    }
}

/// The key in a value of `Authorization` (RFC 6750, section 2.1).
pub(crate) fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(b"Bearer ".len())?;
    let key = key.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"Bearer ") && !key.is_empty()).then_some(key)
}

fn of_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    let mut hash = [0; 32];
    if digits.len() != 2 * hash.len() {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `first` and `second`.
    const FIRST: &str = "a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e";
    const SECOND: &str = "16367aacb67a4a017c8da8ab95682ccb390863780f7114dda0a0e0c55644c7c4";

    fn file(lines: &[&str]) -> String {
        lines.join("\n")
    }

    #[test]
    fn a_key_is_its_tenants() {
        let text = file(&[
            "[[tenant]]",
            "name = \"a\"",
            &format!("keys_sha256 = [\"{FIRST}\"]"),
            "[[tenant]]",
            "name = \"b\"",
            &format!("keys_sha256 = [\"{}\"]", SECOND.to_uppercase()),
            "weight = 3",
        ]);
        let keys = Keys::read(&text).unwrap();
        let name = |key: &str| keys.tenant(key.as_bytes()).map(|tenant| &*tenant.name);
        assert_eq!([name("first"), name("second")], [Some("a"), Some("b")]);
        assert_eq!([name("First"), name(""), name(FIRST)], [None; 3]);
        assert_eq!(keys.tenant(b"second").unwrap().weight.get(), 3);
        assert_eq!(format!("{keys:?}"), "Keys(2 tenants, 2 keys)");
    }

    #[test]
    fn limits_are_the_tenants_own_and_what_is_refused_does_not_count() {
        let text = format!(
            "[[tenant]]\nname = \"a\"\nkeys_sha256 = [\"{FIRST}\", \"{SECOND}\"]\n\
             requests_per_minute = 12\ntokens_per_minute = 600\n"
        );
        let keys = Keys::read(&text).unwrap();
        let tenant = keys.tenant(b"first").unwrap();
        // Two at once and a hundred tokens, one each five seconds and ten each second.
        assert_eq!(tenant.admit(0, 80), Ok(()));
        let refused = tenant.admit(0, 50).unwrap_err();
        assert_eq!(refused.what, Limited::Tokens);
        assert_eq!(refused.retry_after_us, 3_000_000);
        assert_eq!(tenant.admit(0, 20), Ok(()));
        let other_key = keys.tenant(b"second").unwrap();
        let refused = other_key.admit(0, 0).unwrap_err();
        assert_eq!(refused.what, Limited::Requests);
        assert_eq!(refused.retry_after_us, 5_000_000);
        tenant.settle(0, 80, 30);
        assert_eq!(tenant.admit(5_000_000, 100), Ok(()));
    }

    #[test]
    fn each_mistake_is_named() {
        let tenant = |name: &str, rest: &str| format!("[[tenant]]\nname = \"{name}\"\n{rest}\n");
        let keyed = |name: &str, hash: &str| tenant(name, &format!("keys_sha256 = [\"{hash}\"]"));
        for (text, expected) in [
            (String::new(), "0 tenants"),
            (keyed("a b", FIRST), "`a b` is not a name"),
            (keyed("", FIRST), "`` is not a name"),
            (tenant("a", "keys_sha256 = []"), "`a` has no key"),
            (keyed("a", "secret"), "hint: write its hash"),
            (keyed("a", &FIRST.replace('a', "g")), "not 64 hex digits"),
            (
                keyed("a", FIRST) + &keyed("b", FIRST),
                "tenants `a` and `b` have the same key",
            ),
            (
                keyed("a", FIRST) + &keyed("a", SECOND),
                "`a` stands there twice",
            ),
            (
                keyed("a", FIRST) + "requests_per_minute = 0",
                "`requests_per_minute = 0` of tenant `a`",
            ),
            (keyed("a", FIRST) + "weight = 0", "line 4"),
            (keyed("a", FIRST) + "wieght = 1", "unknown field `wieght`"),
            (tenant("a", ""), "missing field `keys_sha256`"),
        ] {
            let error = Keys::read(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}\n{error}");
            assert!(!error.contains(FIRST), "{error}");
        }
    }
}
