//! Identities: digests, run ids, names, points in time.
//!
//! Every id is a type of its own, so that a commit can never be passed where an
//! object is meant. Nothing here reads a clock or draws randomness: both come in
//! as arguments.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest (FIPS 180-4), printed as 64 lower-case hex digits.
///
/// `sha256:` in front is accepted when text is read and never written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Wraps 32 bytes that some hasher produced.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 12 hex digits, for people.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(12);
        text
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0_u8; 64];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair[0] = HEX[usize::from(byte >> 4)];
            pair[1] = HEX[usize::from(byte & 15)];
        }
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Text that is not a digest, an id or a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is not {expected}")]
pub struct ParseIdError {
    /// What was read.
    pub value: String,
    /// What would have been accepted.
    pub expected: &'static str,
}

impl FromStr for Digest {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseIdError {
            value: text.chars().take(80).collect(),
            expected: "a SHA-256 digest (64 hex digits, `sha256:` in front allowed)",
        };
        let hex = text.strip_prefix("sha256:").unwrap_or(text).as_bytes();
        if hex.len() != 64 {
            return Err(error());
        }
        let mut bytes = [0_u8; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            let high = hex_value(pair[0]).ok_or_else(error)?;
            let low = hex_value(pair[1]).ok_or_else(error)?;
            *byte = high << 4 | low;
        }
        Ok(Self(bytes))
    }
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Writes and reads a type as its `Display` and `FromStr` text.
macro_rules! serde_as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

serde_as_text!(Digest);

/// Defines an id that is a digest of a particular thing.
macro_rules! digest_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Digest);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }

        serde_as_text!($name);
    };
}

digest_id!(
    /// Identity of a source tree: the digest of its canonical listing.
    CommitId
);
digest_id!(
    /// Identity of a blob in the content store: the digest of its bytes.
    ObjectId
);
digest_id!(
    /// Identity of a plan: the digest of its canonical JSON.
    PlanDigest
);
digest_id!(
    /// Identity of an environment: the digest of its lock and its `python:` version.
    DepsDigest
);

/// Identity of a run or of a sweep: 60 random bits, twelve characters of
/// base32 (RFC 4648 alphabet in lower case). Order is a sequence of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(u64);

impl RunId {
    /// Characters in the text form.
    pub const LEN: usize = 12;

    /// Takes the low 60 of `random`'s 64 bits, which the caller has drawn.
    pub const fn from_random(random: u64) -> Self {
        Self(random & ((1 << 60) - 1))
    }
}

const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for place in (0..Self::LEN).rev() {
            let digit = (self.0 >> (5 * place)) & 31;
            fmt::Write::write_char(f, char::from(BASE32[digit as usize]))?;
        }
        Ok(())
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RunId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseIdError {
            value: text.chars().take(80).collect(),
            expected: "a run id (12 characters of `a-z2-7`)",
        };
        if text.len() != Self::LEN {
            return Err(error());
        }
        text.bytes()
            .try_fold(0_u64, |bits, character| {
                let digit = BASE32.iter().position(|known| *known == character)?;
                Some(bits << 5 | digit as u64)
            })
            .map(Self)
            .ok_or_else(error)
    }
}

serde_as_text!(RunId);

/// Defines a short checked name.
macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $max:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $type {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                if is_name(text, $max) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(ParseIdError { value: text.chars().take(80).collect(), expected: $expected })
                }
            }
        }

        serde_as_text!($type);
    };
}

fn is_name(text: &str, bytes_max: usize) -> bool {
    let mut bytes = text.bytes();
    text.len() <= bytes_max
        && bytes
            .next()
            .is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

name!(
    /// Name of an experiment, a dataset or a service.
    Name,
    64,
    "a name (up to 64 of `A-Za-z0-9._-`, starting with a letter or digit)"
);
name!(
    /// Who pays for work. One daemon without further configuration has `default`.
    Tenant,
    64,
    "a tenant (up to 64 of `A-Za-z0-9._-`, starting with a letter or digit)"
);
name!(
    /// Who asked for work: the user behind a key.
    Owner,
    64,
    "an owner (up to 64 of `A-Za-z0-9._-`, starting with a letter or digit)"
);
name!(
    /// A daemon's name in its mesh.
    NodeId,
    64,
    "a node (up to 64 of `A-Za-z0-9._-`, starting with a letter or digit)"
);

impl Default for Tenant {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

/// A point in time: microseconds since 1970-01-01 00:00 UTC.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Micros(pub i64);

impl Micros {
    /// This time moved by `delta_us`, stopping at the ends of the range.
    pub const fn plus_us(self, delta_us: i64) -> Self {
        Self(self.0.saturating_add(delta_us))
    }

    /// Microseconds from `earlier` to this time; negative when it is later.
    pub const fn since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Counts the tries of a run, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AttemptNumber(pub u32);

/// Grows with every lease that the store grants on a run. A result that arrives
/// under an older token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FencingToken(pub u64);

/// Total order of what a store has committed: events, runs, audit rows.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Sequence(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_of_the_empty_string_is_the_published_one() {
        let text = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), text);
        assert_eq!(
            format!("sha256:{text}").parse::<Digest>(),
            Ok(Digest::of(b""))
        );
    }

    #[test]
    fn digest_of_wrong_length_or_alphabet_is_refused() {
        for text in ["", "sha256:", "abc", &"g".repeat(64), &"é".repeat(32)] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn run_ids_survive_their_text_form() {
        for random in [0, 1, 31, 32, u64::MAX, 0x0123_4567_89ab_cdef] {
            let id = RunId::from_random(random);
            let text = id.to_string();
            assert_eq!(text.len(), RunId::LEN);
            assert_eq!(text.parse::<RunId>(), Ok(id));
        }
        assert!("ABCDEFGHIJKL".parse::<RunId>().is_err());
    }

    #[test]
    fn names_keep_to_their_alphabet() {
        for good in ["a", "digits", "a.b-c_1", "9x"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", ".a", "-a", "a/b", "a b", "a\n", "é", &"a".repeat(65)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }
}
