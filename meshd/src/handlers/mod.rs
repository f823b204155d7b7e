//! One function per route. A handler checks what came, asks one part, and turns the
//! answer into a DTO; decisions are made elsewhere.

pub(crate) mod audit;
pub(crate) mod chores;
pub(crate) mod chunks;
pub(crate) mod datasets;
pub(crate) mod events;
pub(crate) mod health;
pub(crate) mod imports;
pub(crate) mod labels;
pub(crate) mod logs;
pub(crate) mod metrics;
pub(crate) mod objects;
pub(crate) mod pins;
pub(crate) mod points;
pub(crate) mod possession;
pub(crate) mod reproductions;
pub(crate) mod run_name;
pub(crate) mod runs;
pub(crate) mod scrub;
pub(crate) mod secrets;
pub(crate) mod services;
pub(crate) mod tellings;
pub(crate) mod users;
pub(crate) mod validation;
mod wait;

use mlmesh_cas::StoreError;
use mlmesh_control::Caller;
use mlmesh_model::{AuditNote, Clock, SnapshotsError};

use crate::http::query::Query;
use crate::limits::{PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX};
use crate::reply::{ApiError, ApiResult};
use axum::http::StatusCode;
use mlmesh_api::error_code;

/// Rows of a page: what was asked for, within bounds.
fn page_rows(query: &Query) -> ApiResult<u32> {
    let asked = query.parsed::<u32>("limit", "a whole number")?;
    Ok(asked.unwrap_or(PAGE_ROWS_DEFAULT).clamp(1, PAGE_ROWS_MAX))
}

/// The audit row of something that a caller did.
fn note(caller: &Caller, clock: &dyn Clock, action: &str, subject: String) -> AuditNote {
    AuditNote {
        time: clock.now(),
        tenant: caller.tenant.clone(),
        owner: caller.owner.clone(),
        key: caller.key.clone(),
        remote: caller.remote.clone(),
        action: action.to_owned(),
        subject,
        details_sha256: None,
    }
}

/// What the content store says, to a client.
fn objects_error(error: StoreError) -> ApiError {
    let bad_object = |message: String| {
        ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            error_code::BAD_OBJECT,
            message,
            "take the snapshot again and send what is missing",
        )
    };
    let (message, hint) = split_hint(&error.to_string());
    match error {
        StoreError::Missing(_) => {
            ApiError::not_found(message, "send it, or look whether the id is right")
        }
        StoreError::Incomplete { missing } => {
            let missing: Vec<String> = missing.iter().take(100).map(ToString::to_string).collect();
            let mut refused = ApiError::new(
                StatusCode::CONFLICT,
                error_code::COMMIT_INCOMPLETE,
                message,
                "send the missing objects first",
            );
            refused.body = refused
                .body
                .with_details(serde_json::json!({ "missing": missing }));
            refused
        }
        StoreError::Digest { .. } | StoreError::Entry { .. } => bad_object(message),
        StoreError::Tree(source) => bad_object(format!("{message}: {source}")),
        StoreError::Frame(source) => match source {
            mlmesh_cas::FrameError::Io(ref io) if io.kind() == std::io::ErrorKind::FileTooLarge => {
                ApiError::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    error_code::BODY_TOO_LARGE,
                    format!("{message}: {source}"),
                    "send less at once",
                )
            }
            mlmesh_cas::FrameError::Io(ref io) if io.kind() == std::io::ErrorKind::TimedOut => {
                ApiError::new(
                    StatusCode::REQUEST_TIMEOUT,
                    error_code::REQUEST_TIMEOUT,
                    format!("{message}: {source}"),
                    "send it again",
                )
            }
            _ => {
                let (source, _) = split_hint(&source.to_string());
                bad_object(format!("{message}: {source}"))
            }
        },
        StoreError::TooLarge { .. } => ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            error_code::BODY_TOO_LARGE,
            message,
            hint,
        ),
        StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::FileTooLarge => {
            ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                error_code::BODY_TOO_LARGE,
                source.to_string(),
                "send less at once",
            )
        }
        StoreError::Io { source, .. } => {
            let mut failed = ApiError::io("the content store", &source);
            failed.body.message = format!("{message}: {source}");
            failed
        }
        StoreError::Corrupt(_) => {
            tracing::error!(%message, "object is damaged");
            ApiError::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                error_code::DAMAGED,
                message,
                hint,
            )
        }
        other => ApiError::internal("the content store", &other),
    }
}

/// What the port to the content store says, to a client.
fn snapshots_error(error: SnapshotsError) -> ApiError {
    match error {
        SnapshotsError::Missing(_) => ApiError::not_found(error.to_string(), ""),
        SnapshotsError::Changed { .. } => ApiError::new(
            StatusCode::CONFLICT,
            error_code::DATASET_CHANGED,
            error.to_string(),
            "restore the file, or register the changed data under a new version",
        ),
        SnapshotsError::Refused(_) => ApiError::internal("the content store", &error),
        SnapshotsError::Io { ref source, .. } => {
            let kind = source.kind();
            if matches!(
                kind,
                std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied
            ) {
                return ApiError::new(
                    StatusCode::CONFLICT,
                    error_code::DATASET_CHANGED,
                    error.to_string(),
                    "the daemon has to be able to read it where it was registered",
                );
            }
            let mut failed = ApiError::io("the data", source);
            failed.body.message = error.to_string();
            failed
        }
    }
}

/// Separates a message from the `hint:` line at its end.
fn split_hint(text: &str) -> (String, String) {
    match text.split_once("\nhint: ") {
        Some((message, hint)) => (message.to_owned(), hint.to_owned()),
        None => (text.to_owned(), String::new()),
    }
}
