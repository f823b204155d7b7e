//! The catalog: data stay where they lie; the store knows name, version and checksum.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use mlmesh_api::{DATASETS_SCHEMA, DatasetDto, DatasetsDto, RegisterDatasetDto, error_code};
use mlmesh_cas::{Checksum, NodeSnapshots};
use mlmesh_control::Caller;
use mlmesh_model::{Dataset, Digest, Name, Permission, Snapshots, SnapshotsError, Tenant};

use super::{note, snapshots_error, split_hint};
use crate::daemon::Daemon;
use crate::http::body::{blocking, clipped, read_json};
use crate::http::query::{PathParts, parsed};
use crate::limits::JSON_BYTES_MAX;
use crate::reply::{ApiError, ApiResult, ok};

pub(crate) async fn list(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
) -> ApiResult<Response> {
    let datasets = daemon.store.datasets(&caller.tenant).await?;
    Ok(ok(&DatasetsDto {
        schema: DATASETS_SCHEMA.to_owned(),
        datasets: datasets.iter().map(DatasetDto::from).collect(),
    }))
}

pub(crate) async fn register(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    let (asked, _) = read_json::<RegisterDatasetDto>(&headers, body, JSON_BYTES_MAX).await?;
    let what = "a name of up to 64 characters `A-Za-z0-9._-`";
    let name: Name = parsed("name", &asked.name, what)?;
    let version: Name = parsed("version", &asked.version, what)?;
    let path = PathBuf::from(&asked.path);
    if !path.is_absolute() {
        return Err(ApiError::bad_request(
            format!("`{}` is not an absolute path", clipped(&asked.path)),
            "`ml data add` sends the absolute path",
        ));
    }
    let (snapshots, private) = (Arc::clone(&daemon.snapshots), daemon.root.clone());
    let (path, found) = blocking(move || look_at(&path, &snapshots, &private)).await??;
    let dataset = Dataset {
        tenant: caller.tenant.clone(),
        owner: caller.owner.clone(),
        name,
        version: version.to_string(),
        checksum: found.checksum,
        directory: found.directory,
        path,
        bytes: found.bytes,
        files: found.files,
        registered_at: daemon.clock.now(),
    };
    let subject = format!("{}@{}", dataset.name, dataset.version);
    let audit = note(&caller, &*daemon.clock, "dataset.register", subject);
    daemon.store.put_dataset(dataset.clone(), audit).await?;
    Ok(ok(&DatasetDto::from(&dataset)))
}

struct Found {
    checksum: Digest,
    directory: bool,
    bytes: u64,
    files: u64,
}

fn look_at(path: &Path, snapshots: &NodeSnapshots, private: &Path) -> ApiResult<(String, Found)> {
    let refused = |message: String, hint: &str| unusable(message, hint.to_owned());
    let real = path.canonicalize().map_err(|error| {
        let message = format!("`{}` cannot be read: {error}", path.display());
        let hint = "the path is one of the daemon's machine, and the daemon's user must be able to read it";
        match error.kind() {
            std::io::ErrorKind::NotFound => ApiError::not_found(message, hint),
            _ => refused(message, hint),
        }
    })?;
    if real.starts_with(private) || private.starts_with(&real) {
        return Err(refused(
            format!(
                "`{}` holds the daemon's own data directory, or lies in it",
                real.display()
            ),
            "keep data elsewhere",
        ));
    }
    let Some(text) = real.to_str().map(str::to_owned) else {
        return Err(refused(
            "the path is not UTF-8".to_owned(),
            "rename the folder",
        ));
    };
    let found = match snapshots.register_dataset(&real).map_err(unreadable)? {
        Checksum::File { object, size } => Found {
            checksum: object.0,
            directory: false,
            bytes: size,
            files: 1,
        },
        Checksum::Folder(snapshot) => Found {
            checksum: snapshot.commit.0,
            directory: true,
            bytes: snapshot.content_bytes,
            files: snapshot.files,
        },
    };
    Ok((text, found))
}

/// Data that cannot be registered as they are: the request is at fault, unless the
/// daemon's own disk is full.
fn unreadable(error: SnapshotsError) -> ApiError {
    match error {
        SnapshotsError::Io { ref source, .. }
            if source.kind() == std::io::ErrorKind::StorageFull =>
        {
            snapshots_error(error)
        }
        SnapshotsError::Io { ref source, .. } => unusable(
            format!("{error}: {source}"),
            "the daemon's user must be able to read it".to_owned(),
        ),
        other => {
            let (message, hint) = split_hint(&other.to_string());
            unusable(message, hint)
        }
    }
}

fn unusable(message: String, hint: String) -> ApiError {
    ApiError::new(
        StatusCode::CONFLICT,
        error_code::DATASET_UNREADABLE,
        message,
        hint,
    )
}

pub(crate) async fn verify(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
) -> ApiResult<Response> {
    let dataset = known(&daemon, &caller.tenant, &path).await?;
    let snapshots = Arc::clone(&daemon.snapshots);
    let checked = dataset.clone();
    blocking(move || snapshots.verify_dataset(&checked, true))
        .await?
        .map_err(snapshots_error)?;
    Ok(ok(&DatasetDto::from(&dataset)))
}

pub(crate) async fn remove(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
) -> ApiResult<Response> {
    let dataset = known(&daemon, &caller.tenant, &path).await?;
    caller.reach(&dataset.owner, Permission::DataRemoveOthers, || {
        format!("to forget dataset `{}`", dataset.name)
    })?;
    let subject = format!("{}@{}", dataset.name, dataset.version);
    let audit = note(&caller, &*daemon.clock, "dataset.remove", subject);
    daemon
        .store
        .remove_dataset(&caller.tenant, &dataset.name, &dataset.version, audit)
        .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn known(daemon: &Daemon, tenant: &Tenant, path: &PathParts) -> ApiResult<Dataset> {
    let (name, version) = (path.first(), path.second());
    let datasets = daemon.store.datasets(tenant).await?;
    datasets
        .into_iter()
        .find(|dataset| dataset.name.as_str() == name && dataset.version == version)
        .ok_or_else(|| {
            ApiError::not_found(
                format!(
                    "no dataset `{}` version `{}`",
                    clipped(name),
                    clipped(version)
                ),
                "`ml data list` shows the catalog",
            )
        })
}
