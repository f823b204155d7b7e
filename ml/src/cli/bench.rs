//! Load on engines, measured.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use mlmesh_bench::{Lengths, SharedPrefix, Slo, Think, parse_duration_us};

const LLM_EXAMPLES: &str = "\
Examples:
  ml bench llm --url http://127.0.0.1:8080 --model tiny --rate 10 --requests 200
  ml bench llm --url http://127.0.0.1:8080 --model tiny --rate 50 --duration 60s \\
    --warmup 5s --prompt-tokens lognormal:512,0.8 --output-tokens 128 \\
    --slo ttft=200ms,tpot=20ms -o run.json
  ml bench llm --url http://127.0.0.1:8080 --model tiny --concurrency 8 \\
    --think exponential:2s --duration 60s
  ml bench llm --url http://127.0.0.1:8080 --model tiny --trace conversation.jsonl \\
    --format mooncake --speed 10

Numbers by distribution: `512`, `uniform:100,900`, `normal:MEAN,DEVIATION`,
`lognormal:MEDIAN,SIGMA`. Durations: `200ms`, `1.5s`, `2m`.
Latencies count from the instant at which a request was to be sent, so that a slow
engine cannot slow its own test down. Tokens are the engine's own counts.
Exit code 6 when the figures are not the engine's: the client was late by more than
10 ms, or no request was answered.";

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Send requests to an engine that speaks OpenAI's API, and measure its answers
    Llm(Box<BenchLlm>),
}

#[derive(Debug, Args)]
#[command(after_help = LLM_EXAMPLES)]
#[command(group = ArgGroup::new("pace").required(true).multiple(true).args(["rate", "concurrency", "trace"]))]
pub(crate) struct BenchLlm {
    /// Address of the engine or the gateway, without `/v1`
    #[arg(long, value_name = "URL")]
    pub(crate) url: String,
    /// Name of the model, as the engine has it
    #[arg(long, value_name = "NAME")]
    pub(crate) model: String,
    /// Which call of the API
    #[arg(long, value_name = "CALL", default_value = "chat")]
    pub(crate) endpoint: Endpoint,
    /// Ask for whole answers instead of streams; there is no first token then
    #[arg(long)]
    pub(crate) no_stream: bool,

    /// Open loop: so many requests a second, whatever the engine does
    #[arg(long, value_name = "N", help_heading = "When requests are sent")]
    pub(crate) rate: Option<f64>,
    /// Closed loop: so many at once, each asks again when it has its answer
    #[arg(
        long,
        value_name = "N",
        conflicts_with = "rate",
        help_heading = "When requests are sent"
    )]
    pub(crate) concurrency: Option<usize>,
    /// Time between an answer and the next request of a closed loop, such as `500ms`,
    /// `uniform:1s,3s`, `exponential:2s` [default: 0s]
    #[arg(
        long,
        value_name = "TIME",
        requires = "concurrency",
        help_heading = "When requests are sent"
    )]
    pub(crate) think: Option<Think>,
    /// Send recorded requests at their instants; with `--rate` or `--concurrency` only
    /// their lengths and blocks, again from the start when all were sent
    #[arg(
        long,
        value_name = "FILE",
        requires = "format",
        conflicts_with_all = ["prompt_tokens", "prompt_chars", "output_tokens", "shared_prefix"],
        help_heading = "When requests are sent"
    )]
    pub(crate) trace: Option<PathBuf>,
    /// Format of the trace
    #[arg(
        long,
        value_name = "FORMAT",
        requires = "trace",
        help_heading = "When requests are sent"
    )]
    pub(crate) format: Option<TraceFormat>,
    /// Send so many times as fast as it was recorded [default: 1]
    #[arg(
        long,
        value_name = "X",
        requires = "trace",
        conflicts_with_all = ["rate", "concurrency"],
        help_heading = "When requests are sent"
    )]
    pub(crate) speed: Option<f64>,
    /// How the gaps of an open loop are drawn
    #[arg(
        long,
        value_name = "KIND",
        default_value = "poisson",
        help_heading = "When requests are sent"
    )]
    pub(crate) arrivals: Arrivals,
    /// Standard deviation of a gap over its mean, of gamma arrivals
    #[arg(
        long,
        value_name = "X",
        required_if_eq("arrivals", "gamma"),
        help_heading = "When requests are sent"
    )]
    pub(crate) cv: Option<f64>,
    /// Send so many
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..),
        help_heading = "When requests are sent"
    )]
    pub(crate) requests: Option<u64>,
    /// Send for so long; what is under way then is waited for
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "When requests are sent")]
    pub(crate) duration: Option<u64>,
    /// Leave what is sent in this first time out of every figure
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "0s", help_heading = "When requests are sent")]
    pub(crate) warmup: u64,

    /// Tokens of a prompt, about: four characters each
    #[arg(
        long,
        value_name = "NUMBER",
        conflicts_with = "prompt_chars",
        help_heading = "What is sent"
    )]
    pub(crate) prompt_tokens: Option<Lengths>,
    /// Characters of a prompt [default: 1024]
    #[arg(long, value_name = "NUMBER", help_heading = "What is sent")]
    pub(crate) prompt_chars: Option<Lengths>,
    /// Tokens that an answer may have
    #[arg(
        long,
        value_name = "NUMBER",
        default_value = "64",
        help_heading = "What is sent"
    )]
    pub(crate) output_tokens: Lengths,
    /// Ask the engine to go on to the last of them (vLLM, SGLang, llama-server)
    #[arg(long, help_heading = "What is sent")]
    pub(crate) ignore_eos: bool,
    /// Ask for the count of tokens in each chunk, so that the time between tokens is
    /// exact where a chunk has several (vLLM, SGLang)
    #[arg(long, conflicts_with = "no_stream", help_heading = "What is sent")]
    pub(crate) count_each_chunk: bool,
    /// Begin prompts with one of a few texts, such as
    /// `groups=32,chars=8192,popularity=1/rank`; else every prompt is unique
    #[arg(long, value_name = "GROUPS", help_heading = "What is sent")]
    pub(crate) shared_prefix: Option<SharedPrefix>,
    /// Equal seeds send equal requests at equal instants [default: drawn, and printed]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=9_007_199_254_740_991), help_heading = "What is sent")]
    pub(crate) seed: Option<u64>,

    /// Count requests that keep this, such as `ttft=200ms,tpot=20ms,e2e=5s`
    #[arg(long, value_name = "BOUNDS")]
    pub(crate) slo: Option<Slo>,
    /// Write figures and every time stamp of every request into this file
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Give an answer up after this time
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10m")]
    pub(crate) timeout: u64,
    /// Loops that send, each on a thread of its own
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) threads: usize,
    /// Connections that may be open at once; who finds none free waits, and is measured
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub(crate) connections_max: usize,
    /// Certificates in PEM to believe instead of the system's, of an `https` address
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// File with the API key
    #[arg(long, value_name = "FILE", conflicts_with = "api_key_env")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Environment variable with the API key
    #[arg(long, value_name = "NAME")]
    pub(crate) api_key_env: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Endpoint {
    Chat,
    Completions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arrivals {
    Poisson,
    Constant,
    Gamma,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TraceFormat {
    Mooncake,
    Azure,
}

fn duration(text: &str) -> Result<u64, mlmesh_bench::BenchError> {
    parse_duration_us(text)
}
