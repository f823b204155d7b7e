//! Moves of runs that nobody holds: many in one transaction, with what a person
//! asked for. Rows are read and written in pieces, so that ten thousand runs cost
//! a database server a few round trips and not one for each statement.

use std::collections::{BTreeMap, HashMap};

use mlmesh_model::{Moved, Phase, RunId, StoreError, Tenant, UnleasedMove};

use crate::crash::{self, Stage, WriteKind};
use crate::group::Tx;
use crate::laws::{self, PhaseCounts, phase_code};
use crate::read;
use crate::rows::{self, Loaded, UPDATE_RUN, update_params};
use crate::sql::{Param, Sql};
use crate::tellings;
use crate::write::{CHUNK_ROWS, INSERT_KEY, count_tenant, phase_event, sweep_moved};

pub(crate) async fn move_unleased<S: Sql>(
    tx: &mut Tx<S>,
    change: UnleasedMove,
) -> Result<Moved, StoreError> {
    let mut moved = Moved::default();
    if was_carried_out(tx, &change).await? {
        for chunk in change.runs.chunks(CHUNK_ROWS) {
            let ids: Vec<RunId> = chunk.iter().map(|(id, _)| *id).collect();
            let found = rows::load_each(&mut tx.sql, &ids).await?;
            moved
                .runs
                .extend(found.into_iter().map(|loaded| loaded.run));
        }
        return Ok(moved);
    }
    for chunk in change.runs.chunks(CHUNK_ROWS) {
        move_chunk(tx, &change, chunk, &mut moved).await?;
    }
    let nothing = moved.runs.is_empty() && !change.runs.is_empty();
    let Some(asked) = change.asked else {
        return Ok(moved);
    };
    if nothing && !asked.tells_live {
        return Ok(moved);
    }
    if let (Some(key), Some(first)) = (&asked.key, asked.audit.first()) {
        let params = [
            Param::text(first.tenant.as_str()),
            Param::text(&key.key),
            Param::digest(&key.request_sha256),
            Param::text(&first.subject),
            Param::text(&key.answer),
            Param::Int(change.time.0),
        ];
        tx.sql.run(INSERT_KEY, &params).await?;
    }
    for note in asked.audit {
        tx.audit(note).await?;
    }
    crash::hit(WriteKind::Move, Stage::RowsWritten);
    Ok(moved)
}

/// Whether an earlier call with this key was committed, of which the caller did not
/// hear.
async fn was_carried_out<S: Sql>(
    tx: &mut Tx<S>,
    change: &UnleasedMove,
) -> Result<bool, StoreError> {
    let Some(asked) = &change.asked else {
        return Ok(false);
    };
    let (Some(key), Some(first)) = (&asked.key, asked.audit.first()) else {
        return Ok(false);
    };
    let answered = read::answered(&mut tx.sql, &first.tenant, &key.key, &key.request_sha256);
    Ok(answered.await?.is_some())
}

async fn move_chunk<S: Sql>(
    tx: &mut Tx<S>,
    change: &UnleasedMove,
    chunk: &[(RunId, Phase)],
    moved: &mut Moved,
) -> Result<(), StoreError> {
    let ids: Vec<RunId> = chunk.iter().map(|(id, _)| *id).collect();
    let found = rows::load_each(&mut tx.sql, &ids).await?;
    let mut found: HashMap<RunId, Loaded> = found
        .into_iter()
        .map(|loaded| (loaded.run.id, loaded))
        .collect();
    let mut taken = Vec::with_capacity(chunk.len());
    for (id, from) in chunk {
        let allowed = match found.remove(id) {
            None => Err(StoreError::NoRun(*id)),
            Some(mut loaded) => {
                laws::move_unleased(&mut loaded.run, *from, change).map(|()| loaded)
            }
        };
        match allowed {
            Ok(loaded) => taken.push((*from, loaded)),
            Err(error) => moved.refused.push((*id, error)),
        }
    }
    write_rows(tx, change, &taken).await?;
    write_counts(tx, change, &taken).await?;
    moved
        .runs
        .extend(taken.into_iter().map(|(_, loaded)| loaded.run));
    Ok(())
}

/// The runs' rows, their places in the queue, and an event for each.
async fn write_rows<S: Sql>(
    tx: &mut Tx<S>,
    change: &UnleasedMove,
    taken: &[(Phase, Loaded)],
) -> Result<(), StoreError> {
    let updates = taken.iter().map(|(_, loaded)| update_params(loaded));
    let updates = updates.collect::<Result<Vec<_>, StoreError>>()?;
    tx.sql.run_each(UPDATE_RUN, &updates).await?;
    let places = |is_in_queue: fn(Phase, Phase) -> bool| -> Vec<_> {
        let runs = taken
            .iter()
            .filter(|(from, _)| is_in_queue(*from, change.to));
        runs.map(|(_, loaded)| vec![Param::count(loaded.run.seq.0)])
            .collect()
    };
    let left = places(|from, _| from == Phase::Queued);
    let gone = tx.sql.run_each("DELETE FROM queue WHERE seq = $1", &left);
    if gone.await?.is_some() {
        return Err(StoreError::Damaged(
            "a queued run has no place in the queue".into(),
        ));
    }
    let entered = places(|_, to| to == Phase::Queued);
    tx.sql
        .run_each("INSERT INTO queue (seq) VALUES ($1)", &entered)
        .await?;
    tellings::open_again(tx, change.to, taken).await?;
    let events: Vec<_> = taken
        .iter()
        .map(|(_, loaded)| {
            let run = &loaded.run;
            let told = (run.phase, run.cause, run.attempts);
            phase_event(run, run.id, told, change.time)
        })
        .collect();
    tx.emit_all(&events).await
}

/// What the moves change in the counts of tenants and of sweeps.
async fn write_counts<S: Sql>(
    tx: &mut Tx<S>,
    change: &UnleasedMove,
    taken: &[(Phase, Loaded)],
) -> Result<(), StoreError> {
    let mut tenants: BTreeMap<&Tenant, PhaseCounts> = BTreeMap::new();
    let mut sweeps: BTreeMap<i64, (PhaseCounts, &Loaded)> = BTreeMap::new();
    for (from, loaded) in taken {
        let count = |counts: &mut PhaseCounts| {
            counts[phase_code(*from)] -= 1;
            counts[phase_code(change.to)] += 1;
        };
        count(tenants.entry(&loaded.run.tenant).or_default());
        if let Some(parent) = loaded.parent {
            let sweep = sweeps.entry(parent);
            count(&mut sweep.or_insert((PhaseCounts::default(), loaded)).0);
        }
    }
    for (tenant, delta) in tenants {
        count_tenant(&mut tx.sql, tenant, &delta).await?;
    }
    for (parent, (delta, point)) in sweeps {
        sweep_moved(tx, &point.run, parent, &delta, change.time).await?;
    }
    Ok(())
}
