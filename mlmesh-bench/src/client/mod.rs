//! The client: a loop for each thread, and what they measured put together.
//!
//! Request `i` belongs to thread `i mod n`; threads share nothing but the clock, so
//! that neither instants nor prompts depend on how many there are.

mod connection;
mod pacer;
mod request;
mod secure;
mod timer;
mod worker;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::error::BenchError;
use crate::plan::Plan;
use crate::prompt::Prompts;
use crate::sample::Run;
use secure::Trust;
use worker::Worker;

/// Descriptors that are kept for what is no connection.
const DESCRIPTORS_KEPT: u64 = 64;

/// Where connections lead, and whom they believe there.
struct Route {
    address: SocketAddr,
    trust: Option<Trust>,
}

/// What another thread sees of a load while it runs, and how it ends it.
#[derive(Debug, Default)]
pub struct Watch {
    /// Set to true, it ends the load before its time.
    pub stop: Arc<AtomicBool>,
    /// Requests that the client has turned to; some milliseconds old.
    pub started: AtomicU64,
    /// Of these, those that are over.
    pub ended: AtomicU64,
}

/// Sends the load and measures.
pub fn run(plan: &Plan, watch: &Watch) -> Result<Run, BenchError> {
    plan.check()?;
    let route = Route {
        address: plan.target.resolve()?,
        trust: match plan.target.is_secure {
            true => Some(Trust::new(&plan.target, plan.ca_file.as_deref())?),
            false => None,
        },
    };
    let connections = raise_descriptors(plan.connections_max) / plan.threads;
    let prompts = Prompts::new(plan.seed, plan.shared_prefix);
    let cpu_before = cpu_us();
    let start = Instant::now();
    let work = |thread: usize| {
        let worker = Worker::new(plan, &prompts, &route, start, thread, connections.max(1))?;
        worker.run(watch)
    };
    let parts: Vec<Result<Run, BenchError>> = if plan.threads == 1 {
        vec![work(0)]
    } else {
        thread::scope(|scope| {
            let threads: Vec<_> = (0..plan.threads)
                .map(|thread| scope.spawn(move || work(thread)))
                .collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined
                .map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        })
    };
    let mut whole = Run::default();
    for part in parts {
        whole.merge(part?);
    }
    whole.samples.sort_by_key(|sample| sample.index);
    whole.cpu_us = cpu_us().saturating_sub(cpu_before);
    Ok(whole)
}

impl Run {
    fn merge(&mut self, mut other: Run) {
        let offset = self.stamps.at_us.len();
        self.stamps.at_us.append(&mut other.stamps.at_us);
        self.stamps.tokens.append(&mut other.stamps.tokens);
        for mut sample in other.samples {
            sample.chunks = sample.chunks.start + offset..sample.chunks.end + offset;
            self.samples.push(sample);
        }
        for (fault, said) in other.said {
            self.said.entry(fault).or_insert(said);
        }
        self.wall_us = self.wall_us.max(other.wall_us);
        self.connections += other.connections;
        self.waited += other.waited;
        self.interrupted |= other.interrupted;
    }
}

/// CPU time of the process so far.
fn cpu_us() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}

/// Asks for as many descriptors as connections may need; how many there may be.
fn raise_descriptors(connections: usize) -> usize {
    let wanted = connections as u64 + DESCRIPTORS_KEPT;
    let limit = getrlimit(Resource::Nofile);
    let current = limit.current.unwrap_or(u64::MAX);
    if current >= wanted {
        return connections;
    }
    let raised = wanted.min(limit.maximum.unwrap_or(u64::MAX));
    let asked = Rlimit {
        current: Some(raised),
        maximum: limit.maximum,
    };
    let open = match setrlimit(Resource::Nofile, asked) {
        Ok(()) => raised,
        Err(_) => current,
    };
    open.saturating_sub(DESCRIPTORS_KEPT).max(1) as usize
}
