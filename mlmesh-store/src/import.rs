//! Runs that ended elsewhere: one write that takes over a run, or a sweep with its
//! points, as it was recorded there. What it says is the caller's to check.

use mlmesh_model::{Attempt, Import, Phase, Run, RunId, RunKind, StoreError};

use crate::crash::{self, Stage, WriteKind};
use crate::group::Tx;
use crate::laws::sweep_phase;
use crate::sql::{Param, Sql, to_json};
use crate::write::{emit_phase, insert_counts, insert_runs, points_by_phase, time_or_null};

pub(crate) async fn import<S: Sql>(tx: &mut Tx<S>, mut import: Import) -> Result<(), StoreError> {
    let points = points_by_phase(&import.runs);
    let times = |of: RunId, time: fn(&Run) -> Option<i64>| {
        let points = import
            .runs
            .iter()
            .filter(move |run| matches!(run.kind, RunKind::Child { parent, .. } if parent == of));
        points.filter_map(time).collect::<Vec<_>>()
    };
    let mut sweeps = Vec::new();
    for (place, run) in import.runs.iter().enumerate() {
        if let RunKind::Parent { .. } = run.kind {
            let phase = sweep_phase(&points.get(&run.id).copied().unwrap_or_default());
            let began = times(run.id, |run| run.started_at.map(|time| time.0));
            let ended = times(run.id, |run| run.ended_at.map(|time| time.0));
            sweeps.push((
                place,
                phase,
                began.into_iter().min(),
                ended.into_iter().max(),
            ));
        }
    }
    for (place, phase, began, ended) in sweeps {
        let run = &mut import.runs[place];
        run.phase = phase;
        run.started_at = began.map(mlmesh_model::Micros);
        run.ended_at = ended.map(mlmesh_model::Micros);
    }
    for run in &mut import.runs {
        if !run.phase.is_ended() {
            return Err(StoreError::MoveNotAllowed {
                run: run.id,
                from: run.phase,
                to: Phase::Completed,
            });
        }
        run.seq = tx.next_seq();
    }
    insert_runs(tx, &import.runs).await?;
    insert_counts(tx, &import.runs).await?;
    for attempt in &import.attempts {
        let run = import.runs.iter().find(|run| run.id == attempt.run);
        insert_attempt(tx, run.ok_or(StoreError::NoRun(attempt.run))?, attempt).await?;
    }
    for run in &import.runs {
        let state = (run.phase, run.cause, run.attempts);
        emit_phase(tx, run, run.id, state, import.audit.time).await?;
    }
    tx.audit(import.audit).await?;
    crash::hit(WriteKind::Submit, Stage::RowsWritten);
    Ok(())
}

async fn insert_attempt<S: Sql>(
    tx: &mut Tx<S>,
    run: &Run,
    attempt: &Attempt,
) -> Result<(), StoreError> {
    const INSERT: &str = "INSERT INTO attempts (run, number, token, node, boot_id, leased_at, \
         started_at, ended_at, exit, cause) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    let exit = attempt.exit.as_ref().map(to_json).transpose()?;
    let params = [
        Param::count(run.seq.0),
        Param::int(attempt.number.0),
        Param::count(attempt.token.0),
        Param::text(attempt.node.as_str()),
        Param::text(&attempt.boot_id),
        Param::Int(attempt.leased_at.0),
        time_or_null(attempt.started_at),
        time_or_null(attempt.ended_at),
        Param::or_null(exit.map(Param::owned)),
        Param::or_null(attempt.cause.map(|cause| Param::text(cause.as_str()))),
    ];
    tx.sql.run(INSERT, &params).await?;
    Ok(())
}
