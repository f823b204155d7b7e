//! Bodies: bounded in size and time on their way in, streamed both ways where they
//! are large.

use std::io::{self, Read};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::StreamExt;
use futures_util::stream;
use mlmesh_api::error_code;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::limits::{BODY_TIMEOUT, JSON_BYTES_MAX};
use crate::reply::{ApiError, ApiResult};

/// Pieces of a streamed body that wait between the network and the disk.
const PIECES_WAITING_MAX: usize = 4;
/// Bytes of a piece on its way out.
const PIECE_BYTES: usize = 256 * 1024;

/// Reads a whole body of at most `bytes_max` bytes.
pub(crate) async fn read_whole(
    headers: &HeaderMap,
    body: Body,
    bytes_max: u64,
) -> ApiResult<Vec<u8>> {
    let announced = announced(headers);
    if announced.is_some_and(|bytes| bytes > bytes_max) {
        return Err(too_large(bytes_max));
    }
    let read = async {
        let mut bytes = Vec::with_capacity(announced.unwrap_or(0).min(1 << 20) as usize);
        let mut pieces = body.into_data_stream();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| cut_short(&error))?;
            if (bytes.len() + piece.len()) as u64 > bytes_max {
                return Err(too_large(bytes_max));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    };
    match tokio::time::timeout(BODY_TIMEOUT, read).await {
        Ok(result) => result,
        Err(_) => Err(too_slow()),
    }
}

/// Reads a JSON body. An absent one counts as `{}`, for routes whose fields all have
/// defaults.
pub(crate) async fn read_json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    bytes_max: u64,
) -> ApiResult<(T, Vec<u8>)> {
    let bytes = read_whole(headers, body, bytes_max).await?;
    if !bytes.is_empty() {
        check_content_type(headers, "application/json")?;
    }
    let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
    let value = serde_json::from_slice(text)
        .or_else(|error| with_whole_numbers(text).ok_or(error))
        .map_err(|error| {
            ApiError::bad_request(
                format!("the body is not JSON of the documented shape: {error}"),
                "`GET /openapi.json` documents every body",
            )
        })?;
    Ok((value, bytes))
}

/// Reads a body again in which some writer put whole numbers down as `7.0`, which JSON
/// Schema counts as integers.
fn with_whole_numbers<T: DeserializeOwned>(text: &[u8]) -> Option<T> {
    let mut value = serde_json::from_slice(text).ok()?;
    make_whole(&mut value).then(|| serde_json::from_value(value).ok())?
}

/// Whether a number was changed. The parser has bounded the depth.
fn make_whole(value: &mut serde_json::Value) -> bool {
    const WHOLE_BELOW: f64 = 9_007_199_254_740_992.0;
    match value {
        serde_json::Value::Number(number) if number.is_f64() => {
            let whole = number
                .as_f64()
                .filter(|float| float.fract() == 0.0 && float.abs() < WHOLE_BELOW);
            match whole {
                Some(whole) => {
                    *value = serde_json::Value::from(whole as i64);
                    true
                }
                None => false,
            }
        }
        serde_json::Value::Array(items) => items
            .iter_mut()
            .fold(false, |changed, item| make_whole(item) | changed),
        serde_json::Value::Object(members) => members
            .values_mut()
            .fold(false, |changed, member| make_whole(member) | changed),
        _ => false,
    }
}

/// Reads the body of a route that has no use for one. A connection that is closed
/// with unread bytes in it is reset, and a long answer is cut off by that.
pub(crate) async fn take_unread_body(request: Request, next: Next) -> ApiResult<Response> {
    let (head, body) = request.into_parts();
    read_whole(&head.headers, body, JSON_BYTES_MAX).await?;
    Ok(next.run(Request::from_parts(head, Body::empty())).await)
}

/// Refuses a body that says that it is something else.
pub(crate) fn check_content_type(headers: &HeaderMap, expected: &str) -> ApiResult<()> {
    let given = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("");
    let kind = given.split(';').next().unwrap_or("").trim();
    if kind.eq_ignore_ascii_case(expected) {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        error_code::UNSUPPORTED_MEDIA_TYPE,
        format!(
            "the content type is `{}`; this route reads `{expected}`",
            clipped(given)
        ),
        format!("send `Content-Type: {expected}`"),
    ))
}

/// A body as a blocking reader of at most `bytes_max` bytes, and the task that feeds
/// it, which must be awaited beside the reader. What the reader has no use for, because
/// the disk is full for example, is read and dropped: who is still sending does not hear
/// an answer.
pub(crate) fn reader(
    headers: &HeaderMap,
    body: Body,
    bytes_max: u64,
) -> ApiResult<(BodyReader, impl Future<Output = ()> + Send + use<>)> {
    if announced(headers).is_some_and(|bytes| bytes > bytes_max) {
        return Err(too_large(bytes_max));
    }
    let (sender, receiver) = mpsc::channel(PIECES_WAITING_MAX);
    let reader = BodyReader {
        pieces: receiver,
        current: Bytes::new(),
    };
    let feed = async move {
        let mut left = bytes_max;
        let mut is_wanted = true;
        let mut pieces = body.into_data_stream();
        loop {
            let next = match tokio::time::timeout(BODY_TIMEOUT, pieces.next()).await {
                Ok(None) => return,
                Ok(Some(Ok(piece))) if piece.len() as u64 > left => Err(io::Error::new(
                    io::ErrorKind::FileTooLarge,
                    "the body is too large",
                )),
                Ok(Some(Ok(piece))) => {
                    left -= piece.len() as u64;
                    Ok(piece)
                }
                Ok(Some(Err(error))) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, error)),
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the body is too slow",
                )),
            };
            let ended = next.is_err();
            is_wanted = is_wanted && sender.send(next).await.is_ok();
            if ended {
                return;
            }
        }
    };
    Ok((reader, feed))
}

/// The blocking end of a streamed body.
pub(crate) struct BodyReader {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                None => return Ok(0),
                Some(piece) => self.current = piece?,
            }
        }
        let length = buffer.len().min(self.current.len());
        buffer[..length].copy_from_slice(&self.current.split_to(length));
        Ok(length)
    }
}

/// A body that a blocking reader fills. A read that fails cuts the body off, which the
/// client sees because fewer bytes come than were announced.
pub(crate) fn streamed(mut source: impl Read + Send + 'static) -> Body {
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(PIECES_WAITING_MAX);
    let pump = move || loop {
        let mut piece = vec![0_u8; PIECE_BYTES];
        let next = match source.read(&mut piece) {
            Ok(0) => return,
            Ok(length) => {
                piece.truncate(length);
                Ok(Bytes::from(piece))
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let ended = next.is_err();
        if sender.blocking_send(next).is_err() || ended {
            return;
        }
    };
    // The pump ends when its receiver, which is the body, is dropped.
    drop(tokio::task::spawn_blocking(pump));
    Body::from_stream(stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    }))
}

/// A body that is cut off, as by a failed read, when its reader may not have more of it. One
/// whose length is known has left the store already, and stays as it is.
pub(crate) fn until(lost: impl Future<Output = ()> + Send + 'static, body: Body) -> Body {
    if body.size_hint().exact().is_some() {
        return body;
    }
    let state = Some((body.into_data_stream(), Box::pin(lost)));
    Body::from_stream(stream::unfold(state, |state| async move {
        let (mut pieces, mut lost) = state?;
        tokio::select! {
            biased;
            () = &mut lost => {
                let error = io::Error::from(io::ErrorKind::PermissionDenied);
                Some((Err(axum::Error::new(error)), None))
            }
            piece = pieces.next() => piece.map(|piece| (piece, Some((pieces, lost)))),
        }
    }))
}

/// Runs a blocking call off the runtime.
pub(crate) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> T + Send + 'static,
) -> ApiResult<T> {
    tokio::task::spawn_blocking(call)
        .await
        .map_err(|error| ApiError::internal("a blocking call", &error))
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

pub(crate) fn too_large(bytes_max: u64) -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        error_code::BODY_TOO_LARGE,
        format!("the body has more than {bytes_max} bytes, which is what this route takes"),
        "send less at once",
    )
}

fn too_slow() -> ApiError {
    ApiError::new(
        StatusCode::REQUEST_TIMEOUT,
        error_code::REQUEST_TIMEOUT,
        format!(
            "the body did not arrive within {} s",
            BODY_TIMEOUT.as_secs()
        ),
        "send it again",
    )
}

fn cut_short(error: &dyn std::fmt::Display) -> ApiError {
    ApiError::bad_request(format!("the body was cut short: {error}"), "send it again")
}

/// The beginning of a value that a client sent, for a message.
pub(crate) fn clipped(text: &str) -> String {
    text.chars().take(80).collect()
}
