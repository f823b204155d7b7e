//! `ml bench`: load on engines, measured. Needs no daemon.

use std::fs;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use mlmesh_bench::{
    Arrivals, BenchError, Bound, Endpoint, Lengths, Pace, Plan, PromptLength, Report, Run, Summary,
    Target, Think, Trace, TraceFormat, Watch, run,
};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::cli;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome, split_hint};
use crate::output::{Output, Table, Tone, printable};

const PROMPT_CHARS: Lengths = Lengths::Constant(1024);
/// How often a person is told how far the load is.
const TELL: Duration = Duration::from_millis(200);
/// Bytes of a file with an API key.
const KEY_BYTES_MAX: u64 = 64 * 1024;

/// Sends the load that was asked for and prints what was measured. Exit code 6 when
/// the figures are not the engine's.
pub(crate) fn llm(context: &Context, verb: &cli::BenchLlm) -> Outcome<Exit> {
    let output = &context.output;
    let plan = plan(verb)?;
    plan.check()?;
    if let Some(path) = &verb.output {
        // Whether it can be written is known before the load and not behind it.
        let opened = fs::OpenOptions::new().append(true).create(true).open(path);
        opened.map_err(|error| Failure::io("write", path, &error))?;
    }
    output.say(format_args!(
        "{}: {} of `{}`, seed {}",
        verb.url,
        match verb.endpoint {
            cli::Endpoint::Chat => "chat completions",
            cli::Endpoint::Completions => "completions",
        },
        verb.model,
        plan.seed
    ));
    let run = watched(output, &plan)?;
    let mut report = Report::new(&plan, verb.slo, &run);
    if let Some(path) = &verb.output {
        report = report.with_requests(&plan, &run);
        write(path, &report)?;
        report.requests = None;
    }
    if output.json {
        output.json(&report)?;
    } else {
        print(output, &report)?;
    }
    for reason in &report.validity.reasons {
        output.warn(reason);
    }
    Ok(match report.validity.valid {
        true => Exit::Done,
        false => Exit::Invalid,
    })
}

/// Sends the load and says meanwhile how far it is. Ctrl-C keeps what was measured
/// until then; a second one ends the program.
fn watched(output: &Output, plan: &Plan) -> Outcome<Run> {
    let watch = Watch::default();
    for signal in [SIGINT, SIGTERM] {
        let code = 128 + signal;
        signal_hook::flag::register_conditional_shutdown(signal, code, Arc::clone(&watch.stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&watch.stop)))
            .map_err(|error| {
                Failure::failed("internal", format!("listen for signals: {error}"), "")
            })?;
    }
    let mut ticker = output.ticker();
    let is_over = AtomicBool::new(false);
    let run = thread::scope(|scope| {
        let talker = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                thread::park_timeout(TELL);
                let (started, ended) = (&watch.started, &watch.ended);
                let (started, ended) = (
                    started.load(Ordering::Relaxed),
                    ended.load(Ordering::Relaxed),
                );
                ticker.tick(|ticker| {
                    let under_way = started.saturating_sub(ended);
                    let elapsed = ticker.elapsed();
                    format!("{elapsed}: {started} sent, {under_way} of them under way")
                });
            }
        });
        // Also when the load panics, or the scope would wait for ever.
        let _over = Over(&is_over, talker.thread());
        run(plan, &watch)
    });
    Ok(run?)
}

/// Ends the talk when it goes.
struct Over<'a>(&'a AtomicBool, &'a thread::Thread);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.unpark();
    }
}

fn plan(verb: &cli::BenchLlm) -> Outcome<Plan> {
    Ok(Plan {
        target: Target::parse(&verb.url)?,
        endpoint: match verb.endpoint {
            cli::Endpoint::Chat => Endpoint::Chat,
            cli::Endpoint::Completions => Endpoint::Completions,
        },
        model: verb.model.clone(),
        stream: !verb.no_stream,
        pace: pace(verb),
        bound: Bound {
            requests: verb.requests,
            duration_us: verb.duration,
        },
        warmup_us: verb.warmup,
        timeout_us: verb.timeout,
        prompt: match verb.prompt_tokens {
            Some(tokens) => PromptLength::Tokens(tokens),
            None => PromptLength::Chars(verb.prompt_chars.unwrap_or(PROMPT_CHARS)),
        },
        output_tokens: verb.output_tokens,
        ignore_eos: verb.ignore_eos,
        count_each_chunk: verb.count_each_chunk,
        trace: trace(verb)?,
        shared_prefix: verb.shared_prefix,
        seed: verb.seed.map_or_else(drawn_seed, Ok)?,
        threads: verb.threads,
        connections_max: verb.connections_max,
        ca_file: verb.ca.clone(),
        key: key(verb)?,
    })
}

fn pace(verb: &cli::BenchLlm) -> Pace {
    let arrivals = match verb.arrivals {
        cli::Arrivals::Poisson => Arrivals::Poisson,
        cli::Arrivals::Constant => Arrivals::Constant,
        cli::Arrivals::Gamma => Arrivals::Gamma {
            cv: verb.cv.unwrap_or(1.0),
        },
    };
    match (verb.rate, verb.concurrency) {
        (Some(rate), _) => Pace::Open { rate, arrivals },
        (None, Some(concurrency)) => Pace::Closed {
            concurrency,
            think: verb.think.unwrap_or(Think::Constant(0)),
        },
        (None, None) => Pace::Trace {
            speed: verb.speed.unwrap_or(1.0),
        },
    }
}

fn trace(verb: &cli::BenchLlm) -> Outcome<Option<Arc<Trace>>> {
    let Some(path) = &verb.trace else {
        return Ok(None);
    };
    let file = fs::File::open(path).map_err(|error| Failure::io("read", path, &error))?;
    let format = match verb.format {
        Some(cli::TraceFormat::Azure) => TraceFormat::Azure,
        _ => TraceFormat::Mooncake,
    };
    Ok(Some(Arc::new(Trace::read(format, BufReader::new(file))?)))
}

/// Short enough to be typed again.
fn drawn_seed() -> Outcome<u64> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).map_err(
        |errno| {
            Failure::failed(
                "internal",
                format!("draw a seed: {errno}"),
                "give one: `--seed 1`",
            )
        },
    )?;
    Ok(u64::from(u32::from_le_bytes(bytes)))
}

/// The API key, from a file or the environment: an argument could be read by everybody.
fn key(verb: &cli::BenchLlm) -> Outcome<Option<String>> {
    let text = match (&verb.api_key_file, &verb.api_key_env) {
        (Some(path), _) => {
            let failed = |error| Failure::io("read", path, &error);
            let length = fs::metadata(path).map_err(failed)?.len();
            if length > KEY_BYTES_MAX {
                return Err(Failure::usage(
                    format!(
                        "`{}` has {length} bytes, a key has at most {KEY_BYTES_MAX}",
                        path.display()
                    ),
                    "a file with the key and nothing else",
                ));
            }
            fs::read_to_string(path).map_err(failed)?
        }
        (None, Some(name)) => std::env::var(name).map_err(|_| {
            Failure::usage(
                format!("the environment has no text in `{name}`"),
                format!("export {name}, or `--api-key-file FILE`"),
            )
        })?,
        (None, None) => return Ok(None),
    };
    Ok(Some(text.trim().to_owned()))
}

fn write(path: &Path, report: &Report) -> Outcome {
    let failed = |error: std::io::Error| Failure::io("write", path, &error);
    let file = fs::File::create(path).map_err(failed)?;
    let mut file = BufWriter::new(file);
    serde_json::to_writer(&mut file, report).map_err(|error| failed(error.into()))?;
    file.write_all(b"\n")
        .and_then(|()| file.flush())
        .map_err(failed)
}

fn print(output: &Output, report: &Report) -> Outcome {
    let mut table = Table::new(&["milliseconds", "mean", "p50", "p90", "p99", "max", "of"]);
    let latency = &report.latency_ms;
    let rows: [(&str, &Summary); 6] = [
        ("time to first token", &latency.ttft),
        ("time per output token", &latency.tpot),
        ("between chunks", &latency.itl_chunk),
        ("between tokens", &latency.itl_token),
        ("whole answer", &latency.e2e),
        ("sent late by", &report.client.schedule_delay_ms),
    ];
    for (name, summary) in rows {
        let figure = |value: Option<f64>, needed: usize| match value {
            Some(value) => (decimal(value), Tone::Plain),
            None if summary.count == 0 => ("–".to_owned(), Tone::Dim),
            None => (format!("n<{needed}"), Tone::Dim),
        };
        table.row([
            (name.to_owned(), Tone::Plain),
            figure(summary.mean, 1),
            figure(summary.p50, 2),
            figure(summary.p90, 10),
            figure(summary.p99, 100),
            figure(summary.max, 1),
            (summary.count.to_string(), Tone::Dim),
        ]);
    }
    output.table(&table)?;
    for line in lines(report) {
        output.line(line)?;
    }
    Ok(())
}

/// What stands below the table.
fn lines(report: &Report) -> Vec<String> {
    let (counts, rates, tokens) = (&report.counts, &report.throughput, &report.tokens);
    let number = |value: Option<f64>| value.map_or("–".to_owned(), decimal);
    let mut lines = vec![format!(
        "requests  {} counted, {} completed, {} failed{}{}; {}/s",
        counts.counted,
        counts.completed,
        counts.failed,
        some(counts.interrupted, "interrupted"),
        some(counts.warmup, "left out as warm-up"),
        number(rates.requests_per_s),
    )];
    if !counts.errors.is_empty() {
        let kinds = counts
            .errors
            .iter()
            .map(|(kind, count)| format!("{count} {kind}"));
        lines.push(format!(
            "errors    {}",
            kinds.collect::<Vec<_>>().join(", ")
        ));
    }
    for (kind, said) in &counts.said {
        let said: String = said.chars().take(200).collect();
        lines.push(format!("          {kind}: {}", printable(&said)));
    }
    lines.push(match (tokens.absent, tokens.prompt, tokens.completion) {
        (None, Some(prompt), Some(completion)) => format!(
            "tokens    {prompt} prompt{}, {completion} output; {}/s output",
            tokens
                .cached
                .map_or(String::new(), |cached| format!(" ({cached} cached)")),
            number(rates.output_tokens_per_s),
        ),
        _ => format!("tokens    –: {}", tokens.absent.unwrap_or_default()),
    });
    if let Some(goodput) = &report.goodput {
        lines.push(match (goodput.good, goodput.absent) {
            (Some(good), _) => format!(
                "goodput   {good} requests within the service level, {} %; {}/s",
                number(goodput.share.map(|share| share * 100.0)),
                number(goodput.requests_per_s)
            ),
            (None, absent) => format!("goodput   –: {}", absent.unwrap_or_default()),
        });
    }
    let client = &report.client;
    lines.push(format!(
        "client    {} µs CPU a request, {} % of {} CPU, {} connections; seed {}",
        number(client.cpu_us_per_request),
        number(client.cpu_share.map(|share| share * 100.0)),
        report.load.threads,
        client.connections,
        report.load.seed,
    ));
    lines
}

fn some(count: usize, what: &str) -> String {
    match count {
        0 => String::new(),
        count => format!(", {count} {what}"),
    }
}

/// Three digits that count, and no more behind the point.
fn decimal(value: f64) -> String {
    match value.abs() {
        small if small < 10.0 => format!("{value:.2}"),
        middle if middle < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Self {
        let text = error.to_string();
        let (message, hint) = split_hint(&text);
        let mut failure = Self::usage(message, hint);
        if matches!(
            error,
            BenchError::System { .. } | BenchError::Resolve { .. }
        ) {
            failure.code = "bench_system".to_owned();
            failure.exit = Exit::Failed;
        }
        failure
    }
}
