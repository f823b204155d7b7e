//! `ml up` and `ml down`: the daemon's life as a person sees it.
//!
//! ```text
//!   ml up ── ml detached (new session) ── exec ──► meshd run
//!     │                                              │ stderr ─► memory file
//!     └── waits for meshd.json of that process, then /health/ready
//! ```

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mlmesh_api::{Client, ClientError, DaemonFile, DaemonFileError, HealthDto, StopRequestDto};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde_json::{Value, json};

use crate::cli;
use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::verbs::boot;

/// How long a daemon may take to become ready.
const READY_MAX: Duration = Duration::from_secs(60);
const READY_POLL: Duration = Duration::from_millis(10);
/// How long a daemon may take to go down, jobs included.
const DOWN_MAX: Duration = Duration::from_secs(120);
/// Lines of the daemon's own words that a failure shows.
const TAIL_LINES: usize = 12;

/// Starts the daemon and returns when it is ready.
pub(crate) fn up(context: &Context, verb: &cli::Up) -> Outcome {
    if verb.at_boot {
        return boot::at_boot(context, verb);
    }
    let data_dir = context.own_data_dir("up")?;
    if let Some((file, _)) = running(&data_dir)? {
        return print_up(context, &data_dir, &file, true);
    }
    let meshd = find_meshd()?;
    let mut arguments: Vec<std::ffi::OsString> =
        vec!["run".into(), "--data-dir".into(), data_dir.clone().into()];
    if let Some(port) = port(context, &data_dir, verb)? {
        arguments.extend(["--port".into(), port.to_string().into()]);
    }
    if verb.foreground {
        let error = Command::new(&meshd).args(&arguments).exec();
        return Err(Failure::io("execute", &meshd, &error));
    }
    let mut words = words_file()?;
    let mut child = spawn(&meshd, &arguments, &words)?;
    match wait_until_ready(&data_dir, &mut child)? {
        Start::Ready(file) => print_up(context, &data_dir, &file, false),
        Start::Ended(status) => match wait_for_holder(&data_dir)? {
            // Another `ml up` was quicker.
            Some(file) => print_up(context, &data_dir, &file, true),
            None => Err(not_started(
                &format!("the daemon ended at once ({status})"),
                &data_dir,
                &mut words,
            )),
        },
        Start::NotReady(health) => Err(not_ready(&health)),
        Start::Silent => Err(not_started(
            &format!("the daemon was not ready after {} s", READY_MAX.as_secs()),
            &data_dir,
            &mut words,
        )),
    }
}

/// The port to ask for. A data directory that once chose a port keeps it, unless
/// somebody names another.
fn port(context: &Context, data_dir: &Path, verb: &cli::Up) -> Outcome<Option<u16>> {
    if verb.port.is_some() {
        return Ok(verb.port);
    }
    let config = context.config(None)?;
    let is_default = config.is_default("daemon.port");
    let has_chosen = lock(data_dir).is_some_and(|lock| lock["port"].is_u64());
    Ok((is_default && has_chosen).then_some(0))
}

/// The daemon that answers for this data directory, if one does. An error says why a
/// daemon that lives cannot be asked: its key is open to others, or not the one here.
pub(crate) fn running(data_dir: &Path) -> Result<Option<(DaemonFile, HealthDto)>, ClientError> {
    let Ok(file) = DaemonFile::read(data_dir) else {
        return Ok(None);
    };
    let health = Client::open(data_dir).and_then(|client| client.ready());
    match health {
        Ok(health) => Ok((health.pid == file.pid).then_some((file, health))),
        Err(error) if error.is_unreachable() || !is_meshd(file.pid) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The `meshd` beside this program, else the first one on PATH.
pub(crate) fn find_meshd() -> Outcome<PathBuf> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|path| Some(path.parent()?.join("meshd")));
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(std::env::split_paths(&on_path).map(|folder| folder.join("meshd")))
        .find(|path| path.is_file())
        .ok_or_else(|| Failure {
            code: "meshd_absent".to_owned(),
            ..Failure::failed(
                "",
                "no `meshd` beside `ml` and none on PATH",
                "install both programs into one folder",
            )
        })
}

fn spawn(meshd: &Path, arguments: &[std::ffi::OsString], words: &File) -> Outcome<Child> {
    let failed = |error: io::Error| Failure::io("start", meshd, &error);
    let this = std::env::current_exe().map_err(failed)?;
    Command::new(this)
        .arg("detached")
        .arg("--")
        .arg(meshd)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(words.try_clone().map_err(failed)?)
        .stderr(words.try_clone().map_err(failed)?)
        .current_dir("/")
        .spawn()
        .map_err(failed)
}

enum Start {
    Ready(DaemonFile),
    NotReady(Box<HealthDto>),
    Ended(std::process::ExitStatus),
    Silent,
}

fn wait_until_ready(data_dir: &Path, child: &mut Child) -> Outcome<Start> {
    let started = Instant::now();
    let mut last_health = None;
    loop {
        if let Some((file, health)) = running(data_dir)?.filter(|(file, _)| file.pid == child.id())
        {
            if health.ok {
                return Ok(Start::Ready(file));
            }
            last_health = Some(health);
        }
        let ended = child
            .try_wait()
            .map_err(|error| Failure::io("wait for the daemon of", data_dir, &error))?;
        if let Some(status) = ended {
            return Ok(Start::Ended(status));
        }
        // A part that is not there now, such as free space, may come later.
        let patience = if last_health.is_some() {
            READY_MAX / 6
        } else {
            READY_MAX
        };
        if started.elapsed() > patience {
            return Ok(last_health.map_or(Start::Silent, |health| Start::NotReady(health.into())));
        }
        std::thread::sleep(READY_POLL);
    }
}

/// The daemon that holds the data directory, once it is ready.
fn wait_for_holder(data_dir: &Path) -> Outcome<Option<DaemonFile>> {
    let started = Instant::now();
    while started.elapsed() < READY_MAX {
        if let Some((file, _)) = running(data_dir)? {
            return Ok(Some(file));
        }
        if !holder(data_dir).is_some_and(is_meshd) {
            return Ok(None);
        }
        std::thread::sleep(READY_POLL);
    }
    Ok(None)
}

/// The process that the lock of the data directory names.
fn holder(data_dir: &Path) -> Option<u32> {
    u32::try_from(lock(data_dir)?["pid"].as_u64()?).ok()
}

/// What the lock of the data directory says: `{pid, port}`.
fn lock(data_dir: &Path) -> Option<Value> {
    let text = std::fs::read_to_string(data_dir.join("daemon.lock")).ok()?;
    serde_json::from_str(&text).ok()
}

fn print_up(context: &Context, data_dir: &Path, file: &DaemonFile, was_up: bool) -> Outcome {
    let output = &context.output;
    if output.json {
        return output.json(&json!({
            "schema": "mlmesh.up/1",
            "already_running": was_up,
            "pid": file.pid,
            "urls": {"api": file.urls.api},
            "ca": file.ca,
            "data_dir": data_dir,
        }));
    }
    let state = if was_up { "already running" } else { "ready" };
    output.line(format_args!(
        "meshd {state}: {} (process {}, data in {})",
        file.urls.api,
        file.pid,
        data_dir.display()
    ))?;
    if !was_up {
        output.hint("`ml init` sets up a project, `ml run train.yaml` runs its recipe");
    }
    Ok(())
}

/// A file in memory that the daemon writes its last words to, so that the data
/// directory keeps to its documented tree.
fn words_file() -> Outcome<File> {
    rustix::fs::memfd_create("meshd-words", rustix::fs::MemfdFlags::CLOEXEC)
        .map(File::from)
        .map_err(|error| Failure::io("make", Path::new("a file in memory"), &error.into()))
}

fn not_ready(health: &HealthDto) -> Failure {
    let bad = health.checks.iter().filter(|(_, check)| !check.ok);
    let bad: Vec<String> = bad
        .map(|(name, check)| format!("{name}: {}", check.detail))
        .collect();
    Failure {
        code: "daemon_not_ready".to_owned(),
        ..Failure::failed(
            "",
            format!("the daemon runs and is not ready: {}", bad.join("; ")),
            "`ml doctor` looks for the reason",
        )
    }
    .with_details(json!({"pid": health.pid, "checks": health.checks}))
}

fn not_started(what: &str, data_dir: &Path, words: &mut File) -> Failure {
    let mut text = String::new();
    let read = words
        .rewind()
        .and_then(|()| words.take(1 << 20).read_to_string(&mut text));
    drop(read);
    if text.trim().is_empty() {
        text = log_tail(&data_dir.join("logs/app.log")).unwrap_or_default();
    }
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    let hint = tail.iter().rev().find_map(|line| said(line, "hint"));
    let shown: String = tail
        .iter()
        .filter(|line| !line.trim_start().starts_with("hint:"))
        .map(|line| {
            format!(
                "\n  {}",
                said(line, "message").unwrap_or_else(|| (*line).to_owned())
            )
        })
        .collect();
    Failure {
        code: "daemon_not_started".to_owned(),
        ..Failure::failed(
            "",
            format!("{what}{shown}"),
            hint.unwrap_or_else(|| "`ml doctor` looks for the reason".to_owned()),
        )
    }
    .with_details(json!({"log": tail}))
}

/// A field of a line of JSON, or the rest of a line `hint: …`.
fn said(line: &str, field: &str) -> Option<String> {
    if let Ok(value) = serde_json::from_str::<Value>(line) {
        let text = value[field].as_str().filter(|text| !text.is_empty())?;
        return Some(text.to_owned());
    }
    let rest = line.trim_start().strip_prefix(field)?.strip_prefix(": ")?;
    Some(rest.to_owned())
}

/// The end of a log file.
fn log_tail(path: &Path) -> Option<String> {
    const BYTES: i64 = 16 << 10;
    let mut file = File::open(path).ok()?;
    let length = i64::try_from(file.metadata().ok()?.len()).ok()?;
    file.seek(io::SeekFrom::End(-BYTES.min(length))).ok()?;
    let mut bytes = Vec::new();
    file.take(BYTES as u64).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Stops the daemon and returns when its process has ended.
pub(crate) fn down(context: &Context, verb: &cli::Down) -> Outcome {
    let data_dir = context.own_data_dir("down")?;
    let file = match DaemonFile::read(&data_dir) {
        Ok(file) => file,
        Err(DaemonFileError::Absent(_)) => return print_down(context, None),
        Err(error) => return Err(ClientError::from(error).into()),
    };
    // Opened before the request: the number cannot be given to another process.
    let process = daemon_process(file.pid);
    let client = Client::open(&data_dir)?;
    let request = StopRequestDto {
        stop_jobs: verb.stop_jobs,
    };
    match (client.stop(&request), process) {
        (Ok(_), Some(process)) => wait_for_end(&process, file.pid)?,
        (Ok(_), None) => {}
        (Err(error), Some(process)) if error.is_unreachable() => {
            // It does not answer: it starts, or hangs. It then ends as on any SIGTERM.
            context.output.warn(format_args!(
                "{error}; sending SIGTERM to process {}",
                file.pid
            ));
            rustix::process::pidfd_send_signal(&process, Signal::TERM)
                .map_err(|error| Failure::io("signal the daemon of", &data_dir, &error.into()))?;
            wait_for_end(&process, file.pid)?;
        }
        (Err(error), None) if error.is_unreachable() => return print_down(context, None),
        (Err(error), _) => return Err(error.into()),
    }
    print_down(context, Some(file.pid))
}

/// A handle on the process, if it lives and is a `meshd`.
fn daemon_process(pid: u32) -> Option<std::os::fd::OwnedFd> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    let process = rustix::process::pidfd_open(number, PidfdFlags::empty()).ok()?;
    is_meshd(pid).then_some(process)
}

/// Whether the process with this number is a daemon of ours.
pub(crate) fn is_meshd(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "meshd")
}

fn wait_for_end(process: &std::os::fd::OwnedFd, pid: u32) -> Outcome {
    let deadline = Instant::now() + DOWN_MAX;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => {
                return Err(Failure {
                    code: "daemon_not_stopped".to_owned(),
                    ..Failure::failed(
                        "",
                        format!("process {pid} still runs after {} s", DOWN_MAX.as_secs()),
                        format!("look at logs/app.log; `kill -9 {pid}` loses nothing"),
                    )
                });
            }
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                return Err(Failure::failed(
                    "local_failure",
                    format!("wait for process {pid}: {error}"),
                    "",
                ));
            }
        }
    }
}

fn print_down(context: &Context, stopped: Option<u32>) -> Outcome {
    let output = &context.output;
    if output.json {
        return output.json(&json!({
            "schema": "mlmesh.down/1", "was_running": stopped.is_some(), "pid": stopped,
        }));
    }
    match stopped {
        Some(pid) => output.line(format_args!("meshd stopped (process {pid})")),
        None => output.line("no daemon was running"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemons_words_are_found_in_text_and_in_json() {
        assert_eq!(said("hint: free it", "hint").as_deref(), Some("free it"));
        assert_eq!(said("  hint: free it", "hint").as_deref(), Some("free it"));
        assert_eq!(said("error: no", "hint"), None);
        let line = r#"{"level":"ERROR","message":"port taken","hint":""}"#;
        assert_eq!(said(line, "message").as_deref(), Some("port taken"));
        assert_eq!(said(line, "hint"), None);
    }

    #[test]
    fn this_test_is_no_daemon() {
        assert!(!is_meshd(std::process::id()));
        assert!(!is_meshd(u32::MAX));
    }
}
