//! Which store the configuration names, and what the two have besides the port.

use std::path::Path;
use std::sync::Arc;

use mlmesh_model::{Sequence, Store, StoreError};
use mlmesh_store::{AuditHead, PostgresStore, SqliteStore};
use tokio::sync::watch;

/// An open store.
#[derive(Debug, Clone)]
pub(crate) enum OpenStore {
    Sqlite(Arc<SqliteStore>),
    Postgres(Arc<PostgresStore>),
}

/// Why no store could be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenStoreError {
    /// The setting names none.
    #[error(
        "`{0}` names no store; `daemon.store` is `sqlite` or a URL such as `postgres://user@host/database`\nhint: without the setting the data directory holds its own database"
    )]
    Setting(String),
    /// It could not be opened.
    #[error("open the store: {0}\nhint: `ml doctor` looks for the reason")]
    Store(#[from] StoreError),
}

impl OpenStore {
    /// Opens the store that `setting` names.
    pub(crate) async fn open(setting: &str, data_dir: &Path) -> Result<Self, OpenStoreError> {
        if setting == "sqlite" {
            return Ok(Self::Sqlite(SqliteStore::open(&data_dir.join("meshd.db"))?));
        }
        if setting.starts_with("postgres://") || setting.starts_with("postgresql://") {
            return Ok(Self::Postgres(PostgresStore::connect(setting).await?));
        }
        Err(OpenStoreError::Setting(mlmesh_api::settings::shown(
            setting,
        )))
    }

    /// The port.
    pub(crate) fn port(&self) -> Arc<dyn Store> {
        match self {
            Self::Sqlite(store) => Arc::clone(store) as Arc<dyn Store>,
            Self::Postgres(store) => Arc::clone(store) as Arc<dyn Store>,
        }
    }

    /// Changes when something was committed.
    pub(crate) fn watch(&self) -> watch::Receiver<Sequence> {
        match self {
            Self::Sqlite(store) => store.watch(),
            Self::Postgres(store) => store.watch(),
        }
    }

    /// The store's own note of the end of the audit chain.
    pub(crate) async fn audit_head(&self) -> Result<AuditHead, StoreError> {
        match self {
            Self::Sqlite(store) => store.audit_head().await,
            Self::Postgres(store) => store.audit_head().await,
        }
    }
}
