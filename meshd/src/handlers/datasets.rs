//! The catalog: the store knows name, version and checksum. Data stay where they lie,
//! or the content store has them, to which the caller has sent them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use mlmesh_api::{
    CopiedDto, DATASETS_SCHEMA, DatasetAboutDto, DatasetDto, DatasetsDto, RegisterDatasetDto,
    error_code,
};
use mlmesh_cas::{Change, Checksum, Copied, NodeSnapshots};
use mlmesh_control::Caller;
use mlmesh_model::{
    Dataset, Digest, Name, ObjectId, Permission, Snapshots, SnapshotsError, Tenant,
};
use serde_json::json;

use super::possession::is_own;
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
    if asked.copied.is_none() && !caller.may(Permission::DataRegisterInPlace) {
        let what = "to register data where they lie".to_owned();
        return Err(caller.denied(Permission::DataRegisterInPlace, what).into());
    }
    let name: Name = parsed("name", &asked.name, what)?;
    let version: Name = parsed("version", &asked.version, what)?;
    let path = PathBuf::from(&asked.path);
    if !path.is_absolute() {
        return Err(ApiError::bad_request(
            format!("`{}` is not an absolute path", clipped(&asked.path)),
            "`ml data add` sends the absolute path",
        ));
    }
    check_about(&asked.about)?;
    let (snapshots, private) = (Arc::clone(&daemon.snapshots), daemon.root.clone());
    let (sent, wanted, said) = (asked.copied, asked.checksum, asked.path);
    let (path, found) = match sent {
        Some(kind) => {
            let checksum = wanted.ok_or_else(|| {
                ApiError::bad_request(
                    "a copied dataset without `checksum`",
                    "the checksum says which data were sent",
                )
            })?;
            // A dataset goes into jobs: of what is another's it would make an open one.
            if !is_own(&daemon, &caller, ObjectId(checksum)).await? {
                return Err(not_sent(checksum));
            }
            let found = blocking(move || look_into(&snapshots, checksum, kind)).await??;
            (said, found)
        }
        None => blocking(move || look_at(&path, &snapshots, &private)).await??,
    };
    if let Some(wanted) = wanted.filter(|wanted| *wanted != found.checksum) {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            error_code::DATASET_CHECKSUM_DIFFERS,
            format!(
                "`{}` has the checksum sha256:{}, asked for is sha256:{wanted}",
                clipped(&path),
                found.checksum
            ),
            "get the data again, or register what is there under its own checksum",
        ));
    }
    let dataset = Dataset {
        tenant: caller.tenant.clone(),
        owner: caller.owner.clone(),
        name,
        version: version.to_string(),
        checksum: found.checksum,
        directory: found.directory,
        path,
        copied: sent.is_some(),
        about: asked.about.into(),
        bytes: found.bytes,
        files: found.files,
        registered_at: daemon.clock.now(),
    };
    let same =
        |known: &&Dataset| (&known.name, &known.version) == (&dataset.name, &dataset.version);
    let known = daemon.store.datasets(&caller.tenant).await?;
    if let Some(known) = known.iter().find(same) {
        caller.reach(&known.owner, Permission::DataRemoveOthers, || {
            format!("to change dataset `{}`", dataset.name)
        })?;
    }
    let subject = format!("{}@{}", dataset.name, dataset.version);
    let audit = note(&caller, &*daemon.clock, "dataset.register", subject);
    daemon.store.put_dataset(dataset.clone(), audit).await?;
    // What was known of it before counts, too.
    let known = daemon.store.datasets(&caller.tenant).await?;
    Ok(ok(&DatasetDto::from(
        known.iter().find(same).unwrap_or(&dataset),
    )))
}

/// Texts that a table shows have a bound and no control characters.
fn check_about(about: &DatasetAboutDto) -> ApiResult<()> {
    let some = |text: &Option<String>| text.clone().into_iter().collect::<Vec<_>>();
    let texts = [
        ("description", some(&about.description), 16_384),
        ("licence", some(&about.licence), 256),
        ("source", some(&about.source), 4_096),
        ("tag", about.tags.clone(), 64),
    ];
    for (what, values, chars_max) in texts {
        let breaks = |c: char| what == "description" && matches!(c, '\n' | '\t');
        for value in values {
            let odd = value.chars().any(|c| c.is_control() && !breaks(c));
            if odd || value.is_empty() || value.chars().count() > chars_max {
                return Err(ApiError::bad_request(
                    format!("`{}` is no {what} of a dataset", clipped(&value)),
                    format!("1 to {chars_max} characters, no control characters"),
                ));
            }
        }
    }
    if about.tags.len() > 100 {
        return Err(ApiError::bad_request(
            format!("{} tags; a dataset has at most 100", about.tags.len()),
            "fewer words find it as well",
        ));
    }
    Ok(())
}

/// What was sent has to be there completely.
fn look_into(snapshots: &NodeSnapshots, checksum: Digest, kind: CopiedDto) -> ApiResult<Found> {
    let directory = kind == CopiedDto::Folder;
    let copied = snapshots.copied(checksum, directory);
    match copied.map_err(snapshots_error)? {
        Some(Copied { files, bytes }) => Ok(Found {
            checksum,
            directory,
            bytes,
            files,
        }),
        None => Err(not_sent(checksum)),
    }
}

fn not_sent(checksum: Digest) -> ApiError {
    ApiError::new(
        StatusCode::CONFLICT,
        error_code::COMMIT_INCOMPLETE,
        format!("the content store does not have all of sha256:{checksum}"),
        "send the data first: `ml data add --copy` does, and goes on where it stopped",
    )
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
    let verdict = blocking(move || changes_of(&snapshots, &checked));
    match verdict.await? {
        Ok(()) => Ok(ok(&DatasetDto::from(&dataset))),
        Err((error, changes)) => {
            let mut refused = snapshots_error(error);
            let named = changes.iter().take(CHANGES_NAMED_MAX);
            let named: Vec<_> = named
                .map(|(path, change)| named_change(path, *change))
                .collect();
            refused.body = refused
                .body
                .with_details(json!({ "changes": named, "changes_total": changes.len() }));
            Err(refused)
        }
    }
}

/// Reads all of a dataset; what is wrong with it, and every path that is.
fn changes_of(
    snapshots: &NodeSnapshots,
    dataset: &Dataset,
) -> Result<(), (SnapshotsError, Vec<(String, Change)>)> {
    let all = || snapshots.dataset_changes(dataset);
    if dataset.copied {
        let changes = all().map_err(|error| (error, Vec::new()))?;
        if let Some((path, _)) = changes.first() {
            let error = SnapshotsError::Changed {
                path: path.clone(),
                detail: "it is damaged in the content store, or gone from it".to_owned(),
            };
            return Err((error, changes));
        }
    }
    match snapshots.verify_dataset(dataset, !dataset.copied) {
        Err(error @ SnapshotsError::Changed { .. }) => Err((error, all().unwrap_or_default())),
        other => other.map_err(|error| (error, Vec::new())),
    }
}

/// Changed paths of a dataset that an answer names.
const CHANGES_NAMED_MAX: usize = 10_000;

fn named_change(path: &str, change: Change) -> serde_json::Value {
    let word = match change {
        Change::Added => "extra",
        Change::Removed => "missing",
        Change::Changed => "changed",
    };
    json!({ "path": path, "change": word })
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
