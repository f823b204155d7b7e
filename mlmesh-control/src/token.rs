//! The token of an attempt: what a job shows to the daemon. The store has its hash,
//! from the claim to the end of the attempt; the token itself is only ever in the
//! attempt's own folder.

use mlmesh_model::{Digest, RunId, SecretText};

use crate::config::Ports;

/// What every token begins with, so that a leaked one is found by a search.
const PREFIX: &str = "mlmesh_attempt_";

/// A token of 256 random bits. The run stands in it so that the daemon knows where to
/// look its hash up.
pub(crate) fn draw(ports: &Ports, run: RunId) -> SecretText {
    let words: String = (0..4)
        .map(|_| format!("{:016x}", (ports.random)()))
        .collect();
    SecretText(format!("{PREFIX}{run}_{words}"))
}

/// What the store keeps of a token.
pub(crate) fn sha256(SecretText(token): &SecretText) -> Digest {
    Digest::of(token.as_bytes())
}

/// The run whose attempt's token this could be; `None` for what has not its form.
pub fn run_of_token(text: &str) -> Option<RunId> {
    let (run, words) = text.strip_prefix(PREFIX)?.split_once('_')?;
    let is_whole = words.len() == 64 && words.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_whole.then(|| run.parse().ok())?
}
