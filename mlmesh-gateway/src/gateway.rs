//! The gateway as a whole: its sockets, its threads, its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;
use std::time::Duration;

use mlmesh_route::NameError;
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::bill::{Ledger, Used};
use crate::brain::Brain;
use crate::connection::Door;
use crate::keys::Keys;
use crate::limits::{BACKLOG, STRATEGY, TARGETS_MAX, THREADS_MAX, TTFT_SLO, Waits};
use crate::metrics::Counters;
use crate::signals::{SignalError, Signals, SnapshotCell, Watch};
use crate::target::Target;
use crate::telling::{Teller, Told};
use crate::thread::{self, Shared, Stop};

/// What a gateway is started with.
#[derive(Debug)]
pub struct Settings {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where the gateway's own pages are; without it under `/-/` of `listen`, for callers
    /// of this machine.
    pub admin: Option<SocketAddr>,
    /// Engines.
    pub targets: Vec<Target>,
    /// How one of them is chosen, by name.
    pub strategy: String,
    /// What a first token may take, beside twice what the prompt takes an empty engine.
    pub slo: Duration,
    /// Send what leaves no state in an engine to another one, though the first may have
    /// begun it.
    pub repeats_generation: bool,
    /// Who may ask; everybody, where there are none.
    pub keys: Option<Keys>,
    /// Where ended requests of tenants are told.
    pub usage: Option<SyncSender<Used>>,
    /// Threads that serve `listen`.
    pub threads: usize,
    /// Speak plaintext on other addresses than loopback.
    pub allow_plaintext: bool,
    /// How long what is waited for.
    pub waits: Waits,
    /// Whom is asked about the targets.
    pub signals: Signals,
    /// Who is told of ended requests.
    pub told: Told,
}

impl Settings {
    /// The usual ones.
    pub fn new(listen: SocketAddr, targets: Vec<Target>) -> Settings {
        Settings {
            listen,
            admin: None,
            targets,
            strategy: STRATEGY.to_owned(),
            slo: TTFT_SLO,
            repeats_generation: false,
            keys: None,
            usage: None,
            threads: 1,
            allow_plaintext: false,
            waits: Waits::default(),
            signals: Signals::default(),
            told: Told::default(),
        }
    }
}

/// Why a gateway does not start.
#[derive(Debug, Error)]
pub enum GatewayError {
    #[error("a gateway needs 1 to {TARGETS_MAX} targets, not {0}")]
    Targets(usize),
    #[error("`{0}` is a target twice; each stands once")]
    TargetTwice(String),
    #[error(transparent)]
    Strategy(#[from] NameError),
    #[error("a gateway has 1 to {THREADS_MAX} threads, not {0}")]
    Threads(usize),
    #[error(
        "plaintext is spoken on loopback addresses only, and `{0}` is none\nhint: put TLS in front, or allow it with `--allow-plaintext`"
    )]
    Plaintext(SocketAddr),
    #[error("cannot listen on `{0}`")]
    Listen(SocketAddr, #[source] std::io::Error),
    #[error("cannot ask about the targets")]
    Signals(#[source] SignalError),
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

/// A gateway that serves until it is drained.
#[derive(Debug)]
pub struct Gateway {
    address: SocketAddr,
    admin: Option<SocketAddr>,
    stop: watch::Sender<Option<Duration>>,
    threads: Vec<JoinHandle<()>>,
}

impl Gateway {
    /// Binds what is to be bound and starts the threads.
    pub fn start(settings: Settings) -> Result<Gateway, GatewayError> {
        check(&settings)?;
        let Settings {
            targets,
            waits,
            threads,
            signals,
            ..
        } = settings;
        let count = u16::try_from(targets.len()).unwrap_or(u16::MAX);
        let known = SnapshotCell::of_equals(count);
        let watch = Watch::new(known.clone(), &targets, signals).map_err(GatewayError::Signals)?;
        let clock = known.clone();
        let brain = Brain::new(count, known, &settings.strategy, settings.slo)?;
        let brain = Arc::new(brain);
        for tenant in settings.keys.iter().flat_map(Keys::tenants) {
            brain.weigh(tenant);
        }
        let listeners = listen(settings.listen, threads)?;
        let address = address_of(&listeners[0], settings.listen)?;
        let admin = match settings.admin {
            Some(admin) => Some(listen(admin, 1)?.remove(0)),
            None => None,
        };
        let admin_address = match (&admin, settings.admin) {
            (Some(listener), Some(wanted)) => Some(address_of(listener, wanted)?),
            _ => None,
        };
        let counters: Vec<Arc<Counters>> = (0..threads)
            .map(|_| Arc::new(Counters::new(targets.len())))
            .collect();
        let of_admin = Arc::new(Counters::new(targets.len()));
        let door = match admin {
            Some(_) => Door::Targets,
            None => Door::TargetsAndPages,
        };
        let (teller, telling) =
            Teller::start(settings.told, clock).map_err(GatewayError::Thread)?;
        let shared = Arc::new(Shared {
            teller,
            targets,
            counters: counters.clone(),
            waits,
            brain: Arc::clone(&brain),
            watch: Arc::clone(&watch),
            repeats_generation: settings.repeats_generation,
            keys: settings.keys,
            ledger: Arc::new(Ledger {
                log: settings.usage,
                untold: AtomicU64::new(0),
            }),
        });
        let (stop, stopped) = watch::channel(None);
        let asking = watch.start(brain, stopped.clone());
        let asking = asking.map_err(GatewayError::Thread)?;
        let mut gateway = Gateway {
            address,
            admin: admin_address,
            stop,
            // The last one ends when the others have told everything.
            threads: asking.into_iter().chain(telling).collect(),
        };
        for (listener, counters) in listeners.into_iter().zip(counters) {
            gateway.spawn(
                "gateway",
                listener,
                &shared,
                counters,
                door,
                stopped.clone(),
            )?;
        }
        if let Some(listener) = admin {
            gateway.spawn(
                "gateway-admin",
                listener,
                &shared,
                of_admin,
                Door::Pages,
                stopped,
            )?;
        }
        Ok(gateway)
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the gateway's own pages are, if not under `/-/`.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Stops accepting, lets what is under way finish within the grace, and ends.
    pub fn drain(self, grace: Duration) {
        self.stop.send_replace(Some(grace));
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the gateway failed");
            }
        }
    }

    fn spawn(
        &mut self,
        name: &str,
        listener: std::net::TcpListener,
        shared: &Arc<Shared>,
        counters: Arc<Counters>,
        door: Door,
        stop: Stop,
    ) -> Result<(), GatewayError> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(GatewayError::Thread)?;
        let listener = {
            let _entered = runtime.enter();
            TcpListener::from_std(listener).map_err(GatewayError::Thread)?
        };
        let shared = Arc::clone(shared);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let serve = thread::run(listener, shared, counters, door, stop);
                LocalSet::new().block_on(&runtime, serve);
            });
        self.threads.push(thread.map_err(GatewayError::Thread)?);
        Ok(())
    }
}

fn check(settings: &Settings) -> Result<(), GatewayError> {
    let targets = &settings.targets;
    if !(1..=TARGETS_MAX).contains(&targets.len()) {
        return Err(GatewayError::Targets(targets.len()));
    }
    for (index, target) in targets.iter().enumerate() {
        if targets[..index]
            .iter()
            .any(|other| other.host() == target.host())
        {
            return Err(GatewayError::TargetTwice(target.host().to_owned()));
        }
    }
    if !(1..=THREADS_MAX).contains(&settings.threads) {
        return Err(GatewayError::Threads(settings.threads));
    }
    let mut doors = [Some(settings.listen), settings.admin]
        .into_iter()
        .flatten();
    match doors.find(|door| !door.ip().to_canonical().is_loopback()) {
        Some(door) if !settings.allow_plaintext => Err(GatewayError::Plaintext(door)),
        _ => Ok(()),
    }
}

/// A listener for each thread, all on one address. The first is bound alone, so that an
/// address which another gateway serves is refused and not shared with it.
fn listen(address: SocketAddr, threads: usize) -> Result<Vec<std::net::TcpListener>, GatewayError> {
    let failed = |error| GatewayError::Listen(address, error);
    if address.port() != 0 {
        drop(std::net::TcpListener::bind(address).map_err(failed)?);
    }
    // Sockets of the runtime cannot be made without one.
    let runtime = Builder::new_current_thread().enable_io().build();
    let runtime = runtime.map_err(GatewayError::Thread)?;
    let _entered = runtime.enter();
    let mut bound = address;
    let mut listeners = Vec::new();
    for _ in 0..threads {
        let socket = match bound.is_ipv4() {
            true => TcpSocket::new_v4(),
            false => TcpSocket::new_v6(),
        };
        let socket = socket.map_err(failed)?;
        socket.set_reuseaddr(true).map_err(failed)?;
        socket.set_reuseport(threads > 1).map_err(failed)?;
        socket.bind(bound).map_err(failed)?;
        let listener = socket.listen(BACKLOG).and_then(TcpListener::into_std);
        let listener = listener.map_err(failed)?;
        bound = listener.local_addr().map_err(failed)?;
        listeners.push(listener);
    }
    Ok(listeners)
}

fn address_of(
    listener: &std::net::TcpListener,
    wanted: SocketAddr,
) -> Result<SocketAddr, GatewayError> {
    listener
        .local_addr()
        .map_err(|error| GatewayError::Listen(wanted, error))
}
