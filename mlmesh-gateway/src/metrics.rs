//! What one gateway counts. Each thread counts for itself; a page adds the threads up.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use mlmesh_route::Evidence;

use crate::thread::Shared;

/// Counters of one thread. Only that thread writes them, whoever asks reads them.
#[derive(Debug)]
pub(crate) struct Counters {
    pub(crate) clients: AtomicI64,
    pub(crate) accepted: AtomicU64,
    /// Answered here without asking a target.
    pub(crate) refused: AtomicU64,
    pub(crate) targets: Vec<TargetCounters>,
}

/// Counters of one target within one thread.
#[derive(Debug, Default)]
pub(crate) struct TargetCounters {
    pub(crate) in_flight: AtomicI64,
    pub(crate) connects: AtomicU64,
    outcomes: [AtomicU64; OUTCOMES.len()],
}

/// How a request that went to a target ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Informed,
    Done,
    Redirected,
    ClientError,
    ServerError,
    /// The target failed before or within its response.
    Failed,
    Unreachable,
    TimedOut,
    ClientGone,
}

const OUTCOMES: [(Outcome, &str); 9] = [
    (Outcome::Informed, "1xx"),
    (Outcome::Done, "2xx"),
    (Outcome::Redirected, "3xx"),
    (Outcome::ClientError, "4xx"),
    (Outcome::ServerError, "5xx"),
    (Outcome::Failed, "failed"),
    (Outcome::Unreachable, "unreachable"),
    (Outcome::TimedOut, "timed_out"),
    (Outcome::ClientGone, "client_gone"),
];

impl Outcome {
    /// What it says of the target; nothing if the client has left.
    pub(crate) fn evidence(self, is_connected: bool) -> Option<Evidence> {
        match self {
            Outcome::Informed | Outcome::Done | Outcome::Redirected | Outcome::ClientError => {
                Some(Evidence::AttemptOk)
            }
            Outcome::ServerError => Some(Evidence::Status5xx),
            Outcome::Unreachable => Some(Evidence::ConnectFailed),
            Outcome::TimedOut if is_connected => Some(Evidence::Stalled),
            Outcome::TimedOut => Some(Evidence::ConnectFailed),
            Outcome::Failed => Some(Evidence::Reset),
            Outcome::ClientGone => None,
        }
    }

    pub(crate) fn of_status(status: u16) -> Outcome {
        match status {
            0..200 => Outcome::Informed,
            200..300 => Outcome::Done,
            300..400 => Outcome::Redirected,
            400..500 => Outcome::ClientError,
            _ => Outcome::ServerError,
        }
    }
}

impl Counters {
    pub(crate) fn new(targets: usize) -> Counters {
        Counters {
            clients: AtomicI64::new(0),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            targets: (0..targets).map(|_| TargetCounters::default()).collect(),
        }
    }
}

impl TargetCounters {
    pub(crate) fn count(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// The page that Prometheus reads.
pub(crate) fn text(shared: &Shared) -> String {
    let (threads, targets) = (&shared.counters, &shared.targets);
    let mut page = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, i128)]| {
        // Writing to a text cannot fail.
        let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(page, "{name}{labels} {value}");
        }
    };
    let sum = |read: &dyn Fn(&Counters) -> i128| -> i128 {
        threads.iter().map(|counters| read(counters)).sum()
    };
    let clients = sum(&|counters| counters.clients.load(Ordering::Relaxed).into());
    let accepted = sum(&|counters| counters.accepted.load(Ordering::Relaxed).into());
    let refused = sum(&|counters| counters.refused.load(Ordering::Relaxed).into());
    let (mut requests, mut in_flight, mut connects) = (Vec::new(), Vec::new(), Vec::new());
    let mut open = Vec::new();
    for (index, target) in targets.iter().enumerate() {
        let host = target.host();
        let of = |read: &dyn Fn(&TargetCounters) -> i128| sum(&|all| read(&all.targets[index]));
        let label = format!("{{target=\"{host}\"}}");
        let current = of(&|target| target.in_flight.load(Ordering::Relaxed).into());
        in_flight.push((label.clone(), current));
        let is_open = shared.brain.is_left_out(index);
        open.push((label.clone(), is_open.into()));
        connects.push((
            label,
            of(&|target| target.connects.load(Ordering::Relaxed).into()),
        ));
        for (outcome, name) in OUTCOMES {
            let label = format!("{{target=\"{host}\",outcome=\"{name}\"}}");
            let read = |target: &TargetCounters| {
                target.outcomes[outcome as usize]
                    .load(Ordering::Relaxed)
                    .into()
            };
            requests.push((label, of(&read)));
        }
    }
    let none = |value| [(String::new(), value)];
    let brain = &shared.brain;
    let counts = &brain.counts;
    let decisions = [
        ("bound", &counts.bound),
        ("waited", &counts.waited),
        ("deadline_missed", &counts.hopeless),
        ("queue_full", &counts.full),
        ("no_target", &counts.without_target),
    ];
    let decisions = decisions.map(|(outcome, count)| {
        let labels = format!("{{outcome=\"{outcome}\"}}");
        (labels, count.load(Ordering::Relaxed).into())
    });
    family(
        "mlmesh_gateway_requests_total",
        "counter",
        "Requests by target and outcome.",
        &requests,
    );
    family(
        "mlmesh_gateway_requests_in_flight",
        "gauge",
        "Requests under way.",
        &in_flight,
    );
    family(
        "mlmesh_gateway_upstream_connects_total",
        "counter",
        "Connections made to targets.",
        &connects,
    );
    family(
        "mlmesh_gateway_target_open",
        "gauge",
        "Whether a target is left out for what requests have met there.",
        &open,
    );
    family(
        "mlmesh_gateway_decisions_total",
        "counter",
        "What the router said of requests; who waited is bound or refused later.",
        &decisions,
    );
    family(
        "mlmesh_gateway_usage_untold_total",
        "counter",
        "Ended requests for which the usage log had no room.",
        &none(shared.ledger.untold.load(Ordering::Relaxed).into()),
    );
    family(
        "mlmesh_gateway_requests_waiting",
        "gauge",
        "Requests that wait for a target.",
        &none(brain.waiting() as i128),
    );
    family(
        "mlmesh_gateway_refused_total",
        "counter",
        "Requests that the gateway answered with an error of its own.",
        &none(refused),
    );
    family(
        "mlmesh_gateway_client_connections",
        "gauge",
        "Open connections of clients.",
        &none(clients),
    );
    family(
        "mlmesh_gateway_client_connections_total",
        "counter",
        "Connections of clients.",
        &none(accepted),
    );
    page
}
