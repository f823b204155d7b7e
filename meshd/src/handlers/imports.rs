//! Imports: runs that ended elsewhere, with their exporter's statement. What the client
//! verified is verified again here; contents come as objects before.
//!
//! ```text
//!   objects ─► commits ─► POST /v1/imports: signature ─► manifests ─► trees are there
//!                            ─► manifests' files ─► records, in one transaction
//! ```
//!
//! Cut anywhere, it can be repeated: until the transaction nothing knows of the run.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use mlmesh_api::{IMPORTED_SCHEMA, ImportDto, ImportedDto, error_code};
use mlmesh_cas::ObjectStore;
use mlmesh_control::Caller;
use mlmesh_model::{CommitId, Digest, Import, ObjectId, Run, RunId};
use mlmesh_proof::export::{
    Claims, Envelope, Fingerprint, Parts, REPRODUCTION_FILE, parts, records,
};
use mlmesh_proof::{Defect, MANIFEST_FILE, write_manifest_bytes};

use super::possession::are_own;
use super::{note, objects_error};
use crate::daemon::Daemon;
use crate::http::body::{blocking, read_json};
use crate::limits::IMPORT_BYTES_MAX;
use crate::reply::{ApiError, ApiResult, ok};

/// The exporter's statement, beside the manifest.
const ATTESTATION_FILE: &str = "attestation.dsse.json";

pub(crate) async fn import(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    let (asked, _) = read_json::<ImportDto>(&headers, body, IMPORT_BYTES_MAX).await?;
    let objects = Arc::clone(&daemon.objects);
    let envelope = asked.envelope.clone();
    let (parts, signer) = blocking(move || {
        let (parts, signer) = opened(asked)?;
        are_there(&objects, &parts)?;
        ApiResult::Ok((parts, signer))
    })
    .await??;
    trees_are_own(&daemon, &caller, &parts).await?;
    let found = records(&parts, signer, &caller.tenant, &caller.owner);
    let (runs, attempts) = found.map_err(|defect| refused(&[*defect]))?;
    let answer = |fresh| {
        ok(&ImportedDto {
            schema: IMPORTED_SCHEMA.to_owned(),
            id: runs[0].id,
            fresh,
            runs: parts.runs.len() as u64,
            signer: signer.to_string(),
        })
    };
    if is_here(&daemon, &caller, &runs).await? {
        return Ok(answer(false));
    }
    let folders: Vec<_> = parts
        .runs
        .iter()
        .zip(runs.iter().filter(|run| run.plan.is_some()))
        .map(|(exported, run)| {
            let signed = exported.reproduction.as_ref().map(|it| it.envelope.clone());
            (daemon.run_folder(run.id), exported.bytes.clone(), signed)
        })
        .collect();
    blocking(move || {
        for (folder, manifest, reproduction) in folders {
            write_manifest_bytes(&folder, MANIFEST_FILE, &manifest)?;
            write_manifest_bytes(&folder, ATTESTATION_FILE, envelope.as_bytes())?;
            if let Some(signed) = reproduction {
                write_manifest_bytes(&folder, REPRODUCTION_FILE, &signed)?;
            }
        }
        std::io::Result::Ok(())
    })
    .await?
    .map_err(|error| ApiError::io("the manifests of an import", &error))?;
    let mut audit = note(
        &caller,
        &*daemon.clock,
        "run.import",
        runs[0].id.to_string(),
    );
    audit.subject = format!("{} by {signer}", runs[0].id);
    let import = Import {
        runs: runs.clone(),
        attempts,
        audit,
    };
    match daemon.store.import(import).await {
        Ok(()) => Ok(answer(true)),
        // Somebody else imported it meanwhile, or its id is taken.
        Err(mlmesh_model::StoreError::RunExists(id)) => {
            match is_here(&daemon, &caller, &runs).await? {
                true => Ok(answer(false)),
                false => Err(exists(id)),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Signature, statement and manifests, without a look at any content.
fn opened(asked: ImportDto) -> ApiResult<(Parts, Fingerprint)> {
    let bad = |why: &dyn std::fmt::Display| {
        ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            error_code::BAD_IMPORT,
            format!("the export does not hold: {why}"),
            "`ml export --verify` says what is wrong with it",
        )
    };
    let (payload, signer) =
        Envelope::open(asked.envelope.as_bytes()).map_err(|error| bad(&error))?;
    let claims = Claims::read(&payload).map_err(|rule| bad(&rule))?;
    let mut documents = BTreeMap::new();
    for (name, text) in asked.manifests {
        let signed = claims.files.entry(&name);
        if signed.is_none_or(|entry| entry.object.0 != Digest::of(text.as_bytes())) {
            return Err(bad(&format_args!("`{name}` is not what was signed")));
        }
        documents.insert(name, text.into_bytes());
    }
    let parts = parts(&claims, &documents).map_err(|defects| refused(&defects))?;
    Ok((parts, signer))
}

fn refused(defects: &[Defect]) -> ApiError {
    let first = defects
        .first()
        .map(|one| format!(": {} at {}", one.rule, one.at));
    let mut error = ApiError::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        error_code::BAD_IMPORT,
        format!("the export does not hold{}", first.unwrap_or_default()),
        "`ml export --verify` says what is wrong with it",
    );
    error.body = error
        .body
        .with_details(serde_json::json!({"defects": defects}));
    error
}

/// Code and outputs were sent and stay through a prune.
fn are_there(objects: &ObjectStore, parts: &Parts) -> ApiResult<()> {
    let outputs = parts.runs.iter().filter_map(|run| run.outputs.as_ref());
    for tree in std::iter::once(&parts.code).chain(outputs) {
        let commit: CommitId = tree.commit_id();
        if !objects.has_commit(commit).map_err(objects_error)? {
            return Err(absent(commit));
        }
    }
    Ok(())
}

fn absent(commit: CommitId) -> ApiError {
    ApiError::new(
        StatusCode::CONFLICT,
        error_code::COMMIT_INCOMPLETE,
        format!("tree `{commit}` of the export is not in the content store"),
        "`ml import` sends it",
    )
}

/// What is in the export came with it: a listing that names contents of others would
/// make these the importer's.
async fn trees_are_own(daemon: &Daemon, caller: &Caller, parts: &Parts) -> ApiResult<()> {
    let outputs = parts.runs.iter().filter_map(|run| run.outputs.as_ref());
    let trees = std::iter::once(&parts.code).chain(outputs);
    let ids: Vec<ObjectId> = trees.map(|tree| ObjectId(tree.commit_id().0)).collect();
    let own = are_own(daemon, caller, &ids).await?;
    match ids.iter().zip(own).find(|(_, own)| !own) {
        None => Ok(()),
        Some((id, _)) => Err(absent(CommitId(id.0))),
    }
}

/// Whether all of it was imported before. A run of that id with another manifest, or one
/// that ran here, is in the way.
async fn is_here(daemon: &Daemon, caller: &Caller, runs: &[Run]) -> ApiResult<bool> {
    let ids: Vec<RunId> = runs.iter().map(|run| run.id).collect();
    let known = daemon.store.runs_by_id(&caller.tenant, ids).await?;
    let same = |run: &Run| {
        let mut incoming = runs.iter();
        incoming.any(|other| {
            other.id == run.id
                && other.plan_sha256 == run.plan_sha256
                && other.manifest_sha256 == run.manifest_sha256
                && run.is_imported()
        })
    };
    match known.iter().find(|run| !same(run)) {
        Some(other) => Err(exists(other.id)),
        None => Ok(known.len() == runs.len()),
    }
}

fn exists(id: RunId) -> ApiError {
    ApiError::new(
        StatusCode::CONFLICT,
        error_code::RUN_EXISTS,
        format!("run `{id}` is here already, and it is not this one"),
        "a run is imported where it did not run; `ml info` shows the one that is here",
    )
}
