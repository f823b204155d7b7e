//! What people write on runs: tags and a note. At any time, also after the end; the
//! manifest keeps what stood there when it was written.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use mlmesh_api::{ChangeLabelsDto, LABELS_SCHEMA, LabelsDto};
use mlmesh_control::Caller;
use mlmesh_model::{Digest, LabelChange, Labels, Permission};

use super::note;
use super::run_name::reached;
use super::runs::idempotency_key;
use crate::daemon::Daemon;
use crate::http::body::{clipped, read_json};
use crate::http::query::PathParts;
use crate::limits::JSON_BYTES_MAX;
use crate::reply::{ApiError, ApiResult, ok};

pub(crate) async fn change(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    let key = idempotency_key(&headers, &caller)?;
    let (asked, _) = read_json::<ChangeLabelsDto>(&headers, body, JSON_BYTES_MAX).await?;
    check(&asked)?;
    let run = reached(
        &daemon,
        &caller,
        path.first(),
        Permission::RunsLabelOthers,
        "to write on",
    );
    let run = run.await?.id;
    let request = serde_json::to_vec(&(run, &asked))
        .map_err(|error| ApiError::internal("the change", &error))?;
    let mut audit = note(&caller, &*daemon.clock, "run.label", run.to_string());
    audit.details_sha256 = Some(Digest::of(&request));
    let change = LabelChange {
        run,
        set: asked.set,
        remove: asked.remove,
        note: asked.note,
        key: key.map(|key| (key, Digest::of(&request))),
        audit,
    };
    let labels = daemon.store.label(change).await?;
    daemon.control.labelled(run, &labels);
    Ok(ok(&LabelsDto {
        schema: LABELS_SCHEMA.to_owned(),
        run,
        tags: labels.tags,
        note: labels.note,
    }))
}

fn check(asked: &ChangeLabelsDto) -> ApiResult<()> {
    for count in [asked.set.len(), asked.remove.len()] {
        at_most("tags in one request", Labels::TAGS_MAX, count)?;
    }
    for name in asked.set.keys().chain(&asked.remove) {
        let odd = |c: char| c == '=' || c.is_control() || c.is_whitespace();
        if name.is_empty() || name.contains(odd) {
            return Err(ApiError::bad_request(
                format!("`{}` is no name of a tag", clipped(name)),
                "a name has no blank and no `=`, and is not empty",
            ));
        }
        at_most(
            "characters of a tag's name",
            Labels::KEY_CHARS_MAX,
            name.chars().count(),
        )?;
    }
    for value in asked.set.values() {
        at_most(
            "characters of a tag's value",
            Labels::VALUE_CHARS_MAX,
            value.chars().count(),
        )?;
    }
    let note = asked.note.as_deref().unwrap_or_default();
    at_most(
        "characters of a note",
        Labels::NOTE_CHARS_MAX,
        note.chars().count(),
    )
}

fn at_most(what: &str, limit: usize, count: usize) -> ApiResult<()> {
    if count <= limit {
        return Ok(());
    }
    Err(ApiError::bad_request(
        format!("{count} {what}; at most {limit} are taken"),
        "longer texts are outputs of a run",
    ))
}
