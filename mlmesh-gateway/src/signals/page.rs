//! What is known of the targets, for Prometheus and for people.

use std::fmt::Write as _;

use mlmesh_route::fusion::{Fact, Facts, Lie, Standing};
use mlmesh_route::{Snapshot, TargetId};
use serde_json::{Value, json};

use super::watch::{Known, Watch};
use crate::limits::SIGNAL_SERIES_TARGETS_MAX;
use crate::target::Target;

/// One word for why there is no value that counts.
fn why(fact: &Fact) -> Option<&str> {
    match (&fact.missing, fact.value) {
        (Some(missing), _) => Some(missing.word),
        (None, None) => Some("nobody_says"),
        (None, Some(_)) if fact.weight <= 0.0 => Some("too_old"),
        (None, Some(_)) => None,
    }
}

/// Families of the page that Prometheus reads. Values, ages and reasons are had of the
/// first targets only, so that a large fleet makes no page that nobody can keep.
pub(crate) fn text(watch: &Watch, targets: &[Target]) -> String {
    let known = watch.known();
    let passed_us = watch.now_us().saturating_sub(known.snapshot.at_us);
    let mut page = Families::default();
    page.one(
        "mlmesh_gateway_snapshot_age_seconds",
        "Since what is known of the targets was put together.",
        [(String::new(), seconds(passed_us))],
    );
    decisions(&mut page, &known, targets);
    let few = |facts: &[Facts]| facts.len().min(SIGNAL_SERIES_TARGETS_MAX);
    let shown = &known.facts[..few(&known.facts)];
    let each = |read: &dyn Fn(&Fact) -> Option<(String, f64)>| {
        let mut samples = Vec::new();
        for (facts, target) in shown.iter().zip(targets) {
            for fact in &facts.facts {
                let Some((label, value)) = read(fact) else {
                    continue;
                };
                let (host, kind) = (target.host(), fact.kind.name());
                let labels = format!("{{target=\"{host}\",signal=\"{kind}\"{label}}}");
                samples.push((labels, value));
            }
        }
        samples
    };
    let value = |fact: &Fact| Some((String::new(), fact.value.filter(|_| fact.weight > 0.0)?));
    page.one(
        "mlmesh_gateway_target_signal",
        "What a target reports, in the unit of the signal; totals a second, timings in seconds.",
        each(&value),
    );
    let age = |fact: &Fact| {
        let age_us = fact.age_us.saturating_add(passed_us);
        fact.value.map(|_| (String::new(), seconds(age_us)))
    };
    page.one(
        "mlmesh_gateway_target_signal_age_seconds",
        "How old it is, the delay of its source included.",
        each(&age),
    );
    let missing = |fact: &Fact| Some((format!(",reason=\"{}\"", why(fact)?), 1.0));
    page.one(
        "mlmesh_gateway_target_signal_missing",
        "Why there is none that counts.",
        each(&missing),
    );
    let mut lies = Vec::new();
    for (facts, target) in shown.iter().zip(targets) {
        for fact in &facts.facts {
            for lie in Lie::ALL
                .into_iter()
                .filter(|lie| fact.lies[*lie as usize] > 0)
            {
                let (host, kind, lie_name) = (target.host(), fact.kind.name(), lie.name());
                let labels =
                    format!("{{target=\"{host}\",signal=\"{kind}\",reason=\"{lie_name}\"}}");
                lies.push((labels, fact.lies[lie as usize] as f64));
            }
        }
    }
    page.family(
        "mlmesh_gateway_target_signal_refused_total",
        "counter",
        "Values that cannot be.",
        lies,
    );
    page.one(
        "mlmesh_gateway_signal_targets_left_out",
        "Targets whose signals are not on this page.",
        [(String::new(), (known.facts.len() - shown.len()) as f64)],
    );
    sources(&mut page, &known);
    page.text
}

/// What decisions are made of.
fn decisions(page: &mut Families, known: &Known, targets: &[Target]) {
    let all = || known.snapshot.targets.iter().zip(targets);
    let of = |target: &Target| format!("{{target=\"{}\"}}", target.host());
    type Read = fn(&mlmesh_route::Target) -> f64;
    let families: [(&str, &str, Read); 6] = [
        (
            "mlmesh_gateway_target_usable",
            "Whether it may be sent anything.",
            |target| f64::from(u8::from(target.usable)),
        ),
        (
            "mlmesh_gateway_target_foreign_requests",
            "Requests there that others have sent.",
            |target| f64::from(target.foreign),
        ),
        (
            "mlmesh_gateway_target_foreign_seconds",
            "How long it is expected to work on those of them that wait.",
            |target| seconds(target.foreign_us),
        ),
        (
            "mlmesh_gateway_target_step_seconds",
            "What the answers that it is writing add to a prompt.",
            |target| seconds(target.decode_us),
        ),
        (
            "mlmesh_gateway_target_round_trip_seconds",
            "The way there and back.",
            |target| seconds(target.rtt_us),
        ),
        (
            "mlmesh_gateway_target_penalty_seconds",
            "What is added because it is not in good health.",
            |target| seconds(target.penalty_us),
        ),
    ];
    for (name, help, read) in families {
        let samples = all().map(|(target, at)| (of(at), read(target)));
        page.one(name, help, samples);
    }
    let away = known.facts.iter().zip(targets);
    let away = away.filter_map(|(facts, target)| match facts.standing {
        Standing::Quarantined { cause, .. } => {
            let labels = format!(
                "{{target=\"{}\",cause=\"{}\"}}",
                target.host(),
                cause.name()
            );
            Some((labels, 1.0))
        }
        Standing::Good | Standing::Probation { .. } => None,
    });
    page.one(
        "mlmesh_gateway_target_quarantined",
        "Targets that are sent nothing, and why.",
        away,
    );
}

/// Whom was asked.
fn sources(page: &mut Families, known: &Known) {
    let labels = |asked: &super::watch::Asked| {
        let runtime = asked.runtime.unwrap_or("unrecognised");
        format!(
            "{{source=\"{}\",runtime=\"{runtime}\"}}",
            escaped(&asked.source)
        )
    };
    let all = || known.asked.iter().filter(|asked| !asked.has_no_page);
    let up = |asked: &super::watch::Asked| {
        let is_up = asked.failed.is_none() && asked.pages > 0;
        (labels(asked), f64::from(u8::from(is_up)))
    };
    page.one(
        "mlmesh_gateway_signal_source_up",
        "Whether the newest page could be read; an engine that is unrecognised is routed by what is seen of it.",
        all().map(up),
    );
    page.family(
        "mlmesh_gateway_signal_source_pages_total",
        "counter",
        "Pages that were read.",
        all().map(|asked| (labels(asked), asked.pages as f64)),
    );
    page.family(
        "mlmesh_gateway_signal_source_failures_total",
        "counter",
        "Pages that were not.",
        all().map(|asked| (labels(asked), asked.failures as f64)),
    );
    page.one(
        "mlmesh_gateway_signal_source_delay_seconds",
        "By how much what it says may be older than when it says so.",
        all().map(|asked| (labels(asked), asked.delay_seconds)),
    );
}

/// All that is known, with reasons as sentences.
pub(crate) fn json(watch: &Watch, targets: &[Target]) -> Value {
    let known = watch.known();
    let passed_us = watch.now_us().saturating_sub(known.snapshot.at_us);
    let places = targets.iter().enumerate();
    let targets: Vec<Value> = places
        .map(|(place, target)| {
            let asked = known.asked.iter();
            let asked = asked.filter(|asked| !asked.has_no_page && asked.targets.contains(&place));
            let sources: Vec<Value> = asked.map(source).collect();
            let mut shown = json!({"target": target.host(), "sources": sources});
            let fields = of_target(&known.snapshot, &known.facts, place, passed_us);
            if let (Value::Object(shown), Value::Object(fields)) = (&mut shown, fields) {
                shown.extend(fields);
            }
            shown
        })
        .collect();
    json!({
        "schema": "mlmesh.gateway.targets/1",
        "snapshot_age_ms": passed_us / 1_000,
        "targets": targets,
    })
}

fn of_target(snapshot: &Snapshot, facts: &[Facts], place: usize, passed_us: u64) -> Value {
    let (Some(target), Some(facts)) = (snapshot.targets.get(place), facts.get(place)) else {
        // Nobody was asked yet, or is.
        let target = mlmesh_route::Target::unknown(TargetId(0));
        return json!({"usable": target.usable, "signals": []});
    };
    let standing = match facts.standing {
        Standing::Good => json!({"is": "good"}),
        Standing::Quarantined {
            cause, since_us, ..
        } => json!({
            "is": if facts.is_spared { "spared" } else { "quarantined" },
            "cause": cause.name(),
            "for_ms": (snapshot.at_us + passed_us).saturating_sub(since_us) / 1_000,
        }),
        Standing::Probation { until_us } => json!({
            "is": "probation",
            "left_ms": until_us.saturating_sub(snapshot.at_us + passed_us) / 1_000,
        }),
    };
    let penalties = facts.penalties.iter();
    let penalties = penalties.map(|(term, us)| json!({"term": term.name(), "us": us}));
    json!({
        "usable": target.usable,
        "standing": standing,
        "rtt_us": target.rtt_us,
        "foreign": target.foreign,
        "foreign_us": target.foreign_us,
        "step_us": target.decode_us,
        "pace_us": facts.pace_us,
        "penalty_us": target.penalty_us,
        "penalties": penalties.collect::<Vec<_>>(),
        "signals": facts.facts.iter().map(|fact| signal(fact, passed_us)).collect::<Vec<_>>(),
    })
}

fn signal(fact: &Fact, passed_us: u64) -> Value {
    let missing = why(fact).map(|word| {
        let text = fact.missing.as_ref().map(|missing| &*missing.text);
        json!({"reason": word, "text": text})
    });
    let lies = Lie::ALL.into_iter();
    let refused: u64 = lies.map(|lie| fact.lies[lie as usize]).sum();
    json!({
        "signal": fact.kind.name(),
        "value": fact.value,
        "age_ms": fact.value.map(|_| fact.age_us.saturating_add(passed_us) / 1_000),
        "weight": fact.weight,
        "source": fact.source.as_deref(),
        "source_delay_ms": fact.delay_us / 1_000,
        "missing": missing,
        "refused": refused,
    })
}

fn source(asked: &super::watch::Asked) -> Value {
    let failed = asked.failed.as_ref();
    json!({
        "source": asked.source,
        "is_engine": asked.is_engine,
        "runtime": asked.runtime,
        "pages": asked.pages,
        "failures": asked.failures,
        "defects": asked.defects,
        "delay_ms": (asked.delay_seconds * 1e3) as u64,
        "failed": failed.map(|(word, text)| json!({"reason": word, "text": text})),
    })
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[derive(Default)]
struct Families {
    text: String,
}

impl Families {
    fn one(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (String, f64)>) {
        self.family(name, "gauge", help, samples);
    }

    fn family(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        samples: impl IntoIterator<Item = (String, f64)>,
    ) {
        // Writing to a text cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(self.text, "{name}{labels} {value}");
        }
    }
}
