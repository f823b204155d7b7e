//! Forward migrations: numbered files, compiled in, one transaction each.

use mlmesh_model::StoreError;

use crate::derived;
use crate::sql::{Param, Sql};

/// Version of the schema that this program writes: the number of migrations.
pub const SCHEMA_VERSION: u64 = SQLITE.len() as u64;

/// Migrations of SQLite, oldest first.
pub(crate) const SQLITE: [&str; 7] = [
    include_str!("../migrations/sqlite/0001.sql"),
    include_str!("../migrations/sqlite/0002.sql"),
    include_str!("../migrations/sqlite/0003.sql"),
    include_str!("../migrations/sqlite/0004.sql"),
    include_str!("../migrations/sqlite/0005.sql"),
    include_str!("../migrations/sqlite/0006.sql"),
    include_str!("../migrations/sqlite/0007.sql"),
];

/// Migrations of PostgreSQL, oldest first.
pub(crate) const POSTGRES: [&str; SQLITE.len()] = [
    include_str!("../migrations/postgres/0001.sql"),
    include_str!("../migrations/postgres/0002.sql"),
    include_str!("../migrations/postgres/0003.sql"),
    include_str!("../migrations/postgres/0004.sql"),
    include_str!("../migrations/postgres/0005.sql"),
    include_str!("../migrations/postgres/0006.sql"),
    include_str!("../migrations/postgres/0007.sql"),
];

/// The versions that brought rows of metrics, and of what jobs have logged.
const LAST_VALUES: usize = 5;
const LOGGED_VALUES: usize = 6;

/// Brings the database to [`SCHEMA_VERSION`]; a newer one is refused. Runs inside
/// the caller's write transaction.
pub(crate) async fn migrate(
    sql: &mut impl Sql,
    migrations: &[&'static str],
) -> Result<(), StoreError> {
    const CREATE: &str = "CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)";
    sql.batch(CREATE).await?;
    let row = sql.row("SELECT version FROM schema_version", &[]).await?;
    let (found, fresh): (u64, bool) = match row {
        Some(mut row) => (row.number()?, false),
        None => (0, true),
    };
    if found > migrations.len() as u64 {
        return Err(StoreError::Unavailable(format!(
            "the database has schema version {found}, written by a newer mlmesh; this one knows \
             versions up to {}; hint: upgrade mlmesh or restore a backup",
            migrations.len()
        )));
    }
    let known = usize::try_from(found).unwrap_or(usize::MAX);
    for migration in migrations.iter().skip(known) {
        sql.batch(migration).await?;
    }
    if known < LOGGED_VALUES {
        derived::fill(sql, known < LAST_VALUES).await?;
    }
    let version = [Param::count(migrations.len() as u64)];
    if fresh {
        const INSERT: &str = "INSERT INTO schema_version (version) VALUES ($1)";
        sql.run(INSERT, &version).await?;
    } else if known < migrations.len() {
        sql.run("UPDATE schema_version SET version = $1", &version)
            .await?;
    }
    Ok(())
}
