//! From settings to a daemon that answers, and from a signal to an exit code.
//!
//! ```text
//!   settings ─► data dir, lock ─► store, objects, executor ─► control ─► TLS, port
//!      ─► meshd.json ─► accept … ─► SIGTERM or /v1/daemon/stop
//!      ─► stop accepting ─► drain ─► (stop jobs) ─► control ─► meshd.json gone ─► 0
//! ```
//!
//! Attempts belong to their supervisors; they go on while no daemon is there.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use mlmesh_api::settings::Settings;
use mlmesh_api::{DAEMON_SCHEMA, DaemonFile, DaemonUrls};
use mlmesh_cas::{NodeSnapshots, ObjectStore};
use mlmesh_control::{ApiAddress, Control, ControlConfig, Ports};
use mlmesh_exec::{
    LOG_BYTES_MAX_DEFAULT, PIDS_MAX_DEFAULT, ProcessConfig, ProcessExecutor, SystemClock,
};
use mlmesh_model::{Accelerators, Clock, Event, EventKind, Executor, Sequence, Snapshots, Tenant};
use rustix::fs::Mode;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::arguments::{Run, data_dir};
use crate::daemon::{Daemon, Stopping};
use crate::data_dir::{DataDir, Place};
use crate::handlers::scrub;
use crate::hooks::tell_ends;
use crate::http::front::{OnceInAWhile, RequestIds};
use crate::http::listener::{Door, accept};
use crate::keys::{local_owner, open_keys};
use crate::limits::{
    BLOCKING_THREADS_MAX, CERTIFICATE_LOOK_INTERVAL, EVENT_STREAMS_MAX, PLACE_LOOK_INTERVAL,
    PORT_WAIT, WORKER_THREADS,
};
use crate::logs::{LogConfig, LogSender, follow_audit, last_row, trace_to};
use crate::machine::{MachineInterpreters, boot_id, capacity, host_name, node};
use crate::metrics::Metrics;
use crate::permissions::PermissionsFile;
use crate::prober::HttpProber;
use crate::routes::router;
use crate::stores::OpenStore;
use crate::tls::{Certificate, Names};

/// Ports from which `--port 0` chooses: below those that the system hands out to
/// outgoing connections, so that a daemon finds its port free when it comes back.
const CHOSEN_PORTS: std::ops::Range<u32> = 20_000..32_000;
const PORTS_TRIED_MAX: u32 = 64;
/// A thread of the runtime needs no more.
const STACK_BYTES: usize = 1024 * 1024;

/// Runs a daemon until somebody stops it.
pub(crate) fn run(arguments: &Run) -> anyhow::Result<()> {
    // Whatever part makes a file of the data directory: it is nobody else's. Jobs get
    // the mask of whoever started the daemon.
    let job_umask = rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let settings = arguments.settings()?;
    let directory = DataDir::open(&data_dir(&settings)?)?;
    let logs = crate::logs::start(LogConfig {
        directory: directory.path("logs"),
        bytes_max: settings.bytes("daemon.log_bytes_max"),
        files_max: u32::try_from(settings.count("daemon.log_files_max")).unwrap_or(u32::MAX),
    })
    .context("open the log files")?;
    trace_to(&logs, settings.text("daemon.log_level"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_stack_size(STACK_BYTES)
        .thread_keep_alive(Duration::from_secs(2))
        .enable_all()
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(live(&settings, directory, &logs, job_umask));
    if let Err(error) = &result {
        tracing::error!(error = format!("{error:#}"), "daemon ends");
    }
    runtime.shutdown_timeout(Duration::from_secs(2));
    logs.flush();
    result
}

async fn live(
    settings: &Settings,
    mut directory: DataDir,
    logs: &LogSender,
    job_umask: Mode,
) -> anyhow::Result<()> {
    let names = Names {
        hosts: [
            Some("localhost".to_owned()),
            Some(host_name()).filter(|name| !name.is_empty()),
        ]
        .into_iter()
        .flatten()
        .collect(),
        addresses: addresses(settings)?,
    };
    let listener = listen(settings, &mut directory).await?;
    let address = listener.local_addr().context("ask for the port")?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let tls_folder = directory.path("tls");
    let certificate =
        Certificate::open(&tls_folder, &names, clock.now()).context("prepare the certificate")?;
    let tls = certificate.server_config().context("prepare TLS")?;

    // A signal that comes while the parts are being opened ends the daemon too.
    let stopping = Stopping::default();
    let tasks = TaskTracker::new();
    tasks.spawn(stop_on_signal(stopping.clone())?);
    let place = directory.place().context("look at the data directory")?;
    tasks.spawn(stop_when_gone(place.clone(), stopping.clone()));

    let jobs = ForJobs {
        umask: job_umask,
        address,
    };
    let daemon = open_parts(settings, &directory, logs, &clock, &stopping, &tasks, jobs).await?;
    let door = Door {
        tls: TlsAcceptor::from(tls),
        router: router(Arc::clone(&daemon)),
        metrics: Arc::clone(&daemon.metrics),
        closing: stopping.token().clone(),
        tasks: TaskTracker::new(),
    };
    let connections = door.tasks.clone();
    let accepting = tasks.spawn(accept(listener, door));
    tasks.spawn(renew(
        certificate,
        tls_folder.clone(),
        names,
        Arc::clone(&clock),
        stopping.clone(),
    ));
    tasks.spawn(tell_ends(
        Arc::clone(&daemon),
        settings.text("daemon.webhook_ca").to_owned(),
    ));
    let last = last_row(&directory.path("logs")).map_or(0, |row| row.n);
    tasks.spawn(follow_audit(
        Arc::clone(&daemon.store),
        logs.clone(),
        daemon.commits.clone(),
        last,
        stopping.token().clone(),
    ));
    directory
        .write_daemon_file(&DaemonFile {
            schema: DAEMON_SCHEMA.to_owned(),
            pid: std::process::id(),
            urls: DaemonUrls {
                api: format!("https://{address}"),
            },
            ca: tls_folder.join("ca.pem"),
        })
        .context("write `meshd.json`")?;
    tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "daemon is ready");

    stopping.token().cancelled().await;
    tracing::info!(stop_jobs = stopping.stops_jobs(), "daemon goes down");
    // The task ends by itself once the token is cancelled.
    let _ = accepting.await;
    drain(&daemon, connections, settings.time("daemon.shutdown_grace")).await;
    // In another directory of that name, `meshd.json` is another daemon's.
    place.check()?;
    directory
        .remove_daemon_file()
        .context("remove `meshd.json`")?;
    tasks.close();
    tasks.wait().await;
    tracing::info!("daemon has ended");
    Ok(())
}

/// Lets open requests finish, then ends the job path.
async fn drain(daemon: &Daemon, connections: TaskTracker, grace: Duration) {
    connections.close();
    if tokio::time::timeout(grace, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            open = connections.len(),
            "connections were cut at the end of the grace"
        );
    }
    if daemon.stopping.stops_jobs() {
        daemon.control.stop_jobs().await;
    }
    daemon.control.shutdown().await;
}

/// What jobs get of the daemon's own circumstances.
#[derive(Clone, Copy)]
pub(crate) struct ForJobs {
    pub(crate) umask: Mode,
    pub(crate) address: SocketAddr,
}

pub(crate) async fn open_parts(
    settings: &Settings,
    directory: &DataDir,
    logs: &LogSender,
    clock: &Arc<dyn Clock>,
    stopping: &Stopping,
    tasks: &TaskTracker,
    jobs: ForJobs,
) -> anyhow::Result<Arc<Daemon>> {
    let root = directory.root().to_owned();
    let open_store = OpenStore::open(settings.text("daemon.store"), &root).await?;
    let store = open_store.port();
    let owner = local_owner().context("name the daemon's owner")?;
    let permissions = PermissionsFile::of(&root, settings.text("daemon.permissions"));
    let file = permissions.clone();
    let (roles, from) = tokio::task::spawn_blocking(move || file.load()).await??;
    let keys = open_keys(&root, &owner, roles, &store, clock).await?;
    keys.say_where_from(from);
    let (snapshots, executor) = {
        let (root, clock) = (root.clone(), Arc::clone(clock));
        tokio::task::spawn_blocking(move || open_executor(&root, clock, jobs.umask)).await??
    };
    let accelerators: Arc<dyn Accelerators> = Arc::new(mlmesh_telemetry::NvmlAccelerators::new());
    let config = ControlConfig {
        node: node(settings.text("daemon.node")).context("name this node")?,
        boot_id: boot_id().context("read the machine's boot id")?,
        data_dir: root.clone(),
        capacity: capacity(settings, &*accelerators),
        api: Some(ApiAddress {
            url: format!("https://{}", reachable(jobs.address)),
            ca: root.join("tls/ca.pem"),
        }),
        hook_commands: settings.text("daemon.hook_commands") == "on",
        grace_ms: u64::try_from(settings.time("daemon.stop_grace").as_millis()).unwrap_or(u64::MAX),
    };
    let ports = Ports {
        store: Arc::clone(&store),
        executor: Arc::clone(&executor),
        snapshots: Arc::clone(&snapshots) as Arc<dyn Snapshots>,
        accelerators,
        clock: Arc::clone(clock),
        interpreters: Arc::new(MachineInterpreters::default()),
        prober: Arc::new(HttpProber),
        random: Arc::new(|| {
            getrandom::u64().expect("the system gives random bytes after it gave some at the start")
        }),
    };
    let control = Control::start(config, ports)
        .await
        .context("start the job path")?;
    let random = getrandom::u32()
        .map_err(|error| anyhow::anyhow!("the system gives no random bytes: {error}"))?;
    let started = Event {
        seq: Sequence(0),
        time: clock.now(),
        tenant: Tenant::default(),
        owner: owner.clone(),
        run: None,
        kind: EventKind::DaemonStarted {
            version: env!("CARGO_PKG_VERSION").to_owned(),
        },
    };
    store
        .record(Some(started), None)
        .await
        .context("record the start")?;
    Ok(Arc::new(Daemon {
        control,
        commits: open_store.watch(),
        open_store,
        store,
        objects: Arc::clone(snapshots.store()),
        snapshots,
        executor,
        clock: Arc::clone(clock),
        owner,
        keys,
        permissions,
        key_failures: OnceInAWhile::default(),
        request_ids: RequestIds::new(random),
        metrics: Arc::new(Metrics::default()),
        logs: logs.clone(),
        root,
        disk_reserve: settings.bytes("daemon.disk_reserve"),
        attempt_bytes_max: settings.bytes("daemon.attempt_bytes_max"),
        event_streams: Arc::new(Semaphore::new(EVENT_STREAMS_MAX)),
        stopping: stopping.clone(),
        scrub: Mutex::new(scrub::never()),
        tasks: tasks.clone(),
    }))
}

/// Where a job of this machine finds a daemon that listens on `address`.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        ip if !ip.is_unspecified() => address,
        IpAddr::V4(_) => SocketAddr::new(IpAddr::from([127, 0, 0, 1]), address.port()),
        IpAddr::V6(_) => {
            SocketAddr::new(IpAddr::from(std::net::Ipv6Addr::LOCALHOST), address.port())
        }
    }
}

fn open_executor(
    root: &std::path::Path,
    clock: Arc<dyn Clock>,
    job_umask: Mode,
) -> anyhow::Result<(Arc<NodeSnapshots>, Arc<dyn Executor>)> {
    let objects =
        ObjectStore::open(&root.join("data/objects")).context("open the content store")?;
    for repaired in objects.recovered() {
        tracing::warn!(what = ?repaired, "content store was repaired");
    }
    let snapshots = Arc::new(NodeSnapshots::new(
        Arc::new(objects),
        root.join("data/datasets"),
        root.join("data/cache/stat"),
    ));
    if let Err(error) = snapshots.remove_unfinished_places() {
        tracing::warn!(%error, "unfinished copies of datasets stay");
    }
    let executor = ProcessExecutor::new(ProcessConfig {
        data_dir: root.to_owned(),
        program: std::env::current_exe().context("find the daemon's own program")?,
        snapshots: Arc::clone(&snapshots) as Arc<dyn Snapshots>,
        clock,
        log_bytes_max: LOG_BYTES_MAX_DEFAULT,
        pids_max: PIDS_MAX_DEFAULT,
        job_umask: job_umask.as_raw_mode(),
    });
    Ok((snapshots, executor as Arc<dyn Executor>))
}

fn addresses(settings: &Settings) -> anyhow::Result<Vec<IpAddr>> {
    let mut addresses = vec![
        IpAddr::from([127, 0, 0, 1]),
        IpAddr::from([0_u16, 0, 0, 0, 0, 0, 0, 1]),
    ];
    let listen: IpAddr = settings
        .text("daemon.listen")
        .parse()
        .context("read `daemon.listen`")?;
    if !listen.is_unspecified() && !addresses.contains(&listen) {
        addresses.push(listen);
    }
    Ok(addresses)
}

/// The port of this data directory, bound.
async fn listen(settings: &Settings, directory: &mut DataDir) -> anyhow::Result<TcpListener> {
    let address: IpAddr = settings
        .text("daemon.listen")
        .parse()
        .context("read `daemon.listen`")?;
    let asked = u16::try_from(settings.count("daemon.port")).context("read `daemon.port`")?;
    let port = if asked == 0 {
        directory.chosen_port()
    } else {
        Some(asked)
    };
    if let Some(port) = port {
        return bind_patiently(SocketAddr::new(address, port)).await;
    }
    for _ in 0..PORTS_TRIED_MAX {
        let random = getrandom::u32().map_err(|error| anyhow::anyhow!("draw a port: {error}"))?;
        let width = CHOSEN_PORTS.end - CHOSEN_PORTS.start;
        let port = u16::try_from(CHOSEN_PORTS.start + random % width).context("draw a port")?;
        if let Ok(listener) = TcpListener::bind(SocketAddr::new(address, port)).await {
            directory.keep_port(port).context("keep the chosen port")?;
            return Ok(listener);
        }
    }
    anyhow::bail!(
        "no free port was found on {address} in {PORTS_TRIED_MAX} tries\nhint: name one with `--port`"
    )
}

/// Binds a port, also one that a daemon gave up this moment.
async fn bind_patiently(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let deadline = tokio::time::Instant::now() + PORT_WAIT;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(error)
                if error.kind() == std::io::ErrorKind::AddrInUse
                    && tokio::time::Instant::now() < deadline =>
            {
                tokio::time::sleep(PORT_WAIT / 20).await;
            }
            Err(error) => {
                let hint =
                    "another program may hold the port: choose one with `--port`, or `--port 0`";
                return Err(error).context(format!("listen on {address}\nhint: {hint}"));
            }
        }
    }
}

fn stop_on_signal(stopping: Stopping) -> anyhow::Result<impl Future<Output = ()> + Send> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    // A terminal that closes must not end the daemon, nor a reader that goes away.
    let mut hangup = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
    Ok(async move {
        loop {
            tokio::select! {
                () = stopping.token().cancelled() => return,
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => {}
            }
        }
        stopping.begin(false);
    })
}

/// Without its directory a daemon would take work and record it in files that have
/// no name. It goes down as it does otherwise: jobs belong to their supervisors.
async fn stop_when_gone(place: Place, stopping: Stopping) {
    loop {
        tokio::select! {
            () = stopping.token().cancelled() => return,
            () = tokio::time::sleep(PLACE_LOOK_INTERVAL) => {}
        }
        if let Err(error) = place.check() {
            tracing::error!(%error, "data directory is gone");
            return stopping.begin(false);
        }
    }
}

/// Looks at the certificate now and then. A timer that is hours long is no polling.
async fn renew(
    certificate: Arc<Certificate>,
    folder: std::path::PathBuf,
    names: Names,
    clock: Arc<dyn Clock>,
    stopping: Stopping,
) {
    loop {
        tokio::select! {
            () = stopping.token().cancelled() => return,
            () = tokio::time::sleep(CERTIFICATE_LOOK_INTERVAL) => {}
        }
        if let Err(error) = certificate.renew(&folder, &names, clock.now()) {
            tracing::error!(%error, "certificate could not be renewed");
        }
    }
}
