//! Durable submissions over open connections against bare `fdatasync` on the same disk.
//!
//! `submit_bench DATA_DIR RUN [EACH]`: a daemon serves DATA_DIR, and RUN is a run that
//! has not ended, whose commit is used and for which every submission waits (`after:`),
//! so that nothing but submitting is measured. Prints one line of JSON; times in
//! microseconds, CPU times per submission and from `/proc`.
//!
//! The clients share the machine with the daemon, so they are lean: one thread, TLS
//! sessions that stand before the clock starts, a body that is made once. Each request
//! is a whole HTTPS request with an idempotency key of its own, it is sent when the
//! answer to the one before has come, and what is counted is answered with 200.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use mlmesh_api::{Client, DaemonFile, IdempotencyKey, read_key};
use mlmesh_model::{Experiment, ReproPolicy, Submission, Workload};
use rustix::event::epoll;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

type Failure = Box<dyn Error>;

const ALONE: usize = 400;
const CLIENTS: usize = 64;
const EACH: usize = 160;
/// Submissions of each client before the clock starts.
const WARM: usize = 10;
/// Microseconds of a tick in `/proc`, fixed by the kernel's interface.
const TICK_US: f64 = 10_000.0;

fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [data_dir, run, each @ ..] = words.as_slice() else {
        return Err("usage: submit_bench DATA_DIR RUN [EACH]".into());
    };
    let each = each.first().map_or(Ok(EACH), |text| text.parse())?;
    let data_dir = Path::new(data_dir);
    let client = Client::open(data_dir)?;
    let submission = submission(&client, run)?;
    client.submit(&submission, &IdempotencyKey::random()?)?;
    let file = DaemonFile::read(data_dir)?;
    let key = read_key(&data_dir.join("owner.key"))?;
    let clients = Clients::new(&file, &key, &serde_json::to_vec(&submission)?)?;
    let (mut ours, mut peer) = alone(&clients, data_dir)?;
    let mut typed = typed(&client, &submission)?;
    let many = together(&clients, file.pid, each)?;
    let line = serde_json::json!({
        "submit_p50_us": median(&mut ours) as u64,
        "submit_typed_p50_us": median(&mut typed) as u64,
        "fdatasync_p50_us": median(&mut peer) as u64,
        "clients": CLIENTS,
        "submits_per_s": many.per_s.round(),
        "daemon_cpu_us": many.daemon_cpu_us.round(),
        "client_cpu_us": many.client_cpu_us.round(),
    });
    writeln!(io::stdout(), "{line}")?;
    Ok(())
}

/// One client and bare flushes, in turn.
fn alone(clients: &Clients, data_dir: &Path) -> Result<(Vec<u128>, Vec<u128>), Failure> {
    let mut ours = Vec::with_capacity(ALONE);
    let mut peer = Vec::with_capacity(ALONE);
    let path = data_dir.join("submit_bench.tmp");
    let mut file = File::create(&path)?;
    let mut connection = clients.connect()?;
    for number in 0..ALONE + WARM {
        let start = Instant::now();
        connection.send(clients)?;
        while !connection.take_answer()? {}
        let took = start.elapsed().as_micros();
        let start = Instant::now();
        file.rewind()?;
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        if number >= WARM {
            ours.push(took);
            peer.push(start.elapsed().as_micros());
        }
    }
    std::fs::remove_file(path)?;
    Ok((ours, peer))
}

/// One program with the typed client, which is what `ml` uses.
fn typed(client: &Client, submission: &Submission) -> Result<Vec<u128>, Failure> {
    (0..ALONE)
        .map(|_| {
            let key = IdempotencyKey::random()?;
            let start = Instant::now();
            client.submit(submission, &key)?;
            Ok(start.elapsed().as_micros())
        })
        .collect()
}

/// What many clients at once came to.
struct Many {
    per_s: f64,
    daemon_cpu_us: f64,
    client_cpu_us: f64,
}

/// Every client sends its next submission when its last one is answered.
fn together(clients: &Clients, daemon: u32, each: usize) -> Result<Many, Failure> {
    let mut connections = (0..CLIENTS)
        .map(|_| clients.connect())
        .collect::<Result<Vec<_>, _>>()?;
    submit_all(clients, &mut connections, WARM)?;
    let daemon = format!("/proc/{daemon}/stat");
    let before = (cpu_us(&daemon)?, cpu_us("/proc/self/stat")?);
    let start = Instant::now();
    submit_all(clients, &mut connections, each)?;
    let took = start.elapsed().as_secs_f64();
    let count = (CLIENTS * each) as f64;
    Ok(Many {
        per_s: count / took,
        daemon_cpu_us: (cpu_us(&daemon)? - before.0) / count,
        client_cpu_us: (cpu_us("/proc/self/stat")? - before.1) / count,
    })
}

fn submit_all(
    clients: &Clients,
    connections: &mut [Connection],
    each: usize,
) -> Result<(), Failure> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut left = vec![each; connections.len()];
    for (place, connection) in connections.iter_mut().enumerate() {
        let data = epoll::EventData::new_u64(place as u64);
        epoll::add(&epoll, &connection.socket, data, epoll::EventFlags::IN)?;
        connection.send(clients)?;
    }
    let mut events = Vec::with_capacity(connections.len());
    let mut busy = connections.len();
    while busy > 0 {
        events.clear();
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None)?;
        for event in &events {
            let place = usize::try_from(event.data.u64())?;
            if !connections[place].take_answer()? {
                continue;
            }
            left[place] -= 1;
            match left[place] {
                0 => busy -= 1,
                _ => connections[place].send(clients)?,
            }
        }
    }
    Ok(())
}

/// What all connections have in common.
struct Clients {
    tls: Arc<ClientConfig>,
    address: String,
    /// The request up to its idempotency key, and from there on.
    before_key: Vec<u8>,
    after_key: Vec<u8>,
}

impl Clients {
    fn new(file: &DaemonFile, key: &str, body: &[u8]) -> Result<Self, Failure> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&file.ca)?)?;
        let tls = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let address = file.urls.api.trim_start_matches("https://").to_owned();
        let before_key = format!(
            "POST /v1/runs HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\nidempotency-key: ",
            body.len()
        );
        Ok(Self {
            tls: Arc::new(tls),
            address,
            before_key: before_key.into_bytes(),
            after_key: [b"\r\n\r\n", body].concat(),
        })
    }

    /// A connection whose handshake is over.
    fn connect(&self) -> Result<Connection, Failure> {
        let mut socket = TcpStream::connect(&self.address)?;
        socket.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        let mut tls = ClientConnection::new(Arc::clone(&self.tls), name)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut socket)?;
        }
        let mut name = [0_u8; 8];
        File::open("/dev/urandom")?.read_exact(&mut name)?;
        Ok(Connection {
            socket,
            tls,
            name: u64::from_ne_bytes(name),
            number: 0,
            request: Vec::new(),
            answer: Vec::new(),
        })
    }
}

/// One client with one request on its way at most.
struct Connection {
    socket: TcpStream,
    tls: ClientConnection,
    /// Random, so that connections do not share idempotency keys.
    name: u64,
    number: u64,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Connection {
    fn send(&mut self, clients: &Clients) -> Result<(), Failure> {
        self.number += 1;
        self.request.clear();
        self.request.extend_from_slice(&clients.before_key);
        write!(self.request, "{:016x}-{}", self.name, self.number)?;
        self.request.extend_from_slice(&clients.after_key);
        self.tls.writer().write_all(&self.request)?;
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.socket)?;
        }
        Ok(())
    }

    /// Reads what has come (waits for something) and tells whether the answer is whole.
    fn take_answer(&mut self) -> Result<bool, Failure> {
        if self.tls.read_tls(&mut self.socket)? == 0 {
            return Err("the daemon closed a connection".into());
        }
        let plain = self.tls.process_new_packets()?.plaintext_bytes_to_read();
        let known = self.answer.len();
        self.answer.resize(known + plain, 0);
        self.tls.reader().read_exact(&mut self.answer[known..])?;
        let Some(head) = self.answer.windows(4).position(|end| end == b"\r\n\r\n") else {
            return Ok(false);
        };
        let text = std::str::from_utf8(&self.answer[..head])?;
        let length = text
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .ok_or("an answer without a length")?;
        let length: usize = length.parse()?;
        if self.answer.len() < head + 4 + length {
            return Ok(false);
        }
        if !text.starts_with("HTTP/1.1 200 ") {
            return Err(String::from_utf8_lossy(&self.answer).into());
        }
        self.answer.clear();
        Ok(true)
    }
}

/// CPU time of a process, in user and in system mode.
fn cpu_us(stat: &str) -> Result<f64, Failure> {
    let text = std::fs::read_to_string(stat)?;
    let (_, fields) = text.rsplit_once(") ").ok_or("no process")?;
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks = ticks
        .map(str::parse::<f64>)
        .collect::<Result<Vec<_>, _>>()?;
    Ok(ticks.iter().sum::<f64>() * TICK_US)
}

fn submission(client: &Client, run: &str) -> Result<Submission, Failure> {
    let first = client.run(run)?;
    let experiment: Experiment = serde_json::from_value(serde_json::json!({
        "name": "submitted",
        "command": ["true"],
        "seed": "none",
        "after": [run],
    }))?;
    Ok(Submission {
        workload: Workload::Experiment(Box::new(experiment)),
        commit: first.commit.to_string().parse()?,
        recipe_path: "bench.yaml".to_owned(),
        git: None,
        lock: None,
        current: None,
        policy: ReproPolicy::Relaxed,
        executor: None,
        priority: 0,
        expected_plan: None,
        secret_values: Default::default(),
    })
}

fn median(samples: &mut [u128]) -> u128 {
    samples.sort_unstable();
    samples[samples.len() / 2]
}
