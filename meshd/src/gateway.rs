//! `meshd gateway`: the data plane alone. Settings come from the command line, logs go to
//! standard error, and nothing is read from or kept on disk.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use anyhow::Context;
use mlmesh_exec::SystemClock;
use mlmesh_gateway::keys::Keys;
use mlmesh_gateway::{Done, Settings, Signals, Target, Told, Used};
use mlmesh_model::Clock as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::arguments::Gateway;
use crate::limits::{
    GATEWAY_DRAIN_GRACE, USAGE_LOG_BYTES_MAX, USAGE_LOG_FILES_MAX, USAGE_LOG_LINES_MAX,
};
use crate::logs::RotatingFile;

/// Serves until a signal, then drains.
pub(crate) fn run(arguments: Gateway) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().with_default_directive(tracing::Level::INFO.into());
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter.from_env_lossy())
        .init();
    raise_descriptors();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    // A signal that comes while sockets are bound ends the gateway, too.
    let signalled = {
        let _entered = runtime.enter();
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        async move {
            tokio::select! {
                _ = terminate.recv() => (),
                _ = interrupt.recv() => (),
            }
        }
    };
    let targets: Result<Vec<Target>, _> = arguments.target.iter().map(|url| url.parse()).collect();
    let targets = targets.context("read `--target`")?;
    let keys = arguments.api_keys.as_deref().map(read_keys).transpose()?;
    let mut logs = Vec::new();
    let usage = match arguments.usage_log {
        Some(path) => {
            let (sender, log) = line_log("--usage-log", path, usage_line)?;
            logs.push(log);
            Some(sender)
        }
        None => None,
    };
    let requests = match arguments.request_log {
        Some(path) => {
            let (sender, log) = line_log("--request-log", path, request_line)?;
            logs.push(log);
            Some(sender)
        }
        None => None,
    };
    let gateway = mlmesh_gateway::Gateway::start(Settings {
        admin: arguments.admin,
        strategy: arguments.strategy,
        slo: arguments.ttft_slo,
        repeats_generation: arguments.repeat_generation,
        keys,
        usage,
        threads: arguments.threads,
        allow_plaintext: arguments.allow_plaintext,
        signals: Signals {
            runtime: arguments.runtime,
            sources: arguments.signals,
        },
        told: Told {
            collector: arguments.traces,
            log: requests,
            unix_us: u64::try_from(SystemClock.now().0).unwrap_or_default(),
        },
        ..Settings::new(arguments.listen, targets)
    })
    .context("start the gateway")?;
    let admin = gateway.admin_address();
    let admin = admin.map_or(String::new(), |admin| format!(", admin on http://{admin}"));
    // Whoever started this may have closed the pipe; that ends no gateway.
    let line = format!("listening on http://{}{admin}\n", gateway.address());
    if let Err(error) = std::io::stdout().write_all(line.as_bytes()) {
        tracing::warn!(%error, "cannot print the address");
    }
    runtime.block_on(signalled);
    tracing::info!("draining");
    gateway.drain(GATEWAY_DRAIN_GRACE);
    // Their last senders are gone, so that they end when all is written.
    for log in logs {
        if log.join().is_err() {
            tracing::error!("a log failed");
        }
    }
    Ok(())
}

fn read_keys(path: &Path) -> anyhow::Result<Keys> {
    let read = || format!("read `--api-keys` at `{}`", path.display());
    let text = std::fs::read_to_string(path).with_context(read)?;
    Keys::read(&text).with_context(read)
}

/// A thread that writes lines of JSON to the file that a flag names.
fn line_log<T: Send + 'static>(
    flag: &str,
    path: PathBuf,
    line: fn(&T) -> String,
) -> anyhow::Result<(SyncSender<T>, JoinHandle<()>)> {
    let shown = path.display().to_string();
    let file = RotatingFile::open(path, USAGE_LOG_BYTES_MAX, USAGE_LOG_FILES_MAX);
    let mut file = file.with_context(|| format!("open `{flag}` at `{shown}`"))?;
    let (sender, receiver) = sync_channel::<T>(USAGE_LOG_LINES_MAX);
    let write = move || {
        while let Ok(first) = receiver.recv() {
            for told in std::iter::once(first).chain(receiver.try_iter()) {
                file.append(line(&told).as_bytes());
            }
            file.flush();
        }
    };
    let thread = std::thread::Builder::new().name("gateway-log".to_owned());
    let thread = thread.spawn(write).context("start a thread")?;
    Ok((sender, thread))
}

fn request_line(done: &Done) -> String {
    let line = serde_json::json!({
        "schema": "mlmesh.gateway.request/1",
        "began_us": done.began_us,
        "took_us": done.took_us,
        "request_id": done.request_id,
        "trace_id": done.trace_id,
        "span_id": done.span_id,
        "parent_id": done.parent_id,
        "method": done.method,
        "path": done.path,
        "target": done.target,
        "status": done.status,
    });
    format!("{line}\n")
}

fn usage_line(used: &Used) -> String {
    let line = serde_json::json!({
        "schema": "mlmesh.gateway.usage/1",
        "ended_us": SystemClock.now().0,
        "tenant": used.tenant,
        "model": used.model,
        "status": used.status,
        "took_ms": used.took_ms,
        "prompt_tokens": used.prompt_tokens,
        "cached_tokens": used.cached_tokens,
        "answer_tokens": used.answer_tokens,
        "answer_tokens_by": if used.is_counted { "engine" } else { "events" },
    });
    format!("{line}\n")
}

/// Each client may take two descriptors: asks for as many as the system allows.
fn raise_descriptors() {
    let limits = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: limits.maximum,
        maximum: limits.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, all) {
        tracing::warn!(%error, "cannot raise the limit of file descriptors");
    }
}
