//! `run_manifest.json`: what ran, on what, how it ended, as one file.
//!
//! The manifest is a function of the run's record, its attempts and what the
//! executor reported. Its digest stands in the run, in the transaction that ends
//! it; so the file is on disk before that transaction. What it must say in which phase
//! stands in `completeness`, its shape in `schema/run_manifest-1.json`.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, LazyLock};

use mlmesh_model::{
    Attempt, Digest, Exit, HostFacts, ListedFile, Placement, Plan, PlanDataset,
    ResolvedEnvironment, Run, RunKind,
};
use serde_json::{Value, json};

use crate::defect::Defect;
use crate::json_schema;

/// Name of the manifest's shape.
pub const MANIFEST_SCHEMA: &str = "mlmesh.run_manifest/1";

/// Name of the file in a run's folder.
pub const MANIFEST_FILE: &str = "run_manifest.json";

/// Output files that a manifest lists. The digest of the listing covers all.
pub const OUTPUTS_LISTED_MAX: usize = 1_000;

/// The published JSON Schema of the manifest, as text.
pub const MANIFEST_JSON_SCHEMA: &str = include_str!("../schema/run_manifest-1.json");

/// The same, read.
pub(crate) fn manifest_schema() -> &'static Value {
    static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
        serde_json::from_str(MANIFEST_JSON_SCHEMA).expect("the published schema is JSON")
    });
    &SCHEMA
}

/// What a manifest says beyond the run's record.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// The machine, of a run that was tried.
    pub host: Option<Arc<HostFacts>>,
    /// The environment that was used, as found on the machine.
    pub environment: Option<ResolvedEnvironment>,
    /// Datasets whose digest was verified at start.
    pub datasets_verified: Vec<String>,
    /// The outputs, as their listing has them.
    pub output_files: Vec<ListedFile>,
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
        "tags": run.labels.tags,
        "note": run.labels.note,
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
        // Whom it tells is nothing about the result, and may be nobody else's business.
        "placement": Placement { on_finish: None, ..run.placement.clone() },
        "snapshot": {"id": run.commit.0.short(), "sha256": run.commit},
        "git": run.git,
        "host": extras.host,
        "environment": plan.and_then(|plan| environment(plan, extras)),
        "datasets": plan.map(|plan| plan.datasets.iter().map(dataset).collect::<Vec<_>>()),
        "isolation": run.isolation,
        "trust": run.standing_trust(),
        "metrics": run.metrics,
        "logged": run.logged,
        "outputs": run.outputs.map(|listing| json!({
            "listing": listing,
            "files": extras.output_files.len(),
            "bytes": extras.output_files.iter().map(|file| file.size).sum::<u64>(),
            "listed": extras.output_files.iter().take(OUTPUTS_LISTED_MAX).collect::<Vec<_>>(),
        })),
        "log_bytes_dropped": extras.log_bytes_dropped,
        "attempts": attempts,
        "daemon_version": extras.daemon_version,
    })
}

/// Where a manifest is not of the published shape.
pub fn shape(manifest: &Value) -> Vec<Defect> {
    let violations = json_schema::violations(manifest_schema(), manifest);
    let defects = violations.into_iter().map(|violation| Defect {
        code: "manifest_schema",
        at: violation.at,
        rule: "a manifest is of the shape that its schema says".into(),
        seen: violation.seen,
        allowed: violation.allowed,
    });
    defects.collect()
}

/// What was planned, and what it turned out to be on the machine.
fn environment(plan: &Plan, extras: &Extras) -> Option<Value> {
    let deps = plan.deps.as_ref()?;
    let found = extras.environment.as_ref();
    Some(json!({
        "kind": deps.kind,
        "name": deps.name,
        "python": deps.python,
        "deps_sha256": deps.sha256,
        "interpreter": found.map(|found| &found.interpreter),
        "packages": found.map(|found| &found.packages),
        "packages_sha256": found.map(|found| ResolvedEnvironment::packages_digest(&found.packages)),
    }))
}

/// Writes the manifest into the run's folder, whole or not at all, and returns the
/// digest of the bytes. What it returns is on disk. Blocking.
pub fn write_manifest(folder: &Path, manifest: &Value) -> io::Result<Digest> {
    let mut bytes = serde_json::to_vec_pretty(manifest)?;
    bytes.push(b'\n');
    write_manifest_bytes(folder, MANIFEST_FILE, &bytes)?;
    Ok(Digest::of(&bytes))
}

/// Writes a file of a run's folder, whole or not at all; then it is on disk. Blocking.
pub fn write_manifest_bytes(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let partial = folder.join(format!(".{name}.partial"));
    let mut file = File::create(&partial)?;
    file.write_all(bytes)?;
    std::fs::rename(&partial, folder.join(name))?;
    // After the renaming, which then is in the same commit of the file system. A torn
    // file is written again, since the store does not know of it yet.
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_that_of_the_file_and_no_partial_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let digest = write_manifest(&run, &json!({"phase": "completed"})).unwrap();
        let again = write_manifest(&run, &json!({"phase": "completed"})).unwrap();
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
