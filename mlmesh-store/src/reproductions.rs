//! Repetitions of runs: noted with their submission, judged once after their end; and
//! what was signed about them.

use mlmesh_model::{
    AuditNote, Repetition, Reproduction, Run, RunId, SignedStatement, StoreError, Tenant,
};

use crate::crash::{self, Stage, WriteKind};
use crate::group::Tx;
use crate::rows;
use crate::sql::{Param, Sql, from_json, to_json};

/// Notes the runs of a submission that repeat another one.
pub(crate) async fn note<S: Sql>(tx: &mut Tx<S>, runs: &[Run]) -> Result<(), StoreError> {
    const INSERT: &str =
        "INSERT INTO reproductions (run, tenant, original, time) VALUES ($1, $2, $3, $4)";
    for run in runs {
        let Some(original) = run.placement.reproduces else {
            continue;
        };
        let params = [
            Param::owned(run.id.to_string()),
            Param::text(run.tenant.as_str()),
            Param::owned(original.to_string()),
            Param::Int(run.queued_at.0),
        ];
        tx.sql.run(INSERT, &params).await?;
    }
    Ok(())
}

/// Keeps a judgement and what it makes of the original's trust. False when there was
/// one already, or the run repeats no other one.
pub(crate) async fn judge<S: Sql>(
    tx: &mut Tx<S>,
    judgement: Reproduction,
    audit: AuditNote,
) -> Result<bool, StoreError> {
    const UPDATE: &str = "UPDATE reproductions SET record = $1 \
         WHERE run = $2 AND tenant = $3 AND original = $4 AND record IS NULL";
    let params = [
        Param::owned(to_json(&judgement)?),
        Param::owned(judgement.run.to_string()),
        Param::text(judgement.tenant.as_str()),
        Param::owned(judgement.original.to_string()),
    ];
    if tx.sql.run(UPDATE, &params).await? == 0 {
        return Ok(false);
    }
    if let Some(mut original) = rows::load(&mut tx.sql, judgement.original).await?
        && original.run.tenant == judgement.tenant
        && let Some(trust) = &original.run.trust
    {
        original.run.trust = Some(trust.judged(&judgement));
        rows::save(&mut tx.sql, &original).await?;
    }
    tx.audit(audit).await?;
    crash::hit(WriteKind::Judge, Stage::RowsWritten);
    Ok(true)
}

/// Keeps the first signed statement about a repetition that was judged.
pub(crate) async fn attest<S: Sql>(
    tx: &mut Tx<S>,
    tenant: &Tenant,
    repetition: RunId,
    statement: SignedStatement,
    audit: AuditNote,
) -> Result<bool, StoreError> {
    const UPDATE: &str = "UPDATE reproductions SET statement = $1, signer = $2 \
         WHERE run = $3 AND tenant = $4 AND record IS NOT NULL AND statement IS NULL";
    let id = repetition.to_string();
    let params = [
        Param::text(&statement.envelope),
        Param::text(&statement.signer),
        Param::text(&id),
        Param::text(tenant.as_str()),
    ];
    if tx.sql.run(UPDATE, &params).await? == 0 {
        return Ok(false);
    }
    const ORIGINAL: &str = "SELECT original FROM reproductions WHERE run = $1";
    let row = tx.sql.row(ORIGINAL, &[Param::text(&id)]).await?;
    let original = row.map(|mut row| row.parsed()).transpose()?;
    let original = original.ok_or(StoreError::NoRun(repetition))?;
    if let Some(mut original) = rows::load(&mut tx.sql, original).await?
        && original.run.tenant == *tenant
        && let Some(trust) = &mut original.run.trust
        && let Some(reproduced) = &mut trust.reproduced
        && reproduced.by == repetition
    {
        reproduced.signer = Some(statement.signer);
        rows::save(&mut tx.sql, &original).await?;
    }
    tx.audit(audit).await?;
    crash::hit(WriteKind::Judge, Stage::RowsWritten);
    Ok(true)
}

/// The repetitions of a run, oldest first; and the run itself, if it is one.
pub(crate) async fn repetitions(
    sql: &mut impl Sql,
    tenant: &Tenant,
    run: RunId,
) -> Result<Vec<Repetition>, StoreError> {
    const SELECT: &str = "SELECT run, original, record, statement, signer FROM reproductions \
         WHERE tenant = $1 AND (original = $2 OR run = $3) ORDER BY time, run";
    let params = [
        Param::text(tenant.as_str()),
        Param::owned(run.to_string()),
        Param::owned(run.to_string()),
    ];
    let rows = sql.rows(SELECT, &params).await?;
    let repetition = |mut row: crate::sql::Row| {
        Ok(Repetition {
            run: row.parsed()?,
            original: row.parsed()?,
            judgement: row.opt_text()?.as_deref().map(from_json).transpose()?,
            statement: match (row.opt_text()?, row.opt_text()?) {
                (Some(envelope), Some(signer)) => Some(SignedStatement { envelope, signer }),
                _ => None,
            },
        })
    };
    rows.into_iter().map(repetition).collect()
}

/// Repetitions of all tenants that have ended and are not judged.
pub(crate) async fn unjudged(sql: &mut impl Sql) -> Result<Vec<Run>, StoreError> {
    const SELECT: &str = "SELECT run FROM reproductions WHERE record IS NULL ORDER BY time, run";
    let rows = sql.rows(SELECT, &[]).await?;
    let ids = rows.into_iter().map(|mut row| row.parsed());
    let ids = ids.collect::<Result<Vec<RunId>, StoreError>>()?;
    let found = rows::load_each(sql, &ids).await?.into_iter();
    let runs = found.map(|loaded| loaded.run);
    Ok(runs.filter(|run| run.phase.is_ended()).collect())
}
