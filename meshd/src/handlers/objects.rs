//! The content store over HTTP: have-checks, frames, commits, downloads, uploads in
//! pieces. Bodies stream between the network and the disk in bounded memory.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use mlmesh_api::{ADDED_SCHEMA, AddedDto, COMMIT_SCHEMA, CommitDto, UPLOAD_SCHEMA, UploadDto};
use mlmesh_cas::{FrameLimits, Sender, StoreError, Tree, Upload};
use mlmesh_control::Caller;
use mlmesh_model::{CommitId, Digest, Event, EventKind, ObjectId, Owner, Sequence};

use super::possession::{are_own, closed, has_all, is_own, keep};
use super::{note, objects_error};
use crate::daemon::Daemon;
use crate::http::body::{blocking, check_content_type, read_whole, reader, streamed};
use crate::http::query::{PathParts, Query, parsed};
use crate::limits::{
    BATCH_BYTES_MAX, BATCH_RECORDS_MAX, HAVE_BYTES_MAX, LISTING_BYTES_MAX, PIECE_BYTES_MAX,
};
use crate::reply::{ApiError, ApiResult, binary, ok};

const OCTETS: &str = "application/octet-stream";

pub(crate) async fn show(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
) -> ApiResult<Response> {
    let id = object_id(&path)?;
    if !is_own(&daemon, &caller, id).await? {
        return Err(closed(&caller, id, "to read object"));
    }
    let objects = Arc::clone(&daemon.objects);
    let (length, body) = blocking(move || match objects.reader(id) {
        Ok(reader) => Ok((reader.size(), streamed(reader))),
        Err(StoreError::Missing(_)) => {
            let listing = objects.listing(CommitId(id.0)).map_err(objects_error)?;
            Ok((listing.len() as u64, Body::from(listing)))
        }
        Err(error) => Err(objects_error(error)),
    })
    .await??;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(OCTETS)),
        (header::CONTENT_LENGTH, HeaderValue::from(length)),
    ];
    Ok((headers, body).into_response())
}

pub(crate) async fn have(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    check_content_type(&headers, OCTETS)?;
    let bytes = read_whole(&headers, body, HAVE_BYTES_MAX).await?;
    let (ids, rest) = bytes.as_chunks::<32>();
    if !rest.is_empty() {
        return Err(ApiError::bad_request(
            format!(
                "the body has {} bytes, which is no multiple of 32",
                bytes.len()
            ),
            "send 32 bytes for each object id",
        ));
    }
    let ids: Vec<ObjectId> = ids
        .iter()
        .map(|id| ObjectId(Digest::from_bytes(*id)))
        .collect();
    // Before the look: what is answered with yes stays through a prune.
    let own = are_own(&daemon, &caller, &ids).await?;
    let objects = Arc::clone(&daemon.objects);
    let there = blocking(move || {
        let mut there = objects.has(&ids)?;
        // A commit's listing is downloaded as an object is, so it counts as one.
        for (id, there) in ids.iter().zip(&mut there) {
            *there = *there || objects.has_commit(CommitId(id.0))?;
        }
        Ok::<_, StoreError>(there)
    })
    .await?
    .map_err(objects_error)?;
    Ok(binary(own_there(&own, &there)))
}

fn own_there(own: &[bool], there: &[bool]) -> Vec<u8> {
    let both = own.iter().zip(there).map(|(own, there)| *own && *there);
    both.map(u8::from).collect()
}

pub(crate) async fn batch(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    check_content_type(&headers, OCTETS)?;
    let (input, feed) = reader(&headers, body, BATCH_BYTES_MAX)?;
    let objects = Arc::clone(&daemon.objects);
    let limits = FrameLimits {
        records_max: BATCH_RECORDS_MAX,
        record_bytes_max: BATCH_BYTES_MAX,
        total_bytes_max: BATCH_BYTES_MAX,
    };
    let work = blocking(move || {
        let mut came = Vec::new();
        let added = objects.receive_each(input, limits, &mut |id| came.push(id));
        added.map(|added| (added, came))
    });
    let ((), added) = tokio::join!(feed, work);
    let (added, came) = added?.map_err(objects_error)?;
    keep(&daemon, &caller, came).await?;
    Ok(ok(&AddedDto {
        schema: ADDED_SCHEMA.to_owned(),
        objects: added.objects,
        bytes: added.bytes,
    }))
}

pub(crate) async fn commit(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    check_content_type(&headers, OCTETS)?;
    let listing = read_whole(&headers, body, LISTING_BYTES_MAX).await?;
    let commit = CommitId(Digest::of(&listing));
    if !has_all(&caller) {
        is_of_own_objects(&daemon, &caller, &listing).await?;
    }
    let objects = Arc::clone(&daemon.objects);
    let (known, files) = blocking(move || {
        let known = objects.has_commit(commit)?;
        let tree = objects.put_listing(commit, &listing)?;
        Ok((known, tree.entries.len() as u64))
    })
    .await?
    .map_err(objects_error)?;
    keep(&daemon, &caller, vec![ObjectId(commit.0)]).await?;
    if !known {
        daemon.control.commits_changed();
        let event = Event {
            seq: Sequence(0),
            time: daemon.clock.now(),
            tenant: caller.tenant.clone(),
            owner: caller.owner.clone(),
            run: None,
            kind: EventKind::CommitStored { commit, files },
        };
        let audit = note(&caller, &*daemon.clock, "commit.store", commit.to_string());
        daemon.store.record(Some(event), Some(audit)).await?;
    }
    Ok(ok(&CommitDto {
        schema: COMMIT_SCHEMA.to_owned(),
        commit,
        files,
    }))
}

/// A tree of objects that its sender has not shown to have would give them to a job.
async fn is_of_own_objects(daemon: &Daemon, caller: &Caller, listing: &[u8]) -> ApiResult<()> {
    let tree = Tree::parse(listing).map_err(|error| objects_error(StoreError::Tree(error)))?;
    let mut ids: Vec<ObjectId> = tree.entries.iter().map(|entry| entry.object).collect();
    ids.sort_unstable();
    ids.dedup();
    let own = are_own(daemon, caller, &ids).await?;
    let lacking = ids.into_iter().zip(own).filter(|(_, own)| !own);
    let missing: Vec<ObjectId> = lacking.map(|(id, _)| id).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(objects_error(StoreError::Incomplete { missing })),
    }
}

/// Somebody who does not have an object yet has to send all of it.
fn sender(own: bool, owner: &Owner) -> Sender<'_> {
    match own {
        true => Sender::Trusted,
        false => Sender::Proving(owner.as_str()),
    }
}

pub(crate) async fn upload_position(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
) -> ApiResult<Response> {
    let id = object_id(&path)?;
    let own = is_own(&daemon, &caller, id).await?;
    let (objects, owner) = (Arc::clone(&daemon.objects), caller.owner.clone());
    let upload = blocking(move || objects.upload_position(id, sender(own, &owner)))
        .await?
        .map_err(objects_error)?;
    Ok(ok(&upload_dto(upload, 0)))
}

pub(crate) async fn upload(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    let id = object_id(&path)?;
    let query = Query::parse(query.as_deref(), &["size", "offset"])?;
    let needed = |name: &str| {
        query
            .number(name, "a number of bytes")?
            .ok_or_else(|| ApiError::bad_parameter(format!("`{name}` is missing"), "give it"))
    };
    let (size, offset) = (needed("size")?, needed("offset")?);
    check_content_type(&headers, OCTETS)?;
    let (input, feed) = reader(&headers, body, PIECE_BYTES_MAX)?;
    let own = is_own(&daemon, &caller, id).await?;
    let (objects, owner) = (Arc::clone(&daemon.objects), caller.owner.clone());
    let work = blocking(move || objects.upload(id, size, offset, input, sender(own, &owner)));
    let ((), upload) = tokio::join!(feed, work);
    let upload = upload?.map_err(objects_error)?;
    if upload == Upload::Complete && !own {
        keep(&daemon, &caller, vec![id]).await?;
    }
    Ok(ok(&upload_dto(upload, size)))
}

fn upload_dto(upload: Upload, size: u64) -> UploadDto {
    let (offset, complete) = match upload {
        Upload::Partial { offset } => (offset, false),
        Upload::Complete => (size, true),
    };
    UploadDto {
        schema: UPLOAD_SCHEMA.to_owned(),
        offset,
        complete,
    }
}

fn object_id(path: &PathParts) -> ApiResult<ObjectId> {
    parsed("object", path.first(), "64 hex digits")
}
