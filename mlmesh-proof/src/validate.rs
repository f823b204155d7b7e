//! What is wrong with a run or with a commit: each broken rule by name.
//!
//! ```text
//!   record ─┐
//!   attempts ┼─► shape ► completeness ► agreement with the record ► recomputed: plan,
//!   manifest ┘   trust, packages, exit ► outputs and commit, byte by byte
//! ```
//!
//! It decides nothing and mends nothing. What it is given is taken as it stands; only
//! the content store is read.

use mlmesh_model::{
    Attempt, CommitId, DepsKind, Digest, Exit, ObjectId, Phase, PlanDigest, ResolvedEnvironment,
    Run, RunKind, Snapshots, SnapshotsError, Trust, canonical_json, sweep_digest,
};
use serde_json::Value;

use crate::completeness::{completeness, list};
use crate::defect::Defect;
use crate::json_schema::{pointer_step, shown};
use crate::manifest::{Extras, manifest, shape};
use crate::stored::{COMMIT, OUTPUTS, check_tree};
use crate::trust::final_trust;

/// What is known of a run.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// Its record.
    pub run: &'a Run,
    /// Its attempts, oldest first.
    pub attempts: &'a [Attempt],
    /// The bytes of its manifest's file, if there is one.
    pub manifest: Option<&'a [u8]>,
    /// Of a sweep: the digests of its points' plans, in order.
    pub points: &'a [PlanDigest],
}

/// Everything that is wrong with a run. An error is one of the machine, not of the run.
pub fn validate_run(
    evidence: &Evidence<'_>,
    objects: &dyn Snapshots,
) -> Result<Vec<Defect>, SnapshotsError> {
    let run = evidence.run;
    let mut defects = Vec::new();
    let outputs = match run.kind {
        RunKind::Parent { .. } => {
            defects.extend(sweep(evidence));
            None
        }
        RunKind::Single | RunKind::Child { .. } => executed(evidence, &mut defects),
    };
    if let Some(listing) = run.outputs {
        let files = check_tree(&OUTPUTS, listing, objects, &mut defects)?;
        if let (Some(said), Some(files)) = (outputs.filter(|said| !said.is_null()), files) {
            let found = Extras {
                output_files: files,
                ..Extras::default()
            };
            let expected = &manifest(run, &[], &found)["outputs"];
            let rule = "the manifest lists the outputs as the store has them";
            // The listing itself was held against the record.
            for key in ["files", "bytes", "listed"].map(|key| (key, pointer_step(key))) {
                let (seen, allowed) = (&said[key.0], &expected[key.0]);
                let at = format!("/outputs{}", key.1);
                difference(seen, allowed, &at, &mut |at, seen, allowed| {
                    defects.push(defect("outputs_differ", at, rule, seen, allowed));
                });
            }
        }
    }
    defects.extend(validate_commit(run.commit, objects)?);
    Ok(defects)
}

/// Everything that is wrong with a commit.
pub fn validate_commit(
    commit: CommitId,
    objects: &dyn Snapshots,
) -> Result<Vec<Defect>, SnapshotsError> {
    let mut defects = Vec::new();
    check_tree(&COMMIT, ObjectId(commit.0), objects, &mut defects)?;
    Ok(defects)
}

fn defect(code: &'static str, at: &str, rule: &str, seen: String, allowed: String) -> Defect {
    Defect {
        code,
        at: at.to_owned(),
        rule: rule.to_owned(),
        seen,
        allowed,
    }
}

fn sweep(evidence: &Evidence<'_>) -> Option<Defect> {
    let said = evidence.run.plan_sha256;
    let computed = sweep_digest(evidence.points.iter().copied());
    (said != computed).then(|| Defect {
        code: "sweep_digest",
        at: "/plan_sha256".into(),
        rule: "a sweep's digest is that of its points' digests in order".into(),
        seen: said.to_string(),
        allowed: computed.to_string(),
    })
}

/// Checks a run that is executed itself; returns what its manifest says of the outputs.
fn executed(evidence: &Evidence<'_>, defects: &mut Vec<Defect>) -> Option<Value> {
    let run = evidence.run;
    let is_from_record = !run.phase.is_ended()
        || (evidence.manifest.is_none()
            && run.manifest_sha256.is_none()
            && run.started_at.is_none());
    let said = if is_from_record {
        // Nobody knows more than its record.
        let extras = Extras {
            daemon_version: env!("CARGO_PKG_VERSION").into(),
            ..Extras::default()
        };
        manifest(run, evidence.attempts, &extras)
    } else {
        let said = read(evidence, defects)?;
        let broken = shape(&said);
        if !broken.is_empty() {
            defects.extend(broken);
            return None;
        }
        agrees(&said, evidence, defects);
        said
    };
    defects.extend(completeness(&said));
    plan_digest(&said, defects);
    times(&said, defects);
    attempts(run, evidence.attempts, defects);
    if !is_from_record {
        ends(run, &said, defects);
        trust(run, &said, defects);
        environment(run, &said, defects);
        host(run, evidence.attempts, &said, defects);
    }
    (!is_from_record).then(|| said["outputs"].clone())
}

/// The manifest's file, held against the digest in the record.
fn read(evidence: &Evidence<'_>, defects: &mut Vec<Defect>) -> Option<Value> {
    let Some(bytes) = evidence.manifest else {
        defects.push(Defect {
            code: "manifest_absent",
            at: "run_manifest.json".into(),
            rule: "a run that has ended has its manifest".into(),
            seen: "nothing".into(),
            allowed: "a file".into(),
        });
        return None;
    };
    let digest = Digest::of(bytes);
    if let Some(recorded) = evidence.run.manifest_sha256.filter(|said| *said != digest) {
        defects.push(Defect {
            code: "manifest_digest",
            at: "run_manifest.json".into(),
            rule: "the manifest is the one that the record names".into(),
            seen: digest.to_string(),
            allowed: recorded.to_string(),
        });
    }
    match serde_json::from_slice(bytes) {
        Ok(said) => Some(said),
        Err(error) => {
            defects.push(Defect {
                code: "manifest_unreadable",
                at: "run_manifest.json".into(),
                rule: "a manifest is JSON".into(),
                seen: error.to_string(),
                allowed: "JSON".into(),
            });
            None
        }
    }
}

/// Parts of the manifest that repeat the record. Tags and note may change after it.
const REPEATED: [&str; 23] = [
    "run",
    "name",
    "sweep",
    "index",
    "tenant",
    "owner",
    "phase",
    "cause",
    "message",
    "exit",
    "exit_code",
    "queued_at",
    "started_at",
    "ended_at",
    "plan_sha256",
    "plan",
    "placement",
    "snapshot",
    "git",
    "isolation",
    "metrics",
    "logged",
    "attempts",
];

fn agrees(said: &Value, evidence: &Evidence<'_>, defects: &mut Vec<Defect>) {
    let expected = manifest(evidence.run, evidence.attempts, &Extras::default());
    let mut differ = |code: &'static str, rule: &str, at: &str, seen, allowed| {
        defects.push(defect(code, at, rule, seen, allowed));
    };
    // An imported run belongs to who imported it.
    let is_foreign = |key| evidence.run.is_imported() && ["tenant", "owner"].contains(&key);
    for key in REPEATED.into_iter().filter(|key| !is_foreign(key)) {
        let rule = "the manifest says what the record says";
        difference(
            &said[key],
            &expected[key],
            &pointer_step(key),
            &mut |at, seen, allowed| {
                differ("record_differs", rule, at, seen, allowed);
            },
        );
    }
    let listing = |of: &Value| of["outputs"]["listing"].clone();
    if listing(said) != listing(&expected) {
        let (seen, allowed) = (shown(&listing(said)), shown(&listing(&expected)));
        let rule = "the manifest says what the record says";
        differ("record_differs", rule, "/outputs/listing", seen, allowed);
    }
    for (index, dataset) in list(&expected, "/datasets") {
        for key in ["name", "version", "checksum", "mount"] {
            let seen = &said["datasets"][index][key];
            if *seen != dataset[key] {
                let at = format!("/datasets/{index}/{key}");
                let rule = "the manifest has the plan's datasets";
                differ(
                    "dataset_differs",
                    rule,
                    &at,
                    shown(seen),
                    shown(&dataset[key]),
                );
            }
        }
    }
    let count = |of: &Value| of["datasets"].as_array().map_or(0, Vec::len);
    if count(said) > count(&expected) {
        let (seen, allowed) = (count(said).to_string(), count(&expected).to_string());
        let rule = "the manifest has the plan's datasets";
        differ("dataset_differs", rule, "/datasets", seen, allowed);
    }
}

/// The first place in which two values differ.
fn difference(
    seen: &Value,
    allowed: &Value,
    at: &str,
    found: &mut dyn FnMut(&str, String, String),
) {
    if seen == allowed {
        return;
    }
    match (seen, allowed) {
        (Value::Object(one), Value::Object(other)) => {
            let keys = one.keys().chain(other.keys());
            for key in keys {
                let (one, other) = (&seen[key], &allowed[key]);
                if one != other {
                    let at = format!("{at}{}", pointer_step(key));
                    return difference(one, other, &at, found);
                }
            }
            // A key with null on one side is not there on the other.
            found(at, shown(seen), shown(allowed));
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for (index, (one, other)) in one.iter().zip(other).enumerate() {
                if one != other {
                    return difference(one, other, &format!("{at}/{index}"), found);
                }
            }
        }
        _ => found(at, shown(seen), shown(allowed)),
    }
}

fn plan_digest(said: &Value, defects: &mut Vec<Defect>) {
    if said["plan"].is_null() {
        return;
    }
    let computed = match canonical_json(&said["plan"]) {
        Ok(bytes) => Digest::of(&bytes).to_string(),
        Err(error) => error.to_string(),
    };
    if said["plan_sha256"] != computed.as_str() {
        defects.push(Defect {
            code: "plan_digest",
            at: "/plan_sha256".into(),
            rule: "it is the SHA-256 of the plan's canonical JSON".into(),
            seen: shown(&said["plan_sha256"]),
            allowed: computed,
        });
    }
}

/// Queued, then leased, then started, then ended; one attempt after the other.
fn times(said: &Value, defects: &mut Vec<Defect>) {
    let mut order: Vec<(String, i64)> = Vec::new();
    let mut add = |pointer: String| {
        if let Some(time) = said.pointer(&pointer).and_then(Value::as_i64) {
            order.push((pointer, time));
        }
    };
    add("/queued_at".into());
    for (index, _) in list(said, "/attempts") {
        for key in ["leased_at", "started_at", "ended_at"] {
            add(format!("/attempts/{index}/{key}"));
        }
    }
    add("/ended_at".into());
    for pair in order.windows(2) {
        let [(before, earlier), (at, later)] = pair else {
            continue;
        };
        if later < earlier {
            return defects.push(Defect {
                code: "time_order",
                at: at.clone(),
                rule: "a run is queued, leased, started and ended in this order".into(),
                seen: later.to_string(),
                allowed: format!("{earlier} of `{before}`, or later"),
            });
        }
    }
}

/// Attempts are numbered from 1, each under a newer token, and the last one is the run's.
fn attempts(run: &Run, attempts: &[Attempt], defects: &mut Vec<Defect>) {
    let mut wrong = |at: String, rule: &str, seen: String, allowed: String| {
        defects.push(defect("attempts", &at, rule, seen, allowed));
    };
    if attempts.len() as u64 != u64::from(run.attempts) {
        wrong(
            "/attempts".into(),
            "a run has a record of each attempt",
            attempts.len().to_string(),
            run.attempts.to_string(),
        );
    }
    let mut token = 0;
    for (index, attempt) in attempts.iter().enumerate() {
        if attempt.number.0 as usize != index + 1 {
            let (seen, allowed) = (attempt.number.0.to_string(), (index + 1).to_string());
            let at = format!("/attempts/{index}/number");
            wrong(at, "attempts are numbered from 1", seen, allowed);
        }
        if attempt.token.0 <= token {
            let (seen, allowed) = (attempt.token.0.to_string(), format!("more than {token}"));
            let at = format!("/attempts/{index}/token");
            wrong(at, "each attempt has a newer token", seen, allowed);
        }
        token = attempt.token.0;
    }
    let Some(last) = attempts.last() else {
        return;
    };
    let at = format!("/attempts/{}", attempts.len() - 1);
    if matches!(run.phase, Phase::Completed | Phase::Failed) {
        if last.exit != run.exit {
            let text = |exit: Option<Exit>| format!("{exit:?}");
            let rule = "a run ends as its last attempt did";
            wrong(format!("{at}/exit"), rule, text(last.exit), text(run.exit));
        }
        if last.started_at != run.started_at {
            let text =
                |time: Option<mlmesh_model::Micros>| format!("{:?}", time.map(|time| time.0));
            let (seen, allowed) = (text(last.started_at), text(run.started_at));
            let rule = "a run started when its last attempt did";
            wrong(format!("{at}/started_at"), rule, seen, allowed);
        }
    }
}

/// The end: exit code, cause and phase go together.
fn ends(run: &Run, said: &Value, defects: &mut Vec<Defect>) {
    let code = run.exit.map(Exit::shell_code);
    if said["exit_code"].as_i64() != code.map(i64::from) {
        defects.push(Defect {
            code: "exit_code",
            at: "/exit_code".into(),
            rule: "it is the exit as a shell shows it".into(),
            seen: shown(&said["exit_code"]),
            allowed: format!("{code:?}"),
        });
    }
    let by_cause = run
        .cause
        .map_or(Phase::Completed, |cause| cause.end_phase());
    if by_cause != run.phase {
        defects.push(Defect {
            code: "cause_phase",
            at: "/cause".into(),
            rule: "the cause leads to the phase".into(),
            seen: format!("{} and {}", shown(&said["cause"]), run.phase),
            allowed: by_cause.to_string(),
        });
    }
}

/// The level that the record earns, computed again from what held.
fn trust(run: &Run, said: &Value, defects: &mut Vec<Defect>) {
    let Some(plan) = run.plan.as_deref() else {
        return;
    };
    let verified: Vec<String> = list(said, "/datasets")
        .filter(|(_, dataset)| dataset["verified"] == true)
        .filter_map(|(_, dataset)| Some(dataset["name"].as_str()?.to_owned()))
        .collect();
    let computed = match run.started_at {
        None => Trust::never_started(),
        Some(_) => {
            let isolation = run.isolation.clone().unwrap_or_default();
            final_trust(plan, &isolation, &verified, run.trust.as_ref())
        }
    };
    let computed_codes: Vec<&str> = computed
        .reasons
        .iter()
        .map(|one| one.code.as_str())
        .collect();
    let codes: Vec<&str> = list(said, "/trust/reasons")
        .filter_map(|(_, reason)| reason["code"].as_str())
        .collect();
    let level = computed.level.to_string();
    if said["trust"]["level"] != level.as_str() || codes != computed_codes {
        defects.push(Defect {
            code: "trust_level",
            at: "/trust".into(),
            rule: "the level is what the record earns".into(),
            seen: format!("{} {codes:?}", shown(&said["trust"]["level"])),
            allowed: format!("\"{level}\" {computed_codes:?}"),
        });
    }
}

/// What was planned is what was built, and is what is listed.
fn environment(run: &Run, said: &Value, defects: &mut Vec<Defect>) {
    let deps = run.plan.as_deref().and_then(|plan| plan.deps.as_ref());
    let there = &said["environment"];
    let (Some(deps), false) = (deps, there.is_null()) else {
        return;
    };
    let planned = deps.sha256.to_string();
    if there["deps_sha256"] != planned.as_str() {
        defects.push(Defect {
            code: "environment_differs",
            at: "/environment/deps_sha256".into(),
            rule: "the environment is the plan's".into(),
            seen: shown(&there["deps_sha256"]),
            allowed: planned.clone(),
        });
    }
    let Some(packages) = there["packages"].as_array() else {
        return;
    };
    let packages: Vec<String> = packages
        .iter()
        .filter_map(|package| Some(package.as_str()?.to_owned()))
        .collect();
    let listed = ResolvedEnvironment::packages_digest(&packages).to_string();
    if there["packages_sha256"] != listed.as_str() {
        defects.push(Defect {
            code: "packages_digest",
            at: "/environment/packages_sha256".into(),
            rule: "it is the digest of the packages, each with an end of line".into(),
            seen: shown(&there["packages_sha256"]),
            allowed: listed,
        });
    } else if deps.kind == DepsKind::Current && listed != planned {
        defects.push(Defect {
            code: "environment_drift",
            at: "/environment/packages".into(),
            rule: "the current environment is at its start what it was when it was queued".into(),
            seen: listed,
            allowed: planned,
        });
    }
}

fn host(run: &Run, attempts: &[Attempt], said: &Value, defects: &mut Vec<Defect>) {
    let Some(last) = attempts.last() else {
        return;
    };
    let here = said["host"]["boot_id"].as_str();
    if let Some(boot) = here.filter(|boot| *boot != last.boot_id && run.started_at.is_some()) {
        defects.push(Defect {
            code: "host_differs",
            at: "/host/boot_id".into(),
            rule: "the machine is the one that the last attempt ran on".into(),
            seen: boot.to_owned(),
            allowed: last.boot_id.clone(),
        });
    }
}
