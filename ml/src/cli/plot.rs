//! Points of runs, as numbers and drawn.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

#[derive(Debug, Args)]
pub(crate) struct Metrics {
    /// The run
    pub(crate) run: String,
    /// Points of these metrics instead of a summary of all
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Points, thinned to so many stretches of which the first, smallest, largest and
    /// last are kept [default: 500]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) points: Option<u32>,
    /// Points as comma-separated values
    #[arg(long)]
    pub(crate) csv: bool,
    /// Along what points are thinned
    #[arg(long, value_name = "X", default_value = "step")]
    pub(crate) x: Along,
}

#[derive(Debug, Args)]
pub(crate) struct Plot {
    /// Runs, or a sweep
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<String>,
    /// A page (`.html`) or a drawing (`.svg`) [default: plot-RUN.html]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Only this metric; repeatable, the first one colours a sweep
    #[arg(long, value_name = "NAME")]
    pub(crate) metric: Vec<String>,
    /// Weight of earlier points in an exponential mean, from 0 to below 1
    #[arg(long, value_name = "W", default_value_t = 0.0, value_parser = parse_weight)]
    pub(crate) smooth: f64,
    /// A logarithmic x axis
    #[arg(long)]
    pub(crate) log_x: bool,
    /// A logarithmic y axis
    #[arg(long)]
    pub(crate) log_y: bool,
    /// What x is
    #[arg(long, value_name = "X", default_value = "step")]
    pub(crate) x: Along,
    /// Stretches into which many points are thinned
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) points: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Along {
    Step,
    Time,
}

impl Along {
    /// As the API has it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Time => "time",
        }
    }
}

fn parse_weight(text: &str) -> Result<f64, String> {
    let weight = text.parse::<f64>().ok();
    weight
        .filter(|weight| (0.0..1.0).contains(weight))
        .ok_or_else(|| format!("`{text}` is no number from 0 to below 1"))
}
