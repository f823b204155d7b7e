//! How long requests waited, and how long their answers took: histograms that all threads
//! write, and tokens by the engines' own counts.
//!
//! A request that ends adds a handful of atomics; nothing is allocated and no label is
//! made. Targets beyond a bound share one line of the page.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::limits::SIGNAL_SERIES_TARGETS_MAX;
use crate::target::Target;
use crate::usage::Usage;

/// Upper bounds of the buckets, in microseconds.
const BOUNDS_US: [u64; 15] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// How long something took, as often as it happened.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    /// The last one has everything beyond the bounds.
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

/// All that is measured.
#[derive(Debug)]
pub(crate) struct Times {
    /// From a request's arrival until it is bound to a target.
    pub(crate) wait: Histogram,
    targets: Box<[TargetTimes]>,
}

/// On cache lines of its own, since targets are written by different threads.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct TargetTimes {
    /// From a request's arrival to the first token of its answer.
    pub(crate) first_token: Histogram,
    /// To the end of its answer.
    pub(crate) answer: Histogram,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    answer_tokens: AtomicU64,
}

impl Histogram {
    pub(crate) fn add(&self, us: u64) {
        let bucket = BOUNDS_US.partition_point(|bound| us > *bound);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// Samples of one series; `labels` without braces.
    fn write(&self, page: &mut String, name: &str, labels: &str) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut count = 0;
        // Writing to a text cannot fail.
        for (place, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            let bound = match BOUNDS_US.get(place) {
                Some(us) => (*us as f64 / 1e6).to_string(),
                None => "+Inf".to_owned(),
            };
            let _ = writeln!(
                page,
                "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}"
            );
        }
        let labels = match labels {
            "" => String::new(),
            labels => format!("{{{labels}}}"),
        };
        let sum = self.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(
            page,
            "{name}_sum{labels} {sum}\n{name}_count{labels} {count}"
        );
    }
}

impl Times {
    pub(crate) fn new(targets: usize) -> Times {
        // One more stands for all the others.
        let lines = targets.min(SIGNAL_SERIES_TARGETS_MAX + 1);
        Times {
            wait: Histogram::default(),
            targets: (0..lines).map(|_| TargetTimes::default()).collect(),
        }
    }

    /// Of the target at this place.
    pub(crate) fn of(&self, place: usize) -> &TargetTimes {
        &self.targets[place.min(self.targets.len() - 1)]
    }

    /// Families of the page that Prometheus reads.
    pub(crate) fn text(&self, targets: &[Target]) -> String {
        let mut page = String::new();
        let head = |page: &mut String, name: &str, kind: &str, help: &str| {
            let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        let name = "mlmesh_gateway_wait_seconds";
        head(
            &mut page,
            name,
            "histogram",
            "From a request's arrival until it was bound to a target.",
        );
        self.wait.write(&mut page, name, "");
        let label = |place: usize| match targets.get(place) {
            Some(target) if place < SIGNAL_SERIES_TARGETS_MAX => {
                format!("target=\"{}\"", target.host())
            }
            _ => "target=\"others\"".to_owned(),
        };
        type Of = fn(&TargetTimes) -> &Histogram;
        let histograms: [(&str, &str, Of); 2] = [
            (
                "mlmesh_gateway_first_token_seconds",
                "From a request's arrival to the first token of its answer, of streams.",
                |times| &times.first_token,
            ),
            (
                "mlmesh_gateway_answer_seconds",
                "From a request's arrival to the end of its answer.",
                |times| &times.answer,
            ),
        ];
        for (name, help, of) in histograms {
            head(&mut page, name, "histogram", help);
            for (place, times) in self.targets.iter().enumerate() {
                of(times).write(&mut page, name, &label(place));
            }
        }
        type Count = fn(&TargetTimes) -> &AtomicU64;
        let counts: [(&str, &str, Count); 3] = [
            (
                "mlmesh_gateway_prompt_tokens_total",
                "Tokens of prompts, by the engines' own counts.",
                |times| &times.prompt_tokens,
            ),
            (
                "mlmesh_gateway_cached_tokens_total",
                "Those that the engine held before.",
                |times| &times.cached_tokens,
            ),
            (
                "mlmesh_gateway_answer_tokens_total",
                "Tokens of answers, by the engines' own counts.",
                |times| &times.answer_tokens,
            ),
        ];
        for (name, help, of) in counts {
            head(&mut page, name, "counter", help);
            for (place, times) in self.targets.iter().enumerate() {
                let count = of(times).load(Ordering::Relaxed);
                let _ = writeln!(page, "{name}{{{}}} {count}", label(place));
            }
        }
        page
    }
}

impl TargetTimes {
    /// An answer has ended.
    pub(crate) fn ended(&self, took_us: u64, usage: &Usage) {
        self.answer.add(took_us);
        for (count, tokens) in [
            (&self.prompt_tokens, usage.prompt_tokens),
            (&self.cached_tokens, usage.cached_tokens),
            (&self.answer_tokens, usage.answer_tokens),
        ] {
            if let Some(tokens) = tokens {
                count.fetch_add(tokens, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_as_long_as_a_bound_is_within_it() {
        let histogram = Histogram::default();
        for us in [0, 1_000, 1_001, 60_000_000, 60_000_001, u64::MAX / 4] {
            histogram.add(us);
        }
        let mut page = String::new();
        histogram.write(&mut page, "a", "b=\"c\"");
        for line in [
            "a_bucket{b=\"c\",le=\"0.001\"} 2\n",
            "a_bucket{b=\"c\",le=\"0.0025\"} 3\n",
            "a_bucket{b=\"c\",le=\"60\"} 4\n",
            "a_bucket{b=\"c\",le=\"+Inf\"} 6\n",
            "a_count{b=\"c\"} 6\n",
        ] {
            assert!(page.contains(line), "{line} in {page}");
        }
    }

    #[test]
    fn targets_beyond_the_bound_share_a_line() {
        let hosts = 0..SIGNAL_SERIES_TARGETS_MAX + 9;
        let targets: Vec<Target> = hosts
            .map(|port| format!("http://127.0.0.1:{}", port + 1).parse().unwrap())
            .collect();
        let times = Times::new(targets.len());
        for place in 0..targets.len() {
            times.of(place).ended(5, &Usage::default());
        }
        let page = times.text(&targets);
        assert!(page.contains("answer_seconds_count{target=\"127.0.0.1:64\"} 1\n"));
        assert!(
            page.contains("answer_seconds_count{target=\"others\"} 9\n"),
            "{page}"
        );
        assert!(!page.contains("127.0.0.1:65\""));
    }
}
