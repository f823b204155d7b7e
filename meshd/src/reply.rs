//! Answers: JSON with a status, and errors with the one body shape.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use mlmesh_api::{ErrorBody, error_code};
use mlmesh_control::ControlError;
use mlmesh_model::{Denied, ExecError, StoreError};
use serde::Serialize;

/// An error on its way out.
#[derive(Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) body: ErrorBody,
}

/// What every handler returns.
pub(crate) type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    pub(crate) fn new(
        status: StatusCode,
        code: &str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            status,
            body: ErrorBody::new(code, message, hint),
        }
    }

    pub(crate) fn bad_request(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            error_code::BAD_REQUEST,
            message,
            hint,
        )
    }

    pub(crate) fn bad_parameter(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            error_code::BAD_PARAMETER,
            message,
            hint,
        )
    }

    pub(crate) fn not_found(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error_code::NOT_FOUND, message, hint)
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            error_code::UNAVAILABLE,
            message,
            "try again; `ml doctor` says what is missing",
        )
    }

    /// A defect of ours, or a disk that fails. What exactly goes to the log; the answer
    /// says which part.
    pub(crate) fn internal(what: &'static str, error: &dyn std::fmt::Display) -> Self {
        tracing::error!(what, %error, "request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            error_code::INTERNAL,
            format!("{what}: {error}"),
            "`logs/app.log` of the data directory has the details",
        )
    }

    /// A failed read or write of a file: a full disk is told from a broken one.
    pub(crate) fn io(what: &'static str, error: &std::io::Error) -> Self {
        if matches!(
            error.kind(),
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
        ) {
            return Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                error_code::NO_SPACE,
                format!("{what}: {error}"),
                "`ml prune` frees what nothing refers to",
            );
        }
        if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem {
            return Self::unavailable(format!("{what}: {error}"));
        }
        Self::internal(what, error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json(self.status, &self.body);
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
            .extensions_mut()
            .insert(AnsweredCode(self.body.code));
        response
    }
}

/// The error code of an answer, for the access log.
#[derive(Clone)]
pub(crate) struct AnsweredCode(pub(crate) String);

/// An answer in JSON.
pub(crate) fn json<T: Serialize>(status: StatusCode, body: &T) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => {
            let kind = HeaderValue::from_static("application/json");
            (status, [(header::CONTENT_TYPE, kind)], bytes).into_response()
        }
        Err(error) => ApiError::internal("write the answer as JSON", &error).into_response(),
    }
}

/// The usual answer: 200 with JSON.
pub(crate) fn ok<T: Serialize>(body: &T) -> Response {
    json(StatusCode::OK, body)
}

/// JSON that is bytes already.
pub(crate) fn json_bytes(bytes: Vec<u8>) -> Response {
    let kind = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, kind)], bytes).into_response()
}

/// Bytes as they are.
pub(crate) fn binary(bytes: Vec<u8>) -> Response {
    let kind = HeaderValue::from_static("application/octet-stream");
    (StatusCode::OK, [(header::CONTENT_TYPE, kind)], bytes).into_response()
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        let (status, code, hint) = match error {
            StoreError::NoRun(_) => return no_run(message),
            StoreError::NotQueued(_) | StoreError::MoveNotAllowed { .. } => (
                StatusCode::CONFLICT,
                error_code::WRONG_PHASE,
                "`ml info` shows where the run stands",
            ),
            StoreError::StaleToken { .. } => (
                StatusCode::CONFLICT,
                error_code::STALE_TOKEN,
                "a newer attempt of the run has the lease",
            ),
            StoreError::IdempotencyMismatch(_) => (
                StatusCode::CONFLICT,
                error_code::IDEMPOTENCY_MISMATCH,
                "give each new request a key of its own",
            ),
            StoreError::NoPlace(_) => (
                StatusCode::BAD_REQUEST,
                error_code::BAD_PARAMETER,
                "begin again without `cursor`",
            ),
            StoreError::TooManyTags { .. } => (
                StatusCode::BAD_REQUEST,
                error_code::BAD_REQUEST,
                "take some away: `ml tag RUN --remove KEY`",
            ),
            StoreError::DatasetExists { .. } => (
                StatusCode::CONFLICT,
                error_code::DATASET_EXISTS,
                "register the changed data under a new version",
            ),
            StoreError::UserExists { removed: true, .. } => (
                StatusCode::CONFLICT,
                error_code::USER_EXISTS,
                "`ml user add NAME --again` takes them up again, with what is theirs",
            ),
            StoreError::UserExists { removed: false, .. } => (
                StatusCode::CONFLICT,
                error_code::USER_EXISTS,
                "`ml user role NAME ROLE` gives them another one",
            ),
            StoreError::NoUser(_) => {
                return Self::not_found(message, "`ml user list` shows who there is");
            }
            StoreError::NoKey(_) => {
                return Self::not_found(message, "`ml key list` shows them");
            }
            StoreError::KeyExists(_) => (
                StatusCode::CONFLICT,
                error_code::KEY_EXISTS,
                "choose another name with `--name`",
            ),
            StoreError::LastAdmin(_) => (
                StatusCode::CONFLICT,
                error_code::LAST_ADMIN,
                "make somebody else an admin first: `ml user role NAME admin`",
            ),
            StoreError::Unavailable(_) => return Self::unavailable(message),
            StoreError::Damaged(_) => {
                tracing::error!(%message, "store is damaged");
                (
                    StatusCode::INTERNAL_SERVER_ERROR,
                    error_code::DAMAGED,
                    "stop the daemon and restore `data/backups`; `logs/app.log` has the details",
                )
            }
            other => return Self::internal("the store", &other),
        };
        Self::new(status, code, message, hint)
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        let message = error.to_string();
        match error {
            ControlError::Refused(refusals) => {
                let hint = refusals.first().map(|first| first.hint.clone());
                let details = serde_json::json!({ "refusals": refusals });
                let mut refused = Self::new(
                    StatusCode::CONFLICT,
                    error_code::REFUSED,
                    message,
                    hint.unwrap_or_default(),
                );
                refused.body = refused.body.with_details(details);
                refused
            }
            ControlError::NoRun(_) => no_run(message),
            ControlError::NoService(_) => Self::not_found(
                message,
                "`ml service list` shows the services that have not ended",
            ),
            ControlError::Phase { .. } => Self::new(
                StatusCode::CONFLICT,
                error_code::WRONG_PHASE,
                message,
                "`ml info` shows where the run stands",
            ),
            ControlError::Denied(denied) => (*denied).into(),
            ControlError::ShuttingDown => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                error_code::SHUTTING_DOWN,
                message,
                "`ml up` starts it again",
            ),
            ControlError::SecretsOpen { .. } => {
                let (message, hint) = message.split_once("\nhint: ").unwrap_or((&message, ""));
                Self::new(StatusCode::CONFLICT, error_code::KEY_MODE, message, hint)
            }
            ControlError::Store(error) => error.into(),
            ControlError::Io { source, .. } => {
                let mut failed = Self::io("the data directory", &source);
                failed.body.message = format!("{message}: {source}");
                failed
            }
        }
    }
}

impl From<Denied> for ApiError {
    fn from(denied: Denied) -> Self {
        let mut refused = Self::new(
            StatusCode::FORBIDDEN,
            error_code::FORBIDDEN,
            denied.to_string(),
            denied.hint(),
        );
        let details = serde_json::json!({
            "permission": denied.permission.as_str(),
            "role": denied.role,
        });
        refused.body = refused.body.with_details(details);
        refused
    }
}

impl From<ExecError> for ApiError {
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::NoAttempt(_) => Self::not_found(
                "no attempt of that number",
                "`ml info` says how many attempts the run has had",
            ),
            ExecError::Io { ref source, .. } => {
                let mut failed = Self::io("the executor", source);
                failed.body.message = error.to_string();
                failed
            }
            other => Self::internal("the executor", &other),
        }
    }
}

fn no_run(message: String) -> ApiError {
    ApiError::not_found(message, "`ml list` shows the runs that there are")
}
