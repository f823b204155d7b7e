//! What the signals of one target mean for a decision.
//!
//! | from | comes |
//! |---|---|
//! | waiting and running, less what we had there at that time | requests of others |
//! | those of them that wait, times the pace | when a prompt's turn comes |
//! | where nobody says how many wait: how long requests wait, less our own backlog | the same |
//! | between two tokens, while something runs | one step of the batch, before a prompt gets in |
//! | memory for keys and values, requests put back | the risk of being put back |
//! | failures, a GPU that works for somebody else, its memory, heat, brake, transfers | penalties |
//! | power | of two equals the one that draws less |
//!
//! The pace is how long a prompt of the others takes: as the engine says, else as our own
//! requests took there. Where neither is known the others' requests that wait count as
//! requests and add no time, since any number would be made up.

use super::field::Field;
use super::kind::{KINDS, Kind};
use super::quarantine::Cause;

/// What this process knows of a target by itself, when a page was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Own {
    /// Requests of ours there.
    pub in_flight: u32,
    /// For how long they are expected to keep it busy.
    pub backlog_us: u64,
    /// How long it works on a prompt of ours.
    pub pace_us: Option<u64>,
    /// Tokens of such a prompt.
    pub prompt_tokens: Option<u64>,
}

/// What a term of the penalty is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Term {
    /// Memory for keys and values is short.
    KvPressure,
    /// Requests are put back.
    Preemptions,
    /// Requests fail.
    Failures,
    /// Its GPU works for somebody else.
    ForeignWork,
    /// The GPU's memory is short.
    MemoryPressure,
    /// It is hot.
    Heat,
    /// Its supply of power slows it down.
    PowerBrake,
    /// Transfers are repeated.
    Replays,
    /// It could not be connected to, once.
    Reach,
    /// It draws power.
    Power,
    /// It was in quarantine.
    Probation,
    /// It would be in quarantine, and too many are.
    Spared,
}

impl Term {
    /// As it is written on pages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::KvPressure => "kv_pressure",
            Self::Preemptions => "preemptions",
            Self::Failures => "failures",
            Self::ForeignWork => "foreign_work",
            Self::MemoryPressure => "memory_pressure",
            Self::Heat => "heat",
            Self::PowerBrake => "power_brake",
            Self::Replays => "replays",
            Self::Reach => "reach",
            Self::Power => "power",
            Self::Probation => "probation",
            Self::Spared => "spared",
        }
    }
}

/// What comes of the signals of one target.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Terms {
    pub(crate) rtt_us: f64,
    pub(crate) foreign: f64,
    pub(crate) foreign_us: f64,
    pub(crate) decode_us: f64,
    pub(crate) penalties_us: Vec<(Term, f64)>,
    /// How long a prompt of others takes; none where nobody knows.
    pub(crate) pace_us: Option<f64>,
}

const SECOND_US: f64 = 1e6;
/// Above this much of the memory for keys and values, requests begin to be put back.
const KV_HIGH: f64 = 0.90;
const KV_PENALTY_US: f64 = 2.0 * SECOND_US;
/// What one request put back each second costs; more cost no more.
const PREEMPTION_PENALTY_US: f64 = SECOND_US;
const FAILURE_PENALTY_US: f64 = 2.0 * SECOND_US;
const FOREIGN_WORK_PENALTY_US: f64 = SECOND_US / 2.0;
/// Below this share a GPU's memory is short. Engines leave a tenth or a twentieth.
const MEMORY_FREE_LOW: f64 = 0.02;
const MEMORY_PENALTY_US: f64 = SECOND_US / 2.0;
/// Degrees at which heat begins to count, at which a GPU is left alone, and at which it
/// is not any more.
const WARM: f64 = 83.0;
const HOT: f64 = 95.0;
const COOL: f64 = 90.0;
const HEAT_PENALTY_US: f64 = SECOND_US;
const BRAKE_PENALTY_US: f64 = SECOND_US;
/// Repeated transfers a second that begin to count, and at which a link has failed.
const REPLAYS_LOW: f64 = 1.0;
const REPLAYS_HIGH: f64 = 100.0;
const REPLAY_PENALTY_US: f64 = SECOND_US / 2.0;
const REACH_PENALTY_US: f64 = SECOND_US;
/// So many attempts to connect in a row say that nobody is there.
const UNREACHABLE_MIN: f64 = 2.0;
/// Less than anything else, but more than nothing.
const WATT_PENALTY_US: f64 = 1.0;

/// Errors after which nothing works until the GPU is reset: fallen off the bus, memory
/// errors that spread, its controller does not answer (NVIDIA, "XID errors").
const XIDS_FATAL: [u64; 4] = [79, 95, 119, 120];
/// Errors of the hardware that may have been the only one: uncorrectable memory, remapped
/// rows, NVLink, many corrected ones, contained ones. All others are programs' errors.
const XIDS_SERIOUS: [u64; 6] = [48, 63, 64, 74, 92, 94];

/// Whether the driver's number of an error (XID) is one of the hardware's.
#[must_use]
pub fn is_serious(xid: f64) -> bool {
    XIDS_SERIOUS.contains(&(xid as u64)) || is_fatal(xid)
}

fn is_fatal(xid: f64) -> bool {
    XIDS_FATAL.contains(&(xid as u64))
}

/// All fields of a target, at one moment.
pub(crate) struct View<'a> {
    pub(crate) fields: &'a [Field; KINDS],
    pub(crate) now_us: u64,
    /// What we knew when the load was told.
    pub(crate) own: Own,
}

impl View<'_> {
    fn value(&self, kind: Kind) -> Option<(f64, f64)> {
        let (current, weight) = self.fields[kind as usize].current(kind, self.now_us)?;
        Some((current.value, weight))
    }

    fn rate(&self, kind: Kind) -> Option<f64> {
        let (current, _) = self.fields[kind as usize].current(kind, self.now_us)?;
        Some(current.rate)
    }

    pub(crate) fn terms(&self) -> Terms {
        let mut terms = Terms {
            pace_us: self.pace_us(),
            ..Terms::default()
        };
        if let Some((seconds, weight)) = self.value(Kind::RoundTrip) {
            terms.rtt_us = seconds * SECOND_US * weight;
        }
        self.foreign_load(&mut terms);
        terms.decode_us = self.decode_us();
        terms.penalties_us = self.penalties_us();
        terms
    }

    /// The engine knows of everybody's requests, we of ours: the rest is others'.
    fn foreign_load(&self, terms: &mut Terms) {
        let waiting = self.value(Kind::Waiting);
        let running = self.value(Kind::Running);
        let weight = match (waiting, running) {
            (Some((_, weight)), Some((_, other))) => weight.min(other),
            (Some((_, weight)), None) | (None, Some((_, weight))) => weight,
            (None, None) => 0.0,
        };
        let waiting_count = waiting.map_or(0.0, |(count, _)| count);
        let all = waiting_count + running.map_or(0.0, |(count, _)| count);
        let foreign = (all - f64::from(self.own.in_flight)).max(0.0) * weight;
        terms.foreign = foreign;
        if waiting.is_some() {
            // Which of those that wait are ours is not said: as many as of all.
            let waiting_share = if all > 0.0 { waiting_count / all } else { 0.0 };
            terms.foreign_us = foreign * waiting_share * terms.pace_us.unwrap_or_default();
        } else if let Some((seconds, weight)) = self.value(Kind::Queued) {
            let waited_us = seconds * SECOND_US - self.own.backlog_us as f64;
            terms.foreign_us = waited_us.max(0.0) * weight;
        }
    }

    /// How long a prompt of the others takes.
    fn pace_us(&self) -> Option<f64> {
        let requests = self.rate(Kind::Done).filter(|rate| *rate > 0.0);
        let requests = requests.or_else(|| self.rate(Kind::FirstToken));
        let requests = requests.filter(|rate| *rate > 0.0);
        let prefill = self.rate(Kind::PrefillSeconds).filter(|rate| *rate > 0.0);
        if let (Some(prefill), Some(requests)) = (prefill, requests) {
            return Some(prefill / requests * SECOND_US);
        }
        let waited = self.value(Kind::Queued).map_or(0.0, |(seconds, _)| seconds);
        if let Some((first_token, _)) = self.value(Kind::FirstToken) {
            return Some((first_token - waited).max(0.0) * SECOND_US);
        }
        let new_tokens = self.new_tokens();
        if let (Some(prefill), Some(new_tokens)) = (prefill, new_tokens)
            && let Some(tokens) = self.own.prompt_tokens
        {
            return Some(prefill / new_tokens * tokens as f64 * SECOND_US);
        }
        if let Some(own_us) = self.own.pace_us {
            // Prompts of others are as much longer than ours as their tokens say.
            let longer = match (new_tokens, requests, self.own.prompt_tokens) {
                (Some(tokens), Some(requests), Some(own)) if own > 0 => {
                    tokens / requests / own as f64
                }
                _ => 1.0,
            };
            return Some(own_us as f64 * longer);
        }
        let (end_to_end, _) = self.value(Kind::EndToEnd)?;
        Some((end_to_end - waited).max(0.0) * SECOND_US)
    }

    /// Tokens of prompts a second that were in no cache.
    fn new_tokens(&self) -> Option<f64> {
        let all = self.rate(Kind::PromptTokens)?;
        let cached = self.rate(Kind::CachedTokens).unwrap_or_default();
        Some(all - cached).filter(|rate| *rate > 0.0)
    }

    /// A prompt gets in with the next step of the batch.
    fn decode_us(&self) -> f64 {
        let Some((running, weight)) = self.value(Kind::Running).filter(|(count, _)| *count > 0.0)
        else {
            return 0.0;
        };
        let step = self.value(Kind::BetweenTokens).map(|(seconds, _)| seconds);
        let step = step.or_else(|| {
            let tokens = self.rate(Kind::GeneratedTokens)?;
            // No step takes longer than the window in which none was seen.
            (tokens > 0.0).then_some((running / tokens).min(1.0))
        });
        step.unwrap_or_default() * SECOND_US * weight
    }

    fn penalties_us(&self) -> Vec<(Term, f64)> {
        let mut terms = Vec::new();
        let mut add = |term, us: f64| {
            if us > 0.0 {
                terms.push((term, us));
            }
        };
        if let Some((used, weight)) = self.value(Kind::KvUsage) {
            let over = ((used - KV_HIGH) / (1.0 - KV_HIGH)).clamp(0.0, 1.0);
            add(Term::KvPressure, over * KV_PENALTY_US * weight);
        }
        if let Some((rate, weight)) = self.value(Kind::Preemptions) {
            add(
                Term::Preemptions,
                rate.min(1.0) * PREEMPTION_PENALTY_US * weight,
            );
        }
        if let Some((failed, weight)) = self.value(Kind::Failed) {
            let done = self.rate(Kind::Done).or_else(|| self.rate(Kind::EndToEnd));
            let all = done.unwrap_or_default() + failed;
            let share = if all > 0.0 { failed / all } else { 0.0 };
            add(Term::Failures, share * FAILURE_PENALTY_US * weight);
        }
        if let Some((usage, weight)) = self.value(Kind::GpuUsage) {
            let works = [Kind::Waiting, Kind::Running].map(|kind| self.value(kind));
            let is_idle = works.iter().flatten().all(|(count, _)| *count <= 0.0);
            if is_idle && works[1].is_some() && self.own.in_flight == 0 {
                add(Term::ForeignWork, usage * FOREIGN_WORK_PENALTY_US * weight);
            }
        }
        if let (Some((used, weight)), Some((free, other))) = (
            self.value(Kind::GpuMemoryUsed),
            self.value(Kind::GpuMemoryFree),
        ) {
            let share = free / (used + free).max(1.0);
            let short = (1.0 - share / MEMORY_FREE_LOW).max(0.0);
            let weight = weight.min(other);
            add(Term::MemoryPressure, short * MEMORY_PENALTY_US * weight);
        }
        if let Some((degrees, weight)) = self.value(Kind::GpuTemperature) {
            let over = ((degrees - WARM) / (HOT - WARM)).clamp(0.0, 1.0);
            add(Term::Heat, over * HEAT_PENALTY_US * weight);
        }
        if let Some((brake, weight)) = self.value(Kind::GpuPowerBrake) {
            add(Term::PowerBrake, brake * BRAKE_PENALTY_US * weight);
        }
        if let Some((rate, weight)) = self.value(Kind::GpuReplays) {
            let over = ((rate - REPLAYS_LOW) / (REPLAYS_HIGH - REPLAYS_LOW)).clamp(0.0, 1.0);
            add(Term::Replays, over * REPLAY_PENALTY_US * weight);
        }
        if let Some((failures, weight)) = self.value(Kind::Unreachable) {
            add(Term::Reach, failures.min(1.0) * REACH_PENALTY_US * weight);
        }
        let power = self.value(Kind::GpuPower);
        if let Some((watts, weight)) = power.or_else(|| self.value(Kind::GpuEnergy)) {
            add(Term::Power, watts * WATT_PENALTY_US * weight);
        }
        terms
    }

    /// What it is to be left alone for now, as long as that lasts. Who is hot already
    /// (`was_hot`) has to become cool.
    pub(crate) fn cause(&self, was_hot: bool) -> Option<Cause> {
        let now = |kind| self.value(kind).map(|(value, _)| value);
        let at_least = |kind, bound: f64| now(kind).is_some_and(|value| value >= bound);
        if at_least(Kind::Unreachable, UNREACHABLE_MIN) || at_least(Kind::GpuReplays, REPLAYS_HIGH)
        {
            return Some(Cause::Network);
        }
        if now(Kind::GpuXid).is_some_and(is_fatal) {
            return Some(Cause::Xid);
        }
        let bound = if was_hot { COOL } else { HOT };
        let is_hot = at_least(Kind::GpuTemperature, bound);
        (is_hot || at_least(Kind::GpuThermalSlowdown, 1.0)).then_some(Cause::Thermal)
    }
}
