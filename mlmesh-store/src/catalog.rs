//! Datasets, keys, what prune must keep and what it removes.

use std::collections::BTreeSet;

use mlmesh_model::{
    ApiKey, AuditNote, CommitId, Dataset, DatasetAbout, Event, EventKind, KeyClass, Micros, Name,
    ObjectId, PHASES, Phase, References, RunId, Sequence, StoreError, Tenant,
};

use crate::derived;
use crate::group::Tx;
use crate::laws::{PhaseCounts, phase_code};
use crate::pins::{PINNED_TREES, pinned_runs};
use crate::read;
use crate::rows;
use crate::sql::{Param, Row, Sql, from_json, to_json};
use crate::write::{count_tenant, counts_of};

/// How long an idempotency key is remembered at least: seven days. Older ones go
/// with the next prune.
pub const IDEMPOTENCY_KEPT_US: i64 = 7 * 24 * 3600 * 1_000_000;

const SELECT_DATASETS: &str = "SELECT owner, name, version, checksum, directory, path, bytes, \
     files, registered_at, copied, about FROM datasets WHERE tenant = $1 ORDER BY name, version";

pub(crate) async fn put_dataset<S: Sql>(
    tx: &mut Tx<S>,
    mut dataset: Dataset,
    audit: AuditNote,
) -> Result<(), StoreError> {
    const SELECT: &str = "SELECT checksum, path, copied, about FROM datasets \
                          WHERE tenant = $1 AND name = $2 AND version = $3";
    let params = [
        Param::text(dataset.tenant.as_str()),
        Param::text(dataset.name.as_str()),
        Param::text(&dataset.version),
    ];
    if let Some(mut row) = tx.sql.row(SELECT, &params).await? {
        let checksum = row.digest()?;
        if checksum != dataset.checksum {
            return Err(StoreError::DatasetExists {
                name: dataset.name,
                version: dataset.version,
                checksum,
            });
        }
        let (path, copied) = (row.text()?, row.int()? != 0);
        let about = row.opt_json()?.unwrap_or_default();
        // What the content store has stays there, and what is not said anew is not unsaid.
        dataset.copied |= copied;
        if dataset.about.is_empty() {
            dataset.about = DatasetAbout::clone(&about);
        }
        if (&path, copied, &about) == (&dataset.path, dataset.copied, &dataset.about) {
            return Ok(());
        }
    }
    // The same data in another place: the place and what is said is what changes.
    const UPSERT: &str = "INSERT INTO datasets (tenant, owner, name, version, checksum, \
         directory, path, bytes, files, registered_at, copied, about) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) \
         ON CONFLICT (tenant, name, version) DO UPDATE SET path = excluded.path, \
         copied = excluded.copied, about = excluded.about";
    let about = match dataset.about.is_empty() {
        true => None,
        false => Some(Param::owned(to_json(&dataset.about)?)),
    };
    let params = [
        Param::text(dataset.tenant.as_str()),
        Param::text(dataset.owner.as_str()),
        Param::text(dataset.name.as_str()),
        Param::text(&dataset.version),
        Param::digest(&dataset.checksum),
        Param::int(dataset.directory),
        Param::text(&dataset.path),
        Param::count(dataset.bytes),
        Param::count(dataset.files),
        Param::Int(dataset.registered_at.0),
        Param::int(dataset.copied),
        Param::or_null(about),
    ];
    tx.sql.run(UPSERT, &params).await?;
    dataset_changed(tx, &dataset.name, &dataset.version, "registered", audit).await
}

pub(crate) async fn remove_dataset<S: Sql>(
    tx: &mut Tx<S>,
    tenant: &Tenant,
    name: &Name,
    version: &str,
    audit: AuditNote,
) -> Result<bool, StoreError> {
    const DELETE: &str = "DELETE FROM datasets WHERE tenant = $1 AND name = $2 AND version = $3";
    let params = [
        Param::text(tenant.as_str()),
        Param::text(name.as_str()),
        Param::text(version),
    ];
    if tx.sql.run(DELETE, &params).await? == 0 {
        return Ok(false);
    }
    dataset_changed(tx, name, version, "removed", audit).await?;
    Ok(true)
}

async fn dataset_changed<S: Sql>(
    tx: &mut Tx<S>,
    name: &Name,
    version: &str,
    change: &str,
    audit: AuditNote,
) -> Result<(), StoreError> {
    let event = Event {
        seq: Sequence(0),
        time: audit.time,
        tenant: audit.tenant.clone(),
        owner: audit.owner.clone(),
        run: None,
        kind: EventKind::DatasetChanged {
            name: name.to_string(),
            version: version.to_owned(),
            change: change.to_owned(),
        },
    };
    tx.emit(&event).await?;
    tx.audit(audit).await
}

pub(crate) async fn datasets(
    sql: &mut impl Sql,
    tenant: &Tenant,
) -> Result<Vec<Dataset>, StoreError> {
    let rows = sql
        .rows(SELECT_DATASETS, &[Param::text(tenant.as_str())])
        .await?;
    rows.into_iter()
        .map(|mut row| {
            Ok(Dataset {
                tenant: tenant.clone(),
                owner: row.parsed()?,
                name: row.parsed()?,
                version: row.text()?,
                checksum: row.digest()?,
                directory: row.int()? != 0,
                path: row.text()?,
                bytes: row.number()?,
                files: row.number()?,
                registered_at: Micros(row.int()?),
                copied: row.int()? != 0,
                about: row.opt_json()?.unwrap_or_default(),
            })
        })
        .collect()
}

pub(crate) async fn put_key<S: Sql>(
    tx: &mut Tx<S>,
    key: ApiKey,
    audit: AuditNote,
) -> Result<(), StoreError> {
    insert_key(&mut tx.sql, &key).await?;
    tx.audit(audit).await
}

/// Adds a key, or takes the place of the one of that name.
pub(crate) async fn insert_key(sql: &mut impl Sql, key: &ApiKey) -> Result<(), StoreError> {
    const UPSERT: &str = "INSERT INTO keys (tenant, name, owner, sha256, class, run, created_at, \
         revoked_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
         ON CONFLICT (tenant, name) DO UPDATE SET owner = excluded.owner, \
         sha256 = excluded.sha256, class = excluded.class, run = excluded.run, \
         created_at = excluded.created_at, revoked_at = excluded.revoked_at";
    let params = [
        Param::text(key.tenant.as_str()),
        Param::text(&key.name),
        Param::text(key.owner.as_str()),
        Param::digest(&key.sha256),
        Param::owned(to_json(&key.class)?),
        Param::or_null(key.run.map(|run| Param::owned(run.to_string()))),
        Param::Int(key.created_at.0),
        Param::or_null(key.revoked_at.map(|time| Param::Int(time.0))),
    ];
    sql.run(UPSERT, &params).await?;
    Ok(())
}

/// Ends the tokens of a run's attempts.
pub(crate) async fn remove_attempt_keys(sql: &mut impl Sql, run: RunId) -> Result<(), StoreError> {
    const DELETE: &str = "DELETE FROM keys WHERE run = $1";
    sql.run(DELETE, &[Param::owned(run.to_string())]).await?;
    Ok(())
}

pub(crate) async fn attempt_key(
    sql: &mut impl Sql,
    run: RunId,
) -> Result<Option<ApiKey>, StoreError> {
    const SELECT: &str = "SELECT tenant, name, owner, sha256, class, run, created_at FROM keys \
                          WHERE run = $1 AND revoked_at IS NULL";
    let row = sql.row(SELECT, &[Param::owned(run.to_string())]).await?;
    row.map(key_of).transpose()
}

pub(crate) async fn keys(sql: &mut impl Sql) -> Result<Vec<ApiKey>, StoreError> {
    const SELECT: &str = "SELECT tenant, name, owner, sha256, class, run, created_at FROM keys \
                          WHERE revoked_at IS NULL ORDER BY tenant, name";
    let rows = sql.rows(SELECT, &[]).await?;
    rows.into_iter().map(key_of).collect()
}

fn key_of(mut row: Row) -> Result<ApiKey, StoreError> {
    Ok(ApiKey {
        tenant: row.parsed()?,
        name: row.text()?,
        owner: row.parsed()?,
        sha256: row.digest()?,
        class: from_json::<KeyClass>(&row.text()?)?,
        run: row.opt_parsed()?,
        created_at: Micros(row.int()?),
        revoked_at: None,
    })
}

pub(crate) async fn references(sql: &mut impl Sql) -> Result<References, StoreError> {
    let mut commits = BTreeSet::new();
    const TREES: &str = "SELECT DISTINCT tree FROM runs WHERE tree IS NOT NULL";
    for mut row in sql.rows(TREES, &[]).await? {
        commits.insert(CommitId(row.digest()?));
    }
    // Points without a tree of their own have their template's.
    const TEMPLATES: &str = "SELECT template FROM runs WHERE template IS NOT NULL";
    for mut row in sql.rows(TEMPLATES, &[]).await? {
        commits.insert(rows::template_commit(&row.text()?)?);
    }
    for mut row in sql.rows(PINNED_TREES, &[]).await? {
        commits.insert(row.parsed()?);
    }
    let mut outputs = Vec::new();
    const OUTPUTS: &str = "SELECT DISTINCT outputs FROM runs WHERE outputs IS NOT NULL";
    for mut row in sql.rows(OUTPUTS, &[]).await? {
        outputs.push(ObjectId(row.digest()?));
    }
    outputs.sort_unstable();
    let mut environments = BTreeSet::new();
    // A point stores its plan's `deps` where they differ from its template's.
    const PLANS: &str = "SELECT COALESCE(p.id, r.id), r.plan FROM runs r LEFT JOIN runs p \
                         ON p.seq = r.parent WHERE r.plan LIKE '%\"deps\":{%'";
    for mut row in sql.rows(PLANS, &[]).await? {
        let run = row.parsed()?;
        let deps = rows::plan_deps(&row.text()?)?;
        environments.extend(deps.map(|deps| (run, deps)));
    }
    const TEMPLATE_PLANS: &str = "SELECT id, template FROM runs WHERE template IS NOT NULL";
    for mut row in sql.rows(TEMPLATE_PLANS, &[]).await? {
        let run = row.parsed()?;
        let deps = rows::template_deps(&row.text()?)?;
        environments.extend(deps.map(|deps| (run, deps)));
    }
    let mut datasets = BTreeSet::new();
    const COPIES: &str = "SELECT checksum FROM datasets WHERE copied <> 0";
    for mut row in sql.rows(COPIES, &[]).await? {
        datasets.insert(row.digest()?);
    }
    const WITH_DATA: &str = "SELECT plan FROM runs WHERE plan LIKE '%\"datasets\":[{%'";
    for mut row in sql.rows(WITH_DATA, &[]).await? {
        datasets.extend(rows::plan_datasets(&row.text()?)?);
    }
    const TEMPLATES_WITH_DATA: &str =
        "SELECT template FROM runs WHERE template LIKE '%\"datasets\":[{%'";
    for mut row in sql.rows(TEMPLATES_WITH_DATA, &[]).await? {
        datasets.extend(rows::template_datasets(&row.text()?)?);
    }
    const WITH_WEIGHTS: &str = "SELECT plan FROM runs WHERE plan LIKE '%\"service\":{%'";
    for mut row in sql.rows(WITH_WEIGHTS, &[]).await? {
        datasets.extend(rows::plan_weights(&row.text()?)?);
    }
    Ok(References {
        datasets: datasets.into_iter().collect(),
        environments: environments.into_iter().collect(),
        commits: commits.into_iter().collect(),
        outputs,
    })
}

/// Removes single runs and whole sweeps that ended before `ended_before`, unless
/// they are pinned or an open run waits for them.
pub(crate) async fn prune_runs<S: Sql>(
    tx: &mut Tx<S>,
    tenant: &Tenant,
    ended_before: Micros,
    audit: AuditNote,
) -> Result<Vec<RunId>, StoreError> {
    let open = read::open_runs(&mut tx.sql).await?.into_iter();
    let mut kept: BTreeSet<RunId> = open
        .flat_map(|run| {
            let maker = run.plan.as_ref().and_then(|plan| {
                let model = plan.service.as_ref()?.model.as_ref()?;
                Some(model.run)
            });
            run.placement
                .after
                .into_iter()
                .chain(run.placement.reproduces)
                .chain(maker)
        })
        .collect();
    kept.extend(pinned_runs(&mut tx.sql, tenant).await?);
    const SELECT: &str = "SELECT seq, id, kind, phase FROM runs WHERE tenant = $1 \
                          AND parent IS NULL AND phase BETWEEN 4 AND 7 AND ended_at < $2 ORDER BY seq";
    let params = [Param::text(tenant.as_str()), Param::Int(ended_before.0)];
    let mut removed = Vec::new();
    for mut row in tx.sql.rows(SELECT, &params).await? {
        let (seq, id): (i64, RunId) = (row.int()?, row.parsed()?);
        let (is_sweep, code): (bool, usize) = (row.int()? == 1, row.number()?);
        let ids = ids_of(tx, seq).await?;
        if ids.iter().any(|id| kept.contains(id)) {
            continue;
        }
        let mut counts = PhaseCounts::default();
        if is_sweep {
            const COUNTS: &str =
                "SELECT n0, n1, n2, n3, n4, n5, n6, n7, n8, n9 FROM sweeps WHERE parent = $1";
            if let Some(mut row) = tx.sql.row(COUNTS, &[Param::Int(seq)]).await? {
                counts = counts_of(&mut row)?;
            }
        } else if let Some(phase) = PHASES.get(code) {
            counts[phase_code(*phase)] = 1;
        }
        for count in &mut counts {
            *count = -*count;
        }
        debug_assert_eq!(counts[phase_code(Phase::Queued)], 0, "{id}");
        count_tenant(&mut tx.sql, tenant, &counts).await?;
        remove_run(tx, seq).await?;
        removed.extend(ids);
    }
    forget_traces(tx, ended_before, audit.time).await?;
    tx.audit(audit).await?;
    Ok(removed)
}

async fn ids_of<S: Sql>(tx: &mut Tx<S>, seq: i64) -> Result<Vec<RunId>, StoreError> {
    const SELECT: &str = "SELECT id FROM runs WHERE seq = $1 OR parent = $2 ORDER BY seq";
    let rows = tx
        .sql
        .rows(SELECT, &[Param::Int(seq), Param::Int(seq)])
        .await?;
    rows.into_iter().map(|mut row| row.parsed()).collect()
}

/// Removes a run, or a sweep with its points.
async fn remove_run<S: Sql>(tx: &mut Tx<S>, seq: i64) -> Result<(), StoreError> {
    const DELETES: [&str; 6] = [
        "DELETE FROM tellings WHERE run IN \
         (SELECT id FROM runs WHERE seq = $1 OR parent = $2)",
        "DELETE FROM reproductions WHERE original IN \
         (SELECT id FROM runs WHERE seq = $1 OR parent = $2)",
        "DELETE FROM attempts WHERE run IN \
         (SELECT seq FROM runs WHERE seq = $1 OR parent = $2)",
        "DELETE FROM keys WHERE run IN \
         (SELECT id FROM runs WHERE seq = $1 OR parent = $2)",
        "DELETE FROM sweeps WHERE parent = $1 OR parent = $2",
        "DELETE FROM runs WHERE seq = $1 OR parent = $2",
    ];
    derived::remove(&mut tx.sql, seq).await?;
    for delete in DELETES {
        tx.sql
            .run(delete, &[Param::Int(seq), Param::Int(seq)])
            .await?;
    }
    Ok(())
}

/// Forgets events of runs that are gone, and old idempotency keys.
async fn forget_traces<S: Sql>(
    tx: &mut Tx<S>,
    ended_before: Micros,
    now: Micros,
) -> Result<(), StoreError> {
    const EVENTS: &str = "DELETE FROM events WHERE time < $1 AND run IS NOT NULL \
                          AND NOT EXISTS (SELECT 1 FROM runs WHERE runs.id = events.run)";
    tx.sql.run(EVENTS, &[Param::Int(ended_before.0)]).await?;
    let expired = now.plus_us(-IDEMPOTENCY_KEPT_US);
    const KEYS: &str = "DELETE FROM idempotency WHERE time < $1";
    tx.sql.run(KEYS, &[Param::Int(expired.0)]).await?;
    Ok(())
}

/// Writes one row and reads it back.
pub(crate) async fn check<S: Sql>(tx: &mut Tx<S>) -> Result<(), StoreError> {
    const WRITE: &str = "UPDATE head SET probe = probe + 1 RETURNING probe";
    let damaged = || StoreError::Damaged("the probe does not read back".into());
    let written = tx.sql.row(WRITE, &[]).await?.ok_or_else(damaged)?.int()?;
    let read = tx.sql.row("SELECT probe FROM head", &[]).await?;
    if read.ok_or_else(damaged)?.int()? != written {
        return Err(damaged());
    }
    Ok(())
}
