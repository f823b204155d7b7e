//! What one engine tells on its page of metrics, by the names that vLLM has for it.

use std::fmt::Write as _;

use mlmesh_sim::engine::Counts;

use super::MODEL;

/// Upper bounds of the buckets of all times, in seconds.
const BOUNDS_S: [f64; 20] = [
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0,
    2.5, 5.0, 10.0, 30.0, 120.0,
];

/// Totals since the start; what is now is asked of the engine.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) output_tokens: u64,
    pub(super) done: u64,
    pub(super) aborted: u64,
    pub(super) queued: Times,
    pub(super) first_token: Times,
    pub(super) between_tokens: Times,
    pub(super) end_to_end: Times,
    pub(super) prefill: Times,
    /// By how much ends of iterations were looked at too late.
    pub(super) late: Times,
}

/// How long things took.
#[derive(Debug, Default)]
pub(super) struct Times {
    counts: [u64; BOUNDS_S.len()],
    count: u64,
    sum_us: u64,
}

impl Times {
    pub(super) fn add(&mut self, took_us: u64) {
        let took_s = took_us as f64 / 1e6;
        let bucket = BOUNDS_S.partition_point(|bound_s| *bound_s < took_s);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.count += 1;
        self.sum_us += took_us;
    }
}

impl Figures {
    /// The page in the text format of Prometheus.
    pub(super) fn page(&self, engine: usize, counts: Counts, memory_blocks: u64) -> String {
        let mut page = Page {
            text: String::new(),
            engine,
        };
        let usage = counts.used_blocks as f64 / memory_blocks as f64;
        page.gauge(
            "num_requests_running",
            "Requests that are worked on.",
            counts.running as f64,
        );
        page.gauge(
            "num_requests_waiting",
            "Requests that wait.",
            counts.waiting as f64,
        );
        page.gauge(
            "kv_cache_usage_perc",
            "Used share of memory, from 0 to 1.",
            usage,
        );
        for (name, help, value) in [
            (
                "prefix_cache_queries",
                "Tokens looked for in the prefix cache.",
                counts.queried_tokens,
            ),
            (
                "prefix_cache_hits",
                "Tokens found in the prefix cache.",
                counts.hit_tokens,
            ),
            (
                "num_preemptions",
                "Requests put back for want of memory.",
                counts.preempted,
            ),
            ("prompt_tokens", "Tokens of prompts.", self.prompt_tokens),
            (
                "prompt_tokens_cached",
                "Tokens of prompts that were in memory.",
                self.cached_tokens,
            ),
            (
                "generation_tokens",
                "Tokens of answers.",
                self.output_tokens,
            ),
        ] {
            page.head(&format!("vllm:{name}_total"), help, "counter");
            page.sample(&format!("vllm:{name}_total"), "", value as f64);
        }
        let name = "vllm:request_success_total";
        page.head(name, "Requests that ended.", "counter");
        page.sample(name, ",finished_reason=\"length\"", self.done as f64);
        page.sample(name, ",finished_reason=\"abort\"", self.aborted as f64);
        for (name, help, times) in [
            (
                "vllm:time_to_first_token_seconds",
                "From a request to its first token.",
                &self.first_token,
            ),
            (
                "vllm:inter_token_latency_seconds",
                "Between two tokens.",
                &self.between_tokens,
            ),
            (
                "vllm:e2e_request_latency_seconds",
                "From a request to its last token.",
                &self.end_to_end,
            ),
            (
                "vllm:request_queue_time_seconds",
                "From a request to its first iteration.",
                &self.queued,
            ),
            (
                "vllm:request_prefill_time_seconds",
                "From there to its first token.",
                &self.prefill,
            ),
            (
                "mlmesh_sim_late_seconds",
                "Ends of iterations: looked at so late.",
                &self.late,
            ),
        ] {
            page.times(name, help, times);
        }
        page.text
    }
}

struct Page {
    text: String,
    engine: usize,
}

impl Page {
    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        let name = format!("vllm:{name}");
        self.head(&name, help, "gauge");
        self.sample(&name, "", value);
    }

    fn times(&mut self, name: &str, help: &str, times: &Times) {
        self.head(name, help, "histogram");
        let bucket = format!("{name}_bucket");
        let mut sum = 0;
        for (bound_s, count) in BOUNDS_S.iter().zip(times.counts) {
            sum += count;
            self.sample(&bucket, &format!(",le=\"{bound_s:?}\""), sum as f64);
        }
        self.sample(&bucket, ",le=\"+Inf\"", times.count as f64);
        self.sample(&format!("{name}_sum"), "", times.sum_us as f64 / 1e6);
        self.sample(&format!("{name}_count"), "", times.count as f64);
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        // Writing to a text does not fail.
        let _ = writeln!(
            self.text,
            "# HELP {name} {help} (simulated)\n# TYPE {name} {kind}"
        );
    }

    fn sample(&mut self, name: &str, labels: &str, value: f64) {
        let engine = self.engine;
        let _ = writeln!(
            self.text,
            "{name}{{model_name=\"{MODEL}\",engine=\"{engine}\"{labels}}} {value:?}"
        );
    }
}
