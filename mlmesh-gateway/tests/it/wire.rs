//! Sockets of a test, with a deadline for whatever is waited for.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use mlmesh_gateway::{Gateway, Runtime, Settings, Signals, Target, Waits};

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A gateway, and the targets that the test plays.
pub(crate) struct Place {
    pub(crate) gateway: Gateway,
    pub(crate) targets: Vec<TcpListener>,
}

/// One end of a connection.
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    /// Read and not yet asked for.
    left: Vec<u8>,
    /// What the last response said of its decision; the field is not in what is read.
    pub(crate) number: Option<u64>,
}

impl Place {
    pub(crate) fn new() -> Place {
        Place::with(1, Waits::default())
    }

    pub(crate) fn with(targets: usize, waits: Waits) -> Place {
        Place::of(targets, |settings| settings.waits = waits)
    }

    /// With other settings than usual.
    pub(crate) fn of(targets: usize, change: impl FnOnce(&mut Settings)) -> Place {
        let listener = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let targets: Vec<TcpListener> = (0..targets).map(listener).collect();
        let addresses = targets.iter().map(|target| target.local_addr().unwrap());
        let mut settings = settings(addresses);
        change(&mut settings);
        let gateway = Gateway::start(settings).unwrap();
        Place { gateway, targets }
    }

    pub(crate) fn client(&self) -> Wire {
        Wire::connect(self.gateway.address())
    }

    /// The next connection that the gateway makes to the first target.
    pub(crate) fn target(&self) -> Wire {
        self.target_at(0)
    }

    pub(crate) fn target_at(&self, index: usize) -> Wire {
        accepted(&self.targets[index])
    }

    /// Whether no connection to the first target waits to be accepted.
    pub(crate) fn is_untouched(&self) -> bool {
        self.targets[0].set_nonblocking(true).unwrap();
        self.targets[0].accept().is_err()
    }

    /// A client and a target with this request between them, which arrived as `expected`.
    pub(crate) fn carried(&self, request: &str) -> (Wire, Wire) {
        let mut client = self.client();
        client.send(request);
        let mut target = self.target();
        target.until("\r\n\r\n");
        (client, target)
    }

    /// A value of the metrics page.
    pub(crate) fn metric(&self, series: &str) -> i64 {
        let mut client = self.client();
        client.send("GET /-/metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let page = client.rest();
        let line = page.lines().find_map(|line| line.strip_prefix(series));
        let value = line.unwrap_or_else(|| panic!("no `{series}` in {page}"));
        value.trim().parse().unwrap()
    }

    /// Waits until the first target has had so many requests with this outcome.
    pub(crate) fn counted(&self, outcome: &str, times: i64) {
        let target = self.targets[0].local_addr().unwrap();
        let labels = format!("{{target=\"{target}\",outcome=\"{outcome}\"}}");
        let series = format!("mlmesh_gateway_requests_total{labels}");
        eventually(|| self.metric(&series) == times);
    }
}

/// Targets that the test plays are asked for what it asks.
pub(crate) fn unasked() -> Signals {
    Signals {
        runtime: Runtime::Unasked,
        ..Signals::default()
    }
}

pub(crate) fn settings(targets: impl Iterator<Item = SocketAddr>) -> Settings {
    let target = |address: SocketAddr| format!("http://{address}").parse::<Target>().unwrap();
    Settings {
        strategy: "baseline_rr".to_owned(),
        signals: unasked(),
        ..Settings::new(
            (Ipv4Addr::LOCALHOST, 0).into(),
            targets.map(target).collect(),
        )
    }
}

/// The next connection that is made to this listener.
pub(crate) fn accepted(listener: &TcpListener) -> Wire {
    listener.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                return Wire::of(stream);
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        assert!(Instant::now() < deadline, "no connection to the target");
        std::thread::yield_now();
    }
}

pub(crate) fn eventually(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come true");
        std::thread::yield_now();
    }
}

impl Wire {
    pub(crate) fn of(stream: TcpStream) -> Wire {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Wire {
            stream,
            left: Vec::new(),
            number: None,
        }
    }

    pub(crate) fn connect(address: SocketAddr) -> Wire {
        Wire::of(TcpStream::connect(address).unwrap())
    }

    pub(crate) fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).unwrap();
    }

    /// Everything up to and with this mark.
    pub(crate) fn until(&mut self, mark: &str) -> String {
        loop {
            let place = self
                .left
                .windows(mark.len())
                .position(|part| part == mark.as_bytes());
            if let Some(place) = place {
                let rest = self.left.split_off(place + mark.len());
                let text = std::mem::replace(&mut self.left, rest);
                return String::from_utf8(text).unwrap();
            }
            assert!(
                self.more(),
                "ended after {:?}",
                String::from_utf8_lossy(&self.left)
            );
        }
    }

    pub(crate) fn exactly(&mut self, bytes: usize) -> Vec<u8> {
        while self.left.len() < bytes {
            assert!(self.more(), "ended after {} bytes", self.left.len());
        }
        let rest = self.left.split_off(bytes);
        std::mem::replace(&mut self.left, rest)
    }

    /// Reads what is expected, and fails with what came instead.
    pub(crate) fn expect(&mut self, text: &str) {
        let got = self.exactly(text.len());
        assert_eq!(String::from_utf8_lossy(&got), text);
    }

    /// Everything up to the orderly end of the connection.
    pub(crate) fn rest(&mut self) -> String {
        while self.more() {}
        String::from_utf8(std::mem::take(&mut self.left)).unwrap()
    }

    /// Waits for the end, orderly or not; nothing more may come before it.
    pub(crate) fn ended(&mut self) {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(bytes) => assert_eq!((bytes, self.left.as_slice()), (0, &[][..])),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }

    /// Closes in a way that the other side sees as an error.
    pub(crate) fn reset(self) {
        socket_linger_zero(&self.stream);
    }

    /// Reads until the other side has closed, whatever comes.
    pub(crate) fn finish(&mut self) {
        let mut piece = [0; 1024];
        while matches!(self.stream.read(&mut piece), Ok(bytes) if bytes > 0) {}
    }

    /// Whether the other side has something to say, now or later.
    pub(crate) fn is_open(&mut self) -> bool {
        !self.left.is_empty() || matches!(self.stream.peek(&mut [0]), Ok(1))
    }

    /// Each response has a number of its own, which no expectation can know.
    fn take_number(&mut self) {
        const NAME: &[u8] = b"mlmesh-request: ";
        let find =
            |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|part| part == what);
        while let Some(from) = find(&self.left, NAME) {
            let rest = &self.left[from + NAME.len()..];
            let Some(digits) = find(rest, b"\r\n") else {
                return;
            };
            let number = std::str::from_utf8(&rest[..digits]).unwrap();
            self.number = Some(number.parse().unwrap());
            let to = from + NAME.len() + digits + 2;
            self.left.drain(from..to);
        }
    }

    fn more(&mut self) -> bool {
        let mut piece = [0; 16 * 1024];
        let bytes = self.stream.read(&mut piece).unwrap();
        self.left.extend(&piece[..bytes]);
        self.take_number();
        bytes > 0
    }
}

/// A close with unread bytes is a reset; without them `SO_LINGER` makes one.
fn socket_linger_zero(stream: &TcpStream) {
    rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)).unwrap();
}
