//! What a page says, in the router's words: one reading for each kind, of all models or
//! GPUs of a target together.

use std::sync::Arc;

use mlmesh_route::fusion::{Kind, Missing, Own, Reading, Report, is_serious};
use mlmesh_telemetry::adapter::{About, Adapter, Figure, Signal, State};

/// Who says something.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Speaker {
    pub(crate) name: &'static str,
    pub(crate) about: About,
    /// By how much it may be late.
    pub(crate) delay_seconds: f64,
}

/// The driver itself, which is never late.
pub(crate) const NVML: Speaker = Speaker {
    name: "nvml",
    about: About::Gpu,
    delay_seconds: 0.0,
};

impl From<&'static Adapter> for Speaker {
    fn from(adapter: &'static Adapter) -> Speaker {
        Speaker {
            name: &adapter.runtime,
            about: adapter.about,
            delay_seconds: adapter.delay_seconds.max(0.0),
        }
    }
}

/// What somebody says of a target. Of GPUs only those in `gpus` count, if there are any.
pub(crate) fn report(
    speaker: Speaker,
    state: &State,
    gpus: &[String],
    at_us: u64,
    own: Own,
) -> Report {
    let mut report = Report {
        source: Arc::from(speaker.name),
        at_us,
        delay_us: (speaker.delay_seconds * 1e6) as u64,
        own,
        readings: Vec::new(),
        missing: Vec::new(),
    };
    let counts = |subject: &str| {
        speaker.about == About::Model || gpus.is_empty() || gpus.iter().any(|gpu| gpu == subject)
    };
    for signal in Signal::ALL {
        if signal.about() != speaker.about {
            continue;
        }
        let subjects = state.figures.iter().filter(|(of, _)| counts(of));
        let figures = subjects.filter_map(|(_, figures)| figures.get(&signal));
        let together = figures
            .copied()
            .reduce(|one, other| both(signal, one, other));
        match together {
            Some(figure) => report.readings.push((kind(signal), reading(figure))),
            None => report.missing.push((kind(signal), why(state, signal))),
        }
    }
    report
}

/// All that is said of models, or of GPUs, when there is no page.
pub(crate) fn nothing(about: About, word: &'static str, text: &str) -> Vec<(Kind, Missing)> {
    let text: Arc<str> = Arc::from(text);
    let signals = Signal::ALL.into_iter();
    let signals = signals.filter(|signal| signal.about() == about);
    let missing = |signal| {
        let missing = Missing {
            word,
            text: Arc::clone(&text),
        };
        (kind(signal), missing)
    };
    signals.map(missing).collect()
}

fn why(state: &State, signal: Signal) -> Missing {
    match state.missing.get(&signal) {
        Some(missing) => Missing {
            word: missing.word(),
            text: Arc::from(missing.to_string()),
        },
        None => Missing {
            word: "not_on_page",
            text: Arc::from("the page has it, but not of this target"),
        },
    }
}

/// What two models, or two GPUs, are together.
fn both(signal: Signal, one: Figure, other: Figure) -> Figure {
    match (one, other) {
        (Figure::Now(one), Figure::Now(other)) => Figure::Now(match signal {
            // The one that makes answers wrong.
            Signal::GpuXid if is_serious(one) != is_serious(other) => {
                if is_serious(one) {
                    one
                } else {
                    other
                }
            }
            Signal::KvUsage
            | Signal::GpuUsage
            | Signal::GpuTemperature
            | Signal::GpuThermalSlowdown
            | Signal::GpuPowerBrake
            | Signal::GpuXid => one.max(other),
            _ => one + other,
        }),
        (Figure::Total(one), Figure::Total(other)) => Figure::Total(one + other),
        (
            Figure::Timing {
                seconds: one_seconds,
                count: one_count,
            },
            Figure::Timing { seconds, count },
        ) => Figure::Timing {
            seconds: one_seconds + seconds,
            count: one_count + count,
        },
        // Figures of one signal have one form.
        (one, _) => one,
    }
}

fn reading(figure: Figure) -> Reading {
    match figure {
        Figure::Now(number) => Reading::Now(number),
        Figure::Total(number) => Reading::Total(number),
        Figure::Timing { seconds, count } => Reading::Timing { seconds, count },
    }
}

fn kind(signal: Signal) -> Kind {
    match signal {
        Signal::Waiting => Kind::Waiting,
        Signal::Running => Kind::Running,
        Signal::KvUsage => Kind::KvUsage,
        Signal::PromptTokens => Kind::PromptTokens,
        Signal::CachedTokens => Kind::CachedTokens,
        Signal::GeneratedTokens => Kind::GeneratedTokens,
        Signal::Preemptions => Kind::Preemptions,
        Signal::Done => Kind::Done,
        Signal::Failed => Kind::Failed,
        Signal::FirstToken => Kind::FirstToken,
        Signal::BetweenTokens => Kind::BetweenTokens,
        Signal::EndToEnd => Kind::EndToEnd,
        Signal::Queued => Kind::Queued,
        Signal::PrefillSeconds => Kind::PrefillSeconds,
        Signal::GpuUsage => Kind::GpuUsage,
        Signal::GpuMemoryUsed => Kind::GpuMemoryUsed,
        Signal::GpuMemoryFree => Kind::GpuMemoryFree,
        Signal::GpuTemperature => Kind::GpuTemperature,
        Signal::GpuThermalSlowdown => Kind::GpuThermalSlowdown,
        Signal::GpuPowerBrake => Kind::GpuPowerBrake,
        Signal::GpuPower => Kind::GpuPower,
        Signal::GpuEnergy => Kind::GpuEnergy,
        Signal::GpuXid => Kind::GpuXid,
        Signal::GpuUncorrectable => Kind::GpuUncorrectable,
        Signal::GpuReplays => Kind::GpuReplays,
    }
}

#[cfg(test)]
mod tests {
    use mlmesh_telemetry::adapter::{Form, adapter};
    use mlmesh_telemetry::exposition::Page;

    use super::*;

    #[test]
    fn no_source_is_late_by_more_than_is_believed() {
        use mlmesh_route::TargetId;
        use mlmesh_route::fusion::Fusion;
        for adapter in mlmesh_telemetry::adapter::adapters() {
            let of_it = |signal: &Signal| signal.about() == adapter.about;
            for signal in Signal::ALL.into_iter().filter(of_it) {
                if signal.form() != Form::Now {
                    continue;
                }
                let mut state = State::default();
                let figures = [(signal, Figure::Now(0.5))].into();
                state.figures.insert(String::new(), figures);
                let report = report(adapter.into(), &state, &[], 0, Own::default());
                let mut fusion = Fusion::new(1);
                fusion.take(TargetId(0), &report);
                let (_, facts) = fusion.snapshot(0);
                let weight = facts[0].facts[kind(signal) as usize].weight;
                assert!(weight > 0.25, "{}: {signal:?}", adapter.runtime);
            }
        }
    }

    #[test]
    fn models_and_gpus_of_one_target_are_told_together() {
        let text = "\
            DCGM_FI_DEV_GPU_TEMP{UUID=\"a\"} 60\n\
            DCGM_FI_DEV_GPU_TEMP{UUID=\"b\"} 70\n\
            DCGM_FI_DEV_XID_ERRORS{UUID=\"a\"} 79\n\
            DCGM_FI_DEV_XID_ERRORS{UUID=\"b\"} 109\n\
            DCGM_FI_DEV_POWER_USAGE{UUID=\"a\"} 100\n\
            DCGM_FI_DEV_POWER_USAGE{UUID=\"b\"} 200\n";
        let page = Page::read(text).unwrap();
        let adapter = adapter("dcgm_exporter").unwrap();
        let state = adapter.state(&page);
        let said = |gpus: &[&str], kind: Kind| {
            let gpus: Vec<String> = gpus.iter().map(|gpu| (*gpu).to_owned()).collect();
            let report = report(adapter.into(), &state, &gpus, 0, Own::default());
            assert_eq!(report.delay_us, 30_000_000);
            let mut readings = report.readings.into_iter();
            readings
                .find(|(of, _)| *of == kind)
                .map(|(_, reading)| reading)
        };
        assert_eq!(said(&[], Kind::GpuTemperature), Some(Reading::Now(70.0)));
        assert_eq!(said(&["a"], Kind::GpuTemperature), Some(Reading::Now(60.0)));
        assert_eq!(said(&[], Kind::GpuXid), Some(Reading::Now(79.0)));
        assert_eq!(said(&[], Kind::GpuPower), Some(Reading::Now(300.0)));
        assert_eq!(said(&["c"], Kind::GpuPower), None);
        assert_eq!(said(&[], Kind::Waiting), None);
    }
}
