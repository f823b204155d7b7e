//! Routing before four simulated engines on real sockets: the time to the first token and
//! how much of the prompts the engines held, under prefixes that a few requests share.
//!
//! Each router has fresh engines and the same requests at the same instants. Peers are
//! those of `smg`, `sglang-router` and `vllm-router` that stand on PATH. The client, the
//! engines and the router share this machine.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Row;
use super::gateway::free_address;
use crate::step;
use crate::workspace::Workspace;

const ENGINES: usize = 4;
const WAIT_MAX: Duration = Duration::from_secs(60);
const PREFIXES: &str = "groups=32,chars=8192,popularity=1/rank";
const SEED: &str = "7";

/// One load, and what is asked of our first router under it.
struct Load {
    name: &'static str,
    goal: &'static str,
    rate: &'static str,
    /// An engine that takes longer for everything.
    slow: &'static [&'static str],
}

const LOADS: [Load; 3] = [
    Load {
        name: "100/s",
        goal: "≤ 16 / 55 ms, ≥ 0.88",
        rate: "100",
        slow: &[],
    },
    Load {
        name: "200/s",
        goal: "≤ 30 / 130 ms",
        rate: "200",
        slow: &[],
    },
    Load {
        name: "100/s, one engine 3 × slower",
        goal: "p99 ≥ 30 % under smg",
        rate: "100",
        slow: &["--slow", "3=3"],
    },
];

/// Whose routing is looked at. The first one's figures are the row's own.
const ROUTERS: [Router; 6] = [
    Router::Ours("hybrid_mesh"),
    Router::Ours("least_ttft"),
    Router::Ours("baseline_rr"),
    Router::Peer("smg", &["launch", "--policy", "cache_aware"]),
    Router::Peer("sglang-router", &["launch", "--policy", "cache_aware"]),
    Router::Peer("vllm-router", &["--policy", "cache_aware"]),
];

#[derive(Clone, Copy)]
enum Router {
    /// Of the gateway, by its strategy.
    Ours(&'static str),
    /// A program and how it is begun.
    Peer(&'static str, &'static [&'static str]),
}

pub(super) fn run(workspace: &Workspace) -> Result<Vec<Row>> {
    let rows = LOADS.iter().map(|load| {
        let mut figures = Vec::new();
        for router in ROUTERS {
            let name = match router {
                Router::Ours(name) => name,
                Router::Peer(name, _) if !step::on_path(name) => continue,
                Router::Peer(name, _) => name,
            };
            let figure = measure(workspace, load, router).context(name)?;
            step::tell(format_args!("{}: {name}: {figure}", load.name));
            figures.push((name, figure));
        }
        let ours = figures.remove(0).1;
        let others = figures
            .into_iter()
            .map(|(name, figure)| format!("{name} {figure}"));
        Ok(Row {
            work: format!("routing, {} (TTFT p50 / p99, cached share)", load.name),
            ours,
            goal: load.goal,
            peer: others.collect::<Vec<_>>().join("; "),
            ratio: "–".to_owned(),
        })
    });
    rows.collect()
}

/// The figures of one router under one load, before fresh engines.
fn measure(workspace: &Workspace, load: &Load, router: Router) -> Result<String> {
    let ml = workspace.program("release", "ml");
    let mut command = Command::new(&ml);
    command
        .args(["sim", "serve", "--listen", "127.0.0.1:0", "--engines"])
        .arg(ENGINES.to_string())
        .args(load.slow);
    let (_engines, lines) = Program::start(&mut command, ENGINES)?;
    let (_router, address) = match router {
        Router::Ours(strategy) => {
            let mut command = Command::new(workspace.program("release", "meshd"));
            command
                .args(["gateway", "--listen", "127.0.0.1:0", "--strategy", strategy])
                .arg("--target")
                .args(&lines);
            let (program, lines) = Program::start(&mut command, 1)?;
            let address = lines[0].rsplit("http://").next().unwrap_or_default();
            (program, address.parse().context("read where it listens")?)
        }
        Router::Peer(name, begun) => {
            let address = free_address()?;
            let mut command = Command::new(name);
            command
                .args(begun)
                .args(["--host", "127.0.0.1", "--port"])
                .arg(address.port().to_string())
                .args(["--prometheus-port", &free_address()?.port().to_string()])
                .arg("--worker-urls")
                .args(&lines)
                .stderr(Stdio::null());
            let (program, _) = Program::start(&mut command, 0)?;
            (program, address)
        }
    };
    answers(address)?;
    figures(&ml, load, address)
}

fn figures(ml: &Path, load: &Load, address: SocketAddr) -> Result<String> {
    let output = Command::new(ml)
        .args(["bench", "llm", "--url", &format!("http://{address}")])
        .args(["--model", "sim", "--rate", load.rate, "--duration", "24s"])
        .args(["--warmup", "4s", "--shared-prefix", PREFIXES])
        .args(["--prompt-chars", "1024", "--output-tokens", "32"])
        .args(["--seed", SEED, "--json"])
        .stderr(Stdio::inherit())
        .output()
        .context("start the load")?;
    let report: Value = serde_json::from_slice(&output.stdout).context("read the figures")?;
    let number = |path: &str| {
        let value = report.pointer(path).and_then(Value::as_f64);
        value.with_context(|| format!("there is no `{path}` in {report}"))
    };
    let p50 = number("/latency_ms/ttft/p50")?;
    let p99 = number("/latency_ms/ttft/p99")?;
    let share = number("/tokens/cached")? / number("/tokens/prompt")?;
    let failed = number("/counts/failed")?;
    let failed = match failed > 0.0 {
        true => format!(", {failed} failed"),
        false => String::new(),
    };
    Ok(format!("{p50:.1} / {p99:.1} ms, {share:.3}{failed}"))
}

/// Waits until a request is answered through it.
fn answers(address: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + WAIT_MAX;
    while TcpStream::connect(address).is_err() {
        ensure!(Instant::now() < deadline, "nobody answers at {address}");
        thread::sleep(Duration::from_millis(50));
    }
    // Peers look at their engines for a while before they send them anything.
    loop {
        let asked = Command::new("curl")
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code}"])
            .args(["-H", "Content-Type: application/json", "-d"])
            .arg(r#"{"model":"sim","max_tokens":1,"messages":[{"role":"user","content":"hi"}]}"#)
            .arg(format!("http://{address}/v1/chat/completions"))
            .output()
            .context("start `curl`")?;
        if asked.stdout == b"200" {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("no answer through {address}");
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// A program that ends with this value.
struct Program(Child);

impl Program {
    /// Starts it and reads its first lines.
    fn start(command: &mut Command, lines: usize) -> Result<(Program, Vec<String>)> {
        let output = match lines {
            0 => Stdio::null(),
            _ => Stdio::piped(),
        };
        let child = command.stdin(Stdio::null()).stdout(output).spawn();
        let mut program = Program(child.context("start a program")?);
        let Some(output) = program.0.stdout.take() else {
            return Ok((program, Vec::new()));
        };
        let read: std::io::Result<Vec<String>> =
            BufReader::new(output).lines().take(lines).collect();
        let read = read.context("read what it says")?;
        ensure!(read.len() == lines, "it ended before it listened");
        Ok((program, read))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
