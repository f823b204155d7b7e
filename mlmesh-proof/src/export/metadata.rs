//! `ro-crate-metadata.json`: an RO-Crate 1.1 of the Process Run Crate profile 0.5
//! (w3id.org/ro/wfrun/process/0.5), so that other programs know what made what.
//!
//! Everything in it is taken from the manifests and from the listing; the same run has
//! the same bytes. It is a description: what is checked is the signed statement.

use mlmesh_cas::TreeEntry;
use mlmesh_model::Micros;
use serde_json::{Value, json};

use super::bundle::{CODE_FOLDER, ExportedRun, METADATA_FILE, SweepManifest};
use super::reproduced::REPRODUCTION_FILE;
use crate::MANIFEST_FILE;

const PROFILE: &str = "https://w3id.org/ro/wfrun/process/0.5";
const LICENCE: &str = "#licence";

/// The crate's description; `files` are code and outputs.
pub(super) fn metadata(
    sweep: Option<&SweepManifest>,
    runs: &[ExportedRun],
    files: &[TreeEntry],
    time: fn(Micros) -> String,
) -> Value {
    let first = runs.first().map_or(&Value::Null, |run| &run.manifest);
    let name = text(&first["name"]);
    let id = sweep.map_or_else(
        || text(&first["run"]).to_owned(),
        |sweep| sweep.run.to_string(),
    );
    let published = runs.iter().filter_map(|run| ended(&run.manifest)).max();
    let mut parts = Vec::new();
    let mut graph = Vec::new();
    if files.iter().any(|file| file.path.starts_with(CODE_FOLDER)) {
        parts.push(reference(CODE_FOLDER));
        graph.push(json!({
            "@id": CODE_FOLDER,
            "@type": "Dataset",
            "name": format!("code of {name}"),
            "description": "the tree of the commit that ran",
            "identifier": first["snapshot"]["sha256"],
        }));
    }
    let outputs = files
        .iter()
        .filter(|file| !file.path.starts_with(CODE_FOLDER));
    for file in outputs {
        parts.push(reference(&percent_encoded(&file.path)));
        graph.push(described(file));
    }
    let mut manifests: Vec<String> = runs.iter().map(manifest_name).collect();
    manifests.extend(sweep.map(|_| MANIFEST_FILE.to_owned()));
    for manifest in &manifests {
        parts.push(reference(manifest));
        graph.push(json!({
            "@id": manifest,
            "@type": "File",
            "name": manifest,
            "description": "what ran, on what, and how it ended",
            "encodingFormat": "application/json",
        }));
    }
    for run in runs.iter().filter(|run| run.reproduction.is_some()) {
        let statement = format!("{}{REPRODUCTION_FILE}", run.folder);
        parts.push(reference(&statement));
        graph.push(json!({
            "@id": statement,
            "@type": "File",
            "name": statement,
            "description": "who says that the run was executed anew and gave the same result",
            "encodingFormat": "application/json",
            "about": reference(&manifest_name(run)),
        }));
    }
    let actions = runs.iter().map(|run| reference(&action_id(run)));
    let root = json!({
        "@id": "./",
        "@type": "Dataset",
        "conformsTo": reference(PROFILE),
        "name": format!("{name}, run {id}"),
        "description": format!("run {id} of the experiment {name}: code, manifest and outputs"),
        "datePublished": time(Micros(published.unwrap_or(0))),
        "identifier": id,
        "license": reference(LICENCE),
        "hasPart": parts,
        "mentions": actions.collect::<Vec<_>>(),
    });
    let mut all = vec![descriptor(), root];
    all.extend(contexts(first));
    all.extend(graph);
    for run in runs {
        all.extend(action(run, files, time));
    }
    json!({
        "@context": [
            "https://w3id.org/ro/crate/1.1/context",
            "https://w3id.org/ro/terms/workflow-run/context",
        ],
        "@graph": all,
    })
}

fn descriptor() -> Value {
    json!({
        "@id": METADATA_FILE,
        "@type": "CreativeWork",
        "conformsTo": reference("https://w3id.org/ro/crate/1.1"),
        "about": reference("./"),
    })
}

/// The profile, the licence, who ran it and with what.
fn contexts(first: &Value) -> [Value; 4] {
    let argv = first["plan"]["argv"].as_array().into_iter().flatten();
    let command: Vec<&str> = argv.filter_map(Value::as_str).collect();
    [
        json!({
            "@id": PROFILE,
            "@type": "CreativeWork",
            "name": "Process Run Crate",
            "version": "0.5",
        }),
        json!({
            "@id": LICENCE,
            "@type": "CreativeWork",
            "name": "not stated",
            "description": "the export says nothing about rights: ask the owner",
        }),
        json!({"@id": "#owner", "@type": "Person", "name": first["owner"]}),
        json!({
            "@id": "#program",
            "@type": "SoftwareApplication",
            "name": command.join(" "),
            "description": "the command, run in the tree `code/`",
            "softwareVersion": first["snapshot"]["sha256"],
            "url": CODE_FOLDER,
        }),
    ]
}

/// What was run, from what, to what, with the entities that only it refers to.
fn action(run: &ExportedRun, files: &[TreeEntry], time: fn(Micros) -> String) -> Vec<Value> {
    let manifest = &run.manifest;
    let id = text(&manifest["run"]);
    let mut inputs = Vec::new();
    let mut entities = Vec::new();
    let params = manifest["plan"]["params"].as_object().into_iter().flatten();
    for (name, value) in params {
        let entity = format!("#{id}-{}", percent_encoded(name));
        inputs.push(reference(&entity));
        let value = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        entities.push(json!({
            "@id": entity, "@type": "PropertyValue", "name": name, "value": value,
        }));
    }
    for dataset in manifest["datasets"].as_array().into_iter().flatten() {
        let name = super::statement::dataset_name(dataset);
        let entity = format!("#{id}-dataset-{}", percent_encoded(&name));
        inputs.push(reference(&entity));
        entities.push(json!({
            "@id": entity, "@type": "CreativeWork", "name": name,
            "description": "a dataset that does not travel with the export",
            "identifier": format!("sha256:{}", text(&dataset["checksum"])),
        }));
    }
    let prefix = format!("{}{}", run.folder, super::bundle::OUTPUTS_FOLDER);
    let results = files.iter().filter(|file| file.path.starts_with(&prefix));
    let mut results: Vec<Value> = results
        .map(|file| reference(&percent_encoded(&file.path)))
        .collect();
    results.push(reference(&manifest_name(run)));
    let at = |key: &str| manifest[key].as_i64().map(|micros| time(Micros(micros)));
    let completed = manifest["phase"] == "completed";
    let mut action = json!({
        "@id": action_id(run),
        "@type": "CreateAction",
        "name": format!("run {id}"),
        "description": format!("{} ended as {}", text(&manifest["name"]), text(&manifest["phase"])),
        "instrument": reference("#program"),
        "agent": reference("#owner"),
        "object": inputs,
        "result": results,
        "actionStatus": match completed {
            true => "http://schema.org/CompletedActionStatus",
            false => "http://schema.org/FailedActionStatus",
        },
    });
    for (key, value) in [("startTime", at("started_at")), ("endTime", at("ended_at"))] {
        if let Some(value) = value {
            action[key] = value.into();
        }
    }
    if !completed {
        action["error"] = format!("{}", manifest["cause"]).trim_matches('"').into();
    }
    entities.push(action);
    entities
}

fn described(file: &TreeEntry) -> Value {
    json!({
        "@id": percent_encoded(&file.path),
        "@type": "File",
        "name": file.path,
        "contentSize": file.size.to_string(),
        "sha256": file.object,
    })
}

fn action_id(run: &ExportedRun) -> String {
    format!("#run-{}", text(&run.manifest["run"]))
}

fn manifest_name(run: &ExportedRun) -> String {
    format!("{}{MANIFEST_FILE}", run.folder)
}

fn ended(manifest: &Value) -> Option<i64> {
    manifest["ended_at"].as_i64()
}

fn reference(id: &str) -> Value {
    json!({"@id": id})
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A path as a relative reference: all but the unreserved characters and `/`.
fn percent_encoded(path: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                encoded.push(char::from(byte));
            }
            other => drop(write!(encoded, "%{other:02X}")),
        }
    }
    encoded
}
