//! `meshd gateway`: the data plane alone. Settings come from the command line, logs go to
//! standard error, and nothing is read from or kept on disk.

use std::io::Write as _;

use anyhow::Context;
use mlmesh_gateway::{Settings, Signals, Target, Waits};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::arguments::Gateway;
use crate::limits::GATEWAY_DRAIN_GRACE;

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
    let gateway = mlmesh_gateway::Gateway::start(Settings {
        listen: arguments.listen,
        admin: arguments.admin,
        targets: targets.context("read `--target`")?,
        strategy: arguments.strategy,
        slo: arguments.ttft_slo,
        threads: arguments.threads,
        allow_plaintext: arguments.allow_plaintext,
        waits: Waits::default(),
        signals: Signals {
            runtime: arguments.runtime,
            sources: arguments.signals,
        },
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
    Ok(())
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
