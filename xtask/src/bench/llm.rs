//! The load client against an engine that costs nothing: what it takes of a CPU, how
//! many streams it starts in time, how soon it starts.
//!
//! The engine is a thread of this process on the last CPU, the client is pinned to the
//! first. CPU time of the client is that of its whole process: start, figures and
//! output are in it.

use std::process::Command;

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::Value;

use super::Row;
use crate::burst::{self, Manner};
use crate::meter::{self, Clock, Sample};
use crate::workspace::Workspace;

const CHUNKS: usize = 64;
const ROUNDS: usize = 3;
const SECONDS: u32 = 5;
const BURST_RATE: u32 = 10_000;
const CHUNK_RATE: u32 = 1000;
/// Streams a second that are tried, in order, until one is not sent in time.
const RATES: [u32; 6] = [5000, 10_000, 12_500, 15_000, 17_500, 20_000];
const DELAY_MS_MAX: f64 = 1.0;
const PEERS: &str = "not of this run: vllm bench 1,060 µs, aiperf 6,600, guidellm 8,100";

pub(super) fn run(workspace: &Workspace) -> Result<Vec<Row>> {
    let before = sched_getaffinity(None).context("read the CPUs of this process")?;
    let (first, last) = ends(&before);
    // Threads that are started inherit it: the engine's own, and one for each client.
    sched_setaffinity(None, &last)?;
    let burst = burst::start(CHUNKS, Manner::Burst)?.to_string();
    let chunk = burst::start(CHUNKS, Manner::ByChunk)?.to_string();
    sched_setaffinity(None, &first)?;
    let rows = rows(&Client { workspace }, &burst, &chunk);
    sched_setaffinity(None, &before)?;
    rows
}

fn rows(client: &Client<'_>, burst: &str, chunk: &str) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, address, rate, goal) in [
        ("in one write", burst, BURST_RATE, "≤ 50 µs CPU"),
        ("a write for each chunk", chunk, CHUNK_RATE, "–"),
    ] {
        let rounds: Result<Vec<Round>> =
            (0..=ROUNDS).map(|_| client.round(address, rate)).collect();
        // The first one warms the machine.
        let round = median(rounds?.split_off(1), |round| round.cpu_us);
        rows.push(Row {
            work: format!("a stream of {CHUNKS} chunks, {name}, {rate}/s"),
            ours: format!(
                "{:.1} µs CPU, of which {:.1} while it ran; {:.0}/s, late by {:.2} ms (p99)",
                round.cpu_us, round.running_us, round.rate, round.delay_ms
            ),
            goal,
            peer: PEERS.to_owned(),
            ratio: "–".to_owned(),
        });
    }
    let mut most = None;
    for rate in RATES {
        let rounds: Result<Vec<Round>> = (0..ROUNDS).map(|_| client.round(burst, rate)).collect();
        let round = median(rounds?, |round| round.delay_ms);
        if round.delay_ms >= DELAY_MS_MAX || round.rate < f64::from(rate) * 0.98 {
            break;
        }
        most = Some(round);
    }
    rows.push(Row::alone(
        "most streams a second that one CPU starts in time",
        most.map_or("none".to_owned(), |most| {
            format!(
                "{:.0}/s, late by {:.2} ms (p99), {:.0} % of the CPU",
                most.rate,
                most.delay_ms,
                most.share * 100.0
            )
        }),
        "≥ 10,000/s at p99 < 1 ms",
    ));
    let starts: Result<Vec<Sample>> = (0..=ROUNDS).map(|_| client.start(burst)).collect();
    let start = median(starts?.split_off(1), |start| start.wall);
    rows.push(Row::alone(
        "one request, from the start of the program to its end",
        format!(
            "{:.1} ms wall, {:.1} ms CPU",
            start.wall * 1e3,
            start.cpu * 1e3
        ),
        "≤ 20 ms",
    ));
    Ok(rows)
}

struct Client<'a> {
    workspace: &'a Workspace,
}

/// What one run of the client said, and took.
#[derive(Clone, Copy)]
struct Round {
    /// CPU time of the whole process for each stream.
    cpu_us: f64,
    /// The same as the client counts it, while it ran.
    running_us: f64,
    rate: f64,
    delay_ms: f64,
    share: f64,
}

impl Client<'_> {
    fn round(&self, address: &str, rate: u32) -> Result<Round> {
        let (rate, duration) = (rate.to_string(), format!("{SECONDS}s"));
        let mut figures = Value::Null;
        let sample = meter::measure(Clock::Children, 1, || {
            let words = ["--rate", &rate, "--duration", &duration, "--seed", "1"];
            figures = self.ask(address, &words)?;
            Ok(())
        })?;
        let number = |path: &str| {
            let value = figures.pointer(path).and_then(Value::as_f64);
            value.with_context(|| format!("the client says no `{path}`: {figures}"))
        };
        Ok(Round {
            cpu_us: sample.cpu * 1e6 / number("/counts/completed")?,
            running_us: number("/client/cpu_us_per_request")?,
            rate: number("/throughput/requests_per_s")?,
            delay_ms: number("/client/schedule_delay_ms/p99")?,
            share: number("/client/cpu_share")?,
        })
    }

    fn start(&self, address: &str) -> Result<Sample> {
        meter::measure(Clock::Children, 20, || {
            let words = [
                "--rate",
                "1000",
                "--arrivals",
                "constant",
                "--requests",
                "1",
            ];
            self.ask(address, &words).map(drop)
        })
    }

    /// The client ends with 6 when it was late, which is a figure here.
    fn ask(&self, address: &str, words: &[&str]) -> Result<Value> {
        let url = format!("http://{address}");
        let mut command = Command::new(self.workspace.program("release", "ml"));
        command.args(["bench", "llm", "--url", &url, "--model", "tiny", "--json"]);
        let output = command
            .args(words)
            .output()
            .context("start `ml bench llm`")?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Sets of the first and of the last CPU that this process may use.
fn ends(allowed: &CpuSet) -> (CpuSet, CpuSet) {
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    let (mut first, mut last) = (CpuSet::new(), CpuSet::new());
    let lowest = cpus.next().unwrap_or_default();
    first.set(lowest);
    last.set(cpus.next_back().unwrap_or(lowest));
    (first, last)
}

fn median<T: Copy>(mut rounds: Vec<T>, key: impl Fn(&T) -> f64) -> T {
    rounds.sort_by(|one, other| key(one).total_cmp(&key(other)));
    rounds[rounds.len() / 2]
}
