//! A whole experiment as one file: engines, what comes, what lies between, and who takes
//! part. It names other files and reads none.

use std::borrow::Cow;
use std::str::FromStr;

use serde::Deserialize;

use crate::compare::{Compared, Comparison, compare_drawn};
use crate::engine::Profile;
use crate::fleet::{Fleet, Slo, Telemetry};
use crate::lineup::Contender;
use crate::synthetic::{Shared, shared_prefixes};
use crate::trace::{Format, Trace};

/// Schema of [`Scenario`] as a file.
const SCHEMA: &str = "mlmesh.sim_scenario/1";

/// An experiment, as it is written in YAML. Every figure has its unit in its name.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    schema: String,
    /// How it is called.
    pub name: String,
    engines: u16,
    /// A profile's name, or a file beside the scenario.
    pub profile: String,
    #[serde(default)]
    slow: Vec<Slow>,
    /// What comes.
    pub workload: Workload,
    strategies: Vec<Named>,
    #[serde(default)]
    rtt_ms: f64,
    #[serde(default)]
    telemetry: Option<Reports>,
    #[serde(default)]
    slo: Limits,
    #[serde(default = "one")]
    seeds: u64,
    #[serde(default)]
    leave_out_s: f64,
    #[serde(default)]
    prediction_error: f64,
}

/// What comes.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Workload {
    /// Requests that were once seen.
    Trace(Recorded),
    /// Requests that are made up, others for each seed.
    Shared(Shared),
}

/// A trace in a file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// A file beside the scenario.
    pub file: String,
    /// `mooncake` or `azure`.
    pub format: Written,
    /// Times are multiplied by it: below one more comes in the same time.
    #[serde(default = "unscaled")]
    time_scale: f64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Slow {
    engine: u16,
    factor: f64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reports {
    every_ms: f64,
    age_ms: f64,
    #[serde(default)]
    loss: f64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    ttft_ms: f64,
    #[serde(default)]
    cold_prefills: f64,
    #[serde(default)]
    tpot_ms: Option<f64>,
}

impl Default for Limits {
    fn default() -> Self {
        let slo = Slo::default();
        Self {
            ttft_ms: slo.ttft_us as f64 / 1e3,
            cold_prefills: slo.cold_prefills,
            tpot_ms: None,
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
struct Named(Contender);

impl TryFrom<String> for Named {
    type Error = crate::lineup::LineupError;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        Contender::parse(&name).map(Self)
    }
}

/// The name of a trace's format.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub struct Written(pub Format);

impl TryFrom<String> for Written {
    type Error = crate::trace::TraceError;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        Format::from_str(&name).map(Self)
    }
}

/// Why there is no scenario.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// It is not written as it should be.
    #[error("{place}: {reason}\nhint: docs/SIMULATION.md has a whole one")]
    Text {
        /// File and line.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// A figure cannot be meant.
    #[error("{file}: `{key}` is {value}; {rule}")]
    Figure {
        /// Where.
        file: String,
        /// Which.
        key: &'static str,
        /// What it is.
        value: f64,
        /// What it may be.
        rule: &'static str,
    },
}

const fn one() -> u64 {
    1
}

const fn unscaled() -> f64 {
    1.0
}

impl Scenario {
    /// Reads one from YAML. `file` names it in errors.
    pub fn read(text: &str, file: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = crate::yaml::read(text, file)
            .map_err(|(place, reason)| ScenarioError::Text { place, reason })?;
        if scenario.schema != SCHEMA {
            return Err(ScenarioError::Text {
                place: file.to_owned(),
                reason: format!("schema is `{}`; `{SCHEMA}` is known", scenario.schema),
            });
        }
        if scenario.strategies.is_empty() {
            return Err(ScenarioError::Text {
                place: file.to_owned(),
                reason: "`strategies` names none; at least one is needed".to_owned(),
            });
        }
        scenario.check(file)?;
        Ok(scenario)
    }

    fn check(&self, file: &str) -> Result<(), ScenarioError> {
        const DAY_MS: f64 = 86_400_000.0;
        let telemetry = self.telemetry.unwrap_or(Reports {
            every_ms: 1.0,
            age_ms: 0.0,
            loss: 0.0,
        });
        let mut figures = vec![
            (
                "engines",
                f64::from(self.engines),
                1.0..=512.0,
                "from 1 to 512 are needed",
            ),
            ("rtt_ms", self.rtt_ms, 0.0..=DAY_MS, "a time is needed"),
            (
                "every_ms",
                telemetry.every_ms,
                1.0..=DAY_MS,
                "1 ms is the least",
            ),
            ("age_ms", telemetry.age_ms, 0.0..=DAY_MS, "a time is needed"),
            (
                "loss",
                telemetry.loss,
                0.0..=1.0,
                "a share from 0 to 1 is needed",
            ),
            (
                "ttft_ms",
                self.slo.ttft_ms,
                0.0..=DAY_MS,
                "a time is needed",
            ),
            (
                "cold_prefills",
                self.slo.cold_prefills,
                0.0..=1e6,
                "a factor is needed",
            ),
            (
                "tpot_ms",
                self.slo.tpot_ms.unwrap_or_default(),
                0.0..=DAY_MS,
                "a time is needed",
            ),
            (
                "seeds",
                self.seeds as f64,
                1.0..=1_000.0,
                "from 1 to 1000 are needed",
            ),
            (
                "leave_out_s",
                self.leave_out_s,
                0.0..=DAY_MS,
                "a time is needed",
            ),
            (
                "prediction_error",
                self.prediction_error,
                0.0..=3.0,
                "0 to 3 is allowed",
            ),
        ];
        for slow in &self.slow {
            let last = f64::from(self.engines) - 1.0;
            let engine = f64::from(slow.engine);
            figures.push(("engine", engine, 0.0..=last, "engines are counted from 0"));
            figures.push((
                "factor",
                slow.factor,
                0.01..=1_000.0,
                "0.01 to 1000 is allowed",
            ));
        }
        match &self.workload {
            Workload::Trace(trace) => {
                figures.push((
                    "time_scale",
                    trace.time_scale,
                    1e-3..=1e3,
                    "0.001 to 1000 is allowed",
                ));
            }
            Workload::Shared(shared) => {
                let tokens = 0.0..=f64::from(1 << 24);
                let block = (shared.prefix_tokens % crate::reference::BLOCK_TOKENS) as f64;
                figures.extend([
                    (
                        "requests",
                        shared.requests as f64,
                        1.0..=1e8,
                        "at least one is needed",
                    ),
                    ("rate", shared.rate, 1e-6..=1e6, "a rate a second is needed"),
                    (
                        "prefixes",
                        shared.prefixes as f64,
                        1.0..=1e6,
                        "at least one is needed",
                    ),
                    (
                        "prefix_tokens",
                        shared.prefix_tokens as f64,
                        tokens.clone(),
                        "at most 2^24 are read",
                    ),
                    (
                        "prefix_tokens modulo 512",
                        block,
                        0.0..=0.0,
                        "whole blocks are shared",
                    ),
                    (
                        "unique_tokens",
                        shared.unique_tokens as f64,
                        tokens.clone(),
                        "at most 2^24 are read",
                    ),
                    (
                        "output_tokens",
                        shared.output_tokens as f64,
                        tokens,
                        "at most 2^24 are read",
                    ),
                ]);
            }
        }
        for (key, value, range, rule) in figures {
            if !range.contains(&value) {
                return Err(ScenarioError::Figure {
                    file: file.to_owned(),
                    key,
                    value,
                    rule,
                });
            }
        }
        Ok(())
    }

    /// Runs it on that profile; `trace` is what its file holds, where it names one.
    #[must_use]
    pub fn run(&self, profile: &Profile, trace: Option<Trace>) -> Compared {
        let us = |ms: f64| (ms * 1e3) as u64;
        let mut engines = vec![profile.clone(); usize::from(self.engines)];
        for slow in &self.slow {
            let engine = &mut engines[usize::from(slow.engine)];
            *engine = engine.slower(slow.factor);
        }
        let fleet = Fleet {
            engines,
            rtt_us: us(self.rtt_ms),
            telemetry: self.telemetry.map(|reports| Telemetry {
                every_us: us(reports.every_ms),
                age_us: us(reports.age_ms),
                loss: reports.loss,
            }),
            slo: Slo {
                ttft_us: us(self.slo.ttft_ms),
                cold_prefills: self.slo.cold_prefills,
                tpot_us: self.slo.tpot_ms.map(us),
            },
        };
        let comparison = Comparison {
            engines: self.engines,
            contenders: self
                .strategies
                .iter()
                .map(|named| named.0.clone())
                .collect(),
            seeds: (0..self.seeds).collect(),
            sigma: self.prediction_error,
            fleet: Some(fleet),
            leave_out_us: us(self.leave_out_s * 1e3),
        };
        match &self.workload {
            Workload::Trace(recorded) => {
                let mut trace = trace.unwrap_or_default();
                for request in &mut trace.requests {
                    request.at_us = (request.at_us as f64 * recorded.time_scale) as u64;
                }
                compare_drawn(&comparison, |_| Cow::Borrowed(&trace))
            }
            Workload::Shared(shared) => compare_drawn(&comparison, |seed| {
                Cow::Owned(shared_prefixes(shared, seed))
            }),
        }
    }
}
