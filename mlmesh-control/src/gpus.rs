//! Which GPUs an attempt holds, noted beside its run for the next daemon's account.

use mlmesh_model::AttemptRef;

use crate::private_file::run_folder;
use crate::reactor::Inner;

fn file(inner: &Inner, lease: AttemptRef) -> std::path::PathBuf {
    run_folder(&inner.config.data_dir, lease.run).join(format!("gpus-{}.json", lease.number.0))
}

/// Notes which GPUs an attempt holds, for the next daemon's account.
pub(crate) async fn note(inner: &Inner, lease: AttemptRef, gpus: &[String]) -> std::io::Result<()> {
    let path = file(inner, lease);
    if let Some(folder) = path.parent() {
        tokio::fs::create_dir_all(folder).await?;
    }
    tokio::fs::write(path, serde_json::to_vec(gpus)?).await
}

/// The GPUs that an attempt of an earlier daemon holds.
pub(crate) async fn held(inner: &Inner, lease: AttemptRef) -> Vec<String> {
    match tokio::fs::read(file(inner, lease)).await {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
        Err(_) => Vec::new(),
    }
}
