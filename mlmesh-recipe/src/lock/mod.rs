//! What a lock file pins: hash-locked requirements, or `uv.lock`.
//!
//! Hashes are what counts. A requirement without one, or one that may change
//! under the same name, keeps a run below L2; [`facts`] names each with its
//! reason, and [`to_requirements`] gives what an installer that insists on hashes
//! (`pip install --require-hashes --no-deps`) takes.

mod markers;
mod requirements;
mod uv;

use mlmesh_model::{Digest, LockFacts, Refusal};

use crate::error::{code, shown};

/// A Python program that prints `{"python": …, "frozen": […]}` of the environment that it
/// runs in: its packages as `name==version`, sorted.
pub const FREEZE: &str = r#"
import json, re, sys
from importlib.metadata import distributions
seen = {}
for d in distributions():
    name = d.metadata["Name"]
    if name:
        seen.setdefault(re.sub(r"[-_.]+", "-", name).lower(), d.version)
print(json.dumps({"python": "%d.%d" % sys.version_info[:2], "frozen": sorted("%s==%s" % i for i in seen.items())}))
"#;

/// Bytes of a lock file.
pub const LOCK_BYTES_MAX: usize = 16 << 20;
/// Unhashed requirements that are named; more are counted.
pub const UNHASHED_MAX: usize = 100;

/// What the lock at `path` with these bytes pins. It never fails: a file that
/// cannot be read is a lock with nothing pinned, and says why in `unhashed`.
pub fn facts(path: &str, bytes: &[u8]) -> LockFacts {
    let (requirements, unhashed) = match read(path, bytes) {
        Ok(pins) => {
            let unhashed = pins.iter().filter_map(Pin::fault).collect();
            (pins.len(), unhashed)
        }
        Err(refusal) => (0, vec![format!("the file ({})", refusal.message)]),
    };
    LockFacts {
        path: path.to_owned(),
        sha256: Digest::of(bytes),
        requirements: u32::try_from(requirements).unwrap_or(u32::MAX),
        unhashed: bounded(unhashed),
    }
}

/// The lock as requirements, one a line with its hashes, nothing else.
///
/// # Errors
/// A lock that cannot be read or that pins less than everything.
pub fn to_requirements(path: &str, bytes: &[u8]) -> Result<String, Refusal> {
    let pins = read(path, bytes)?;
    let mut text = String::new();
    for pin in &pins {
        if let Some(fault) = pin.fault() {
            return Err(refused(
                format!("`{}` does not pin everything: {fault}", shown(path)),
                "lock again with hashes: `pip-compile --generate-hashes`, or `uv lock`",
            ));
        }
        text.push_str(&pin.requirement);
        for hash in &pin.hashes {
            text.push_str(" \\\n    --hash=");
            text.push_str(hash);
        }
        text.push('\n');
    }
    Ok(text)
}

/// One entry of a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pin {
    /// `name[extras]==version ; marker`, or the line that is no such thing.
    requirement: String,
    /// The name alone, where there is one.
    name: String,
    /// `algorithm:digest`.
    hashes: Vec<String>,
    /// Why hashes would not pin it.
    loose: Option<String>,
}

impl Pin {
    /// Its name, with the reason where that is not simply the missing hash.
    fn fault(&self) -> Option<String> {
        match &self.loose {
            Some(reason) => Some(format!("{} ({reason})", shown(&self.name))),
            None if self.hashes.is_empty() => Some(self.name.clone()),
            None => None,
        }
    }
}

fn read(path: &str, bytes: &[u8]) -> Result<Vec<Pin>, Refusal> {
    if bytes.len() > LOCK_BYTES_MAX {
        return Err(refused(
            format!(
                "`{}` has {} bytes; a lock has at most {LOCK_BYTES_MAX}",
                shown(path),
                bytes.len()
            ),
            "name the lock file in `environment:`",
        ));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        refused(
            format!(
                "`{}` is not UTF-8 text; byte {} is not",
                shown(path),
                error.valid_up_to()
            ),
            "save it as UTF-8",
        )
    })?;
    if path.rsplit('/').next() == Some("uv.lock") {
        uv::read(path, text)
    } else {
        Ok(requirements::read(text))
    }
}

fn bounded(mut unhashed: Vec<String>) -> Vec<String> {
    let omitted = unhashed.len().saturating_sub(UNHASHED_MAX);
    if omitted > 0 {
        unhashed.truncate(UNHASHED_MAX);
        unhashed.push(format!("and {omitted} more"));
    }
    unhashed
}

/// `sha256:`, `sha384:` or `sha512:` and as many hex digits as it has.
fn is_hash(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else {
        return false;
    };
    let digits = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return false,
    };
    hex.len() == digits && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A project's name (PEP 508).
fn is_project_name(text: &str) -> bool {
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    edge(text.bytes().next())
        && edge(text.bytes().last())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// One exact version (PEP 440), `1.*` excluded.
fn is_version(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'+' | b'!')
        })
}

fn refused(message: impl Into<String>, hint: &str) -> Refusal {
    Refusal::new(code::LOCK, message, hint)
}
