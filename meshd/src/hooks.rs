//! Telling the end of runs: a command of the daemon's owner, or a webhook.
//!
//! ```text
//!   commit ─► store.untold() ─► at most a few at once ─► command │ POST ─► store.told()
//!                 ▲                                                          │
//!                 └────────────── later, with growing pauses ◄───────────────┘
//! ```
//!
//! An end is told at least once: what was not noted as told before the daemon died is
//! told again by the next one, with the same id. Nothing that happens here changes a run.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use mlmesh_api::RunDto;
use mlmesh_model::{Exit, OnFinish, Run, RunId, SecretText, TellingState, Told, Untold};
use ring::hmac;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::json;
use tokio::task::JoinSet;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

use crate::daemon::Daemon;

/// Ends that are told at the same time.
const AT_ONCE_MAX: usize = 4;
/// How often an end is tried.
const TRIES_MAX: u32 = 8;
/// The first pause; each next one is twice as long: two minutes in all.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// After commits, so that many ends are looked for together.
const GATHER: Duration = Duration::from_millis(200);
/// How long a command may take.
const COMMAND_MAX: Duration = Duration::from_secs(60);
/// How long a webhook may take.
const POST_MAX: Duration = Duration::from_secs(15);
/// Bytes of what a command says that are kept.
const WORDS_BYTES_MAX: usize = 64 << 10;
/// Characters of it that are recorded.
const MESSAGE_CHARS_MAX: usize = 1_000;
/// Where systems keep the certificates that they trust.
const TRUSTED: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Tells ends until the daemon goes down. `trusted`: a file of certificates, empty for
/// the system's.
pub(crate) async fn tell_ends(daemon: Arc<Daemon>, trusted: String) {
    let stopping = daemon.stopping.token().clone();
    let mut commits = daemon.commits.clone();
    let mut tries = JoinSet::new();
    // When an end that was tried is tried again; absent means now.
    let mut later: HashMap<(RunId, u32), Option<Instant>> = HashMap::new();
    loop {
        commits.mark_unchanged();
        let open = daemon.store.untold().await.unwrap_or_default();
        later.retain(|key, _| open.iter().any(|end| (end.run.id, end.life) == *key));
        for end in open {
            let key = (end.run.id, end.life);
            let is_due = match later.get(&key) {
                None => true,
                Some(None) => false,
                Some(Some(when)) => *when <= Instant::now(),
            };
            if is_due && tries.len() < AT_ONCE_MAX {
                later.insert(key, None);
                let (daemon, trusted) = (Arc::clone(&daemon), trusted.clone());
                tries.spawn(async move { (key, tell(&daemon, end, &trusted).await) });
            }
        }
        let next = later.values().flatten().min().copied();
        let next = next.map_or(Duration::from_secs(3600), |next| {
            next.saturating_duration_since(Instant::now())
        });
        let has_tries = !tries.is_empty();
        tokio::select! {
            () = stopping.cancelled() => break,
            () = tokio::time::sleep(next.max(GATHER)) => {}
            changed = commits.changed() => {
                if changed.is_err() {
                    break;
                }
                tokio::time::sleep(GATHER).await;
            }
            Some(told) = tries.join_next(), if has_tries => {
                if let Ok((key, pause)) = told {
                    later.insert(key, Some(Instant::now() + pause));
                }
            }
        }
    }
    // What is under way is told again by the next daemon.
    tries.abort_all();
}

/// Tries once and notes what came of it; how long the next try waits.
async fn tell(daemon: &Arc<Daemon>, end: Untold, trusted: &str) -> Duration {
    let Some(hook) = end.run.placement.on_finish.clone() else {
        return Duration::ZERO;
    };
    let tries = end.tries + 1;
    let outcome = match hook.wants(end.run.phase) {
        false => None,
        true => Some(once(daemon, &end, hook, trusted).await),
    };
    let (state, message) = match outcome {
        None => (TellingState::NotWanted, String::new()),
        Some(Ok(said)) => (TellingState::Delivered, said),
        Some(Err(said)) if tries >= TRIES_MAX => (TellingState::Failed, said),
        Some(Err(said)) => (TellingState::Waiting, said),
    };
    let run = end.run.id;
    let message: String = message.chars().take(MESSAGE_CHARS_MAX).collect();
    match state {
        TellingState::Failed => tracing::warn!(%run, tries, message, "an end could not be told"),
        TellingState::Waiting => tracing::info!(%run, tries, message, "an end is told later"),
        TellingState::Delivered => tracing::info!(%run, tries, "an end was told"),
        TellingState::NotWanted => {}
    }
    let told = Told {
        run,
        life: end.life,
        tries,
        state,
        message,
        time: daemon.clock.now(),
    };
    if let Err(error) = daemon.store.told(told).await {
        tracing::warn!(%run, %error, "what came of telling an end could not be kept");
    }
    PAUSE_FIRST * 2_u32.saturating_pow(end.tries.min(TRIES_MAX))
}

async fn once(
    daemon: &Arc<Daemon>,
    end: &Untold,
    hook: OnFinish,
    trusted: &str,
) -> Result<String, String> {
    let id = format!("{}-{}", end.run.id, end.life);
    // What the run was and what came of it, not what it executed or said of that.
    let run = RunDto {
        plan: None,
        logged: None,
        note: String::new(),
        ..RunDto::new(&end.run, None, None)
    };
    let body = json!({ "schema": "mlmesh.finish/1", "id": id, "run": run });
    let body = serde_json::to_vec(&body).map_err(|error| error.to_string())?;
    let secret = match &hook.secret {
        None => None,
        Some(name) => {
            let value = daemon.control.secret_of(&end.run, name).await;
            Some(value.ok_or_else(|| format!("secret `{name}` is not stored any more"))?)
        }
    };
    let (run, root, trusted) = (end.run.clone(), daemon.root.clone(), trusted.to_owned());
    let work = move || match &hook.webhook {
        Some(url) => post(url, &id, body, secret.as_ref(), &trusted),
        None => execute(&hook.command, &run, &id, body, &root),
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(format!("it panicked: {error}")))
}

/// Posts; any answer of 200 to 299 has taken it. Blocking.
fn post(
    url: &str,
    id: &str,
    body: Vec<u8>,
    secret: Option<&SecretText>,
    trusted: &str,
) -> Result<String, String> {
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::new_with_certs(&certificates(trusted)?))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    let agent = ureq::Agent::config_builder()
        .tls_config(tls)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .timeout_global(Some(POST_MAX))
        .build()
        .new_agent();
    let mut request = agent
        .post(url)
        .header("content-type", "application/json")
        .header("user-agent", concat!("mlmesh/", env!("CARGO_PKG_VERSION")))
        .header("x-mlmesh-delivery", id);
    if let Some(secret) = secret {
        request = request.header(
            "x-mlmesh-signature",
            format!("sha256={}", signature(secret, &body)),
        );
    }
    let answer = request.send(&body[..]).map_err(|error| error.to_string())?;
    let status = answer.status();
    match status.is_success() {
        true => Ok(format!("status {}", status.as_u16())),
        false if status.is_redirection() => Err(format!(
            "status {}; redirects are not followed",
            status.as_u16()
        )),
        false => Err(format!("status {}", status.as_u16())),
    }
}

/// HMAC-SHA256 of the body in hex.
fn signature(secret: &SecretText, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.0.as_bytes());
    let tag = hmac::sign(&key, body);
    tag.as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Certificates of authorities: of the file that was set, else of the system.
fn certificates(trusted: &str) -> Result<Vec<Certificate<'static>>, String> {
    let system = || {
        TRUSTED
            .map(PathBuf::from)
            .into_iter()
            .find(|path| path.is_file())
    };
    let path = match trusted {
        "" => system(),
        path => Some(PathBuf::from(path)),
    };
    let Some(path) = path else {
        return Ok(Vec::new());
    };
    let unreadable = |error: &dyn std::fmt::Display| {
        format!(
            "the certificates in `{}` cannot be read: {error}",
            path.display()
        )
    };
    let found = CertificateDer::pem_file_iter(&path).map_err(|error| unreadable(&error))?;
    // The system's file may hold what is no certificate of today.
    let usable = found.filter_map(Result::ok);
    Ok(usable
        .map(|der| Certificate::from_der(&der).to_owned())
        .collect())
}

/// Executes a command with facts in its environment and the document on its standard
/// input. It gets nothing of the daemon's environment but PATH, HOME and LANG. Blocking.
fn execute(
    words: &[String],
    run: &Run,
    id: &str,
    body: Vec<u8>,
    root: &Path,
) -> Result<String, String> {
    let (program, arguments) = words.split_first().ok_or("there is no command")?;
    let (output, input) = std::io::pipe().map_err(|error| error.to_string())?;
    let second = input.try_clone().map_err(|error| error.to_string())?;
    let folder = root.join("data/experiments").join(run.id.to_string());
    let kept = ["PATH", "HOME", "LANG"].map(|name| Some((name, std::env::var_os(name)?)));
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(kept.into_iter().flatten())
        .envs(facts(run, id))
        .current_dir(if folder.is_dir() { &folder } else { root })
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(input)
        .stderr(second);
    let mut child = command
        .spawn()
        .map_err(|error| format!("`{program}` does not start: {error}"))?;
    // The pipe ends with the last process that holds it, and this one must not.
    drop(command);
    if let Some(mut stdin) = child.stdin.take() {
        std::thread::spawn(move || drop(stdin.write_all(&body)));
    }
    let (said, heard) = mpsc::sync_channel(1);
    std::thread::spawn(move || drop(said.send(first_of(output))));
    let deadline = Instant::now() + COMMAND_MAX;
    let status = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break Some(status),
            None if Instant::now() >= deadline => break None,
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    if let Some(group) = i32::try_from(child.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    {
        // What it has left behind ends with it.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let Some(status) = status else {
        let _ = child.wait();
        return Err(format!("it took longer than {} s", COMMAND_MAX.as_secs()));
    };
    let words = heard
        .recv_timeout(Duration::from_secs(1))
        .unwrap_or_default();
    let words = String::from_utf8_lossy(&words).trim().to_owned();
    tracing::info!(run = %run.id, %status, words, "a hook's command has ended");
    match status.success() {
        true => Ok(words),
        false => Err(format!("{status}: {words}")),
    }
}

/// Reads to the end and keeps the beginning.
fn first_of(mut output: impl Read) -> Vec<u8> {
    let mut kept = Vec::new();
    let _ = (&mut output)
        .take(WORDS_BYTES_MAX as u64)
        .read_to_end(&mut kept);
    let _ = std::io::copy(&mut output, &mut std::io::sink());
    kept
}

/// What a command finds in its environment.
fn facts(run: &Run, id: &str) -> Vec<(&'static str, String)> {
    let exit = match &run.exit {
        Some(Exit::Code(code)) => code.to_string(),
        Some(Exit::Signal(signal)) => (128 + i64::from(*signal)).to_string(),
        None => String::new(),
    };
    let level = run.trust.as_ref().map(|trust| format!("{:?}", trust.level));
    vec![
        ("MLMESH_DELIVERY", id.to_owned()),
        ("MLMESH_RUN_ID", run.id.to_string()),
        ("MLMESH_NAME", run.name.to_string()),
        ("MLMESH_OWNER", run.owner.to_string()),
        ("MLMESH_PHASE", run.phase.as_str().to_owned()),
        (
            "MLMESH_CAUSE",
            run.cause
                .map_or(String::new(), |cause| cause.as_str().to_owned()),
        ),
        ("MLMESH_EXIT_CODE", exit),
        ("MLMESH_TRUST", level.unwrap_or_default()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_signed_as_rfc_4231_has_it() {
        let secret = SecretText("Jefe".into());
        let body = b"what do ya want for nothing?";
        assert_eq!(
            signature(&secret, body),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }
}
