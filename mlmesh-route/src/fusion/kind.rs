//! The kinds of signals: what each may say, and for how long it is believed.

/// What is measured of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Requests that wait there.
    Waiting,
    /// Requests that it works on.
    Running,
    /// Share of the memory for keys and values that is used.
    KvUsage,
    /// Tokens of prompts.
    PromptTokens,
    /// Tokens of prompts that were in its cache.
    CachedTokens,
    /// Tokens of answers.
    GeneratedTokens,
    /// Requests that it put back for want of memory.
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
    /// Time that requests wait there.
    Queued,
    /// Seconds spent on prompts.
    PrefillSeconds,
    /// Share of its time that a GPU works.
    GpuUsage,
    /// Bytes of a GPU's memory that are used.
    GpuMemoryUsed,
    /// Bytes of a GPU's memory that are free.
    GpuMemoryFree,
    /// Degrees Celsius.
    GpuTemperature,
    /// Whether heat slows it down: 1, else 0.
    GpuThermalSlowdown,
    /// Whether its supply of power slows it down: 1, else 0.
    GpuPowerBrake,
    /// Watts that it draws.
    GpuPower,
    /// Joules that it has drawn.
    GpuEnergy,
    /// The last error that its driver has noted; 0 for none.
    GpuXid,
    /// Memory errors that could not be corrected.
    GpuUncorrectable,
    /// Transfers that were repeated.
    GpuReplays,
    /// Seconds of a round trip.
    RoundTrip,
    /// Attempts to connect, one after the other, that failed; 0 after one that did not.
    Unreachable,
}

/// How many kinds there are.
pub const KINDS: usize = 27;

/// What sort of reading a kind has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Now,
    Total,
    Timing,
}

/// What holds for a kind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Law {
    pub(crate) name: &'static str,
    pub(crate) form: Form,
    /// The largest reading that can be; the least is zero.
    pub(crate) max: f64,
    /// In this time its weight is halved.
    pub(crate) half_life_us: u64,
    /// What is older is not used.
    pub(crate) age_us_max: u64,
}

const SECOND_US: u64 = 1_000_000;
/// Queues are another ones after a second or two.
const LOAD: (u64, u64) = (2 * SECOND_US, 10 * SECOND_US);
/// How fast a target works changes with its mix of requests.
const PACE: (u64, u64) = (60 * SECOND_US, 600 * SECOND_US);
/// Memory fills and empties with requests.
const MEMORY: (u64, u64) = (5 * SECOND_US, 30 * SECOND_US);
/// Exporters of GPUs look every 30 seconds by default.
const GPU: (u64, u64) = (60 * SECOND_US, 180 * SECOND_US);

const REQUESTS_MAX: f64 = 1e6;
const TOTAL_MAX: f64 = 1e15;
const BYTES_MAX: f64 = 1e14;

impl Kind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; KINDS] = [
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
        Self::RoundTrip,
        Self::Unreachable,
    ];

    /// As it is written on pages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.law().name
    }

    pub(crate) const fn law(self) -> Law {
        let (name, form, max, (half_life_us, age_us_max)) = match self {
            Self::Waiting => ("waiting", Form::Now, REQUESTS_MAX, LOAD),
            Self::Running => ("running", Form::Now, REQUESTS_MAX, LOAD),
            Self::KvUsage => ("kv_usage", Form::Now, 1.001, MEMORY),
            Self::PromptTokens => ("prompt_tokens", Form::Total, TOTAL_MAX, PACE),
            Self::CachedTokens => ("cached_tokens", Form::Total, TOTAL_MAX, PACE),
            Self::GeneratedTokens => ("generated_tokens", Form::Total, TOTAL_MAX, PACE),
            Self::Preemptions => ("preemptions", Form::Total, TOTAL_MAX, MEMORY),
            Self::Done => ("done", Form::Total, TOTAL_MAX, PACE),
            Self::Failed => ("failed", Form::Total, TOTAL_MAX, MEMORY),
            Self::FirstToken => ("first_token", Form::Timing, TOTAL_MAX, PACE),
            Self::BetweenTokens => ("between_tokens", Form::Timing, TOTAL_MAX, PACE),
            Self::EndToEnd => ("end_to_end", Form::Timing, TOTAL_MAX, PACE),
            Self::Queued => ("queued", Form::Timing, TOTAL_MAX, LOAD),
            Self::PrefillSeconds => ("prefill_seconds", Form::Total, TOTAL_MAX, PACE),
            Self::GpuUsage => ("gpu_usage", Form::Now, 1.001, GPU),
            Self::GpuMemoryUsed => ("gpu_memory_used", Form::Now, BYTES_MAX, GPU),
            Self::GpuMemoryFree => ("gpu_memory_free", Form::Now, BYTES_MAX, GPU),
            Self::GpuTemperature => ("gpu_temperature", Form::Now, 200.0, GPU),
            Self::GpuThermalSlowdown => ("gpu_thermal_slowdown", Form::Now, 1.0, GPU),
            Self::GpuPowerBrake => ("gpu_power_brake", Form::Now, 1.0, GPU),
            Self::GpuPower => ("gpu_power", Form::Now, 1e5, GPU),
            Self::GpuEnergy => ("gpu_energy", Form::Total, TOTAL_MAX, GPU),
            Self::GpuXid => ("gpu_xid", Form::Now, 1e4, GPU),
            Self::GpuUncorrectable => ("gpu_uncorrectable", Form::Total, 1e12, GPU),
            Self::GpuReplays => ("gpu_replays", Form::Total, 1e12, GPU),
            Self::RoundTrip => ("round_trip", Form::Now, 60.0, PACE),
            Self::Unreachable => ("unreachable", Form::Now, 1e9, LOAD),
        };
        Law {
            name,
            form,
            max,
            half_life_us,
            age_us_max,
        }
    }
}

impl Law {
    /// How much a value of this age counts, from 1 to 0.
    pub(crate) fn weight(&self, age_us: u64) -> f64 {
        match age_us > self.age_us_max {
            true => 0.0,
            false => (-(age_us as f64) / self.half_life_us as f64).exp2(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_numbered_and_named_once() {
        let mut names: Vec<&str> = Vec::new();
        for (place, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place);
            assert!(!names.contains(&kind.name()), "{}", kind.name());
            names.push(kind.name());
        }
    }

    #[test]
    fn a_value_loses_half_of_its_weight_in_its_half_life_and_all_at_its_limit() {
        for kind in Kind::ALL {
            let law = kind.law();
            assert_eq!(law.weight(0), 1.0, "{kind:?}");
            assert_eq!(law.weight(law.half_life_us), 0.5, "{kind:?}");
            assert!(law.weight(law.age_us_max) > 0.0, "{kind:?}");
            assert_eq!(law.weight(law.age_us_max + 1), 0.0, "{kind:?}");
        }
    }
}
