//! Simulated engines under the router that the gateway runs.

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

#[derive(Debug, Subcommand)]
pub(crate) enum Sim {
    /// Replay a trace under several strategies, side by side
    #[command(after_help = COMPARE_EXAMPLES)]
    Compare(SimCompare),
}

#[derive(Debug, Args)]
pub(crate) struct SimCompare {
    /// The requests
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: PathBuf,
    /// How the trace is written: `mooncake` or `azure`
    #[arg(long, value_name = "FORMAT", default_value = "mooncake")]
    pub(crate) format: Format,
    /// So many engines, each the reference engine of docs/SIMULATION.md
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub(crate) engines: u16,
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

fn parse_contender(text: &str) -> Result<Contender, String> {
    Contender::parse(text).map_err(|error| error.to_string())
}

fn parse_sigma(text: &str) -> Result<f64, String> {
    let sigma = text.parse::<f64>().ok();
    sigma
        .filter(|sigma| (0.0..=3.0).contains(sigma))
        .ok_or_else(|| format!("`{text}` is no number from 0 to 3"))
}
