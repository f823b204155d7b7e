//! Writes that must not be lost: tried again until the store is back.

use std::time::Duration;

use mlmesh_model::{BoxFuture, StoreError};
use tokio_util::sync::CancellationToken;

/// Delay before the second try.
const RETRY_FIRST: Duration = Duration::from_millis(50);

/// Longest delay between two tries.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Calls the store until it is available. Gives up only when `cancel` fires: then
/// the next daemon finds what this one could not write.
pub(crate) async fn persist<'a, T>(
    cancel: &CancellationToken,
    what: &'static str,
    mut call: impl FnMut() -> BoxFuture<'a, Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let mut delay = RETRY_FIRST;
    loop {
        let unavailable = match call().await {
            Err(error @ StoreError::Unavailable(_)) => error,
            other => return other,
        };
        tracing::warn!(what, error = %unavailable, delay_ms = delay.as_millis() as u64, "store is unavailable, trying again");
        tokio::select! {
            () = cancel.cancelled() => return Err(unavailable),
            () = tokio::time::sleep(delay) => delay = (delay * 2).min(RETRY_MAX),
        }
    }
}
