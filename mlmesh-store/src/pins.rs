//! Pins: marks that keep runs and trees from prune.

use std::collections::BTreeSet;

use mlmesh_model::{AuditNote, Micros, Pin, PinTarget, RunId, StoreError, Tenant};

use crate::group::Tx;
use crate::read;
use crate::sql::{Param, Sql};

const KIND_RUN: i64 = 0;
const KIND_COMMIT: i64 = 1;

pub(crate) async fn pin<S: Sql>(
    tx: &mut Tx<S>,
    pin: Pin,
    audit: AuditNote,
) -> Result<bool, StoreError> {
    if let PinTarget::Run(id) = pin.target
        && read::run(&mut tx.sql, &pin.tenant, id).await?.is_none()
    {
        return Err(StoreError::NoRun(id));
    }
    let (kind, target) = parts(pin.target);
    const INSERT: &str = "INSERT INTO pins (tenant, target, kind, owner, time) \
         VALUES ($1, $2, $3, $4, $5) ON CONFLICT (tenant, target) DO NOTHING";
    let params = [
        Param::text(pin.tenant.as_str()),
        Param::owned(target),
        Param::Int(kind),
        Param::text(pin.owner.as_str()),
        Param::Int(pin.time.0),
    ];
    if tx.sql.run(INSERT, &params).await? == 0 {
        return Ok(false);
    }
    tx.audit(audit).await?;
    Ok(true)
}

pub(crate) async fn unpin<S: Sql>(
    tx: &mut Tx<S>,
    tenant: &Tenant,
    target: PinTarget,
    audit: AuditNote,
) -> Result<bool, StoreError> {
    const DELETE: &str = "DELETE FROM pins WHERE tenant = $1 AND target = $2";
    let (_, target) = parts(target);
    let params = [Param::text(tenant.as_str()), Param::owned(target)];
    if tx.sql.run(DELETE, &params).await? == 0 {
        return Ok(false);
    }
    tx.audit(audit).await?;
    Ok(true)
}

pub(crate) async fn pins(sql: &mut impl Sql, tenant: &Tenant) -> Result<Vec<Pin>, StoreError> {
    const SELECT: &str =
        "SELECT target, kind, owner, time FROM pins WHERE tenant = $1 ORDER BY time, target";
    let rows = sql.rows(SELECT, &[Param::text(tenant.as_str())]).await?;
    rows.into_iter()
        .map(|mut row| {
            let target = row.text()?;
            let damaged = || StoreError::Damaged(format!("a pin names `{target}`"));
            Ok(Pin {
                tenant: tenant.clone(),
                target: match row.int()? {
                    KIND_RUN => PinTarget::Run(target.parse().map_err(|_| damaged())?),
                    KIND_COMMIT => PinTarget::Commit(target.parse().map_err(|_| damaged())?),
                    _ => return Err(damaged()),
                },
                owner: row.parsed()?,
                time: Micros(row.int()?),
            })
        })
        .collect()
}

/// Runs of the tenant that are pinned.
pub(crate) async fn pinned_runs(
    sql: &mut impl Sql,
    tenant: &Tenant,
) -> Result<BTreeSet<RunId>, StoreError> {
    let runs = pins(sql, tenant).await?.into_iter();
    Ok(runs
        .filter_map(|pin| match pin.target {
            PinTarget::Run(id) => Some(id),
            PinTarget::Commit(_) => None,
        })
        .collect())
}

/// Trees that are pinned, of all tenants: a query of one text column.
pub(crate) const PINNED_TREES: &str = "SELECT target FROM pins WHERE kind = 1";

fn parts(target: PinTarget) -> (i64, String) {
    match target {
        PinTarget::Run(id) => (KIND_RUN, id.to_string()),
        PinTarget::Commit(commit) => (KIND_COMMIT, commit.to_string()),
    }
}
