//! What the gateway costs in CPU time beside haproxy: a request with a body of 1 KiB and of
//! 32 KiB, and a piece of a stream; closed loops over 64 kept connections, one worker
//! each, pinned to one processor. The client and the engine are this process, on another.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::process::Pid;
use rustix::thread::CpuSet;

use super::Row;
use crate::meter::{self, Sample};
use crate::step;
use crate::workspace::Workspace;

const CONNECTIONS: usize = 64;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);
const WAIT_MAX: Duration = Duration::from_secs(20);
const EVENTS_MAX: usize = 256;
const ANSWER: &str = "{\"id\":\"x\",\"object\":\"chat.completion\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"ok\"},\"finish_reason\":\"stop\"}]}";
const PIECE: &str = "data: {\"id\":\"x\",\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"word\"},\"finish_reason\":null}]}\n\n";
/// Pieces of one stream, each sent by itself.
const PIECES: u64 = 64;
const PIECE_INTERVAL: Duration = Duration::from_millis(4);

/// What goes through the gateway.
struct Work {
    name: &'static str,
    strategy: Strategy,
    goal: &'static str,
    body_bytes: usize,
    path: &'static str,
    /// What the figure is of, in each request.
    units: u64,
}

const WORKS: [Work; 4] = [
    Work {
        name: "gateway, baseline_rr: a request, 64 connections, 1 KiB",
        strategy: Strategy::Baseline,
        goal: "≤ 1.25 × haproxy",
        body_bytes: 1024,
        path: "/v1/chat/completions",
        units: 1,
    },
    Work {
        name: "gateway, hybrid_mesh: a request, 64 connections, 1 KiB",
        strategy: Strategy::Hybrid,
        goal: "≤ 1.5 × haproxy",
        body_bytes: 1024,
        path: "/v1/chat/completions",
        units: 1,
    },
    Work {
        name: "gateway, hybrid_mesh: a request, 64 connections, 32 KiB",
        strategy: Strategy::Hybrid,
        goal: "≤ 1.0 × haproxy",
        body_bytes: 32 * 1024,
        path: "/v1/chat/completions",
        units: 1,
    },
    Work {
        name: "gateway, hybrid_mesh: a piece of a stream, 64 streams",
        strategy: Strategy::Hybrid,
        goal: "≤ 1.05 × haproxy",
        body_bytes: 1024,
        path: STREAM,
        units: PIECES,
    },
];

/// How the gateway chooses.
#[derive(Clone, Copy)]
enum Strategy {
    Baseline,
    Hybrid,
}

/// Where the engine answers with a stream.
const STREAM: &str = "/stream";

/// The processor of the program that is measured, and that of everything else.
const MEASURED: usize = 0;
const OTHERS: usize = 1;

pub(super) fn run(workspace: &Workspace) -> Result<Vec<Row>> {
    ensure!(
        step::on_path("haproxy") && step::on_path("taskset"),
        "no `haproxy` or no `taskset` on PATH\nhint: as root, `apt-get install haproxy`"
    );
    ensure!(
        thread::available_parallelism()?.get() > OTHERS,
        "two processors are needed, one for what is measured"
    );
    let mut others = CpuSet::new();
    others.set(OTHERS);
    rustix::thread::sched_setaffinity(None, &others).context("pin this process")?;
    let folder = tempfile::tempdir()?;
    let engine = Engine::start()?;
    let meshd = workspace.program("release", "meshd");
    let baseline = gateway(&meshd, engine.address, "baseline_rr")?;
    let hybrid = gateway(&meshd, engine.address, "hybrid_mesh")?;
    let peer_at = free_address()?;
    let peer = haproxy(folder.path(), peer_at, engine.address)?;
    let rate = |work: &Work, program: &Program, at| {
        let cpu = meter::process(program.pid)?;
        let start = Instant::now();
        let done = load(work, at, ROUND)? * work.units;
        ensure!(done > 0, "nothing was answered");
        let each = |seconds: f64| seconds / done as f64;
        Ok(Sample {
            wall: each(start.elapsed().as_secs_f64()),
            cpu: each(meter::process(program.pid)? - cpu),
        })
    };
    let rows = WORKS.iter().map(|work| {
        let (ours, at) = match work.strategy {
            Strategy::Baseline => &baseline,
            Strategy::Hybrid => &hybrid,
        };
        let ours = || rate(work, ours, *at);
        let (ours, peer) = meter::paired(ROUNDS, ours, || rate(work, &peer, peer_at))?;
        Ok(Row {
            work: work.name.to_owned(),
            ours: shown(ours),
            goal: work.goal,
            peer: format!("haproxy: {}", shown(peer)),
            ratio: format!("{:.2}", ours.cpu / peer.cpu),
        })
    });
    rows.collect()
}

fn shown(sample: Sample) -> String {
    format!("{:.1} µs / {:.1} µs", sample.cpu * 1e6, sample.wall * 1e6)
}

/// A program that ends with this value.
struct Program {
    child: Child,
    pid: Pid,
}

impl Program {
    fn start(command: &mut Command) -> Result<Program> {
        let child = command.spawn().context("start a program")?;
        let pid = Pid::from_child(&child);
        Ok(Program { child, pid })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A command that will run on the processor of what is measured.
fn measured(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("taskset");
    command.arg("-c").arg(MEASURED.to_string()).arg(program);
    command
}

fn gateway(meshd: &Path, engine: SocketAddr, strategy: &str) -> Result<(Program, SocketAddr)> {
    let mut program = Program::start(
        measured(meshd)
            .args(["gateway", "--listen", "127.0.0.1:0", "--strategy", strategy])
            .arg("--target")
            .arg(format!("http://{engine}"))
            .stdout(Stdio::piped()),
    )?;
    let mut line = String::new();
    let output = program.child.stdout.take().context("a pipe")?;
    BufReader::new(output).read_line(&mut line)?;
    let address = line.trim().rsplit("http://").next().unwrap_or_default();
    let address = address
        .parse()
        .with_context(|| format!("`{line}` is no address"))?;
    Ok((program, address))
}

fn haproxy(folder: &Path, at: SocketAddr, engine: SocketAddr) -> Result<Program> {
    let file = folder.join("haproxy.cfg");
    let text = format!(
        "global\n  nbthread 1\n  maxconn 4096\n\
         defaults\n  mode http\n  option http-no-delay\n  http-reuse always\n\
         \x20 timeout connect 3s\n  timeout client 60s\n  timeout server 60s\n\
         frontend f\n  bind {at}\n  default_backend b\n\
         backend b\n  balance roundrobin\n  server s {engine}\n"
    );
    fs::write(&file, text)?;
    let program = Program::start(
        measured("haproxy")
            .arg("-db")
            .arg("-f")
            .arg(&file)
            .stderr(Stdio::null()),
    )?;
    let deadline = Instant::now() + WAIT_MAX;
    while TcpStream::connect(at).is_err() {
        ensure!(Instant::now() < deadline, "haproxy does not listen");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(program)
}

pub(super) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// A server that answers each request with the same small JSON, or with a stream.
struct Engine {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<Result<()>>>,
}

impl Engine {
    fn start() -> Result<Engine> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let thread = Some(thread::spawn(move || answer(&listener, &until)));
        Ok(Engine {
            address,
            stop,
            thread,
        })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn answer(listener: &TcpListener, stop: &AtomicBool) -> Result<()> {
    const LISTENER: u64 = u64::MAX;
    let whole = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{ANSWER}",
        ANSWER.len()
    );
    let head =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    let piece = format!("{:x}\r\n{PIECE}\r\n", PIECE.len());
    let last = format!("{piece}0\r\n\r\n");
    let poll = epoll::create(CreateFlags::CLOEXEC)?;
    let at_listener = EventData::new_u64(LISTENER);
    epoll::add(&poll, listener, at_listener, EventFlags::IN)?;
    let mut ends: Vec<Option<End>> = Vec::new();
    let mut next_piece = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        for index in ready(&poll, PIECE_INTERVAL / 4)? {
            if index == LISTENER {
                let (stream, _) = listener.accept()?;
                ends.push(Some(End::new(stream, &poll, ends.len())?));
                continue;
            }
            let place = &mut ends[index as usize];
            let Some(end) = place else { continue };
            match end.message() {
                Ok(None) => {}
                Ok(Some(line)) => {
                    let is_stream = line.contains(STREAM);
                    let text = if is_stream { head } else { &whole };
                    end.pieces = if is_stream { PIECES } else { 0 };
                    if end.stream.write_all(text.as_bytes()).is_err() {
                        *place = None;
                    }
                }
                Err(_) => *place = None,
            }
        }
        if Instant::now() < next_piece {
            continue;
        }
        next_piece = Instant::now() + PIECE_INTERVAL;
        for place in &mut ends {
            let Some(end) = place.as_mut().filter(|end| end.pieces > 0) else {
                continue;
            };
            end.pieces -= 1;
            let text = if end.pieces > 0 { &piece } else { &last };
            if end.stream.write_all(text.as_bytes()).is_err() {
                // The round is over.
                *place = None;
            }
        }
    }
    Ok(())
}

/// Sends requests over kept connections, the next when the last was answered, and counts
/// the answers.
fn load(work: &Work, at: SocketAddr, time: Duration) -> Result<u64> {
    let mut body = String::from("{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"");
    let end = "\"}]}";
    body.extend((body.len() + end.len()..work.body_bytes).map(|_| 'x'));
    body.push_str(end);
    let request = format!(
        "POST {} HTTP/1.1\r\nHost: {at}\r\nContent-Type: application/json\r\n\
         Authorization: Bearer none\r\nUser-Agent: bench\r\nAccept: */*\r\n\
         Content-Length: {}\r\n\r\n{body}",
        work.path,
        body.len()
    );
    let poll = epoll::create(CreateFlags::CLOEXEC)?;
    let mut ends = Vec::new();
    for index in 0..CONNECTIONS {
        let mut end = End::new(TcpStream::connect(at)?, &poll, index)?;
        end.stream.write_all(request.as_bytes())?;
        ends.push(end);
    }
    let (start, mut answers) = (Instant::now(), 0);
    while start.elapsed() < time {
        for index in ready(&poll, WAIT_MAX)? {
            let end = &mut ends[index as usize];
            if let Some(line) = end.message()? {
                ensure!(line.starts_with("HTTP/1.1 200 "), "an answer is `{line}`");
                answers += 1;
                end.stream.write_all(request.as_bytes())?;
            }
        }
    }
    Ok(answers)
}

/// One end of a connection, and what was read of the message under way.
struct End {
    stream: TcpStream,
    read: Vec<u8>,
    /// What the engine has still to send of a stream.
    pieces: u64,
}

impl End {
    fn new(stream: TcpStream, poll: &OwnedFd, index: usize) -> Result<End> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let index = EventData::new_u64(index as u64);
        epoll::add(poll, &stream, index, EventFlags::IN)?;
        Ok(End {
            stream,
            read: Vec::new(),
            pieces: 0,
        })
    }

    /// Reads once. When the message is whole its first line is returned.
    fn message(&mut self) -> Result<Option<String>> {
        let mut piece = [0; 64 * 1024];
        match self.stream.read(&mut piece) {
            Ok(0) => bail!("the connection ended"),
            Ok(bytes) => self.read.extend(&piece[..bytes]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let Some(head) = self.read.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&self.read[..head]);
        let length = text.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            let is_length = name.eq_ignore_ascii_case("content-length");
            is_length.then(|| value.parse::<usize>().ok())?
        });
        let is_whole = match length {
            Some(length) => self.read.len() == head + 4 + length,
            // Only one message is ever under way.
            None => self.read.ends_with(b"\r\n0\r\n\r\n"),
        };
        let line = text.lines().next().unwrap_or_default().to_owned();
        if is_whole {
            self.read.clear();
        }
        Ok(is_whole.then_some(line))
    }
}

/// What can be read, by the number that it was added with.
fn ready(poll: &OwnedFd, wait: Duration) -> Result<Vec<u64>> {
    let wait = rustix::event::Timespec::try_from(wait)?;
    let mut events = Vec::<Event>::with_capacity(EVENTS_MAX);
    let buffer = rustix::buffer::spare_capacity(&mut events);
    epoll::wait(poll, buffer, Some(&wait))?;
    Ok(events.iter().map(|event| event.data.u64()).collect())
}
