//! Ends of runs that somebody is told of: noted with the submission, so that an end and
//! the duty to tell it are one transaction; open again when a run is put back.

use std::collections::BTreeSet;

use mlmesh_model::{
    Event, EventKind, Micros, Phase, Run, RunId, RunKind, Sequence, StoreError, Telling,
    TellingState, Tenant, Told, Untold,
};

use crate::group::Tx;
use crate::rows::{self, Loaded};
use crate::sql::{Param, Row, Sql};

/// Tellings in one answer.
const TELLINGS_MAX: i64 = 100;
/// Ends that are looked at together; one that was tried goes to the end of the line.
const UNTOLD_MAX: i64 = 256;

const fn code(state: TellingState) -> i64 {
    match state {
        TellingState::Waiting => 0,
        TellingState::Delivered => 1,
        TellingState::Failed => 2,
        TellingState::NotWanted => 3,
    }
}

fn state(code: i64) -> Result<TellingState, StoreError> {
    Ok(match code {
        0 => TellingState::Waiting,
        1 => TellingState::Delivered,
        2 => TellingState::Failed,
        3 => TellingState::NotWanted,
        other => {
            return Err(StoreError::Damaged(format!(
                "a telling has the state {other}"
            )));
        }
    })
}

/// Notes the runs of a submission of whose end somebody is told; of a sweep the parent.
pub(crate) async fn note<S: Sql>(tx: &mut Tx<S>, runs: &[Run]) -> Result<(), StoreError> {
    const INSERT: &str = "INSERT INTO tellings (run, tenant, life, state, tries, message, time) \
                          VALUES ($1, $2, 0, 0, 0, '', $3)";
    for run in runs {
        let is_point = matches!(run.kind, RunKind::Child { .. });
        if run.placement.on_finish.is_none() || is_point {
            continue;
        }
        let params = [
            Param::owned(run.id.to_string()),
            Param::text(run.tenant.as_str()),
            Param::Int(run.queued_at.0),
        ];
        tx.sql.run(INSERT, &params).await?;
    }
    Ok(())
}

/// Opens what was told of runs that go back into the queue, and of their sweeps.
pub(crate) async fn open_again<S: Sql>(
    tx: &mut Tx<S>,
    to: Phase,
    taken: &[(Phase, Loaded)],
) -> Result<(), StoreError> {
    if to != Phase::Queued {
        return Ok(());
    }
    let with_hook = taken
        .iter()
        .map(|(_, loaded)| &loaded.run)
        .filter(|run| run.placement.on_finish.is_some());
    let ids: BTreeSet<RunId> = with_hook
        .map(|run| match run.kind {
            RunKind::Child { parent, .. } => parent,
            RunKind::Single | RunKind::Parent { .. } => run.id,
        })
        .collect();
    const UPDATE: &str = "UPDATE tellings SET state = 0, tries = 0, life = life + 1, message = '' \
                          WHERE run = $1 AND state <> 0";
    let params: Vec<_> = ids
        .into_iter()
        .map(|id| vec![Param::owned(id.to_string())])
        .collect();
    tx.sql.run_each(UPDATE, &params).await?;
    Ok(())
}

pub(crate) async fn untold(sql: &mut impl Sql) -> Result<Vec<Untold>, StoreError> {
    const SELECT: &str = "SELECT t.run, t.life, t.tries FROM tellings t JOIN runs r ON r.id = t.run \
                          WHERE t.state = 0 AND r.phase BETWEEN 4 AND 7 ORDER BY t.time, t.run LIMIT $1";
    let rows = sql.rows(SELECT, &[Param::Int(UNTOLD_MAX)]).await?;
    let open = rows.into_iter().map(|mut row| {
        let (run, life, tries): (RunId, u32, u32) = (row.parsed()?, row.number()?, row.number()?);
        Ok((run, life, tries))
    });
    let open = open.collect::<Result<Vec<_>, StoreError>>()?;
    let mut untold = Vec::with_capacity(open.len());
    for (run, life, tries) in open {
        let found = rows::load(sql, run).await?;
        untold.extend(found.map(|loaded| Untold {
            run: loaded.run,
            life,
            tries,
        }));
    }
    Ok(untold)
}

pub(crate) async fn told<S: Sql>(tx: &mut Tx<S>, told: Told) -> Result<(), StoreError> {
    const UPDATE: &str = "UPDATE tellings SET state = $1, tries = $2, message = $3, time = $4 \
                          WHERE run = $5 AND life = $6";
    let params = [
        Param::Int(code(told.state)),
        Param::int(told.tries),
        Param::text(&told.message),
        Param::Int(told.time.0),
        Param::owned(told.run.to_string()),
        Param::int(told.life),
    ];
    let noted = tx.sql.run(UPDATE, &params).await?;
    // What is tried again, and what nobody wanted, is no news.
    if noted == 0 || !matches!(told.state, TellingState::Delivered | TellingState::Failed) {
        return Ok(());
    }
    let Some(loaded) = rows::load(&mut tx.sql, told.run).await? else {
        return Ok(());
    };
    tx.emit(&Event {
        seq: Sequence(0),
        time: told.time,
        tenant: loaded.run.tenant,
        owner: loaded.run.owner,
        run: Some(told.run),
        kind: EventKind::EndTold {
            state: told.state,
            tries: told.tries,
        },
    })
    .await
}

pub(crate) async fn tellings(
    sql: &mut impl Sql,
    tenant: &Tenant,
    run: Option<RunId>,
) -> Result<Vec<Telling>, StoreError> {
    const OF_RUN: &str = "SELECT run, state, tries, message, time FROM tellings \
                          WHERE tenant = $1 AND run = $2";
    // Those that wait for an end that is still to come are none.
    const OPEN: &str = "SELECT t.run, t.state, t.tries, t.message, t.time FROM tellings t \
         JOIN runs r ON r.id = t.run WHERE t.tenant = $1 AND t.state IN (0, 2) AND r.phase BETWEEN 4 AND 7 \
         ORDER BY t.time DESC, t.run LIMIT $2";
    let tenant = Param::text(tenant.as_str());
    let rows = match run {
        Some(run) => {
            sql.rows(OF_RUN, &[tenant, Param::owned(run.to_string())])
                .await?
        }
        None => sql.rows(OPEN, &[tenant, Param::Int(TELLINGS_MAX)]).await?,
    };
    let telling = |mut row: Row| {
        Ok(Telling {
            run: row.parsed()?,
            state: state(row.int()?)?,
            tries: row.number()?,
            message: row.text()?,
            time: Micros(row.int()?),
        })
    };
    rows.into_iter().map(telling).collect()
}
