//! What the metrics of a runtime mean, as data: one file for each runtime (`adapters/`)
//! says which of its metrics is which signal.
//!
//! ```text
//!   page of metrics ──► samples ──► adapter ──► state: a figure for each signal,
//!                                                or the reason why there is none
//! ```
//!
//! Names of metrics move between versions, so that each signal has a list of names, of
//! which the first that is on the page counts. A signal is never made up: where the page
//! has nothing, the state says so. It asks nobody and knows no time; who has fetched the
//! page knows how old it is.

use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::exposition::{Page, Sample};

/// What is measured. Names in adapters and in the API are in snake case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// Requests that wait.
    Waiting,
    /// Requests that are worked on.
    Running,
    /// Share of the memory for keys and values that is used, from 0 to 1.
    KvUsage,
    /// Tokens of prompts.
    PromptTokens,
    /// Tokens of prompts that were in a cache.
    CachedTokens,
    /// Tokens of answers.
    GeneratedTokens,
    /// Requests that were put back for want of memory.
    Preemptions,
    /// Requests that were answered.
    Done,
    /// Requests that failed.
    Failed,
    /// Time from a request to its first token.
    FirstToken,
    /// Time between two tokens.
    BetweenTokens,
    /// Time from a request to the end of its answer.
    EndToEnd,
    /// Time that requests wait.
    Queued,
    /// Seconds spent on prompts.
    PrefillSeconds,
    /// Share of its time that a GPU works, from 0 to 1.
    GpuUsage,
    /// Bytes of a GPU's memory that are used.
    GpuMemoryUsed,
    /// Bytes of a GPU's memory that are free.
    GpuMemoryFree,
    /// Degrees Celsius of a GPU.
    GpuTemperature,
    /// Whether heat slows a GPU down: 1, else 0.
    GpuThermalSlowdown,
    /// Whether its supply of power slows a GPU down: 1, else 0.
    GpuPowerBrake,
    /// Watts that a GPU draws.
    GpuPower,
    /// Joules that a GPU has drawn.
    GpuEnergy,
    /// The last error that the driver has noted, its XID; 0 for none.
    GpuXid,
    /// Memory errors of a GPU that could not be corrected.
    GpuUncorrectable,
    /// Transfers to a GPU that were repeated.
    GpuReplays,
}

/// What sort of figure a signal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// What is now.
    Now,
    /// How much it was since the runtime started.
    Total,
    /// How long things took since then, and how many there were.
    Timing,
}

/// What a signal is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum About {
    /// A model of a runtime.
    Model,
    /// A GPU.
    Gpu,
}

impl Signal {
    /// All of them.
    pub const ALL: [Self; 25] = [
        Self::Waiting,
        Self::Running,
        Self::KvUsage,
        Self::PromptTokens,
        Self::CachedTokens,
        Self::GeneratedTokens,
        Self::Preemptions,
        Self::Done,
        Self::Failed,
        Self::FirstToken,
        Self::BetweenTokens,
        Self::EndToEnd,
        Self::Queued,
        Self::PrefillSeconds,
        Self::GpuUsage,
        Self::GpuMemoryUsed,
        Self::GpuMemoryFree,
        Self::GpuTemperature,
        Self::GpuThermalSlowdown,
        Self::GpuPowerBrake,
        Self::GpuPower,
        Self::GpuEnergy,
        Self::GpuXid,
        Self::GpuUncorrectable,
        Self::GpuReplays,
    ];

    /// What sort of figure it is.
    pub const fn form(self) -> Form {
        match self {
            Self::Waiting
            | Self::Running
            | Self::KvUsage
            | Self::GpuUsage
            | Self::GpuMemoryUsed
            | Self::GpuMemoryFree
            | Self::GpuTemperature
            | Self::GpuThermalSlowdown
            | Self::GpuPowerBrake
            | Self::GpuPower
            | Self::GpuXid => Form::Now,
            Self::PromptTokens
            | Self::CachedTokens
            | Self::GeneratedTokens
            | Self::Preemptions
            | Self::Done
            | Self::Failed
            | Self::PrefillSeconds
            | Self::GpuEnergy
            | Self::GpuUncorrectable
            | Self::GpuReplays => Form::Total,
            Self::FirstToken | Self::BetweenTokens | Self::EndToEnd | Self::Queued => Form::Timing,
        }
    }

    /// What it is about.
    pub const fn about(self) -> About {
        match self {
            Self::GpuUsage
            | Self::GpuMemoryUsed
            | Self::GpuMemoryFree
            | Self::GpuTemperature
            | Self::GpuThermalSlowdown
            | Self::GpuPowerBrake
            | Self::GpuPower
            | Self::GpuEnergy
            | Self::GpuXid
            | Self::GpuUncorrectable
            | Self::GpuReplays => About::Gpu,
            _ => About::Model,
        }
    }
}

/// A figure, in the unit of its signal.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// What is now.
    Now(f64),
    /// How much it was since the runtime started.
    Total(f64),
    /// How long things took since then, and how many there were.
    Timing {
        /// Seconds, all together.
        seconds: f64,
        /// How many.
        count: f64,
    },
}

/// Why there is no figure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// The runtime does not measure it, or nobody knows under which name.
    #[error("not offered: {0}")]
    NotOffered(String),
    /// It is not on the page.
    #[error("not on the page: `{}`", names.join("`, `"))]
    NotOnPage {
        /// What was looked for.
        names: Vec<String>,
    },
    /// It is no number that can be.
    #[error("`{name}` is {value}")]
    Impossible {
        /// The metric.
        name: String,
        /// What stands there.
        value: String,
    },
}

impl Missing {
    /// One word for it.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::NotOffered(_) => "not_offered",
            Self::NotOnPage { .. } => "not_on_page",
            Self::Impossible { .. } => "impossible",
        }
    }
}

/// What a page says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    /// By the model's name, or the GPU's id; empty where the runtime does not say which.
    pub figures: BTreeMap<String, BTreeMap<Signal, Figure>>,
    /// Signals of which the page has none, with the reason.
    pub missing: BTreeMap<Signal, Missing>,
}

/// One runtime.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adapter {
    /// Its name, as `--runtime` has it.
    pub runtime: String,
    /// What its metrics are about.
    pub about: About,
    /// Where the names were read, and of which version.
    pub source: String,
    /// Where its pages are.
    pub paths: Paths,
    /// By how much a page may be older than the time at which it is asked for, where its
    /// source measures in its own time.
    #[serde(default)]
    pub delay_seconds: f64,
    /// Beginnings of metrics by which it is recognised.
    pub recognised_by: Vec<String>,
    /// The label that says which model, or which GPU.
    pub label: Option<String>,
    /// Metrics by signal.
    pub signals: BTreeMap<Signal, Source>,
    /// Signals that it does not have, with the reason.
    pub absent: BTreeMap<Signal, String>,
}

/// Where a runtime's pages are, from the root of its address.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paths {
    /// Its metrics; they may be at another port.
    pub metrics: String,
    /// Whether it lives.
    pub health: Option<String>,
    /// Its models.
    pub models: Option<String>,
}

/// Where a signal comes from.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Names of the metric, newest first. Of a timing the name of its histogram or summary,
    /// which has `_sum` and `_count`.
    pub names: Vec<String>,
    /// Where a timing is two counters: names of the one that counts.
    #[serde(default)]
    pub counts: Vec<String>,
    /// What its numbers are multiplied with to be in the unit of the signal.
    #[serde(default = "one")]
    pub scale: f64,
    /// Of a number whose bits are reasons: those of which one makes 1, none makes 0.
    #[serde(default)]
    pub bits: Option<u64>,
    /// What several samples of one model are together.
    #[serde(default)]
    pub together: Together,
}

/// What several samples are together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Together {
    /// Their sum.
    #[default]
    Sum,
    /// The largest.
    Largest,
}

const fn one() -> f64 {
    1.0
}

/// The files.
const FILES: &[&str] = &[
    include_str!("../adapters/vllm.toml"),
    include_str!("../adapters/sglang.toml"),
    include_str!("../adapters/llama_cpp.toml"),
    include_str!("../adapters/triton.toml"),
    include_str!("../adapters/tgi.toml"),
    include_str!("../adapters/ovms.toml"),
    include_str!("../adapters/torchserve.toml"),
    include_str!("../adapters/tf_serving.toml"),
    include_str!("../adapters/mlserver.toml"),
    include_str!("../adapters/dcgm_exporter.toml"),
    include_str!("../adapters/amd_exporter.toml"),
];

/// The runtimes that are known.
pub fn adapters() -> &'static [Adapter] {
    static ADAPTERS: OnceLock<Vec<Adapter>> = OnceLock::new();
    ADAPTERS.get_or_init(|| {
        let parse = |text: &&str| toml::from_str(text).expect("the tests read each file");
        FILES.iter().map(parse).collect()
    })
}

/// The runtime of this name.
pub fn adapter(runtime: &str) -> Option<&'static Adapter> {
    adapters().iter().find(|adapter| adapter.runtime == runtime)
}

/// The runtime whose page this is.
pub fn recognised(page: &Page<'_>) -> Option<&'static Adapter> {
    let known = |sample: &Sample<'_>| {
        adapters().iter().find(|adapter| {
            let mut beginnings = adapter.recognised_by.iter();
            beginnings.any(|beginning| sample.name.starts_with(beginning.as_str()))
        })
    };
    page.samples.iter().find_map(known)
}

impl Adapter {
    /// What the page says of each signal.
    pub fn state(&self, page: &Page<'_>) -> State {
        let mut by_name: HashMap<&str, Vec<&Sample<'_>>> = HashMap::new();
        for sample in &page.samples {
            by_name.entry(sample.name).or_default().push(sample);
        }
        let mut state = State::default();
        for signal in Signal::ALL {
            if signal.about() != self.about {
                continue;
            }
            let Some(source) = self.signals.get(&signal) else {
                let reason = self.absent.get(&signal).cloned().unwrap_or_default();
                let missing = Missing::NotOffered(reason);
                state.missing.insert(signal, missing);
                continue;
            };
            match self.figures(signal, source, &by_name) {
                Ok(figures) => {
                    for (subject, figure) in figures {
                        let of_it = state.figures.entry(subject).or_default();
                        of_it.insert(signal, figure);
                    }
                }
                Err(missing) => drop(state.missing.insert(signal, missing)),
            }
        }
        state
    }

    fn figures(
        &self,
        signal: Signal,
        source: &Source,
        by_name: &HashMap<&str, Vec<&Sample<'_>>>,
    ) -> Result<BTreeMap<String, Figure>, Missing> {
        let ending = |ending: &str| -> Vec<String> {
            let names = source.names.iter();
            names.map(|name| format!("{name}{ending}")).collect()
        };
        if signal.form() != Form::Timing {
            let figure = match signal.form() {
                Form::Total => Figure::Total,
                _ => Figure::Now,
            };
            let numbers = self.numbers(&source.names, source, by_name)?.into_iter();
            return Ok(numbers.map(|(of, number)| (of, figure(number))).collect());
        }
        let (sums, counts) = match source.counts.is_empty() {
            true => (ending("_sum"), ending("_count")),
            false => (source.names.clone(), source.counts.clone()),
        };
        let sums = self.numbers(&sums, source, by_name)?;
        let as_they_are = Source {
            scale: 1.0,
            bits: None,
            ..source.clone()
        };
        let counts = self.numbers(&counts, &as_they_are, by_name)?;
        let timing = |(of, seconds): (String, f64)| {
            let count = *counts.get(&of)?;
            Some((of, Figure::Timing { seconds, count }))
        };
        Ok(sums.into_iter().filter_map(timing).collect())
    }

    /// The numbers of the first metric that is there, by model or GPU.
    fn numbers(
        &self,
        names: &[String],
        source: &Source,
        by_name: &HashMap<&str, Vec<&Sample<'_>>>,
    ) -> Result<BTreeMap<String, f64>, Missing> {
        let found = names.iter().find_map(|name| by_name.get(name.as_str()));
        let samples = found.ok_or_else(|| Missing::NotOnPage {
            names: names.to_vec(),
        })?;
        let mut numbers: BTreeMap<String, f64> = BTreeMap::new();
        for sample in samples {
            // None of what is measured here can be negative, or no number.
            if !(sample.value.is_finite() && sample.value >= 0.0) {
                return Err(Missing::Impossible {
                    name: sample.name.to_owned(),
                    value: sample.value.to_string(),
                });
            }
            let label = self.label.as_deref();
            let subject = label.and_then(|label| sample.label(label)).unwrap_or("");
            let number = match source.bits {
                Some(bits) => f64::from(sample.value as u64 & bits != 0),
                None => sample.value * source.scale,
            };
            let known = numbers.entry(subject.to_owned()).or_default();
            *known = match source.together {
                Together::Sum => *known + number,
                Together::Largest => known.max(number),
            };
        }
        Ok(numbers)
    }
}
