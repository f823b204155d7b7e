//! `run_manifest.json`: what ran, on what, how it ended, as one file.
//!
//! The manifest is a function of the run's record, its attempts and what the
//! executor reported. Its digest stands in the run, in the transaction that ends
//! it; so the file is on disk before that transaction.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use mlmesh_model::{Attempt, Digest, Exit, Interpreter, PlanDataset, Run, RunKind};
use serde_json::{Value, json};

/// Name of the manifest's shape.
pub const MANIFEST_SCHEMA: &str = "mlmesh.run_manifest/1";

/// Name of the file in a run's folder.
pub const MANIFEST_FILE: &str = "run_manifest.json";

/// What a manifest says beyond the run's record.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// The interpreter that was used, as found on the machine.
    pub interpreter: Option<Interpreter>,
    /// Datasets whose digest was verified at start.
    pub datasets_verified: Vec<String>,
    /// Files among the outputs.
    pub output_files: u64,
    /// Bytes of the outputs.
    pub output_bytes: u64,
    /// Log bytes that did not fit the limit.
    pub log_bytes_dropped: u64,
    /// Version of the daemon that recorded it.
    pub daemon_version: String,
}

/// Puts the manifest together.
pub fn manifest(run: &Run, attempts: &[Attempt], extras: &Extras) -> Value {
    let plan = run.plan.as_deref();
    let (sweep, index) = match run.kind {
        RunKind::Child { parent, index } => (Some(parent), Some(index)),
        RunKind::Single | RunKind::Parent { .. } => (None, None),
    };
    let dataset = |dataset: &PlanDataset| {
        json!({
            "name": dataset.name,
            "version": dataset.version,
            "checksum": dataset.checksum,
            "mount": dataset.mount,
            "verified": extras.datasets_verified.iter().any(|name| name == dataset.name.as_str()),
        })
    };
    json!({
        "schema": MANIFEST_SCHEMA,
        "run": run.id,
        "name": run.name,
        "sweep": sweep,
        "index": index,
        "tenant": run.tenant,
        "owner": run.owner,
        "phase": run.phase,
        "cause": run.cause,
        "message": run.message,
        "exit": run.exit,
        "exit_code": run.exit.map(Exit::shell_code),
        "queued_at": run.queued_at,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "plan_sha256": run.plan_sha256,
        "plan": plan,
        "placement": run.placement,
        "snapshot": {"id": run.commit.0.short(), "sha256": run.commit},
        "git": run.git,
        "deps": plan.and_then(|plan| plan.deps.as_ref()),
        "interpreter": extras.interpreter,
        "datasets": plan.map(|plan| plan.datasets.iter().map(dataset).collect::<Vec<_>>()),
        "isolation": run.isolation,
        "trust": run.standing_trust(),
        "metrics": run.metrics,
        "outputs": run.outputs.map(|listing| json!({
            "listing": listing,
            "files": extras.output_files,
            "bytes": extras.output_bytes,
        })),
        "log_bytes_dropped": extras.log_bytes_dropped,
        "attempts": attempts,
        "daemon_version": extras.daemon_version,
    })
}

/// Writes the manifest into the run's folder, whole or not at all, and returns the
/// digest of the bytes. What it returns is on disk. Blocking.
pub fn write_manifest(folder: &Path, manifest: &Value) -> io::Result<Digest> {
    let mut bytes = serde_json::to_vec_pretty(manifest)?;
    bytes.push(b'\n');
    std::fs::create_dir_all(folder)?;
    let partial = folder.join(format!(".{MANIFEST_FILE}.partial"));
    let mut file = File::create(&partial)?;
    file.write_all(&bytes)?;
    std::fs::rename(&partial, folder.join(MANIFEST_FILE))?;
    // After the renaming, which then is in the same commit of the file system. A torn
    // file is written again, since the store does not know of it yet.
    file.sync_all()?;
    Ok(Digest::of(&bytes))
}

/// Something that a manifest must say in its phase and does not.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Defect {
    /// JSON pointer (RFC 6901) to what is missing.
    pub pointer: String,
    /// The rule.
    pub message: String,
}

/// Checks that a manifest says what its phase requires.
pub fn completeness(manifest: &Value) -> Vec<Defect> {
    let mut defects = Vec::new();
    if manifest.get("schema") != Some(&Value::from(MANIFEST_SCHEMA)) {
        defects.push(Defect {
            pointer: "/schema".into(),
            message: format!("the schema is `{MANIFEST_SCHEMA}`"),
        });
    }
    let phase = manifest.get("phase").and_then(Value::as_str).unwrap_or("");
    for (pointer, phases) in REQUIRED {
        let is_required = phases.is_empty() || phases.contains(&phase);
        if is_required && manifest.pointer(pointer).is_none_or(Value::is_null) {
            defects.push(Defect {
                pointer: (*pointer).to_owned(),
                message: format!("a manifest of phase `{phase}` has it"),
            });
        }
    }
    let datasets = manifest.pointer("/datasets").and_then(Value::as_array);
    for (index, dataset) in datasets.into_iter().flatten().enumerate() {
        for key in ["name", "checksum"] {
            if dataset.get(key).is_none_or(Value::is_null) {
                defects.push(Defect {
                    pointer: format!("/datasets/{index}/{key}"),
                    message: "each dataset has a name and a checksum".into(),
                });
            }
        }
    }
    if phase == "failed" && manifest.get("cause").is_none_or(Value::is_null) {
        defects.push(Defect {
            pointer: "/cause".into(),
            message: "a failed run says why".into(),
        });
    }
    defects.extend(exit_code(manifest, phase));
    defects
}

/// What must be there, and in which phases; no phases means in all.
const REQUIRED: &[(&str, &[&str])] = &[
    ("/run", &[]),
    ("/name", &[]),
    ("/phase", &[]),
    ("/plan", &[]),
    ("/plan_sha256", &[]),
    ("/snapshot/id", &[]),
    ("/snapshot/sha256", &[]),
    ("/datasets", &[]),
    ("/queued_at", &[]),
    ("/started_at", &["running", "finishing", "completed"]),
    (
        "/ended_at",
        &["completed", "failed", "cancelled", "interrupted"],
    ),
];

/// A run whose command was executed has its exit code, and a completed one has 0.
/// A failed run that never came to its command says so by its cause.
fn exit_code(manifest: &Value, phase: &str) -> Option<Defect> {
    const BEFORE_COMMAND: [&str; 5] = [
        "dataset_changed",
        "prepare_failed",
        "environment_failed",
        "isolation_failed",
        "command_not_found",
    ];
    let cause = manifest.get("cause").and_then(Value::as_str).unwrap_or("");
    let code = manifest.get("exit_code").and_then(Value::as_i64);
    let missing = |pointer: &str, message: &str| {
        Some(Defect {
            pointer: pointer.into(),
            message: message.into(),
        })
    };
    match phase {
        "completed" if code != Some(0) => missing("/exit_code", "a completed run has exit code 0"),
        "failed" if BEFORE_COMMAND.contains(&cause) => None,
        "failed" if code.is_none() => missing("/exit_code", "a failed run has its exit code"),
        "failed" if manifest.get("started_at").is_none_or(Value::is_null) => missing(
            "/started_at",
            "a failed run whose command ran has its start",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(phase: &str) -> Value {
        let mut manifest = json!({
            "schema": MANIFEST_SCHEMA,
            "run": "aaaaaaaaaaaa",
            "name": "digits",
            "phase": phase,
            "cause": null,
            "exit_code": 0,
            "queued_at": 1,
            "started_at": 2,
            "ended_at": 3,
            "plan_sha256": "00",
            "plan": {},
            "snapshot": {"id": "00", "sha256": "00"},
            "datasets": [{"name": "d", "checksum": "00"}],
        });
        if phase == "failed" {
            manifest["cause"] = json!("exit");
            manifest["exit_code"] = json!(1);
        }
        manifest
    }

    fn pointers(manifest: &Value) -> Vec<String> {
        let defects = completeness(manifest);
        defects.into_iter().map(|defect| defect.pointer).collect()
    }

    #[test]
    fn each_omission_is_found_in_the_phases_that_need_it() {
        let cases: &[(&str, &[&str])] = &[
            ("/run", &["running", "completed", "failed"]),
            ("/plan", &["running", "completed", "failed"]),
            ("/plan_sha256", &["running", "completed", "failed"]),
            ("/snapshot/id", &["running", "completed", "failed"]),
            ("/snapshot/sha256", &["running", "completed", "failed"]),
            ("/datasets/0/name", &["running", "completed", "failed"]),
            ("/datasets/0/checksum", &["running", "completed", "failed"]),
            ("/started_at", &["running", "completed", "failed"]),
            ("/ended_at", &["completed", "failed", "cancelled"]),
            ("/exit_code", &["completed", "failed"]),
            ("/cause", &["failed"]),
        ];
        for (pointer, phases) in cases {
            for phase in *phases {
                let mut manifest = complete(phase);
                assert_eq!(pointers(&manifest), Vec::<String>::new(), "{phase}");
                *manifest.pointer_mut(pointer).unwrap() = Value::Null;
                assert!(
                    pointers(&manifest).contains(&(*pointer).to_owned()),
                    "{pointer} {phase}"
                );
            }
        }
    }

    #[test]
    fn a_run_cancelled_in_the_queue_and_one_that_was_not_prepared_need_no_exit_code() {
        let mut cancelled = complete("cancelled");
        cancelled["started_at"] = Value::Null;
        cancelled["exit_code"] = Value::Null;
        assert_eq!(pointers(&cancelled), Vec::<String>::new());
        let mut unprepared = complete("failed");
        unprepared["cause"] = json!("dataset_changed");
        unprepared["started_at"] = Value::Null;
        unprepared["exit_code"] = Value::Null;
        assert_eq!(pointers(&unprepared), Vec::<String>::new());
    }

    #[test]
    fn a_completed_run_with_another_exit_code_is_a_defect() {
        let mut manifest = complete("completed");
        manifest["exit_code"] = json!(3);
        assert_eq!(pointers(&manifest), ["/exit_code"]);
    }

    #[test]
    fn the_digest_is_that_of_the_file_and_no_partial_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let digest = write_manifest(&run, &complete("completed")).unwrap();
        let again = write_manifest(&run, &complete("completed")).unwrap();
        assert_eq!(digest, again);
        let names: Vec<_> = std::fs::read_dir(&run)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, [MANIFEST_FILE]);
        assert_eq!(
            digest,
            Digest::of(&std::fs::read(run.join(MANIFEST_FILE)).unwrap())
        );
    }
}
