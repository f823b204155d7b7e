//! What is signed: an in-toto Statement v1 whose predicate has the shape of SLSA
//! provenance v1 (in-toto.io/Statement/v1, slsa.dev/provenance/v1).
//!
//! Its subjects are all other files of the archive, each with digest, size and mode.
//! A digest over the whole list stands in the predicate, in the form of a commit id. What
//! the predicate says of runs is computed from their manifests, and again when it is
//! verified. The time of signing is what the signer's clock said; nothing depends on it.

use mlmesh_cas::{Mode, Tree, TreeEntry};
use mlmesh_model::{Digest, Micros, ObjectId};
use serde_json::{Value, json};

use super::bundle::{ExportedRun, SweepManifest};
use crate::defect::Defect;
use crate::json_schema::shown;

const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
/// Says what the parameters mean.
const BUILD_TYPE: &str = "urn:mlmesh:export:1";

/// A statement, read.
#[derive(Debug, Clone)]
pub struct Claims {
    /// The files that it is about.
    pub files: Tree,
    /// When it was signed, by the signer's clock.
    pub signed_at: String,
    runs: Value,
    sweep: Value,
}

/// The bytes that are signed.
pub(super) fn statement(
    sweep: Option<&SweepManifest>,
    runs: &[ExportedRun],
    files: &Tree,
    signed_at: &str,
    time: fn(Micros) -> String,
) -> Vec<u8> {
    let first = runs.first().map_or(&Value::Null, |run| &run.manifest);
    let whole = if runs.len() == 1 { first } else { &Value::Null };
    let id = sweep.map_or_else(|| first["run"].clone(), |sweep| json!(sweep.run));
    let at = |key: &str| whole[key].as_i64().map(|micros| time(Micros(micros)));
    let datasets = first["datasets"].as_array().into_iter().flatten();
    let mut inputs = vec![json!({
        "name": "code",
        "uri": "code/",
        "digest": {"mlmeshTree": first["snapshot"]["sha256"]},
    })];
    inputs.extend(datasets.map(|dataset| {
        json!({
            "name": dataset_name(dataset),
            "digest": {"sha256": dataset["checksum"]},
        })
    }));
    let statement = json!({
        "_type": STATEMENT_TYPE,
        "subject": files.entries.iter().map(subject).collect::<Vec<_>>(),
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "sweep": sweep,
                    "runs": runs.iter().map(claim).collect::<Vec<_>>(),
                },
                "internalParameters": {},
                "resolvedDependencies": inputs,
            },
            "runDetails": {
                "builder": {
                    "id": "urn:mlmesh:meshd",
                    "version": {"mlmesh": first["daemon_version"]},
                },
                "metadata": {
                    "invocationId": id,
                    "startedOn": at("started_at"),
                    "finishedOn": at("ended_at"),
                    "mlmesh_signedOn": signed_at,
                },
                "byproducts": [{
                    "name": "listing",
                    "digest": {"mlmeshTree": files.commit_id()},
                }],
            },
        },
    });
    statement.to_string().into_bytes()
}

/// `NAME:VERSION`, or the name of one that has no version.
pub(super) fn dataset_name(dataset: &Value) -> String {
    let name = text(&dataset["name"]);
    match dataset["version"].as_str() {
        Some(version) => format!("{name}:{version}"),
        None => name.to_owned(),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn subject(entry: &TreeEntry) -> Value {
    json!({
        "name": entry.path,
        "digest": {"sha256": entry.object},
        "annotations": {"mode": entry.mode.word(), "size": entry.size.to_string()},
    })
}

/// What is said of a run: the parts of its manifest that people ask for first.
fn claim(run: &ExportedRun) -> Value {
    let manifest = &run.manifest;
    json!({
        "run": manifest["run"],
        "folder": run.folder,
        "name": manifest["name"],
        "phase": manifest["phase"],
        "planSha256": manifest["plan_sha256"],
        "commit": manifest["snapshot"]["sha256"],
        "outputs": manifest["outputs"]["listing"],
        "trust": manifest["trust"]["level"],
        "manifestSha256": Digest::of(&run.bytes),
    })
}

impl Claims {
    /// Reads what was signed. An error says which rule it breaks.
    pub fn read(payload: &[u8]) -> Result<Self, &'static str> {
        let said: Value = serde_json::from_slice(payload).map_err(|_| "the statement is JSON")?;
        let build = &said["predicate"]["buildDefinition"];
        let is_ours = said["_type"] == STATEMENT_TYPE
            && said["predicateType"] == PREDICATE_TYPE
            && build["buildType"] == BUILD_TYPE;
        if !is_ours {
            return Err("it is an in-toto statement of version 1 over an export of version 1");
        }
        let subjects = said["subject"].as_array().ok_or("it has subjects")?;
        let entries: Option<Vec<TreeEntry>> = subjects.iter().map(entry).collect();
        let entries = entries.ok_or("each subject has name, sha256, mode and size")?;
        let files = Tree::from_entries(entries).map_err(|_| "its subjects make a tree")?;
        let details = &said["predicate"]["runDetails"];
        let listing = &details["byproducts"][0]["digest"]["mlmeshTree"];
        if *listing != json!(files.commit_id()) {
            return Err("its digest of the whole list is that of its subjects");
        }
        let parameters = &build["externalParameters"];
        Ok(Self {
            files,
            signed_at: text(&details["metadata"]["mlmesh_signedOn"]).to_owned(),
            runs: parameters["runs"].clone(),
            sweep: parameters["sweep"].clone(),
        })
    }
}

fn entry(subject: &Value) -> Option<TreeEntry> {
    let notes = &subject["annotations"];
    let mode = [Mode::File, Mode::Executable, Mode::Symlink];
    let mode = mode.into_iter().find(|mode| notes["mode"] == mode.word())?;
    Some(TreeEntry {
        path: subject["name"].as_str()?.to_owned(),
        mode,
        size: notes["size"].as_str()?.parse().ok()?,
        object: ObjectId(subject["digest"]["sha256"].as_str()?.parse().ok()?),
    })
}

/// Where what was said of the runs is not what their manifests say.
pub fn check_claims(
    claims: &Claims,
    sweep: Option<&SweepManifest>,
    runs: &[ExportedRun],
) -> Vec<Defect> {
    let expected = Value::Array(runs.iter().map(claim).collect());
    let mut defects = Vec::new();
    for (at, seen, allowed) in [
        ("statement, runs", &claims.runs, expected),
        ("statement, sweep", &claims.sweep, json!(sweep)),
    ] {
        if *seen != allowed {
            defects.push(Defect {
                code: "statement_differs",
                at: at.into(),
                rule: "the statement says of the runs what their manifests say".into(),
                seen: shown(seen),
                allowed: shown(&allowed),
            });
        }
    }
    defects
}
