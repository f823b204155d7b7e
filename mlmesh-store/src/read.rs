//! The reads. Each function sees one state of the database.

use std::collections::BTreeMap;

use mlmesh_model::{
    Attempt, AttemptNumber, AuditRow, Cause, Digest, Event, EventKind, FencingToken, Micros,
    PHASES, Phase, Run, RunId, RunQuery, Sequence, StoreError, Tenant,
};

use crate::laws::{PhaseCounts, phase_code};
use crate::rows::{self, Loaded, read_columns};
use crate::sql::{Param, Sql};
use crate::write::counts_of;

pub(crate) async fn run(
    sql: &mut impl Sql,
    tenant: &Tenant,
    id: RunId,
) -> Result<Option<Run>, StoreError> {
    let loaded = rows::load(sql, id).await?;
    Ok(loaded
        .map(|loaded| loaded.run)
        .filter(|run| run.tenant == *tenant))
}

pub(crate) async fn runs_by_id(
    sql: &mut impl Sql,
    tenant: &Tenant,
    ids: &[RunId],
) -> Result<Vec<Run>, StoreError> {
    let mut runs = runs_of(rows::load_each(sql, ids).await?);
    runs.retain(|run| run.tenant == *tenant);
    Ok(runs)
}

/// The answer that was stored with an idempotency key.
pub(crate) async fn answered(
    sql: &mut impl Sql,
    tenant: &Tenant,
    key: &str,
    request_sha256: &Digest,
) -> Result<Option<String>, StoreError> {
    const SELECT: &str =
        "SELECT request_sha256, answer FROM idempotency WHERE tenant = $1 AND key = $2";
    let params = [Param::text(tenant.as_str()), Param::text(key)];
    let Some(mut row) = sql.row(SELECT, &params).await? else {
        return Ok(None);
    };
    match (row.digest()? == *request_sha256, row.opt_text()?) {
        (true, Some(answer)) => Ok(Some(answer)),
        _ => Err(StoreError::IdempotencyMismatch(key.to_owned())),
    }
}

pub(crate) async fn ids_by_prefix(
    sql: &mut impl Sql,
    tenant: &Tenant,
    prefix: &str,
    limit: u32,
) -> Result<Vec<RunId>, StoreError> {
    let may_begin_an_id = prefix
        .bytes()
        .all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7'));
    if !may_begin_an_id {
        return Ok(Vec::new());
    }
    const SELECT: &str = "SELECT id FROM runs WHERE id >= $1 AND id < $2 AND tenant = $3 \
                          ORDER BY seq DESC LIMIT $4";
    let params = [
        Param::text(prefix),
        // `~` lies behind every character of an id.
        Param::owned(format!("{prefix}~")),
        Param::text(tenant.as_str()),
        Param::int(limit),
    ];
    let rows = sql.rows(SELECT, &params).await?;
    rows.into_iter().map(|mut row| row.parsed()).collect()
}

pub(crate) async fn runs(sql: &mut impl Sql, query: &RunQuery) -> Result<Vec<Run>, StoreError> {
    let loaded = match (query.parent, &query.owner) {
        (Some(parent), _) => points(sql, query, parent).await?,
        (None, Some(owner)) => of_owner(sql, query, owner.as_str()).await?,
        (None, None) if query.phases.is_empty() => top_level(sql, query).await?,
        (None, None) => in_phases(sql, query).await?,
    };
    Ok(runs_of(loaded))
}

const TOP_LEVEL: &str = concat!(
    "SELECT ",
    read_columns!(),
    " FROM runs WHERE tenant = $1 AND parent IS NULL AND seq < $2 ORDER BY seq DESC LIMIT $3"
);

const IN_PHASE: &str = concat!(
    "SELECT ",
    read_columns!(),
    " FROM runs WHERE tenant = $1 AND phase = $2 AND parent IS NULL AND seq < $3 \
     ORDER BY seq DESC LIMIT $4"
);

const OF_OWNER: &str = concat!(
    "SELECT ",
    read_columns!(),
    " FROM runs WHERE tenant = $1 AND owner = $2 AND parent IS NULL AND seq < $3 \
     AND (($4 >> CAST(phase AS INTEGER)) & 1) = 1 ORDER BY seq DESC LIMIT $5"
);

const POINTS: &str = concat!(
    "SELECT ",
    read_columns!(),
    " FROM runs WHERE parent = (SELECT seq FROM runs WHERE id = $1 AND tenant = $2) \
     AND idx > $3 AND (($4 >> CAST(phase AS INTEGER)) & 1) = 1 \
     AND (CAST($5 AS TEXT) IS NULL OR owner = $5) ORDER BY idx LIMIT $6"
);

const OPEN: &str = concat!(
    "SELECT ",
    read_columns!(),
    " FROM runs WHERE seq IN (SELECT seq FROM queue UNION ALL \
     SELECT seq FROM runs WHERE phase IN (1, 2, 3, 8, 9) AND kind <> 1) ORDER BY seq"
);

async fn top_level(sql: &mut impl Sql, query: &RunQuery) -> Result<Vec<Loaded>, StoreError> {
    let params = [
        Param::text(query.tenant.as_str()),
        before(query),
        Param::int(query.limit),
    ];
    let rows = sql.rows(TOP_LEVEL, &params).await?;
    rows::decode_all(sql, rows).await
}

/// One query a phase: each reads its newest from the index; merged here.
async fn in_phases(sql: &mut impl Sql, query: &RunQuery) -> Result<Vec<Loaded>, StoreError> {
    let mut found = Vec::new();
    for phase in PHASES {
        if !query.phases.contains(&phase) {
            continue;
        }
        let params = [
            Param::text(query.tenant.as_str()),
            Param::Int(phase_code(phase) as i64),
            before(query),
            Param::int(query.limit),
        ];
        let rows = sql.rows(IN_PHASE, &params).await?;
        found.extend(rows::decode_all(sql, rows).await?);
    }
    found.sort_unstable_by_key(|loaded| std::cmp::Reverse(loaded.run.seq));
    found.truncate(query.limit as usize);
    Ok(found)
}

async fn of_owner(
    sql: &mut impl Sql,
    query: &RunQuery,
    owner: &str,
) -> Result<Vec<Loaded>, StoreError> {
    let params = [
        Param::text(query.tenant.as_str()),
        Param::text(owner),
        before(query),
        Param::Int(phase_mask(&query.phases)),
        Param::int(query.limit),
    ];
    let rows = sql.rows(OF_OWNER, &params).await?;
    rows::decode_all(sql, rows).await
}

async fn points(
    sql: &mut impl Sql,
    query: &RunQuery,
    parent: RunId,
) -> Result<Vec<Loaded>, StoreError> {
    let mut after = -1;
    if let Some(cursor) = query.cursor {
        const SELECT: &str = "SELECT idx FROM runs WHERE seq = $1";
        let row = sql.row(SELECT, &[Param::count(cursor.0)]).await?;
        after = match row {
            Some(mut row) => row.opt_int()?.unwrap_or(-1),
            None => -1,
        };
    }
    let owner = query.owner.as_ref();
    let params = [
        Param::owned(parent.to_string()),
        Param::text(query.tenant.as_str()),
        Param::Int(after),
        Param::Int(phase_mask(&query.phases)),
        Param::or_null(owner.map(|owner| Param::text(owner.as_str()))),
        Param::int(query.limit),
    ];
    let rows = sql.rows(POINTS, &params).await?;
    rows::decode_all(sql, rows).await
}

fn before(query: &RunQuery) -> Param<'static> {
    Param::count(query.cursor.map_or(u64::MAX, |cursor| cursor.0))
}

fn phase_mask(phases: &[Phase]) -> i64 {
    if phases.is_empty() {
        return (1 << PHASES.len()) - 1;
    }
    phases
        .iter()
        .fold(0, |mask, phase| mask | 1 << phase_code(*phase))
}

pub(crate) async fn counts(
    sql: &mut impl Sql,
    tenant: &Tenant,
) -> Result<BTreeMap<Phase, u64>, StoreError> {
    const SELECT: &str =
        "SELECT n0, n1, n2, n3, n4, n5, n6, n7, n8, n9 FROM counts WHERE tenant = $1";
    let row = sql.row(SELECT, &[Param::text(tenant.as_str())]).await?;
    named(match row {
        Some(mut row) => counts_of(&mut row)?,
        None => Default::default(),
    })
}

pub(crate) async fn sweep_counts(
    sql: &mut impl Sql,
    tenant: &Tenant,
    sweep: RunId,
) -> Result<Option<BTreeMap<Phase, u64>>, StoreError> {
    const SELECT: &str = "SELECT n0, n1, n2, n3, n4, n5, n6, n7, n8, n9 FROM sweeps \
         WHERE parent = (SELECT seq FROM runs WHERE id = $1 AND tenant = $2)";
    let params = [
        Param::owned(sweep.to_string()),
        Param::text(tenant.as_str()),
    ];
    match sql.row(SELECT, &params).await? {
        Some(mut row) => named(counts_of(&mut row)?).map(Some),
        None => Ok(None),
    }
}

/// Counts under the names of their phases.
fn named(counts: PhaseCounts) -> Result<BTreeMap<Phase, u64>, StoreError> {
    PHASES
        .into_iter()
        .zip(counts)
        .map(|(phase, count)| {
            let count = u64::try_from(count)
                .map_err(|_| StoreError::Damaged(format!("{count} runs are `{phase}`")))?;
            Ok((phase, count))
        })
        .collect()
}

pub(crate) async fn open_runs(sql: &mut impl Sql) -> Result<Vec<Run>, StoreError> {
    let rows = sql.rows(OPEN, &[]).await?;
    Ok(runs_of(rows::decode_all(sql, rows).await?))
}

fn runs_of(loaded: Vec<Loaded>) -> Vec<Run> {
    loaded.into_iter().map(|loaded| loaded.run).collect()
}

pub(crate) async fn attempts(sql: &mut impl Sql, run: RunId) -> Result<Vec<Attempt>, StoreError> {
    const SELECT: &str = "SELECT number, token, node, boot_id, leased_at, started_at, ended_at, \
         exit, cause FROM attempts WHERE run = (SELECT seq FROM runs WHERE id = $1) \
         ORDER BY number";
    let rows = sql.rows(SELECT, &[Param::owned(run.to_string())]).await?;
    rows.into_iter()
        .map(|mut row| {
            Ok(Attempt {
                run,
                number: AttemptNumber(row.number()?),
                token: FencingToken(row.number()?),
                node: row.parsed()?,
                boot_id: row.text()?,
                leased_at: Micros(row.int()?),
                started_at: row.opt_int()?.map(Micros),
                ended_at: row.opt_int()?.map(Micros),
                exit: row.opt_json()?,
                cause: row.opt_text()?.and_then(|name| Cause::from_name(&name)),
            })
        })
        .collect()
}

const WRITTEN: &str = "SELECT seq, time, owner, run, kind FROM events \
                       WHERE tenant = $1 AND seq > $2 ORDER BY seq LIMIT $3";
const ACCEPTED: &str = "SELECT seq, queued_at, owner, id, kind, idx FROM runs \
                        WHERE tenant = $1 AND seq > $2 ORDER BY seq LIMIT $3";

/// Events from two places: the rows of `events`, and the acceptance of each run,
/// which is told by the run's own row.
pub(crate) async fn events(
    sql: &mut impl Sql,
    tenant: &Tenant,
    after: Sequence,
    limit: u32,
) -> Result<Vec<Event>, StoreError> {
    let params = [
        Param::text(tenant.as_str()),
        Param::count(after.0),
        Param::int(limit),
    ];
    let mut events = Vec::new();
    for mut row in sql.rows(WRITTEN, &params).await? {
        events.push(Event {
            seq: Sequence(row.number()?),
            time: Micros(row.int()?),
            tenant: tenant.clone(),
            owner: row.parsed()?,
            run: row.opt_parsed()?,
            kind: row
                .opt_json()?
                .ok_or_else(|| StoreError::Damaged("an event has no kind".into()))?,
        });
    }
    for mut row in sql.rows(ACCEPTED, &params).await? {
        events.push(Event {
            seq: Sequence(row.number()?),
            time: Micros(row.int()?),
            tenant: tenant.clone(),
            owner: row.parsed()?,
            run: Some(row.parsed()?),
            kind: match row.int()? {
                1 => EventKind::SweepAccepted {
                    children: row.number()?,
                },
                _ => EventKind::RunPhase {
                    phase: Phase::Queued,
                    cause: None,
                    attempt: 0,
                },
            },
        });
    }
    events.sort_unstable_by_key(|event| event.seq);
    events.truncate(limit as usize);
    Ok(events)
}

pub(crate) async fn last_event(sql: &mut impl Sql) -> Result<Sequence, StoreError> {
    let row = sql.row("SELECT seq FROM head", &[]).await?;
    let mut row = row.ok_or_else(|| StoreError::Damaged("the head row is gone".into()))?;
    Ok(Sequence(row.number()?))
}

pub(crate) async fn audit_rows(
    sql: &mut impl Sql,
    after: u64,
    limit: u32,
) -> Result<Vec<AuditRow>, StoreError> {
    const SELECT: &str =
        "SELECT n, note, previous, hash FROM audit WHERE n > $1 ORDER BY n LIMIT $2";
    let params = [Param::count(after), Param::int(limit)];
    let rows = sql.rows(SELECT, &params).await?;
    rows.into_iter()
        .map(|mut row| {
            Ok(AuditRow {
                n: row.number()?,
                note: row
                    .opt_json()?
                    .ok_or_else(|| StoreError::Damaged("an audit row has no note".into()))?,
                previous: row.digest()?,
                hash: row.digest()?,
            })
        })
        .collect()
}

/// The store's own note of where the audit chain ends.
pub(crate) async fn audit_head(sql: &mut impl Sql) -> Result<crate::audit::AuditHead, StoreError> {
    let row = sql.row("SELECT audit_n, audit_hash FROM head", &[]).await?;
    let mut row = row.ok_or_else(|| StoreError::Damaged("the head row is gone".into()))?;
    Ok(crate::audit::AuditHead {
        n: row.number()?,
        hash: row.digest()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::tests::query_plans;

    /// Lists must cost what they return, not what the store holds: each is to
    /// come from an index that has the order, without a sort or a scan.
    #[test]
    fn lists_come_from_their_indexes() {
        let plan = query_plans();
        for (sql, index) in [
            (TOP_LEVEL, "runs_top (tenant=? AND seq<?)"),
            (IN_PHASE, "runs_phase (tenant=? AND phase=? AND seq<?)"),
            (OF_OWNER, "runs_owner (tenant=? AND owner=? AND seq<?)"),
            (POINTS, "runs_points (parent=? AND idx>?)"),
            (OPEN, "runs_live"),
            (WRITTEN, "PRIMARY KEY (rowid>?)"),
            (ACCEPTED, "PRIMARY KEY (rowid>?)"),
        ] {
            let plan = plan(sql);
            assert!(plan.contains(index), "{sql}\n{plan}");
            assert!(!plan.contains("TEMP B-TREE"), "{sql}\n{plan}");
            assert!(!plan.contains("SCAN runs\n"), "{sql}\n{plan}");
        }
    }

    #[test]
    fn a_phase_mask_names_its_phases() {
        assert_eq!(phase_mask(&[]), 0b11_1111_1111);
        assert_eq!(
            phase_mask(&[Phase::Queued, Phase::Interrupted]),
            0b1000_0001
        );
    }
}
