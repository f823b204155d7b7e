//! `/metrics`: counters, gauges and one histogram in the Prometheus text format
//! (version 0.0.4). No label but `le`: everything else is a name of its own, so that
//! nothing that a client sends can make a series.

use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the request histogram, in microseconds, and as Prometheus writes them.
const BOUNDS: [(u64, &str); 12] = [
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (1_000_000, "1"),
    (10_000_000, "10"),
    (60_000_000, "60"),
];

/// What the front end counts.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) connections: AtomicI64,
    pub(crate) connections_total: AtomicU64,
    pub(crate) handshake_failures_total: AtomicU64,
    pub(crate) plain_http_refused_total: AtomicU64,
    pub(crate) auth_failures_total: AtomicU64,
    pub(crate) client_errors_total: AtomicU64,
    pub(crate) server_errors_total: AtomicU64,
    pub(crate) event_streams: AtomicI64,
    pub(crate) events_sent_total: AtomicU64,
    request_buckets: [AtomicU64; BOUNDS.len()],
    requests_total: AtomicU64,
    request_us_total: AtomicU64,
}

impl Metrics {
    /// Counts an answered request.
    pub(crate) fn request(&self, status: u16, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        for ((bound, _), bucket) in BOUNDS.iter().zip(&self.request_buckets) {
            if micros <= *bound {
                bucket.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.requests_total.fetch_add(1, Ordering::Relaxed);
        self.request_us_total.fetch_add(micros, Ordering::Relaxed);
        match status {
            400..=499 => self.client_errors_total.fetch_add(1, Ordering::Relaxed),
            500.. => self.server_errors_total.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
    }

    /// Writes what the front end counts.
    pub(crate) fn write(&self, page: &mut Exposition) {
        let count = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let level = |value: &AtomicI64| value.load(Ordering::Relaxed).max(0).unsigned_abs();
        page.gauge(
            "mlmesh_http_connections",
            "Open connections.",
            level(&self.connections),
        );
        page.counter(
            "mlmesh_http_connections_total",
            "Connections accepted.",
            count(&self.connections_total),
        );
        page.counter(
            "mlmesh_tls_handshake_failures_total",
            "TLS handshakes that failed or took too long.",
            count(&self.handshake_failures_total),
        );
        page.counter(
            "mlmesh_http_plain_refused_total",
            "Connections refused because they spoke plain HTTP.",
            count(&self.plain_http_refused_total),
        );
        page.counter(
            "mlmesh_auth_failures_total",
            "Requests without a key that is known.",
            count(&self.auth_failures_total),
        );
        page.counter(
            "mlmesh_http_client_errors_total",
            "Answers with a status of 400 to 499.",
            count(&self.client_errors_total),
        );
        page.counter(
            "mlmesh_http_server_errors_total",
            "Answers with a status of 500 and above.",
            count(&self.server_errors_total),
        );
        page.gauge(
            "mlmesh_event_streams",
            "Open event streams.",
            level(&self.event_streams),
        );
        page.counter(
            "mlmesh_events_sent_total",
            "Events sent on event streams.",
            count(&self.events_sent_total),
        );
        // The count is read first: a bucket may be ahead of it, never behind `+Inf`.
        let buckets: Vec<u64> = self.request_buckets.iter().map(count).collect();
        page.histogram(
            "mlmesh_http_request_seconds",
            "Time from a request's head to its answer.",
            &buckets,
            count(&self.requests_total),
            count(&self.request_us_total),
        );
    }
}

/// A page in the making.
#[derive(Debug, Default)]
pub(crate) struct Exposition(String);

impl Exposition {
    pub(crate) fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "gauge", help);
        self.sample(name, "", value);
    }

    pub(crate) fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help);
        self.sample(name, "", value);
    }

    fn histogram(&mut self, name: &str, help: &str, buckets: &[u64], count: u64, us: u64) {
        self.family(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        for ((_, bound), value) in BOUNDS.iter().zip(buckets) {
            self.sample(&bucket, &format!("{{le=\"{bound}\"}}"), (*value).min(count));
        }
        self.sample(&bucket, "{le=\"+Inf\"}", count);
        self.sample(
            &format!("{name}_sum"),
            "",
            format!("{}.{:06}", us / 1_000_000, us % 1_000_000),
        );
        self.sample(&format!("{name}_count"), "", count);
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.push(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        self.push(format_args!("{name}{labels} {value}\n"));
    }

    fn push(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.0.write_fmt(text);
    }

    pub(crate) fn into_text(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_end_with_the_count() {
        let metrics = Metrics::default();
        metrics.request(200, Duration::from_micros(400));
        metrics.request(404, Duration::from_millis(7));
        metrics.request(500, Duration::from_secs(600));
        let mut page = Exposition::default();
        metrics.write(&mut page);
        let text = page.into_text();
        for line in [
            "mlmesh_http_request_seconds_bucket{le=\"0.0005\"} 1",
            "mlmesh_http_request_seconds_bucket{le=\"0.005\"} 1",
            "mlmesh_http_request_seconds_bucket{le=\"0.01\"} 2",
            "mlmesh_http_request_seconds_bucket{le=\"60\"} 2",
            "mlmesh_http_request_seconds_bucket{le=\"+Inf\"} 3",
            "mlmesh_http_request_seconds_sum 600.007400",
            "mlmesh_http_request_seconds_count 3",
            "mlmesh_http_client_errors_total 1",
            "mlmesh_http_server_errors_total 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
