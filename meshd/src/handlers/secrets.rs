//! The caller's stored secrets. Values come in and never go out; no message, log or
//! audit row quotes one.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use mlmesh_api::{SECRET_SCHEMA, SECRETS_SCHEMA, SecretDto, SecretsDto, SetSecretDto, error_code};
use mlmesh_control::{Caller, SECRET_BYTES_MAX, StoredSecret};

use crate::daemon::Daemon;
use crate::http::body::{clipped, read_json};
use crate::http::query::PathParts;
use crate::limits::JSON_BYTES_MAX;
use crate::reply::{ApiError, ApiResult, ok};

pub(crate) async fn list(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
) -> ApiResult<Response> {
    let stored = daemon.control.secrets(&caller).await?;
    Ok(ok(&SecretsDto {
        schema: SECRETS_SCHEMA.to_owned(),
        secrets: stored.into_iter().map(dto).collect(),
    }))
}

pub(crate) async fn set(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    let name = name(&path)?;
    let read = read_json::<SetSecretDto>(&headers, body, JSON_BYTES_MAX).await;
    let (asked, _) = read.map_err(|error| match error.body.code.as_str() {
        // The parser's words could quote the value.
        error_code::BAD_REQUEST => bad_value("the body is not `{\"value\": TEXT}`".to_owned()),
        _ => error,
    })?;
    let bytes = asked.value.0.len();
    if bytes == 0 || bytes > SECRET_BYTES_MAX || asked.value.0.contains('\0') {
        return Err(bad_value(format!(
            "the value of a secret has 1 to {SECRET_BYTES_MAX} bytes, none of them NUL; this one has {bytes}"
        )));
    }
    let stored = daemon
        .control
        .set_secret(&caller, name, asked.value)
        .await?;
    Ok(ok(&dto(stored)))
}

pub(crate) async fn remove(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
) -> ApiResult<Response> {
    let name = name(&path)?;
    if daemon.control.remove_secret(&caller, name.clone()).await? {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Err(ApiError::not_found(
        format!("no secret `{name}` of yours is stored"),
        "`ml secret list` shows those that are",
    ))
}

fn name(path: &PathParts) -> ApiResult<String> {
    let name = path.first();
    match mlmesh_recipe::check_secret_name(name) {
        Ok(()) => Ok(name.to_owned()),
        Err(refusal) => Err(ApiError::bad_parameter(
            format!("`{}`: {}", clipped(name), refusal.message),
            refusal.hint,
        )),
    }
}

fn bad_value(message: String) -> ApiError {
    ApiError::bad_request(message, "a file that a job reads is a dataset, no secret")
}

fn dto(stored: StoredSecret) -> SecretDto {
    SecretDto {
        schema: SECRET_SCHEMA.to_owned(),
        name: stored.name,
        owner: stored.owner.to_string(),
        set_at: stored.set_at.into(),
    }
}
