//! Simulated engines under the router that the gateway runs.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use mlmesh_sim::{Contender, Format};

const COMPARE_EXAMPLES: &str = "\
Examples:
  ml sim compare --trace conversation_trace.jsonl --engines 16 \\
    --strategies baseline_rr,least_work,hybrid_mesh,floor -o report

Strategies: baseline_rr, random, least_queue, power_of_two, least_work, session_hash,
block_affinity, prefix_hash, least_ttft, hybrid_mesh; floor is what nobody can beat.
Added to a name: `+late` keeps requests until a target is free, the shortest prefill
first; `+fifo` the same in the order of coming; `+refuse` refuses what cannot meet its
SLO any more; `+learnt` learns its predictions as a gateway does, instead of knowing
them. hybrid_mesh is least_ttft+late+refuse.";

const RUN_EXAMPLES: &str = "\
Example of a scenario:
  schema: mlmesh.sim_scenario/1
  name: shared prefixes
  engines: 4
  profile: reference              # or a file beside this one
  slow: [{engine: 3, factor: 3}]
  workload:
    shared: {requests: 6000, rate: 100, prefixes: 32, prefix_tokens: 2048,
             unique_tokens: 256, output_tokens: 32}
    # or trace: {file: requests.jsonl, format: mooncake, time_scale: 1}
  strategies: [baseline_rr, prefix_hash, hybrid_mesh+learnt, floor]
  rtt_ms: 0.5
  telemetry: {every_ms: 100, age_ms: 100, loss: 0.01}
  slo: {ttft_ms: 1000, cold_prefills: 0, tpot_ms: 20}
  seeds: 3
  leave_out_s: 4
  prediction_error: 0";

const CALIBRATE_EXAMPLES: &str = "\
Examples:
  ml bench llm --url http://127.0.0.1:8000 --model llama --rate 4 --requests 200 -o four.json
  ml sim calibrate four.json --base rtx4090-8b --score eight.json -o mine.yaml
  ml sim serve --listen 127.0.0.1:9000 --profile mine.yaml

What the engine holds and how many requests it works on at once is taken from --base;
its six costs are fitted. A run is what `ml bench llm -o` writes, or a table of vLLM's
own times.";

const SERVE_EXAMPLES: &str = "\
Examples:
  ml sim serve --listen 127.0.0.1:9000 --engines 4
  ml sim serve --listen 127.0.0.1:0 --profile my-engine.yaml --slow 3=2.5

Engine I listens at the port of --listen plus I; with port 0 each has a free one. What
is served: /v1/chat/completions and /v1/completions (streamed or not) of the model
`sim`, /v1/models, /health, and /metrics by the names of vLLM. An answer has as many
tokens as the request allows, 16 without max_tokens, and each of them is ` sim`. A
prompt is counted in characters and reused by blocks of its text.

Profiles that come along: reference, a100x8-70b, rtx4090-8b; a file is written like those of
docs/SIMULATION.md.";

#[derive(Debug, Subcommand)]
pub(crate) enum Sim {
    /// Replay a trace under several strategies, side by side
    #[command(after_help = COMPARE_EXAMPLES)]
    Compare(SimCompare),
    /// Fit the costs of a profile to what a real engine was measured to do
    #[command(after_help = CALIBRATE_EXAMPLES)]
    Calibrate(SimCalibrate),
    /// Run a whole experiment that is written in a file
    #[command(after_help = RUN_EXAMPLES)]
    Run(SimRun),
    /// Answer OpenAI's API with the timing of an engine, and nothing else of it
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(SimServe),
}

#[derive(Debug, Args)]
pub(crate) struct SimCompare {
    /// The requests
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: PathBuf,
    /// How the trace is written: `mooncake` or `azure`
    #[arg(long, value_name = "FORMAT", default_value = "mooncake")]
    pub(crate) format: Format,
    /// So many engines, each the reference engine of docs/SIMULATION.md that only prefills
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub(crate) engines: u16,
    /// Whole engines instead, which decode and batch: a profile's name or a file. They are
    /// 1 ms away and looked at each 100 ms, which the router learns 100 ms later
    #[arg(long, value_name = "PROFILE")]
    pub(crate) engine: Option<String>,
    /// Who takes part, with commas between
    #[arg(long, value_name = "NAMES", value_delimiter = ',', required = true, value_parser = parse_contender)]
    pub(crate) strategies: Vec<Contender>,
    /// Each meets the seeds from 0 to K - 1; times are means over them
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub(crate) seeds: u64,
    /// Predictions of prefill times are off by a factor whose logarithm deviates so much
    #[arg(long, value_name = "SIGMA", default_value_t = 0.0, value_parser = parse_sigma)]
    pub(crate) prediction_error: f64,
    /// Folder for a page and the same figures as JSON; made if it is not there
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct SimCalibrate {
    /// What was measured
    #[arg(value_name = "RUN")]
    pub(crate) run: PathBuf,
    /// A profile with the engine's limits: a name or a file
    #[arg(long, value_name = "PROFILE")]
    pub(crate) base: String,
    /// Fit to the first N requests only; the others are what the result is scored on
    #[arg(long, value_name = "N")]
    pub(crate) first: Option<usize>,
    /// Score the result on another run, too; can be repeated
    #[arg(long, value_name = "RUN")]
    pub(crate) score: Vec<PathBuf>,
    /// Where the profile is written to; else it is printed
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct SimRun {
    /// The experiment, in YAML
    #[arg(value_name = "SCENARIO")]
    pub(crate) scenario: PathBuf,
    /// Folder for a page and the same figures as JSON; made if it is not there
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct SimServe {
    /// Where the first engine listens
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: SocketAddr,
    /// How an engine is: a name or a file
    #[arg(long, value_name = "PROFILE", default_value = "reference")]
    pub(crate) profile: String,
    /// So many engines
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=512))]
    pub(crate) engines: u16,
    /// Engine I takes FACTOR times as long for everything; can be repeated
    #[arg(long, value_name = "I=FACTOR", value_parser = parse_slow)]
    pub(crate) slow: Vec<(u16, f64)>,
}

fn parse_slow(text: &str) -> Result<(u16, f64), String> {
    let parsed = text.split_once('=').and_then(|(engine, factor)| {
        let factor = factor.parse().ok();
        let factor = factor.filter(|factor| (0.01..=1_000.0).contains(factor))?;
        Some((engine.parse().ok()?, factor))
    });
    parsed.ok_or_else(|| {
        format!("`{text}` is not an engine's number, `=` and a factor from 0.01 to 1000")
    })
}

fn parse_contender(text: &str) -> Result<Contender, String> {
    Contender::parse(text).map_err(|error| error.to_string())
}

fn parse_sigma(text: &str) -> Result<f64, String> {
    let sigma = text.parse::<f64>().ok();
    sigma
        .filter(|sigma| (0.0..=3.0).contains(sigma))
        .ok_or_else(|| format!("`{text}` is no number from 0 to 3"))
}
