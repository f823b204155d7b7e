//! The figures of a run, and its raw samples, as JSON with a version.
//!
//! What each figure means stands in `docs/bench.md`. Latencies are measured from the
//! intended instant: a client that is late makes them larger, never smaller.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::arrivals::Arrivals;
use crate::delta::Usage;
use crate::plan::{Endpoint, Pace, Plan, PromptLength};
use crate::sample::{Fault, Run, Sample};
use crate::slo::Slo;
use crate::statistics::{Figure, Summary, summarise};

/// Name and version of the JSON.
pub const SCHEMA: &str = "mlmesh.bench_llm/1";

/// Beyond this 99th percentile of the schedule delay (of few requests the highest that
/// they support) the client was the bottleneck and the figures are not the engine's.
pub const SCHEDULE_DELAY_MS_MAX: f64 = 10.0;

/// A run in figures.
#[derive(Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// Version of the program that measured.
    pub version: &'static str,
    /// What was asked for.
    pub load: Load,
    /// How many requests met what.
    pub counts: Counts,
    /// Requests and tokens a second.
    pub throughput: Throughput,
    /// Tokens, as the engine counts them.
    pub tokens: Tokens,
    /// Latencies in milliseconds.
    pub latency_ms: Latencies,
    /// Requests that keep a service level; absent when none was given.
    pub goodput: Option<Goodput>,
    /// The client itself.
    pub client: Client,
    /// Whether the figures are the engine's.
    pub validity: Validity,
    /// One for each request; absent where only figures are wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<Vec<RequestDto>>,
}

/// What was asked for, as it was understood.
#[derive(Debug, Serialize)]
pub struct Load {
    /// Where requests went.
    pub url: String,
    /// `chat` or `completions`.
    pub endpoint: &'static str,
    /// The model that they named.
    pub model: String,
    /// Whether answers were streamed.
    pub stream: bool,
    /// `open`, `closed` or `trace`.
    pub pace: &'static str,
    /// `poisson`, `constant` or `gamma`, of an open loop.
    pub arrivals: Option<&'static str>,
    /// Requests a second, of an open loop.
    pub rate: Option<f64>,
    /// Coefficient of variation of the gaps, of an open loop.
    pub cv: Option<f64>,
    /// Requests at once, of a closed loop.
    pub concurrency: Option<usize>,
    /// Time between an answer and the next request, of a closed loop.
    pub think: Option<String>,
    /// How much faster than recorded, of a trace's instants.
    pub speed: Option<f64>,
    /// Requests of the trace that lengths come from.
    pub trace_requests: Option<usize>,
    /// Bound on requests.
    pub requests: Option<u64>,
    /// Bound on time.
    pub duration_s: Option<f64>,
    /// What was left out at the beginning.
    pub warmup_s: f64,
    /// When an answer was given up.
    pub timeout_s: f64,
    /// Characters of prompts, when they were given.
    pub prompt_chars: Option<String>,
    /// Tokens of prompts, about, when they were given.
    pub prompt_tokens: Option<String>,
    /// Tokens that were asked for, when they were given.
    pub output_tokens: Option<String>,
    /// Whether the engine was asked to go on to the last of them.
    pub ignore_eos: bool,
    /// Whether the engine was asked to count tokens in each chunk.
    pub count_each_chunk: bool,
    /// Beginnings that prompts shared.
    pub shared_prefix: Option<String>,
    /// Fixes schedule and prompts.
    pub seed: u64,
    /// Loops of the client.
    pub threads: usize,
}

/// How many requests met what. `counted` are those behind the warm-up.
#[derive(Debug, Serialize)]
pub struct Counts {
    /// That were due.
    pub requests: usize,
    /// Left out as warm-up.
    pub warmup: usize,
    /// In the figures.
    pub counted: usize,
    /// Of these, with a whole answer.
    pub completed: usize,
    /// Of these, without one; a run's end is no fault.
    pub failed: usize,
    /// Under way when the run was ended.
    pub interrupted: usize,
    /// Faults by kind.
    pub errors: BTreeMap<String, usize>,
    /// What the engine said of the first fault of a kind, cut.
    pub said: BTreeMap<String, String>,
}

/// Requests and tokens a second, over the time from the warm-up's end to the last byte.
#[derive(Debug, Serialize)]
pub struct Throughput {
    /// That time.
    pub window_s: f64,
    /// Whole answers.
    pub requests_per_s: Figure,
    /// Of answers; absent unless the engine counted every one.
    pub output_tokens_per_s: Figure,
    /// Of prompts; absent unless the engine counted every one.
    pub prompt_tokens_per_s: Figure,
}

/// Tokens, as the engine counts them. Nothing is guessed.
#[derive(Debug, Serialize)]
pub struct Tokens {
    /// Whole answers with the engine's count.
    pub answers_with_usage: usize,
    /// Whole answers without one.
    pub answers_without_usage: usize,
    /// Of prompts.
    pub prompt: Option<u64>,
    /// Of answers.
    pub completion: Option<u64>,
    /// Of prompts, from a cache; absent unless the engine said so of every answer.
    pub cached: Option<u64>,
    /// Why token figures are absent.
    pub absent: Option<&'static str>,
}

/// Latencies in milliseconds, of whole answers.
#[derive(Debug, Serialize)]
pub struct Latencies {
    /// Intended instant to first chunk with text.
    pub ttft: Summary,
    /// Last byte sent to first chunk with text.
    pub ttft_from_sent: Summary,
    /// Intended instant to last byte.
    pub e2e: Summary,
    /// Last byte sent to last byte.
    pub e2e_from_sent: Summary,
    /// Time per output token after the first, one value a request.
    pub tpot: Summary,
    /// Between two chunks with text, one value a chunk.
    pub itl_chunk: Summary,
    /// Between two tokens, one value a token.
    pub itl_token: Summary,
    /// Requests in `itl_token` whose tokens each chunk were known.
    pub itl_token_exact_requests: usize,
    /// Requests in it whose tokens were spread over their chunks evenly.
    pub itl_token_spread_requests: usize,
}

/// Requests that keep a service level.
#[derive(Debug, Serialize)]
pub struct Goodput {
    /// Time to first token, in milliseconds.
    pub ttft_ms: Figure,
    /// Time per output token, in milliseconds.
    pub tpot_ms: Figure,
    /// To the last byte, in milliseconds.
    pub e2e_ms: Figure,
    /// Requests that kept all of them.
    pub good: Option<usize>,
    /// Of all counted requests, faults too.
    pub share: Figure,
    /// Good requests a second.
    pub requests_per_s: Figure,
    /// Why it is absent.
    pub absent: Option<&'static str>,
}

/// What the client was like.
#[derive(Debug, Serialize)]
pub struct Client {
    /// How late requests were turned to, of all that were due.
    pub schedule_delay_ms: Summary,
    /// CPU time of the client for each request.
    pub cpu_us_per_request: Figure,
    /// CPU time over wall time and threads; near 1 the client can do no more.
    pub cpu_share: Figure,
    /// Connections that were opened.
    pub connections: u64,
    /// Requests on a connection that had served another.
    pub reused: usize,
    /// Requests that found every connection taken and waited for one.
    pub waited: u64,
}

/// Whether the figures are the engine's.
#[derive(Debug, Serialize)]
pub struct Validity {
    /// Whether they are.
    pub valid: bool,
    /// Why not.
    pub reasons: Vec<String>,
}

/// One request. Instants are microseconds from the start of the run.
#[derive(Debug, Serialize)]
pub struct RequestDto {
    index: u64,
    warmup: bool,
    intended_us: u64,
    started_us: u64,
    sent_us: Option<u64>,
    first_byte_us: Option<u64>,
    first_token_us: Option<u64>,
    chunks_us: Vec<u64>,
    chunk_tokens: Option<Vec<u32>>,
    last_byte_us: Option<u64>,
    usage: Option<Usage>,
    error: Option<String>,
    status: Option<u16>,
    retry_after_s: Option<u64>,
    prompt_chars: u64,
    output_tokens_max: u64,
    group: Option<u32>,
    reused: bool,
}

impl Report {
    /// Computes the figures of a run.
    pub fn new(plan: &Plan, slo: Option<Slo>, run: &Run) -> Self {
        let counted: Vec<&Sample> = run
            .samples
            .iter()
            .filter(|sample| sample.intended_us >= plan.warmup_us)
            .collect();
        let whole: Vec<&Sample> = counted
            .iter()
            .copied()
            .filter(|sample| sample.fault.is_none())
            .collect();
        let last_us = counted
            .iter()
            .filter_map(|sample| sample.last_byte_us)
            .max();
        let window_us = last_us.map_or(0, |last| last.saturating_sub(plan.warmup_us));
        let counts = counts(run, &counted, whole.len());
        let tokens = tokens(&whole);
        let client = client(plan, run);
        Self {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION"),
            load: load(plan),
            throughput: throughput(window_us, &whole, &tokens),
            latency_ms: latencies(run, &whole),
            goodput: slo.map(|slo| {
                goodput(
                    plan,
                    run,
                    slo,
                    counts.counted - counts.interrupted,
                    &whole,
                    window_us,
                )
            }),
            validity: validity(&counts, &client, run),
            counts,
            tokens,
            client,
            requests: None,
        }
    }

    /// Adds each request with its time stamps.
    pub fn with_requests(mut self, plan: &Plan, run: &Run) -> Self {
        let request = |sample: &Sample| RequestDto {
            index: sample.index,
            warmup: sample.intended_us < plan.warmup_us,
            intended_us: sample.intended_us,
            started_us: sample.started_us,
            sent_us: sample.sent_us,
            first_byte_us: sample.first_byte_us,
            first_token_us: run.token_span(sample).map(|(first, _)| first),
            chunks_us: run.chunks(sample).to_vec(),
            chunk_tokens: run.chunk_tokens(sample).map(<[u32]>::to_vec),
            last_byte_us: sample.last_byte_us,
            usage: sample.usage,
            error: sample.fault.map(Fault::name),
            status: sample.status,
            retry_after_s: sample.retry_after_s,
            prompt_chars: sample.prompt_chars,
            output_tokens_max: sample.output_tokens_max,
            group: sample.group,
            reused: sample.reused,
        };
        self.requests = Some(run.samples.iter().map(request).collect());
        self
    }
}

fn load(plan: &Plan) -> Load {
    let (pace, arrivals, rate, cv) = match plan.pace {
        Pace::Open { rate, arrivals } => {
            let (name, cv) = match arrivals {
                Arrivals::Constant => ("constant", 0.0),
                Arrivals::Poisson => ("poisson", 1.0),
                Arrivals::Gamma { cv } => ("gamma", cv),
            };
            ("open", Some(name), Some(rate), Some(cv))
        }
        Pace::Closed { .. } => ("closed", None, None, None),
        Pace::Trace { .. } => ("trace", None, None, None),
    };
    let (concurrency, think) = match plan.pace {
        Pace::Closed { concurrency, think } => (Some(concurrency), Some(think.to_string())),
        Pace::Open { .. } | Pace::Trace { .. } => (None, None),
    };
    let speed = match plan.pace {
        Pace::Trace { speed } => Some(speed),
        Pace::Open { .. } | Pace::Closed { .. } => None,
    };
    let is_drawn = plan.trace.is_none();
    let (prompt_chars, prompt_tokens) = match plan.prompt {
        PromptLength::Chars(lengths) => (Some(lengths.to_string()), None),
        PromptLength::Tokens(lengths) => (None, Some(lengths.to_string())),
    };
    Load {
        url: plan.target.url.clone(),
        endpoint: match plan.endpoint {
            Endpoint::Chat => "chat",
            Endpoint::Completions => "completions",
        },
        model: plan.model.clone(),
        stream: plan.stream,
        pace,
        arrivals,
        rate,
        cv,
        concurrency,
        think,
        speed,
        trace_requests: plan.trace.as_ref().map(|trace| trace.requests.len()),
        requests: plan.bound.requests,
        duration_s: plan.bound.duration_us.map(|us| us as f64 / 1e6),
        warmup_s: plan.warmup_us as f64 / 1e6,
        timeout_s: plan.timeout_us as f64 / 1e6,
        prompt_chars: prompt_chars.filter(|_| is_drawn),
        prompt_tokens: prompt_tokens.filter(|_| is_drawn),
        output_tokens: is_drawn.then(|| plan.output_tokens.to_string()),
        ignore_eos: plan.ignore_eos,
        count_each_chunk: plan.count_each_chunk,
        shared_prefix: plan.shared_prefix.map(|shared| shared.to_string()),
        seed: plan.seed,
        threads: plan.threads,
    }
}

fn counts(run: &Run, counted: &[&Sample], completed: usize) -> Counts {
    let mut errors = BTreeMap::new();
    for fault in counted.iter().filter_map(|sample| sample.fault) {
        *errors.entry(fault.name()).or_default() += 1;
    }
    let interrupted = errors.remove(&Fault::Interrupted.name()).unwrap_or(0);
    Counts {
        requests: run.samples.len(),
        warmup: run.samples.len() - counted.len(),
        counted: counted.len(),
        completed,
        failed: counted.len() - completed - interrupted,
        interrupted,
        errors,
        said: run
            .said
            .iter()
            .filter(|(_, said)| !said.is_empty())
            .map(|(fault, said)| (fault.name(), said.clone()))
            .collect(),
    }
}

fn tokens(whole: &[&Sample]) -> Tokens {
    let usages: Vec<Usage> = whole.iter().filter_map(|sample| sample.usage).collect();
    let complete = !usages.is_empty() && usages.len() == whole.len();
    let sum = |count: fn(&Usage) -> u64| complete.then(|| usages.iter().map(count).sum());
    let cached: Option<u64> = usages.iter().map(|usage| usage.cached_tokens).sum();
    Tokens {
        answers_with_usage: usages.len(),
        answers_without_usage: whole.len() - usages.len(),
        prompt: sum(|usage| usage.prompt_tokens),
        completion: sum(|usage| usage.completion_tokens),
        cached: cached.filter(|_| complete),
        absent: match (complete, whole.is_empty()) {
            (true, _) => None,
            (_, true) => Some("no request has a whole answer"),
            _ => Some("the engine did not count the tokens of every answer"),
        },
    }
}

fn throughput(window_us: u64, whole: &[&Sample], tokens: &Tokens) -> Throughput {
    let per_second = |count: u64| (window_us > 0).then(|| count as f64 * 1e6 / window_us as f64);
    Throughput {
        window_s: window_us as f64 / 1e6,
        requests_per_s: per_second(whole.len() as u64),
        output_tokens_per_s: tokens.completion.and_then(per_second),
        prompt_tokens_per_s: tokens.prompt.and_then(per_second),
    }
}

fn latencies(run: &Run, whole: &[&Sample]) -> Latencies {
    let each = |value: &dyn Fn(&Sample) -> Option<f64>| {
        summarise(whole.iter().filter_map(|sample| value(sample)).collect())
    };
    let first = |sample: &Sample| run.token_span(sample).map(|(first, _)| first);
    let mut by_chunk = Vec::new();
    let mut by_token = Vec::new();
    let (mut exact, mut spread) = (0, 0);
    for sample in whole {
        let chunks = run.chunks(sample);
        by_chunk.extend(chunks.windows(2).map(|pair| ms(pair[0], pair[1])));
        let Some(usage) = sample.usage else { continue };
        let counted = run.chunk_tokens(sample);
        match counted.is_some() || usage.completion_tokens == chunks.len() as u64 {
            true => exact += 1,
            false => spread += 1,
        }
        token_gaps(chunks, counted, usage.completion_tokens, &mut by_token);
    }
    Latencies {
        ttft: each(&|sample| Some(ms(sample.intended_us, first(sample)?))),
        ttft_from_sent: each(&|sample| Some(ms(sample.sent_us?, first(sample)?))),
        e2e: each(&|sample| Some(ms(sample.intended_us, sample.last_byte_us?))),
        e2e_from_sent: each(&|sample| Some(ms(sample.sent_us?, sample.last_byte_us?))),
        tpot: each(&|sample| tpot_ms(run, sample)),
        itl_chunk: summarise(by_chunk),
        itl_token: summarise(by_token),
        itl_token_exact_requests: exact,
        itl_token_spread_requests: spread,
    }
}

/// From first to last text, for each token after the first; of answers with two tokens
/// or more.
fn tpot_ms(run: &Run, sample: &Sample) -> Option<f64> {
    let (first, last) = run.token_span(sample)?;
    let tokens = sample.usage?.completion_tokens;
    (tokens > 1).then(|| ms(first, last) / (tokens - 1) as f64)
}

/// The gap before a chunk, shared by the tokens in it: one value for each. Without a
/// count each chunk, the answer's tokens are spread over its chunks evenly, in whole
/// tokens. A chunk without a token adds its gap to the next.
fn token_gaps(chunks: &[u64], counted: Option<&[u32]>, total: u64, gaps: &mut Vec<f64>) {
    let count = chunks.len() as u64;
    let by_then = |chunk: usize| match counted {
        Some(counted) => u64::from(counted[chunk]),
        None => (total * (chunk as u64 + 1) + count / 2) / count,
    };
    let Some(mut since) = chunks.first().copied() else {
        return;
    };
    for (chunk, at_us) in chunks.iter().copied().enumerate().skip(1) {
        let tokens = by_then(chunk).saturating_sub(by_then(chunk - 1));
        if tokens > 0 {
            let gap = ms(since, at_us) / tokens as f64;
            gaps.extend(std::iter::repeat_n(gap, tokens as usize));
            since = at_us;
        }
    }
}

fn goodput(
    plan: &Plan,
    run: &Run,
    slo: Slo,
    counted: usize,
    whole: &[&Sample],
    window_us: u64,
) -> Goodput {
    let unknown = slo.tpot_us.is_some() && whole.iter().any(|sample| sample.usage.is_none());
    let streamless = slo.ttft_us.is_some() && !plan.stream;
    let within = |bound: Option<u64>, value: Option<f64>| match (bound, value) {
        (Some(bound), Some(value)) => value <= bound as f64 / 1e3,
        (bound, _) => bound.is_none(),
    };
    let keeps = |sample: &&&Sample| {
        let span = run.token_span(sample);
        let ttft = span.map(|(first, _)| ms(sample.intended_us, first));
        let e2e = sample.last_byte_us.map(|last| ms(sample.intended_us, last));
        let tpot = tpot_ms(run, sample);
        within(slo.ttft_us, ttft)
            // One token has no time per token after the first.
            && (tpot.is_none() || within(slo.tpot_us, tpot))
            && within(slo.e2e_us, e2e)
    };
    let absent = match (unknown, streamless) {
        (true, _) => Some("the engine did not count the tokens of every answer"),
        (_, true) => Some("answers that are not streamed have no first token"),
        _ => None,
    };
    let good = absent.is_none().then(|| whole.iter().filter(keeps).count());
    let bound = |us: Option<u64>| us.map(|us| us as f64 / 1e3);
    Goodput {
        ttft_ms: bound(slo.ttft_us),
        tpot_ms: bound(slo.tpot_us),
        e2e_ms: bound(slo.e2e_us),
        good,
        share: good
            .filter(|_| counted > 0)
            .map(|good| good as f64 / counted as f64),
        requests_per_s: good
            .filter(|_| window_us > 0)
            .map(|good| good as f64 * 1e6 / window_us as f64),
        absent,
    }
}

fn client(plan: &Plan, run: &Run) -> Client {
    let delay = |sample: &Sample| ms(sample.intended_us, sample.started_us);
    let requests = run.samples.len();
    let time = run.wall_us as f64 * plan.threads as f64;
    Client {
        schedule_delay_ms: summarise(run.samples.iter().map(delay).collect()),
        cpu_us_per_request: (requests > 0).then(|| run.cpu_us as f64 / requests as f64),
        cpu_share: (time > 0.0).then(|| run.cpu_us as f64 / time),
        connections: run.connections,
        waited: run.waited,
        reused: run.samples.iter().filter(|sample| sample.reused).count(),
    }
}

fn validity(counts: &Counts, client: &Client, run: &Run) -> Validity {
    let mut reasons = Vec::new();
    let delay = client.schedule_delay_ms;
    let late = [
        (delay.p99, "one in a hundred"),
        (delay.p90, "one in ten"),
        (delay.max, "the latest"),
    ];
    let late = late
        .iter()
        .find_map(|(late, who)| Some((*late.as_ref()?, who)));
    if let Some((late, who)) = late.filter(|(late, _)| *late > SCHEDULE_DELAY_MS_MAX) {
        reasons.push(format!(
            "the client was the bottleneck: {who} of {} requests was sent {late:.1} ms late or later, {SCHEDULE_DELAY_MS_MAX} ms are allowed",
            delay.count
        ));
        if client.waited > 0 {
            reasons.push(format!(
                "{} requests waited for one of the connections, which the engine kept busy; `--connections-max` allows more",
                client.waited
            ));
        }
    }
    if counts.completed == 0 {
        reasons.push("no request has a whole answer".to_owned());
    }
    if run.interrupted {
        reasons.push("the run was ended before its time".to_owned());
    }
    Validity {
        valid: reasons.is_empty(),
        reasons,
    }
}

fn ms(from_us: u64, to_us: u64) -> f64 {
    to_us.saturating_sub(from_us) as f64 / 1e3
}
