//! One thread of the gateway: a listener, what its connections share, and its drain.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at};

use crate::bill::Ledger;
use crate::brain::{Brain, Work};
use crate::buffer::Spare;
use crate::connection::{self, Door};
use crate::http2::{self, Upstreams};
use crate::keys::{Keys, Tenant};
use crate::limits::{ACCEPT_PAUSE, CLIENTS_MAX, Waits};
use crate::metrics::Counters;
use crate::pool::Pool;
use crate::refusal::Refusal;
use crate::signals::Watch;
use crate::target::Target;
use crate::telling::Teller;

/// What all threads of one gateway share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) targets: Vec<Target>,
    pub(crate) counters: Vec<Arc<Counters>>,
    pub(crate) waits: Waits,
    pub(crate) brain: Arc<Brain>,
    /// What is known of the targets, for pages.
    pub(crate) watch: Arc<Watch>,
    /// Who tells of requests, if anybody wants to know.
    pub(crate) teller: Option<Arc<Teller>>,
    /// Who may ask; everybody, where there are none.
    pub(crate) keys: Option<Keys>,
    pub(crate) ledger: Arc<Ledger>,
    /// Whether what leaves nothing behind may be sent again.
    pub(crate) repeats_generation: bool,
}

impl Shared {
    /// Whether a body has to be there before a target is chosen.
    pub(crate) fn reads_bodies(&self) -> bool {
        self.keys.is_some() || self.brain.reads_bodies()
    }

    /// Whose key this is, where keys are asked for.
    pub(crate) fn tenant(&self, key: Option<&[u8]>) -> Result<Option<Arc<Tenant>>, Refusal> {
        let Some(keys) = &self.keys else {
            return Ok(None);
        };
        let tenant = key.and_then(|key| keys.tenant(key));
        tenant
            .map(|tenant| Some(Arc::clone(tenant)))
            .ok_or(Refusal::KeyUnknown)
    }
}

/// What all connections of one thread share.
pub(crate) struct Thread {
    pub(crate) shared: Arc<Shared>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) pool: Pool,
    pub(crate) upstreams: Upstreams,
    pub(crate) spare: Spare,
    pub(crate) work: RefCell<Work>,
    /// Whether the gateway goes down; connections are woken once when it begins to.
    pub(crate) is_draining: Cell<bool>,
    pub(crate) drain: Notify,
}

/// The wish to go down, and for how long requests under way may go on.
pub(crate) type Stop = watch::Receiver<Option<Duration>>;

/// Accepts until told to stop, then lets connections finish within the grace.
pub(crate) async fn run(
    listener: TcpListener,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    door: Door,
    mut stop: Stop,
) {
    let thread = Rc::new(Thread {
        pool: Pool::new(shared.targets.len(), shared.waits.idle_upstream),
        upstreams: Upstreams::new(shared.targets.len()),
        shared,
        counters,
        spare: Spare::default(),
        work: RefCell::default(),
        is_draining: Cell::new(false),
        drain: Notify::new(),
    });
    let mut connections = JoinSet::new();
    // Ends with this function, after the last connection.
    let mut clock = JoinSet::new();
    clock.spawn_local(Arc::clone(&thread.shared.brain).keep_time());
    let mut sweep = interval(thread.shared.waits.idle_upstream.max(ACCEPT_PAUSE));
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Said once, not with each attempt.
    let mut is_failing = false;
    let grace = loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CLIENTS_MAX => match accepted {
                Ok((client, peer)) => {
                    is_failing = false;
                    let door = door.for_caller(peer.ip());
                    admit(&thread, &mut connections, client, door);
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(%error, "cannot accept connections");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => report(ended),
            _ = sweep.tick() => thread.pool.sweep(),
            grace = stop.wait_for(Option::is_some) => break grace.ok().and_then(|grace| *grace),
        }
    };
    // Who has connected already is served; the door closes behind them. The runtime looks
    // at its sockets before it goes on here, and only then knows who that is.
    yield_now().await;
    while let Some((client, peer)) = waiting(&listener).await {
        let door = door.for_caller(peer.ip());
        admit(&thread, &mut connections, client, door);
    }
    drop(listener);
    thread.is_draining.set(true);
    thread.drain.notify_waiters();
    let until = Instant::now() + grace.unwrap_or_default();
    while let Ok(Some(ended)) = timeout_at(until, connections.join_next()).await {
        report(ended);
    }
    if !connections.is_empty() {
        let connections = connections.len();
        tracing::warn!(connections, "connections are cut at the end of the grace");
    }
}

/// A connection that already waits to be accepted.
async fn waiting(listener: &TcpListener) -> Option<(TcpStream, std::net::SocketAddr)> {
    tokio::select! {
        biased;
        accepted = listener.accept() => accepted.ok(),
        () = std::future::ready(()) => None,
    }
}

fn admit(thread: &Rc<Thread>, connections: &mut JoinSet<()>, client: TcpStream, door: Door) {
    if let Err(error) = client.set_nodelay(true) {
        // The client is gone already.
        tracing::debug!(%error, "cannot prepare a connection");
        return;
    }
    thread.counters.accepted.fetch_add(1, Ordering::Relaxed);
    connections.spawn_local(serve(Rc::clone(thread), client, door));
}

/// Serves a client in the version of HTTP with which it begins.
async fn serve(thread: Rc<Thread>, client: TcpStream, door: Door) {
    let _counted = Counted::new(Rc::clone(&thread));
    let mut first = [0; http2::PREFACE.len()];
    let begun = tokio::select! {
        biased;
        // Whoever has said nothing yet is given its time by HTTP/1.1's way down.
        () = thread.drain.notified(), if !thread.is_draining.get() => Ok(Ok(0)),
        () = std::future::ready(()), if thread.is_draining.get() => Ok(Ok(0)),
        begun = timeout(thread.shared.waits.idle, client.peek(&mut first)) => begun,
    };
    match begun {
        Ok(Ok(bytes)) if http2::begins(&first[..bytes]) => {
            http2::serve(thread, client, door).await;
        }
        Ok(Ok(_)) => connection::serve(thread, client, door).await,
        // Nothing came, or the client is gone.
        Ok(Err(_)) | Err(_) => {}
    }
}

/// A client that counts as connected for as long as this lives.
struct Counted(Rc<Thread>);

impl Counted {
    fn new(thread: Rc<Thread>) -> Counted {
        thread.counters.clients.fetch_add(1, Ordering::Relaxed);
        Counted(thread)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.counters.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection's task failed");
    }
}
