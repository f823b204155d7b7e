//! Carries connections from the doors of a sandbox to the declared hosts, in the
//! supervisor, byte for byte.
//!
//! ```text
//!   door (listens in the sandbox) ─accept─► one thread per connection ─► host:port
//! ```
//!
//! Names are resolved here, outside, for every connection anew. It reads nothing
//! of what it carries: TLS stays between the job and the host. A name never leads
//! to the machine's own loopback, to a link or to a group; whoever wants one of
//! those declares it as such. It ends with the supervisor, whose threads it uses.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mlmesh_model::HostTraffic;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::sandbox::{Door, LOCALHOST};

/// Connections at once; more wait at their door.
const CONNECTIONS_MAX: usize = 256;
/// Bytes on their way in one direction of a connection.
const BUFFER_BYTES: usize = 32 << 10;
/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 8;
/// For the answer of one address.
const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// A connection on which nothing moved for this time is ended.
const IDLE_S: i64 = 3600;
/// For what a job has written before it ended.
const DRAIN_WAIT: Duration = Duration::from_secs(3);
/// Before a failed accept, as for want of descriptors, is tried again.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Resolvers load modules and want more than the copying does.
const STACK_BYTES: usize = 256 << 10;

/// The open doors of one attempt.
pub(crate) struct Relay {
    shared: Arc<Shared>,
}

impl Relay {
    /// Starts to accept; `listeners` are those of `doors`, in this order.
    pub(crate) fn start(doors: &[Door], listeners: Vec<OwnedFd>) -> io::Result<Self> {
        if doors.len() != listeners.len() {
            let message = format!("{} sockets for {} doors", listeners.len(), doors.len());
            return Err(io::Error::other(message));
        }
        let shared = Arc::new(Shared {
            doors: doors.iter().cloned().map(Counted::new).collect(),
            live: Mutex::default(),
            changed: Condvar::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let listeners: Vec<TcpListener> = listeners.into_iter().map(Into::into).collect();
        for listener in &listeners {
            listener.set_nonblocking(true)?;
        }
        let accepting = Arc::clone(&shared);
        std::thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || {
                accept_all(&accepting, &listeners);
                accepting.change(|live| live.accepted_all = true);
            })?;
        Ok(Self { shared })
    }

    /// Waits, not for long, for what the ended job has written, and says what was
    /// carried.
    pub(crate) fn finish(self) -> Vec<HostTraffic> {
        self.shared.change(|live| live.closing = true);
        let _ = rustix::io::write(&self.shared.wake, &1_u64.to_ne_bytes());
        let on_its_way = |live: &mut Live| !live.accepted_all || live.unsent > 0;
        let waited =
            self.shared
                .changed
                .wait_timeout_while(self.shared.live(), DRAIN_WAIT, on_its_way);
        drop(waited);
        self.shared.doors.iter().map(Counted::traffic).collect()
    }
}

struct Shared {
    doors: Vec<Counted>,
    live: Mutex<Live>,
    changed: Condvar,
    /// Interrupts the wait for connections.
    wake: OwnedFd,
}

#[derive(Default)]
struct Live {
    open: usize,
    /// Connections on which the job may have written what is not sent yet.
    unsent: usize,
    /// The job has ended: only what waits at the doors is still accepted.
    closing: bool,
    accepted_all: bool,
}

impl Shared {
    fn live(&self) -> MutexGuard<'_, Live> {
        // Numbers stay right whoever panicked.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Live)) {
        change(&mut self.live());
        self.changed.notify_all();
    }

    /// Waits until one more connection fits; says whether the job has ended.
    fn wait_for_room(&self) -> bool {
        let full = |live: &mut Live| live.open >= CONNECTIONS_MAX;
        let live = self.changed.wait_while(self.live(), full);
        live.unwrap_or_else(PoisonError::into_inner).closing
    }
}

/// A door and what went through it.
struct Counted {
    door: Door,
    connections: AtomicU64,
    refused: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Counted {
    fn new(door: Door) -> Self {
        Self {
            door,
            connections: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
        }
    }

    fn traffic(&self) -> HostTraffic {
        HostTraffic {
            host: self.door.endpoint(),
            connections: self.connections.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            bytes_sent: self.sent.load(Ordering::Relaxed),
            bytes_received: self.received.load(Ordering::Relaxed),
        }
    }
}

fn accept_all(shared: &Arc<Shared>, listeners: &[TcpListener]) {
    loop {
        let closing = shared.wait_for_room();
        let mut polled: Vec<PollFd<'_>> = listeners
            .iter()
            .map(|listener| PollFd::new(listener, PollFlags::IN))
            .collect();
        if !closing {
            polled.push(PollFd::new(&shared.wake, PollFlags::IN));
        }
        let at_once = Timespec::default();
        let ready = poll(&mut polled, closing.then_some(&at_once));
        if closing && ready == Ok(0) {
            return;
        }
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        for (door, listener) in listeners.iter().enumerate() {
            if !ready[door] || shared.live().open >= CONNECTIONS_MAX {
                continue;
            }
            match listener.accept() {
                Ok((client, _)) => begin(shared, door, client),
                Err(error) if passes(&error) => {}
                Err(_) => std::thread::sleep(ACCEPT_AGAIN),
            }
        }
    }
}

/// Errors after which the next try may succeed at once.
fn passes(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    matches!(error.kind(), ConnectionAborted | Interrupted | WouldBlock)
}

fn begin(shared: &Arc<Shared>, door: usize, client: TcpStream) {
    let connection = Connection::enter(Arc::clone(shared), door);
    let spawned = std::thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(move || connection.carry(client));
    // The closure is dropped with the client's end when there is no thread for it.
    drop(spawned);
}

/// One connection in the count of those that live.
struct Connection {
    shared: Arc<Shared>,
    door: usize,
    unsent: bool,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.all_sent();
        self.shared.change(|live| live.open -= 1);
    }
}

impl Connection {
    fn enter(shared: Arc<Shared>, door: usize) -> Self {
        shared.change(|live| {
            live.open += 1;
            live.unsent += 1;
        });
        Self {
            shared,
            door,
            unsent: true,
        }
    }

    fn all_sent(&mut self) {
        if std::mem::take(&mut self.unsent) {
            self.shared.change(|live| live.unsent -= 1);
        }
    }

    fn carry(mut self, client: TcpStream) {
        let shared = Arc::clone(&self.shared);
        let counted = &shared.doors[self.door];
        let Ok(upstream) = connect(&counted.door) else {
            counted.refused.fetch_add(1, Ordering::Relaxed);
            return reset(&client);
        };
        counted.connections.fetch_add(1, Ordering::Relaxed);
        if self.exchange(&client, &upstream, counted).is_err() {
            reset(&client);
            reset(&upstream);
        }
    }

    /// Copies both ways until both have ended.
    fn exchange(
        &mut self,
        client: &TcpStream,
        upstream: &TcpStream,
        counted: &Counted,
    ) -> io::Result<()> {
        for stream in [client, upstream] {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
        }
        let mut up = Direction::new(&counted.sent);
        let mut down = Direction::new(&counted.received);
        while !(up.ended && down.ended) {
            let [at_client, at_upstream] = wait(
                (client.as_fd(), up.wants_read(), down.wants_write()),
                (upstream.as_fd(), down.wants_read(), up.wants_write()),
            )?;
            up.advance(client, upstream, at_client.read, at_upstream.write)?;
            down.advance(upstream, client, at_upstream.read, at_client.write)?;
            if up.ended {
                self.all_sent();
            }
        }
        Ok(())
    }
}

/// One direction of a connection: at most one buffer is on its way.
struct Direction<'a> {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// The source has said that no more comes.
    source_ended: bool,
    /// Nothing more goes to the target.
    ended: bool,
    carried: &'a AtomicU64,
}

impl<'a> Direction<'a> {
    fn new(carried: &'a AtomicU64) -> Self {
        Self {
            buffer: vec![0; BUFFER_BYTES].into(),
            start: 0,
            end: 0,
            source_ended: false,
            ended: false,
            carried,
        }
    }

    fn wants_write(&self) -> bool {
        !self.ended && self.start < self.end
    }

    fn wants_read(&self) -> bool {
        !self.ended && !self.source_ended && !self.wants_write()
    }

    /// Fails when the source has broken off, which the target must learn as such.
    fn advance(
        &mut self,
        mut source: &TcpStream,
        mut target: &TcpStream,
        readable: bool,
        writable: bool,
    ) -> io::Result<()> {
        let mut write = writable;
        if readable && self.wants_read() {
            match source.read(&mut self.buffer) {
                Ok(0) => self.source_ended = true,
                Ok(length) => (self.start, self.end, write) = (0, length, true),
                Err(error) if passes(&error) => {}
                Err(error) => return Err(error),
            }
        }
        if write && self.wants_write() {
            match target.write(&self.buffer[self.start..self.end]) {
                Ok(length) => {
                    self.start += length;
                    self.carried.fetch_add(length as u64, Ordering::Relaxed);
                }
                Err(error) if passes(&error) => {}
                // It reads no more; what it has said before still goes the other way.
                Err(_) => self.ended = true,
            }
        }
        if self.source_ended && !self.ended && !self.wants_write() {
            // It fails when the target is gone, and then it is ended, too.
            drop(target.shutdown(Shutdown::Write));
            self.ended = true;
        }
        Ok(())
    }
}

/// What a socket can do now.
struct Able {
    read: bool,
    write: bool,
}

/// Waits until one of two sockets can do what is wanted of it. One of which nothing
/// is wanted is not looked at: its end would wake us again and again.
fn wait(
    one: (BorrowedFd<'_>, bool, bool),
    two: (BorrowedFd<'_>, bool, bool),
) -> io::Result<[Able; 2]> {
    let mut polled = Vec::with_capacity(2);
    let mut places = [None; 2];
    for (place, (fd, read, write)) in places.iter_mut().zip([one, two]) {
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::IN, read);
        wanted.set(PollFlags::OUT, write);
        if !wanted.is_empty() {
            *place = Some(polled.len());
            polled.push(PollFd::from_borrowed_fd(fd, wanted));
        }
    }
    let idle = Timespec {
        tv_sec: IDLE_S,
        tv_nsec: 0,
    };
    match poll(&mut polled, Some(&idle)) {
        Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let failed = PollFlags::HUP | PollFlags::ERR;
    Ok(places.map(|place| {
        let seen = place.map_or(PollFlags::empty(), |place: usize| polled[place].revents());
        Able {
            read: seen.intersects(PollFlags::IN | failed),
            write: seen.intersects(PollFlags::OUT | failed),
        }
    }))
}

fn connect(door: &Door) -> io::Result<TcpStream> {
    let addresses = (door.host.as_str(), door.port).to_socket_addrs()?;
    let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let allowed = addresses.filter(|address| may_lead_to(&door.host, address));
    for address in allowed.take(ADDRESSES_MAX) {
        match TcpStream::connect_timeout(&address, CONNECT_WAIT) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Whoever answers for a name decides where it leads. That must not be a way to
/// what listens on this machine only, such as the daemon, or on its link.
fn may_lead_to(host: &str, address: &SocketAddr) -> bool {
    let address = address.ip().to_canonical();
    if host.parse::<IpAddr>().is_ok() {
        return true;
    }
    if host == LOCALHOST {
        return address.is_loopback();
    }
    let near = match address {
        IpAddr::V4(address) => {
            address.is_link_local() || address.is_broadcast() || address.octets()[0] == 0
        }
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !(near || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

/// Breaks a connection off, so that its other end does not take it for complete.
fn reset(stream: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_to_no_address_of_this_machine_alone() {
        let may =
            |host: &str, ip: &str| may_lead_to(host, &SocketAddr::new(ip.parse().unwrap(), 443));
        for ip in ["192.0.2.1", "10.0.0.1", "2001:db8::1", "fd00::1"] {
            assert!(may("example.org", ip), "{ip}");
            assert!(!may("localhost", ip), "{ip}");
        }
        for ip in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fe80::1",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
        ] {
            assert!(!may("example.org", ip), "{ip}");
            assert!(!may("a.localhost", ip), "{ip}");
        }
        // Declared as such.
        assert!(may("localhost", "127.0.0.1") && may("localhost", "::1"));
        assert!(may("127.0.0.1", "127.0.0.1") && may("169.254.169.254", "169.254.169.254"));
    }
}
