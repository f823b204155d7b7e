//! Changed large objects: only the chunks that nothing at hand has are sent.
//!
//! Body: `u8` number of bases, their ids of 32 bytes, `u32` length of the manifest
//! (little-endian), the manifest in the content store's form; then, to put the object
//! together, frames with the missing chunks.

use std::io::Read;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use mlmesh_api::{ADDED_SCHEMA, AddedDto};
use mlmesh_cas::{BASES_MAX, CHUNKS_MAX, ChunkManifest, StoreError};
use mlmesh_control::Caller;
use mlmesh_model::{Digest, ObjectId};
use tokio::runtime::Handle;

use super::objects_error;
use super::possession::{are_own, keep};
use crate::daemon::Daemon;
use crate::http::body::{blocking, check_content_type, reader};
use crate::limits::CHUNKS_BYTES_MAX;
use crate::reply::{ApiError, ApiResult, binary, ok};

/// Bytes of the longest manifest: 36 for a chunk, and its head and end.
const MANIFEST_BYTES_MAX: usize = 36 * CHUNKS_MAX + 256;

pub(crate) async fn missing(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    check_content_type(&headers, "application/octet-stream")?;
    let (mut input, feed) = reader(&headers, body, CHUNKS_BYTES_MAX)?;
    let objects = Arc::clone(&daemon.objects);
    let own = own_bases(&daemon, &caller);
    let work = blocking(move || {
        let (bases, manifest) = read_head(&mut input)?;
        let bases = own(bases)?;
        objects
            .missing_chunks(&manifest, &bases)
            .map_err(objects_error)
    });
    let ((), digests) = tokio::join!(feed, work);
    let bytes = digests??
        .iter()
        .flat_map(|digest| *digest.as_bytes())
        .collect();
    Ok(binary(bytes))
}

pub(crate) async fn put(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    check_content_type(&headers, "application/octet-stream")?;
    let (mut input, feed) = reader(&headers, body, CHUNKS_BYTES_MAX)?;
    let objects = Arc::clone(&daemon.objects);
    let own = own_bases(&daemon, &caller);
    let work = blocking(move || {
        let (bases, manifest) = read_head(&mut input)?;
        let bases = own(bases)?;
        let new = !objects
            .has(&[manifest.object])
            .map_err(objects_error)?
            .contains(&true);
        match objects.put_from_chunks(&manifest, &bases, input) {
            Ok(id) => {
                let added = AddedDto {
                    schema: ADDED_SCHEMA.to_owned(),
                    objects: u64::from(new),
                    bytes: if new { manifest.size } else { 0 },
                };
                Ok((added, id))
            }
            // A base that was pruned since the client asked: it asks again.
            Err(StoreError::Missing(id)) => Err(malformed(&format!("chunk `{id}` is missing"))),
            Err(error) => Err(objects_error(error)),
        }
    });
    let ((), added) = tokio::join!(feed, work);
    let (added, id) = added??;
    keep(&daemon, &caller, vec![id]).await?;
    Ok(ok(&added))
}

/// Takes out bases that are not the caller's: a list of their chunks would say what is
/// in them. Blocking, as it is asked for when the head of the body has come.
fn own_bases(
    daemon: &Arc<Daemon>,
    caller: &Caller,
) -> impl FnOnce(Vec<ObjectId>) -> ApiResult<Vec<ObjectId>> + Send + 'static {
    let (daemon, caller, runtime) = (Arc::clone(daemon), caller.clone(), Handle::current());
    move |bases| {
        let own = runtime.block_on(are_own(&daemon, &caller, &bases))?;
        let bases = bases.into_iter().zip(own).filter(|(_, own)| *own);
        Ok(bases.map(|(base, _)| base).collect())
    }
}

fn read_head(input: &mut impl Read) -> ApiResult<(Vec<ObjectId>, ChunkManifest)> {
    let mut take = |length: usize| -> ApiResult<Vec<u8>> {
        let mut bytes = Vec::new();
        let taken = input.by_ref().take(length as u64).read_to_end(&mut bytes);
        match taken {
            Ok(taken) if taken == length => Ok(bytes),
            Ok(_) => Err(malformed("the body ends too early")),
            Err(error) => Err(malformed(&error.to_string())),
        }
    };
    let count = usize::from(take(1)?[0]);
    if count > BASES_MAX {
        return Err(malformed(&format!(
            "{count} bases are named, {BASES_MAX} are taken"
        )));
    }
    let mut bases = Vec::with_capacity(count);
    for _ in 0..count {
        let bytes: [u8; 32] = take(32)?
            .try_into()
            .map_err(|_| malformed("a base is short"))?;
        bases.push(ObjectId(Digest::from_bytes(bytes)));
    }
    let length: [u8; 4] = take(4)?
        .try_into()
        .map_err(|_| malformed("the length is short"))?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MANIFEST_BYTES_MAX {
        return Err(malformed(&format!(
            "the manifest has {length} bytes, {MANIFEST_BYTES_MAX} are taken"
        )));
    }
    let manifest = ChunkManifest::parse(&take(length)?)
        .ok_or_else(|| malformed("the manifest is not of the documented form"))?;
    Ok((bases, manifest))
}

fn malformed(reason: &str) -> ApiError {
    ApiError::bad_request(
        format!("the body is no chunk list: {reason}"),
        "send the whole object instead",
    )
}
